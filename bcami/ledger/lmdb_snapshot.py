"""World-state snapshots on disk: what a peer is given, and how one that came from a peer takes the place of the state.

What comes is staged in a table of its own, which nothing else reads and which a start drops: a crash in the middle of a
transfer leaves the ledger as it was. Installing moves it in one write, as large as it may be; LMDB makes that whole or
not at all.
"""

from collections.abc import Iterator, Sequence

from bcami.codec import encode
from bcami.ledger import records
from bcami.ledger.records import (
    BUNDLE_DECODER,
    HISTORY,
    META,
    STAGED,
    STATE,
    TRANSACTIONS,
    UNDO,
    UNDO_DECODER,
    decoded,
    height_of,
    pack_place,
    pack_state,
    pack_version,
    staged_block_key,
    staged_state_key,
    unpack_state,
)
from bcami.ledger.rules import Part, check_staged, is_pruned_batch
from bcami.ledger.store import has_history
from bcami.ledger.tables import Tables, Writing
from bcami.model.chain import BlockBundle, ChainBlock, StateEntry, StateRow


class LmdbSource:
    """Implements `bcami.ledger.store.SnapshotSource` by one read of LMDB that stays open."""

    def __init__(self, tables: Tables) -> None:
        self._reading = tables.reading()
        certified = self._reading.get(META, records.META_CERTIFIED)
        self.height = height_of(certified or bytes(8))
        self._before: dict[bytes, StateEntry | None] = {}
        for key, value in reversed(list(self._reading.rows_after(UNDO, records.height_key(self.height)))):
            replaced = decoded(UNDO, key, value, UNDO_DECODER)
            self._before.update(replaced)

    def part(self, after: bytes, bytes_max: int) -> tuple[list[StateRow], bool]:
        """Return rows above a key."""
        part = Part(self._before, after, bytes_max)
        for key, value in self._reading.rows_after(STATE, after):
            part.stored(key, unpack_state(value))
            if part.is_full:
                break
        part.up_to(None)
        return part.rows, part.is_last

    def close(self) -> None:
        self._reading.close()


def drop_staged(tables: Tables) -> None:
    """Drop what an earlier process has left of a transfer."""
    if any(True for _ in tables.rows(STAGED, b"")):
        with tables.writing() as write:
            write.clear(STAGED)


def stage(tables: Tables, bundles: Sequence[BlockBundle], rows: Sequence[StateRow], *, fresh: bool) -> None:
    """Keep parts of a snapshot; `fresh` drops earlier ones first."""
    with tables.writing() as write:
        if fresh:
            write.clear(STAGED)
        for bundle in bundles:
            write.put(STAGED, staged_block_key(bundle.block.header.height), encode(bundle))
        for key, entry in rows:
            write.put(STAGED, staged_state_key(key), pack_state(entry.value, entry.height))


class StagedBlocks:
    """Goes through the staged blocks in order, and knows where it stands. Raises CommitRefused at a gap."""

    def __init__(self, write: Writing, height: int, head_hash: bytes) -> None:
        self._write = write
        self.height = height
        self.head_hash = head_hash
        self.pruned_to = 0

    def __iter__(self) -> Iterator[BlockBundle]:
        for key, value in self._write.rows(STAGED, staged_block_key(0)[:1]):
            bundle = decoded(STAGED, key, value, BUNDLE_DECODER)
            self.head_hash = check_staged(bundle, self.height, self.head_hash)
            self.height += 1
            if any(map(is_pruned_batch, bundle.batches)):
                self.pruned_to = self.height
            yield bundle


def put_places(write: Writing, block: ChainBlock) -> None:
    """Write the index of a block's transactions; a place that is there already is older, and stays."""
    rows: dict[bytes, bytes] = {}
    for index, outcome in enumerate(block.outcomes):
        key = outcome.transaction_id[: records.ID_BYTES]
        rows.setdefault(key, TRANSACTIONS.seal(key, pack_place(block.header.height, index)))
    write.put_sealed(TRANSACTIONS, sorted(rows.items()), overwrite=False)


def take_staged_state(write: Writing) -> None:
    """Put the staged world state in place of the one that is there; histories begin anew with it."""
    write.clear(STATE)
    write.clear(HISTORY)
    write.clear(UNDO)
    prefix = staged_state_key(b"")
    for staged, packed in write.rows(STAGED, prefix):
        key = staged[len(prefix) :]
        write.put(STATE, key, packed, append=True)
        if has_history(key):
            write.put(HISTORY, records.history_prefix(key) + packed[:8], pack_version(0, packed[8:]))
    write.clear(STAGED)
