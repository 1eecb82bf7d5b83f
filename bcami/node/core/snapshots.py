"""Taking a snapshot: one peer's certified world state in parts, then the blocks below it (design D5, protocol 5.5).

A node takes one when it cannot get further by executing blocks: their payloads are pruned where it asks, or they are
too many. Three phases: the *state* comes whole from one peer, never more bytes than the certified header says, and its
LtHash must give the state root there; then the *blocks* below it, pruned or not, from anybody, so that receipts stay
provable and no payload that is still held is lost; then both are *installed* in one durable write.

What a peer sends that does not fit bars it, and another is asked from the start. A peer that has a newer snapshot
begins anew. Until the install the ledger stays as it was, so a crash costs the transfer and nothing else.
"""

import enum
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from bcami.crypto.lthash import LtHash, state_element
from bcami.crypto.roster import Roster
from bcami.crypto.verification import verify_bundle, verify_header
from bcami.model.block import BlockCertificate, Header, header_hash
from bcami.model.chain import BlockBundle
from bcami.model.reasons import Reason
from bcami.model.wire import SNAPSHOT_PART_BYTES, SNAPSHOT_ROW_BYTES, FetchSnapshot, SnapshotPart
from bcami.node.core.catchup import ASK_AGAIN_MS
from bcami.node.core.effects import InstallSnapshot, StageSnapshot

ATTEMPTS_MAX: Final = 4
"""A part that did not come after so many requests is asked of another peer."""
RESTARTS_MAX: Final = 4
"""So often one peer may come with a newer snapshot."""
UNWRITTEN_MAX: Final = 64
"""Parts and blocks on their way to disk before more are asked for."""


class Phase(enum.Enum):
    NONE = enum.auto()
    STATE = enum.auto()
    BLOCKS = enum.auto()
    INSTALLING = enum.auto()


@dataclass(slots=True)
class _Transfer:
    """One peer's snapshot on its way."""

    peer: int
    least: int
    """Certified height that the peer has claimed: an older snapshot is none."""
    asked_ms: int
    attempts: int = 1
    is_asked: bool = True
    """Tell whether a part is asked for that has not come: any other is not taken, however fitting."""
    restarts: int = 0
    header: Header | None = None
    certificate: BlockCertificate | None = None
    after: bytes = b""
    size_bytes: int = 0
    lthash: LtHash = field(default_factory=LtHash)

    def begin(self, part: SnapshotPart) -> None:
        self.restarts += self.header is not None
        self.header, self.certificate = part.header, part.certificate
        self.after, self.size_bytes, self.lthash = b"", 0, LtHash()


