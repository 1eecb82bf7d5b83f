"""Getting to where the others are: blocks while that works, a snapshot where it does not.

`catchup` knows whom to ask for which blocks, `snapshots` what has come of a snapshot; here is which of the two it is,
and what their answers do. While a snapshot comes no block is executed: it is installed on the ledger as it was when it
began.
"""

from typing import Final

from bcami.crypto.roster import Roster
from bcami.model import events
from bcami.model.chain import BlockBundle
from bcami.model.reasons import Reason
from bcami.model.wire import FetchBlocks, SnapshotPart
from bcami.node.core import effects as out
from bcami.node.core.catchup import CatchUp
from bcami.node.core.chain import Chain
from bcami.node.core.early import EarlyBlocks
from bcami.node.core.execution import Executor
from bcami.node.core.snapshots import Phase, SnapshotSync

WRITES_BEHIND_MAX: Final = 32
"""Blocks that catch-up executes ahead of the disk."""


class Sync:
    """Asks peers, and takes what they answer; the core asks it to go on whenever something moved."""

    def __init__(self, roster: Roster, catchup: CatchUp, chain: Chain, executor: Executor, outbox: out.Outbox) -> None:
        self._catchup = catchup
        self._chain = chain
        self._executor = executor
        self._out = outbox
        self._window = roster.genesis.parameters.window
        self.snapshots = SnapshotSync(roster)
        self._early = EarlyBlocks()
        self._source = 0

    def go_on(self, elapsed_ms: int) -> None:
        """Ask for what is due, of blocks or of a snapshot."""
        if not self.snapshots.is_installing:
            self._choose_way(elapsed_ms)
        executed = self._executor.height
        if self.snapshots.is_active:
            if not self.snapshots.is_busy:
                self._ask_for_snapshot(executed, elapsed_ms)
        elif not self._chain.is_suspended:
            self._ask_for_blocks(executed, elapsed_ms)

    def _choose_way(self, elapsed_ms: int) -> None:
        """Begin a snapshot where blocks lead no further; leave it when they do again.

        The next height is decided and its batches are here: then this node goes on by itself, whatever a peer claims.
        Its vote may be the one that the others lack for a newer snapshot, so waiting for one could be for ever. Not
        when a certified state more than a window above all that is decided here is coming: a liar could have kept old
        votes and batches, and give those of one block whenever a transfer has begun. Nearer, blocks come by themselves.
        """
        executed = self._executor.height
        can_execute = self._chain.can_execute
        if can_execute and self.snapshots.target <= max(self._chain.decided) + self._window:
            self.snapshots.end()
        if self.snapshots.is_active:
            return
        is_needed = not can_execute and self._catchup.needs_snapshot(executed, elapsed_ms)
        if is_needed and not self._chain.writing:  # what is under way is written first
            self.snapshots.begin(executed, self._executor.parent_hash)
        self._chain.suspend(is_needed)

    def _ask_for_blocks(self, height: int, elapsed_ms: int) -> None:
        if not self.snapshots.is_active and height > self._chain.durable + WRITES_BEHIND_MAX:
            return
        request = self._catchup.ask(height, elapsed_ms)
        if request is not None:
            peer, first, last = request
            self._out.observe(events.SyncProgress(height, self._catchup.best_certified, peer))
            self._out.add(out.Send(peer, FetchBlocks(first, last)))

    def _ask_for_snapshot(self, executed: int, elapsed_ms: int) -> None:
        snapshots = self.snapshots
        self._ask_for_part(elapsed_ms)
        overdue = snapshots.overdue(elapsed_ms)
        if overdue is not None:
            peer, again = overdue
            if again is not None:
                self._out.add(out.Send(peer, again))
                return
            self._catchup.failed(peer, elapsed_ms)
        if snapshots.phase is Phase.BLOCKS:
            self._ask_for_blocks(snapshots.height, elapsed_ms)
        elif snapshots.needs_peer:
            chosen = self._catchup.snapshot_peer(executed, elapsed_ms)
            if chosen is not None:
                self._source = chosen[0]
                self._out.observe(events.SyncProgress(executed, chosen[1], chosen[0]))
                self._out.add(out.Send(chosen[0], snapshots.choose(*chosen, elapsed_ms)))

    def gone(self, peer: int) -> None:
        """The peer is not connected any more."""
        self._catchup.gone(peer)
        self.snapshots.give_up(peer)

    def take_block(self, peer: int, bundle: BlockBundle, view: int, elapsed_ms: int) -> bool:
        """Take a block that was asked for; True when it was good, and is the next one here."""
        height = bundle.block.header.height
        if not self._catchup.expects(peer, height):
            return False
        if height > self._next_height:
            self._early.keep(peer, bundle, self._next_height)
            return False
        if self.snapshots.is_active:
            taken = self.snapshots.take_block(bundle)
            if taken is None:
                return False
            if isinstance(taken, out.StageSnapshot):
                self._out.add(taken)
                self._catchup.delivered(peer, height, elapsed_ms)
                self._install_if_complete()
                return True
            reason: Reason | None = taken
        elif self._chain.is_suspended or height != self._executor.height + 1:
            return False
        else:
            reason = self._chain.take_bundle(bundle, view)
        if reason is None:
            self._catchup.delivered(peer, height, elapsed_ms)
            return True
        self._out.refuse("sync", reason, peer)
        if reason is Reason.PRUNED:
            self._catchup.pruned(peer, elapsed_ms)
        else:
            self._catchup.refused(peer, elapsed_ms)
        return False

    def take_early(self) -> tuple[int, BlockBundle] | None:
        """Return the next block, and who sent it, if it came too early: it is to be taken now."""
        return self._early.take(self._next_height)

    @property
    def _next_height(self) -> int:
        """Height of the block that is taken next."""
        return (self.snapshots.height if self.snapshots.is_active else self._executor.height) + 1

    def take_part(self, peer: int, part: SnapshotPart, elapsed_ms: int) -> None:
        """Take a part of a snapshot, and ask for the next one."""
        taken = self.snapshots.take(peer, part, elapsed_ms)
        if taken is None:
            return
        if isinstance(taken, Reason):
            self._out.refuse("snapshot", taken, peer)
            self._catchup.refused(peer, elapsed_ms)
            return
        self._out.add(taken)
        self._ask_for_part(elapsed_ms)
        self._install_if_complete()

    def _ask_for_part(self, elapsed_ms: int) -> None:
        """Ask for the next part of the state, if it is time."""
        following = self.snapshots.next_part(elapsed_ms)
        if following is not None:
            self._out.add(out.Send(*following))

    def _install_if_complete(self) -> None:
        install = self.snapshots.complete()
        if install is not None:
            self._out.add(install)

    def installed(self) -> None:
        """The ledger stands at the snapshot now."""
        self._out.observe(events.SnapshotInstalled(self._chain.durable, self._source))
        self.snapshots.end()
