"""Ordering alone, in rounds: PBFT replicas that execute by hashing, for the modes that need very many schedules.

The replicas are `bcami.pbft.Replica`, unchanged, each with a disk of its own. What stands in: executing a block appends
its proposal to a hash chain, batch certificates are taken as good, catch-up copies a certified chain from whom the node
hears. Left out on purpose: time (a timer fires when the schedule says so), write delays (a promise is durable at once;
the swarm of `plan` looks at those) and everything outside ordering.

A *round* sets who hears whom, hands every instance one more certificate to order, fires timers and carries messages
until nobody has anything to say. One node may run as several *instances* with one key: Twins.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from typing import Final

from bcami.codec import Codec
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.faults.simulator.agreement import Agreement, Violation
from bcami.faults.simulator.events import START_MS
from bcami.faults.simulator.evidence import Contradictions
from bcami.faults.simulator.identities import identities
from bcami.model.batch import BatchCertificate, CertificateVote
from bcami.model.block import BlockCertificate
from bcami.model.consensus import (
    Checkpoint,
    Commit,
    ConsensusMessage,
    NewView,
    Prepare,
    PrePrepare,
    Proposal,
    proposal_digest,
)
from bcami.model.events import EquivocationSeen
from bcami.model.genesis import Parameters
from bcami.model.quorum import Quorum
from bcami.model.reasons import Reason
from bcami.pbft import effects as out
from bcami.pbft import inputs
from bcami.pbft.lanes import lanes_after
from bcami.pbft.records import NEW_VIEW, RECORD_BYTES_MAX, Restored
from bcami.pbft.replica import Replica
from bcami.pbft.timers import CATCH_UP, CERTIFY, RELAY, VIEW, VIEW_CHANGE

STEPS_MAX: Final = 50_000
"""Messages of one round; a round that goes on for ever is a bug of its own."""
ROUND_MS: Final = 1_000
_VOTE: Final = CertificateVote(0, (), bytes(64))
_NEW_VIEW: Final[Codec[NewView]] = Codec(NewView, RECORD_BYTES_MAX)

Part = frozenset[int]


@dataclass(frozen=True, slots=True)
class DrawnLeaders(Quorum):
    """A quorum whose first views are led by whom the schedule says; later ones in turn."""

    leaders: list[int] = field(default_factory=list)
    """Grows while the schedule does: nobody is in view k before round k."""

    def primary(self, view: int) -> int:
        return self.leaders[view] if view < len(self.leaders) else view % self.n


@lru_cache(maxsize=64)
def _identities(nodes: int, window: int) -> tuple[Roster, tuple[Signer, ...]]:
    network = identities(nodes, Parameters(window=window), real=False)
    return network.roster, network.consensus


def _certificate(collector: int, number: int) -> BatchCertificate:
    digest = sha256(b"%d/%d" % (collector, number)).digest()
    return BatchCertificate(0, collector, number, digest, 1, (_VOTE,))


def _any_certificate(_: BatchCertificate) -> Reason | None:
    """Batch certificates are not what is looked at here."""
    return None


@dataclass(slots=True)
class Instance:
    """One replica object with a disk: for an honest node the only one, for a twin one of two."""

    index: int
    replica: int
    roster: Roster
    signer: Signer
    disk: dict[bytes, bytes] = field(default_factory=dict)
    chain: list[tuple[bytes, Proposal, bytes]] = field(default_factory=list)
    """(header hash, proposal, proposal digest) of each height from 1 on."""
    certificates: dict[int, BlockCertificate] = field(default_factory=dict)
    lanes: tuple[int, ...] = ()
    timers: set[str] = field(default_factory=set)
    wanted: int = 0
    """Height up to which blocks are asked for."""
    pbft: Replica = field(init=False)

    def begin(self, now_ms: int) -> list[out.Effect]:
        """Start, or start again, from what is on the disk."""
        self.lanes = self.lanes or (0,) * self.roster.quorum.n
        self.timers.clear()
        self.wanted = 0
        certified = max((height for height in self.certificates if height <= len(self.chain)), default=0)
        headers = tuple((height, self.chain[height - 1][0]) for height in range(certified + 1, len(self.chain) + 1))
        stable = self.certificates[certified] if certified else None
        restored = Restored(list(self.disk.items()), len(self.chain), stable, self.lanes, headers)
        self.pbft = Replica(self.roster, self.replica, self.signer, _any_certificate, restored)
        return self.pbft.start(now_ms)

    def append(self, proposal: Proposal, digest: bytes) -> bytes:
        """Execute: the header is a hash of the one before and of the proposal."""
        before = self.chain[-1][0] if self.chain else bytes(32)
        header_hash = sha256(before + digest).digest()
        self.chain.append((header_hash, proposal, digest))
        self.lanes = lanes_after(self.lanes, proposal)
        return header_hash


Alter = Callable[[Instance, Instance, ConsensusMessage], Sequence[ConsensusMessage]]
"""(sender, receiver, message) -> what arrives in its place."""
Choose = Callable[[int], int]
"""How many messages wait -> which of them comes next."""


class Rounds:
    """A group of instances. `parts` says who hears whom; raises Violation from whatever shows one."""

    def __init__(self, nodes: int, window: int, twins: Iterable[int] = ()) -> None:
        self.nodes = nodes
        self.excused: set[int] = set(twins)
        """Nodes of which nothing is expected."""
        plain, signers = _identities(nodes, window)
        self.leaders: list[int] = []
        roster = replace(plain, quorum=DrawnLeaders(nodes, self.leaders))
        ids = [*range(nodes), *sorted(self.excused)]
        self.instances = [Instance(index, replica, roster, signers[replica]) for index, replica in enumerate(ids)]
        self.agreement = Agreement()
        self.parts: tuple[Part, ...] = (frozenset(range(len(ids))),)
        self.alter: Alter | None = None
        self.choose: Choose | None = None
        self.round = 0
        self.steps = 0
        self.given = [0] * nodes
        self._waiting: deque[tuple[int, int, ConsensusMessage]] = deque()
        self._said: dict[tuple[object, ...], bytes] = {}
        self.contradictions = Contradictions(roster, self.excused)
        for item in self.instances:
            self._begin(item)

    # One round.

    def play(self, leader: int, parts: Sequence[Part], *, asking: bool = True, asleep: Iterable[int] = ()) -> None:
        """Play one round: `asking` lets statuses go round, the timers of instances in `asleep` do not fire.

        The view that instances with a timer may now move to is led by `leader`.
        """
        self.parts = tuple(parts)
        self.leaders.append(leader)
        self._give()
        if self.round:
            for item in self.instances:
                if item.index not in asleep:
                    self._fire(item)
        if asking:
            self._ask()
        self._settle()
        self.contradictions.check()
        self.round += 1

    def restart(self, index: int) -> None:
        """End an instance and start it from its disk; certificates that wait are gossiped to it again."""
        item = self.instances[index]
        self._begin(item)
        for collector, last in enumerate(self.given):
            for number in range(item.lanes[collector] + 1, last + 1):
                self._step(item, inputs.CertificateReady(_certificate(collector, number)))

    def _begin(self, item: Instance) -> None:
        self.contradictions.begins(item.replica)
        self._run(item, item.begin(self._clock_ms(item)))

    def _clock_ms(self, item: Instance) -> int:
        """Every instance has a clock of its own, so that no two propose the same."""
        return START_MS + self.round * ROUND_MS + item.index

    def _give(self) -> None:
        """Let everybody know one more batch certificate; the lanes take turns."""
        collector = self.round % self.nodes
        self.given[collector] += 1
        certificate = _certificate(collector, self.given[collector])
        for item in self.instances:
            self._step(item, inputs.CertificateReady(certificate))

    def _fire(self, item: Instance) -> None:
        if CATCH_UP in item.timers:
            item.timers.discard(CATCH_UP)
            self._step(item, inputs.TimerFired(CATCH_UP))
        for name in sorted(name for name in item.timers if name.startswith(RELAY)):  # all have every certificate
            item.timers.discard(name)
            self._step(item, inputs.TimerFired(name))
        for name in (VIEW, VIEW_CHANGE, CERTIFY):
            if name in item.timers:
                item.timers.discard(name)
                self._step(item, inputs.TimerFired(name))
                return

    def _ask(self) -> None:
        for item in self.instances:
            status = item.pbft.status()
            for other in self._hearers(item):
                self._step(other, inputs.PeerStatus(status))

    def _settle(self) -> None:
        """Carry messages, then blocks, until nobody has anything to say."""
        waiting, began = self._waiting, self.steps
        while True:
            while waiting:
                if self.choose is not None:
                    waiting.rotate(-self.choose(len(waiting)))
                _, receiver, message = waiting.popleft()
                self._receive(self.instances[receiver], message)
                if self.steps - began > STEPS_MAX:
                    raise Violation("alive", f"round {self.round} does not end")
            if not sum(self._catch_up(item) for item in self.instances):
                return

    def _receive(self, item: Instance, message: ConsensusMessage) -> None:
        told = (
            self.contradictions.arrives(item.replica, item.pbft, message) if message.replica in self.excused else None
        )
        self.steps += 1
        effects = item.pbft.step(inputs.Received(message), self._clock_ms(item))
        if told is not None:
            seen = [effect.observation for effect in effects if isinstance(effect, out.Observe)]
            self.contradictions.taken(told, item.pbft, seen)
        self._run(item, effects)

    def _hearers(self, sender: Instance) -> list[Instance]:
        part = next(item for item in self.parts if sender.index in item)
        return [other for other in self.instances if other.index in part and other.replica != sender.replica]

    # Effects.

    def _step(self, item: Instance, event: inputs.Input) -> None:
        self.steps += 1
        self._run(item, item.pbft.step(event, self._clock_ms(item)))

    def _run(self, item: Instance, effects: Sequence[out.Effect]) -> None:
        executed: list[inputs.Executed] = []
        is_honest = item.replica not in self.excused
        for effect in effects:
            match effect:
                case out.Persist(key, value):
                    item.disk[key] = value
                    if key == NEW_VIEW and is_honest:
                        self.agreement.enters(_NEW_VIEW.decode(value))
                case out.Forget(keys):
                    for key in keys:
                        item.disk.pop(key, None)
                case out.Broadcast(message):
                    self._send(item, message, self._hearers(item))
                case out.SendTo(replica, message):
                    self._send(item, message, [other for other in self._hearers(item) if other.replica == replica])
                case out.SetTimer(name, _):
                    item.timers.add(name)
                case out.CancelTimer(name):
                    item.timers.discard(name)
                case out.Decided(height, proposal, view):
                    if height == len(item.chain) + 1:
                        digest = proposal_digest(item.roster.chain, item.roster.epoch, proposal)
                        if is_honest:
                            self.agreement.decides(item.replica, height, digest, view)
                        header_hash = item.append(proposal, digest)
                        executed.append(inputs.Executed(height, header_hash, item.lanes))
                case out.Certified(certificate):
                    item.certificates[certificate.height] = certificate
                case out.NeedBlocks(target_height):
                    item.wanted = max(item.wanted, target_height)
                case out.Observe(EquivocationSeen() as seen):
                    if is_honest:
                        self.contradictions.observed(item.replica, seen)
                case out.Halt(reason):
                    if is_honest:
                        raise Violation("alive", f"node {item.replica} halts: {reason}")
                case _:
                    pass
        for event in executed:
            self._step(item, event)

    def _send(self, item: Instance, message: ConsensusMessage, hearers: Iterable[Instance]) -> None:
        if item.replica not in self.excused and message.replica == item.replica:
            self._check_once(message)
        for other in hearers:
            arriving = (message,) if self.alter is None else self.alter(item, other, message)
            self._waiting.extend((item.index, other.index, arrived) for arrived in arriving)

    def _check_once(self, message: ConsensusMessage) -> None:
        """I5: no honest node says two things at one place, restarts included."""
        kind = type(message).__name__
        if isinstance(message, PrePrepare | Prepare | Commit):
            place: tuple[object, ...] = (message.replica, kind, message.view, message.height)
            said = message.digest
        elif isinstance(message, Checkpoint):
            place, said = (message.replica, kind, message.height), message.header_hash
        else:
            place, said = (message.replica, kind, message.view), message.signature
        if self._said.setdefault(place, said) != said:
            raise Violation("I5", f"node {message.replica} contradicts its own {place[1:]}")

    def _catch_up(self, item: Instance) -> bool:
        """Copy a certified chain from somebody who is heard, when blocks are asked for."""
        if not item.wanted:
            return False
        height = len(item.chain)
        certified = [(max(other.certificates, default=0), other) for other in self._hearers(item)]
        best, source = max(
            certified, key=lambda found: (min(found[0], len(found[1].chain)), -found[1].index), default=(0, item)
        )
        best = min(best, len(source.chain))
        while best > height and best not in source.certificates:
            best -= 1
        if best <= height or item.pbft.is_halted:
            return False
        item.wanted = 0
        for at in range(height + 1, best + 1):
            _, proposal, digest = source.chain[at - 1]
            if item.replica not in self.excused:
                self.agreement.decides(item.replica, at, digest, None)
            item.append(proposal, digest)
        self._step(item, inputs.Synced(best, item.chain[-1][0], source.certificates[best], item.lanes))
        return True

    # The end.

    @property
    def convicted(self) -> set[int]:
        """Return the replicas against which an honest node has evidence."""
        return self.contradictions.convicted

    def heal(self, rounds: int) -> None:
        """Let everybody hear everybody; raises Violation when honest nodes are not in step after so many rounds."""
        self.parts = (frozenset(range(len(self.instances))),)
        for _ in range(rounds):
            self._ask()
            self._settle()
            self.contradictions.check()
            if self._is_in_step():
                return
            for item in self.instances:
                self._fire(item)
            self._settle()
        if not self._is_in_step():
            raise Violation("I11", f"no agreement {rounds} rounds after everybody hears everybody: {self.describe()}")

    def _is_in_step(self) -> bool:
        honest = [item for item in self.instances if item.replica not in self.excused]
        first = honest[0]
        return all(
            len(item.chain) == len(first.chain) == item.pbft.low_watermark and list(item.lanes) == self.given
            for item in honest
        )

    def describe(self) -> str:
        """Return where everybody stands."""
        return "; ".join(
            f"{item.index}({item.replica}) v{item.pbft.view}{'?' if item.pbft.in_view_change else ''}"
            f" {len(item.chain)}/{item.pbft.low_watermark}"
            for item in self.instances
        )
