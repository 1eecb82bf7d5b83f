"""What the core asks its driver to do. Effects are carried out in order; a Send waits for every Persist before it."""

from collections.abc import Sequence
from dataclasses import dataclass

from bcami.ledger.store import LedgerCommit
from bcami.model.block import BlockCertificate, Header
from bcami.model.chain import BlockBundle, StateRow
from bcami.model.events import Observation, Refused
from bcami.model.reasons import Reason
from bcami.model.wire import PeerMessage


@dataclass(frozen=True, slots=True)
class Persist:
    """Make promises durable (votes, endorsed batches) and delete those that are kept. Before any later Send."""

    puts: Sequence[tuple[bytes, bytes]]
    deletes: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Send:
    """Send to one peer."""

    to: int
    message: PeerMessage


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Send to every other node."""

    message: PeerMessage


@dataclass(frozen=True, slots=True)
class CommitBlock:
    """Write an executed block; the driver reports it with `NodeCore.block_durable`."""

    commit: LedgerCommit
    certificate: BlockCertificate | None
    """Known already when the block comes from catch-up: of this block, or of a later one."""

    @property
    def own_certificates(self) -> tuple[BlockCertificate, ...]:
        """What is to be written with the block, in the same write."""
        known = self.certificate
        return (known,) if known is not None and known.height == self.commit.block.header.height else ()


@dataclass(frozen=True, slots=True)
class SaveCertificate:
    """Write the certificate of a durable block; nothing waits for it."""

    certificate: BlockCertificate


@dataclass(frozen=True, slots=True)
class StageSnapshot:
    """Keep parts of a snapshot aside; the driver reports each with `NodeCore.snapshot_staged`."""

    bundles: tuple[BlockBundle, ...]
    rows: Sequence[StateRow]
    fresh: bool = False
    """Drop what was staged before."""


@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """Take over what is staged, after it is; the driver reports it with `NodeCore.snapshot_installed`."""

    header: Header
    certificate: BlockCertificate
    lthash: bytes


@dataclass(frozen=True, slots=True)
class SetTimer:
    name: str
    delay_ms: int


@dataclass(frozen=True, slots=True)
class CancelTimer:
    name: str


@dataclass(frozen=True, slots=True)
class TicketReady:
    """Every result of a submission is known."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Observe:
    observation: Observation


@dataclass(frozen=True, slots=True)
class MoreWork:
    """Call `NodeCore.work` again, after a look at the network: signatures are checked in slices."""


Effect = (
    Persist
    | Send
    | Broadcast
    | CommitBlock
    | SaveCertificate
    | StageSnapshot
    | InstallSnapshot
    | SetTimer
    | CancelTimer
    | TicketReady
    | Observe
    | MoreWork
)


class Outbox:
    """Collects the effects of one thing that happened, in order, from all parts of the core."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []

    def add(self, effect: Effect) -> None:
        self._effects.append(effect)

    def observe(self, observation: Observation) -> None:
        self._effects.append(Observe(observation))

    def refuse(self, source: str, reason: Reason, peer: int | None = None, count: int = 1, detail: str = "") -> None:
        """Say that something was refused, where, and why."""
        self.observe(Refused(source, reason, peer, count, detail))

    def take(self) -> list[Effect]:
        """Return what was collected and begin anew."""
        taken, self._effects = self._effects, []
        return taken