class SnapshotSync:
    """The snapshot that this node is taking, if it is."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self.phase = Phase.NONE
        self.height = 0
        """Highest block that stands here or is staged."""
        self._head_hash = b""
        self._own_height = 0
        self._transfer: _Transfer | None = None
        self._unwritten = 0

    @property
    def is_active(self) -> bool:
        return self.phase is not Phase.NONE

    @property
    def is_installing(self) -> bool:
        return self.phase is Phase.INSTALLING

    @property
    def is_busy(self) -> bool:
        """Tell whether the disk is behind, so that nothing more is asked for."""
        return self._unwritten > UNWRITTEN_MAX

    @property
    def needs_peer(self) -> bool:
        return self.phase is Phase.STATE and self._transfer is None

    @property
    def target(self) -> int:
        """Height of the snapshot; 0 while none has begun to come."""
        header = None if self._transfer is None else self._transfer.header
        return 0 if header is None else header.height

    def begin(self, height: int, head_hash: bytes) -> None:
        """Start from the ledger as it is."""
        self.phase, self._transfer = Phase.STATE, None
        self.height = self._own_height = height
        self._head_hash = head_hash

    def end(self) -> None:
        """It is installed, or needless."""
        self.phase, self._transfer = Phase.NONE, None

    # The state.

    def choose(self, peer: int, claimed: int, elapsed_ms: int) -> FetchSnapshot:
        """Take this peer's snapshot."""
        self._transfer = _Transfer(peer, claimed, elapsed_ms)
        return FetchSnapshot(0, b"")

    def overdue(self, elapsed_ms: int) -> tuple[int, FetchSnapshot | None] | None:
        """Return the peer whose part is overdue, and what to ask it again; None in its place when it is given up."""
        transfer = self._transfer
        if self.phase is not Phase.STATE or transfer is None or elapsed_ms - transfer.asked_ms < ASK_AGAIN_MS:
            return None
        transfer.asked_ms, transfer.is_asked = elapsed_ms, True
        transfer.attempts += 1
        if transfer.attempts > ATTEMPTS_MAX:
            self._transfer = None
            return transfer.peer, None
        return transfer.peer, FetchSnapshot(self.target, transfer.after)

    def give_up(self, peer: int) -> None:
        """The peer is gone."""
        if self.phase is Phase.STATE and self._transfer is not None and self._transfer.peer == peer:
            self._transfer = None

    def take(self, peer: int, part: SnapshotPart, elapsed_ms: int) -> StageSnapshot | Reason | None:
        """Take a part: what to write, why it and its peer are not to be believed, or None when nobody asked for it."""
        transfer = self._transfer
        if self.phase is not Phase.STATE or transfer is None or transfer.peer != peer or not transfer.is_asked:
            return None
        if transfer.header != part.header:
            if part.after:
                return None  # of a snapshot that was left
            reason = self._check_beginning(transfer, part)
            if reason is not None:
                return self._refuse(reason)
            transfer.begin(part)
        elif part.after != transfer.after:
            return None
        reason = self._check_rows(transfer, part)
        if reason is not None:
            return self._refuse(reason)
        transfer.asked_ms, transfer.attempts, transfer.is_asked = elapsed_ms, 1, False
        fresh = not part.after
        if part.rows:
            transfer.after = part.rows[-1][0]
        if part.is_last:
            self.phase = Phase.BLOCKS
        self._unwritten += 1
        return StageSnapshot((), part.rows, fresh)

    def next_part(self, elapsed_ms: int) -> tuple[int, FetchSnapshot] | None:
        """Return the peer of the transfer and what to ask it next; None while a part is on its way or the disk behind.

        So what waits for the disk is bounded, even when a peer sends more than it was asked for.
        """
        transfer = self._transfer
        if self.phase is not Phase.STATE or transfer is None or transfer.is_asked or self.is_busy:
            return None
        transfer.asked_ms, transfer.is_asked = elapsed_ms, True
        return transfer.peer, FetchSnapshot(self.target, transfer.after)

    def _refuse(self, reason: Reason) -> Reason:
        self._transfer = None
        return reason

    def _check_beginning(self, transfer: _Transfer, part: SnapshotPart) -> Reason | None:
        if part.header.height < transfer.least or part.header.height <= self._own_height:
            return Reason.STALE
        if transfer.restarts >= RESTARTS_MAX:
            return Reason.RATE_LIMITED
        return verify_header(part.header, part.certificate, self._roster)

    def _check_rows(self, transfer: _Transfer, part: SnapshotPart) -> Reason | None:
        """Count the rows in; each part but the last has to be full, and the last one to make the state whole.

        A liar that gives a row each time before it is overdue would make a transfer last as long as it likes.
        """
        assert transfer.header is not None
        keys = [part.after, *(key for key, _ in part.rows)]
        rows_bytes = sum(len(key) + len(entry.value) for key, entry in part.rows)
        is_full = rows_bytes + len(part.rows) * SNAPSHOT_ROW_BYTES >= SNAPSHOT_PART_BYTES
        if any(left >= right for left, right in pairwise(keys)) or not (is_full or part.is_last):
            return Reason.BAD_PROOF
        transfer.size_bytes += rows_bytes
        if transfer.size_bytes > transfer.header.state_bytes:
            return Reason.TOO_LARGE
        transfer.lthash.update([state_element(key, entry.value, entry.height) for key, entry in part.rows], ())
        if not part.is_last:
            return None
        is_whole = transfer.size_bytes == transfer.header.state_bytes
        return None if is_whole and transfer.lthash.root() == transfer.header.state_root else Reason.BAD_DIGEST

    # The blocks.

    def take_block(self, bundle: BlockBundle) -> StageSnapshot | Reason | None:
        """Take the next block below the snapshot; None for one that is not the next."""
        height = bundle.block.header.height
        if self.phase is not Phase.BLOCKS or height != self.height + 1 or height > self.target:
            return None
        reason = verify_bundle(bundle, self._roster, self._head_hash)
        if reason is not None:
            return reason
        self.height, self._head_hash = height, header_hash(bundle.block.header)
        self._unwritten += 1
        return StageSnapshot((bundle,), ())

    def complete(self) -> InstallSnapshot | None:
        """Return the install, once, when all is staged."""
        transfer = self._transfer
        if self.phase is not Phase.BLOCKS or transfer is None or self.height != self.target:
            return None
        assert transfer.header is not None
        assert transfer.certificate is not None
        self.phase = Phase.INSTALLING
        return InstallSnapshot(transfer.header, transfer.certificate, transfer.lthash.to_bytes())

    def written(self) -> None:
        """One of the parts or blocks is on disk."""
        self._unwritten -= 1
