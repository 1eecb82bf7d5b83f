"""`FaultyNode`: a node that misbehaves as long as a lease says so, and is an honest one otherwise.

It is the very `NodeCore`, with a gate on each way in and out. Leases end by the time that the driver passes in; no
step applies a behaviour whose lease is over. What a behaviour holds back is sent when its time comes, lease or not.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from bcami.contract.runtime import Runtime
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.faults.behaviour import AnyBehaviour
from bcami.ledger.store import Ledger
from bcami.model.batch import Endorsement, endorsement_digest
from bcami.model.consensus import Checkpoint, Commit, NewView, Prepare, PrePrepare, ViewChange
from bcami.model.reasons import Reason
from bcami.model.registration import ContributionAnswer, ContributionRequest
from bcami.model.transaction import Transaction
from bcami.model.wire import PeerMessage
from bcami.node.core.core import NodeCore
from bcami.node.core.effects import Effect, MoreWork, Send, SetTimer
from bcami.pbft.statements import Statements

TICK_MS: Final = 100
_TICK: Final = "fault/tick"
_HELD: Final = "fault/held"
ENDED_MAX: Final = 64
HELD_MAX: Final = 20_000
"""Messages held back at most; more leave at once."""

Signable = PrePrepare | Prepare | Commit | Checkpoint | ViewChange | NewView | Endorsement
Signed = TypeVar("Signed", bound=Signable)


@dataclass(frozen=True, slots=True)
class Lease:
    """A behaviour that is shown until a time."""

    number: int
    behaviour: AnyBehaviour
    since_ms: int
    until_ms: int


class FaultyNode(NodeCore):
    """One node that can be told to misbehave."""

    def __init__(
        self,
        roster: Roster,
        replica: int,
        signer: Signer,
        runtime: Runtime,
        ledger: Ledger,
        promises: Iterable[tuple[bytes, bytes]] | None,
        contribution_secret: bytes,
    ) -> None:
        self.statements = Statements(roster, replica, signer)
        self._liar = signer  # a node that lost its vote log and lies signs all the same
        self.others = tuple(peer for peer in range(roster.quorum.n) if peer != replica)
        self._leases: list[Lease] = []
        self._ended: deque[Lease] = deque(maxlen=ENDED_MAX)
        self._lease_count = 0
        self._held: list[tuple[int, int, Send]] = []
        self._held_count = 0
        self._armed_ms: int | None = None
        self._is_ticking = False
        self._now_ms = 0
        super().__init__(roster, replica, signer, runtime, ledger, promises, contribution_secret)

    # Leases.

    def inject(self, behaviour: AnyBehaviour, for_ms: int, now_ms: int) -> Lease:
        """Show the behaviour from the next step on, for so long."""
        if for_ms <= 0:
            raise ValueError("every fault ends, and lasts a while")
        self._lease_count += 1
        lease = Lease(self._lease_count, behaviour, now_ms, now_ms + for_ms)
        self._leases.append(lease)
        self._leases.sort(key=lambda item: item.behaviour.order)
        return lease

    def stop_faults(self) -> int:
        """End all leases; returns how many there were."""
        count = len(self._leases)
        self._ended.extend(self._leases)
        self._leases.clear()
        return count

    def leases(self, now_ms: int) -> list[Lease]:
        """Return what is shown now."""
        over = [lease for lease in self._leases if lease.until_ms <= now_ms]
        if over:
            self._ended.extend(over)
            self._leases = [lease for lease in self._leases if lease.until_ms > now_ms]
        return list(self._leases)

    def ended_leases(self) -> list[Lease]:
        """Return the newest leases that are over, with what their behaviours did."""
        return list(self._ended)

    # What behaviours may use.

    def sign(self, message: Signed) -> Signed:
        """Return the message with this node's own signature over what it says now."""
        if isinstance(message, Endorsement):
            digest = endorsement_digest(
                self.roster.chain,
                message.epoch,
                message.collector,
                message.number,
                message.batch_digest,
                message.count,
                message.replica,
                message.refusals,
            )
        else:
            digest = self.statements.digest_of(message)
        return msgspec.structs.replace(message, signature=self._liar.sign(digest))

    def sign_digest(self, digest: bytes) -> bytes:
        return self._liar.sign(digest)

    def hold_back(self, to: int, message: PeerMessage, until_ms: int) -> bool:
        """Send the message later; False when too much is held back already."""
        if len(self._held) >= HELD_MAX:
            return False
        self._held_count += 1
        heapq.heappush(self._held, (until_ms, self._held_count, Send(to, message)))
        return True

    def take_in(self, transactions: Sequence[Transaction]) -> list[Effect]:
        """Put transactions into the own queue as if a client had sent them."""
        ticket, ids, effects = super().submit(transactions, wait=False)
        super().close_ticket(ticket, ids)
        return effects

    # The ways in and out.

    def start(self, now_ms: int) -> list[Effect]:
        return self._leave(super().start(now_ms), now_ms)

    def timer(self, name: str, now_ms: int) -> list[Effect]:
        if name == _TICK:
            self._is_ticking = False
            return self._leave([], now_ms, is_tick=True)
        if name == _HELD:
            self._armed_ms = None
            return self._leave([], now_ms)
        return self._leave(super().timer(name, now_ms), now_ms)

    def connected(self, peer: int) -> list[Effect]:
        return self._leave(super().connected(peer), self._now_ms)

    def disconnected(self, peer: int) -> list[Effect]:
        return self._leave(super().disconnected(peer), self._now_ms)

    def receive(self, peer: int, message: PeerMessage, now_ms: int) -> list[Effect]:
        for lease in self.leases(now_ms):
            if not lease.behaviour.incoming(self, peer, message, now_ms):
                lease.behaviour.acted += 1
                return self._leave([], now_ms)
        return self._leave(super().receive(peer, message, now_ms), now_ms)

    def submit(self, transactions: Sequence[Transaction], wait: bool) -> tuple[int, list[bytes], list[Effect]]:
        ticket, ids, effects = super().submit(transactions, wait)
        return ticket, ids, self._leave(effects, self._now_ms)

    def work(self, now_ms: int) -> list[Effect]:
        return self._leave(super().work(now_ms), now_ms)

    def block_durable(self, height: int, now_ms: int) -> list[Effect]:
        return self._leave(super().block_durable(height, now_ms), now_ms)

    def snapshot_staged(self, now_ms: int) -> list[Effect]:
        return self._leave(super().snapshot_staged(now_ms), now_ms)

    def snapshot_installed(self, now_ms: int) -> list[Effect]:
        return self._leave(super().snapshot_installed(now_ms), now_ms)

    def contribute(self, request: ContributionRequest, now_ms: int) -> ContributionAnswer | Reason:
        answer = super().contribute(request, now_ms)
        for lease in self.leases(now_ms):
            if isinstance(answer, ContributionAnswer):
                changed = lease.behaviour.answer(self, request, answer)
                lease.behaviour.acted += changed is not answer
                answer = changed
        return answer

    def _check(self, tx: Transaction, tx_id: bytes, now_ms: int) -> Reason | None:
        reason = super()._check(tx, tx_id, now_ms)
        for lease in self.leases(now_ms):
            changed = lease.behaviour.verdict(self, tx, reason)
            lease.behaviour.acted += changed is not reason
            reason = changed
        return reason

    def _leave(self, effects: Sequence[Effect], now_ms: int, *, is_tick: bool = False) -> list[Effect]:
        """Let each behaviour change what leaves; what one does by itself passes those after it."""
        self._now_ms = max(self._now_ms, now_ms)
        leaving = list(effects)
        leases = self.leases(now_ms)
        for lease in leases:
            leaving = lease.behaviour.outgoing(self, leaving, now_ms)
            if is_tick:
                forged = lease.behaviour.tick(self, now_ms)
                lease.behaviour.acted += sum(not isinstance(effect, MoreWork) for effect in forged)
                leaving += forged
        leaving += self._due(now_ms)
        if leases and not self._is_ticking:
            self._is_ticking = True
            leaving.append(SetTimer(_TICK, TICK_MS))
        return leaving

    def _due(self, now_ms: int) -> list[Effect]:
        """Return what was held back until now, and a timer for the rest."""
        due: list[Effect] = []
        while self._held and self._held[0][0] <= now_ms:
            due.append(heapq.heappop(self._held)[2])
        if self._held and (self._armed_ms is None or self._held[0][0] < self._armed_ms):
            self._armed_ms = self._held[0][0]
            due.append(SetTimer(_HELD, max(1, self._armed_ms - now_ms)))
        return due


def describe(lease: Lease, now_ms: int) -> dict[str, Any]:
    """Return a lease for people and programs."""
    return {
        "lease": lease.number,
        "behaviour": lease.behaviour.name,
        "options": msgspec.to_builtins(lease.behaviour.options),
        "left_s": round(max(0, lease.until_ms - now_ms) / 1000, 3),
        "acted": lease.behaviour.acted,
    }
