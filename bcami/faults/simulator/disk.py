"""What a node has on disk, and what may happen to it.

Like LMDB's, a write is whole or not there; what differs is whether one that was under way at a crash is there. Every
record carries a checksum (tests/unit/ledger), so a flipped bit and a misdirected write are found at the next start, as
`bcami.processes.node` checks both stores before it opens them. What no checksum can show is a whole older state of the
vote log: a write that was acknowledged and never made, or a restored backup. Such a node counts as Byzantine; one whose
vote log is gone or damaged knows it, and never signs again (protocol 6.3).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Self

from bcami.ledger.memory import MemoryLedger, MemoryPromises


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """How disks behave while faults last."""

    write_ms: tuple[int, int] = (0, 3)
    crash_at_write: float = 0.0
    """Chance that a node crashes as one of its writes ends, before or after it counts."""
    fail: float = 0.0
    """Chance that a write is refused: fsync error, no space, read-only (fault F16). The data may be there or not."""


class DiskError(Exception):
    """The disk refused a write."""


@dataclass(slots=True)
class Disk:
    """What survives the end of a process."""

    make_ledger: Callable[[], MemoryLedger]
    """Gives a ledger that knows only how every run begins."""
    ledger: MemoryLedger
    promises: MemoryPromises
    is_full: bool = False
    is_amnesiac: bool = False
    """The vote log was lost; the mark of it never goes (protocol 6.3)."""
    backups: list[dict[bytes, bytes]] = field(default_factory=list)

    @classmethod
    def fresh(cls, make_ledger: Callable[[], MemoryLedger]) -> Self:
        return cls(make_ledger, make_ledger(), MemoryPromises())

    def rebuild(self) -> None:
        """Put a damaged ledger aside: the node gets its blocks from its peers and keeps what it promised."""
        self.ledger = self.make_ledger()

    def lose_promises(self) -> None:
        """Lose the vote log: the key beside it is dead from here on."""
        self.promises = MemoryPromises()
        self.is_amnesiac = True

    def back_up(self) -> None:
        self.backups.append(dict(self.promises.records))

    def restore_backup(self, draw: Random) -> None:
        """Come back with an older vote log."""
        self.promises = MemoryPromises(dict(draw.choice(self.backups)) if self.backups else {})
