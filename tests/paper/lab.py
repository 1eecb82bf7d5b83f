"""One replica on the bench: the test plays all others, holds the disk, and sees each effect."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from bcami.model.block import BlockCertificate
from bcami.model.consensus import (
    Checkpoint,
    Commit,
    ConsensusMessage,
    NewView,
    PhaseVote,
    Prepare,
    PreparedProof,
    PrePrepare,
    Proposal,
    ViewChange,
)
from bcami.model.events import EquivocationSeen, Refused
from bcami.pbft import (
    Broadcast,
    CancelTimer,
    CertificateReady,
    Certified,
    Decided,
    Effect,
    Executed,
    Forget,
    Halt,
    Input,
    NeedBlocks,
    Observe,
    Persist,
    Received,
    Replica,
    Restored,
    SendTo,
    SetTimer,
    TimerFired,
    lanes_after,
)
from bcami.pbft.proofs import choose
from bcami.pbft.statements import Statements
from tests.paper.keys import ToySigner, batch, block_certificate, check, roster_of, statements_of

NOW_MS = 1_700_000_000_000
E = TypeVar("E", bound=Effect)


def header(height: int, salt: str = "") -> bytes:
    from hashlib import sha256

    return sha256(f"header/{height}{salt}".encode()).digest()


class Lab:
    """Replica `own` of `n`, alone."""

    def __init__(self, own: int = 1, n: int = 4, **parameters: int) -> None:
        self.n = n
        self.own = own
        self.roster = roster_of(n, **{"view_timer_ms": 500, "fairness_ms": 4_000, **parameters})
        self.of = [statements_of(self.roster, replica) for replica in range(n)]
        self.now_ms = NOW_MS
        self.disk: dict[bytes, bytes] = {}
        self.timers: dict[str, int] = {}
        self.log: list[Effect] = []
        self.executed: list[tuple[bytes, tuple[int, ...]]] = []
        self.stable: BlockCertificate | None = None
        self.restart()

    def restart(self) -> list[Effect]:
        self.timers = {}
        lanes = self.executed[-1][1] if self.executed else (0,) * self.n
        restored = Restored(tuple(self.disk.items()), len(self.executed), self.stable, lanes)
        self.replica = Replica(self.roster, self.own, ToySigner(self.own), check, restored)
        return self._took(self.replica.start(self.now_ms))

    def _took(self, effects: Sequence[Effect]) -> list[Effect]:
        for effect in effects:
            match effect:
                case Persist(key, value):
                    self.disk[key] = value
                case Forget(keys):
                    for key in keys:
                        self.disk.pop(key, None)
                case SetTimer(name, delay_ms):
                    self.timers[name] = delay_ms
                case CancelTimer(name):
                    self.timers.pop(name, None)
                case Certified(certificate):
                    if certificate.height <= len(self.executed):
                        self.stable = certificate
        self.log += effects
        return list(effects)

    # Inputs.

    def step(self, event: Input) -> list[Effect]:
        return self._took(self.replica.step(event, self.now_ms))

    def hear(self, *messages: ConsensusMessage) -> list[Effect]:
        return [effect for message in messages for effect in self.step(Received(message))]

    def fire(self, name: str) -> list[Effect]:
        assert self.timers.pop(name, None) is not None, f"{name} does not run: {self.timers}"
        return self.step(TimerFired(name))

    def ready(self, *places: tuple[int, int]) -> list[Effect]:
        return [effect for place in places for effect in self.step(CertificateReady(batch(*place)))]

    def relay(self, *collectors: int) -> list[Effect]:
        """Let so much time pass that certificates of these collectors are passed on to the primary."""
        return [effect for collector in collectors for effect in self.fire(f"relay/{collector}")]

    def execute(self, height: int, proposal: Proposal | None = None, salt: str = "") -> list[Effect]:
        lanes = self.executed[-1][1] if self.executed else (0,) * self.n
        lanes = lanes_after(lanes, proposal) if proposal is not None else lanes
        assert height == len(self.executed) + 1
        self.executed.append((header(height, salt), lanes))
        return self.step(Executed(height, header(height, salt), lanes))

    # What others say.

    def others(self) -> list[int]:
        return [replica for replica in range(self.n) if replica != self.own]

    def proposal(self, *places: tuple[int, int], time_ms: int | None = None) -> Proposal:
        listed = tuple(batch(*place) for place in places or ((0, 1),))
        return Proposal(listed, self.now_ms if time_ms is None else time_ms)

    def primary(self, view: int) -> Statements:
        return self.of[view % self.n]

    def pre_prepare(self, view: int = 0, height: int = 1, proposal: Proposal | None = None) -> PrePrepare:
        return self.primary(view).pre_prepare(view, height, proposal or self.proposal((0, height)))

    def prepares(self, first: PrePrepare, *senders: int) -> list[Prepare]:
        return [self.of[sender].prepare(first.view, first.height, first.digest) for sender in senders]

    def commits(self, first: PrePrepare, *senders: int) -> list[Commit]:
        return [self.of[sender].commit(first.view, first.height, first.digest) for sender in senders]

    def checkpoints(self, height: int, *senders: int, salt: str = "") -> list[Checkpoint]:
        return [self.of[sender].checkpoint(height, header(height, salt)) for sender in senders]

    def certificate(self, height: int, signers: Iterable[int] = (0, 1, 2), salt: str = "") -> BlockCertificate:
        return block_certificate(self.roster, height, header(height, salt), list(signers))

    def proof(self, first: PrePrepare, senders: Sequence[int] | None = None) -> PreparedProof:
        backups = [replica for replica in range(self.n) if replica != first.view % self.n]
        chosen = backups[: self.roster.quorum.strong - 1] if senders is None else senders
        votes = self.prepares(first, *chosen)
        return PreparedProof(first, tuple(PhaseVote(vote.replica, vote.signature) for vote in votes))

    def view_change(
        self, sender: int, view: int = 1, stable: BlockCertificate | None = None, proofs: Sequence[PreparedProof] = ()
    ) -> ViewChange:
        return self.of[sender].view_change(view, stable, proofs)

    def new_view(self, changes: Sequence[ViewChange]) -> NewView:
        """Return what an honest new primary makes of the view-changes."""
        view = changes[0].view
        primary = self.primary(view)
        orders = [primary.pre_prepare(view, item.height, item.proposal) for item in choose(changes, primary).orders]
        return primary.new_view(view, changes, orders)

    def decide(self, height: int, view: int = 0, proposal: Proposal | None = None) -> PrePrepare:
        """Let all others take the replica through one height, executed and certified."""
        proposal = proposal or self.proposal((0, height))
        first = self.primary(view).pre_prepare(view, height, proposal)
        others = self.others()
        backups = [replica for replica in others if replica != view % self.n]
        if view % self.n != self.own:
            self.hear(first)
        self.hear(*self.prepares(first, *backups), *self.commits(first, *others))
        return first


def of(effects: Sequence[Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def said(effects: Sequence[Effect], kind: type | None = None) -> list[ConsensusMessage]:
    found = [effect.message for effect in effects if isinstance(effect, Broadcast)]
    return [message for message in found if kind is None or isinstance(message, kind)]


def refusals(effects: Sequence[Effect]) -> list[str]:
    return [
        effect.observation.reason.value
        for effect in effects
        if isinstance(effect, Observe) and isinstance(effect.observation, Refused)
    ]


def evidence(effects: Sequence[Effect]) -> list[EquivocationSeen]:
    return [
        effect.observation
        for effect in effects
        if isinstance(effect, Observe) and isinstance(effect.observation, EquivocationSeen)
    ]


__all__ = ["Decided", "Halt", "Lab", "NeedBlocks", "SendTo", "evidence", "header", "of", "refusals", "said"]
