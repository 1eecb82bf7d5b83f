"""Nodes that drop payloads, and when behind is far: what makes a late node take a snapshot.

There is no MDMS in a run: what is certified counts as acknowledged, after a drawn while. The payloads of all blocks are
kept here, for the audit that executes the chain again.
"""

from dataclasses import dataclass
from typing import Final

from bcami.faults.simulator.events import Events, stream
from bcami.faults.simulator.node import Machine
from bcami.ledger.store import LedgerCommit
from bcami.model.chain import StoredBatch
from bcami.node.core.catchup import FAR_BLOCKS

PRUNES: Final = 0.35
"""Share of the seeds whose nodes prune."""
FAR: Final = 0.15
"""Share of the seeds in which few blocks are many."""


@dataclass(frozen=True, slots=True)
class PruningPlan:
    """Drawn apart from the rest of a plan, which stays as it was."""

    every_ms: int
    """0: never."""
    keep_blocks: int
    far_blocks: int

    @classmethod
    def draw(cls, seed: int) -> "PruningPlan":
        draw = stream(seed, "pruning")
        every_ms = draw.choice((100, 400, 1_500)) if draw.random() < PRUNES else 0
        far_blocks = draw.choice((2, 8)) if draw.random() < FAR else FAR_BLOCKS
        return cls(every_ms, draw.choice((0, 1, 4)), far_blocks)


class Pruning:
    """Prunes all disks of a run now and then, each as far as it is certified there."""

    def __init__(self, plan: PruningPlan, events: Events, machines: list[Machine]) -> None:
        self.plan = plan
        self._events = events
        self._machines = machines
        self._batches: dict[int, tuple[StoredBatch, ...]] = {}

    def begin(self) -> None:
        if self.plan.every_ms:
            self._events.after(self.plan.every_ms, self._prune)

    def keep(self, commit: LedgerCommit) -> None:
        """Keep what some node has executed with all its payloads."""
        self._batches.setdefault(commit.block.header.height, commit.batches)

    def batches(self, height: int) -> tuple[StoredBatch, ...]:
        """Return the batches of a block, whole."""
        return self._batches.get(height, ())

    def _prune(self) -> None:
        self._events.after(self.plan.every_ms, self._prune)
        for machine in self._machines:
            ledger = machine.disk.ledger
            height = ledger.certified_height - self.plan.keep_blocks
            if height > ledger.pruned_to:
                ledger.prune(height)
