"""First pass of an audit: every record as it lies on disk.

For each table: keys in order, the checksum of each record, that a lookup finds it (a damaged branch page misleads
lookups although all leaves are fine), and as many records as were written.
"""

from collections.abc import Callable
from typing import Final

from bcami.ledger import records
from bcami.ledger.index import folded_heights, slice_of
from bcami.ledger.records import (
    BATCHES,
    BLOCKS,
    CERTIFICATES,
    HEADERS,
    HISTORY,
    LEDGER_TABLES,
    LINKS,
    META,
    SIGNERS,
    STAGED,
    STATE,
    TRANSACTIONS,
    UNDO,
    DamagedRecordError,
    Table,
    height_key,
    height_of,
)
from bcami.ledger.repair import find_original
from bcami.ledger.report import AuditError
from bcami.ledger.snapshot import Snapshot
from bcami.ledger.store import has_history
from bcami.ledger.tables import counts_of

_BY_HEIGHT: Final = (HEADERS, BLOCKS, LINKS)
"""Tables with exactly one record for each block."""
_HEIGHT_IN_VALUE: Final = (STATE, TRANSACTIONS, SIGNERS)
_META_NAMES: Final = (
    records.META_FORMAT,
    records.META_CHAIN,
    records.META_HEAD,
    records.META_LTHASH,
    records.META_CERTIFIED,
    records.META_PRUNED,
    records.META_FOLDED,
    records.META_SNAPSHOT,
    records.META_COUNTS,
)


class Scan:
    """Looks at every record of a snapshot once."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.records_checked = 0

    def run(self) -> None:
        """Return when every record is as it was written and none is missing. Raises AuditError for the first."""
        self._scan(META, len(_META_NAMES))
        for name in _META_NAMES:
            self._snapshot.meta(name)
        self.height = height_of(self._snapshot.meta(records.META_HEAD))
        counts = self._counts()
        for table in LEDGER_TABLES:
            if table is not META:
                self._scan(table, counts.get(table.name, 0))

    def _counts(self) -> dict[str, int]:
        try:
            return counts_of(self._snapshot.meta(records.META_COUNTS))
        except DamagedRecordError as error:
            raise AuditError(META.name, self._snapshot.last_block, error.reason) from None

    def _scan(self, table: Table, expected: int) -> None:
        snapshot, mark = self._snapshot, self._snapshot.mark
        db = snapshot.dbs[table.name]
        cursor, probe = snapshot.txn.cursor(db), snapshot.txn.cursor(db)
        ordinal, previous = 0, b""
        there = cursor.first()
        while there:
            mark.records += 1
            mark.at(table, height_of(previous) + 1 if table in _BY_HEIGHT and previous else 0)
            key, stored = cursor.key(), cursor.value()
            self._check_record(table, ordinal, previous, key, stored)
            if not probe.set_key(key):
                reason = f"a lookup does not find the record {key.hex()}: the table's pages are damaged"
                raise AuditError(table.name, self._height_of(table, ordinal, previous, key, stored), reason)
            ordinal, previous = ordinal + 1, key
            there = cursor.next()
        self.records_checked += ordinal
        if ordinal != expected:
            self._check_contiguous(table, ordinal)
            reason = f"{ordinal} records, {expected} were written"
            raise AuditError(table.name, self._height_of_missing(table), reason)

    def _check_record(self, table: Table, ordinal: int, previous: bytes, key: bytes, stored: bytes) -> None:
        try:
            table.unseal(key, stored)
        except DamagedRecordError as error:
            height = self._height_of(table, ordinal, previous, key, stored)
            raise AuditError(table.name, height, f"{error.reason} in the record {_shown(key)}") from None
        if ordinal and key <= previous:
            height = self._height_of(table, ordinal, previous, key, stored)
            raise AuditError(table.name, height, f"the key {_shown(key)} is out of order")
        if table in _BY_HEIGHT and key != height_key(ordinal + 1):
            raise AuditError(table.name, ordinal + 1, "the record is missing")

    def _check_contiguous(self, table: Table, ordinal: int) -> None:
        if table in _BY_HEIGHT and ordinal < self.height:
            raise AuditError(table.name, ordinal + 1, "the record is missing")

    # Which block a damaged or missing record belongs to.

    def _height_of(self, table: Table, ordinal: int, previous: bytes, key: bytes, stored: bytes) -> int | None:
        if table in _BY_HEIGHT:
            return ordinal + 1
        if table in (META, STAGED):
            return self._snapshot.last_block
        original = find_original(table, key, stored)
        if table is BATCHES:
            return self._height_of_batch(ordinal) if original is None else height_of(original[0])
        if original is not None:
            key, stored = original
        if table is CERTIFICATES:
            height = height_of(key)
            return height if self._is_block(height) else height_of(previous) + 1 if previous else 1
        height = height_of(stored) if table in _HEIGHT_IN_VALUE else height_of(key[-8:])
        return height if self._is_block(height) else None

    def _is_block(self, height: int) -> bool:
        return 1 <= height <= self.height

    def _height_of_batch(self, ordinal: int) -> int | None:
        """Return the block of the batch with this place in the table, by what the blocks executed."""
        seen = 0
        for height in range(1, self.height + 1):
            seen += len(self._snapshot.body(height).executed)
            if ordinal < seen:
                return height
        return None

    def _height_of_missing(self, table: Table) -> int | None:
        """Return the block of the first missing record, as far as the other tables tell."""
        finders: dict[Table, Callable[[], int | None]] = {
            BATCHES: self._first_missing_batch,
            CERTIFICATES: self._first_missing_certificate,
            TRANSACTIONS: self._first_missing_transaction,
            HISTORY: self._first_missing_version,
            UNDO: self._first_missing_undo,
        }
        found = finders[table]() if table in finders else None
        # The world state, and the newest places, are those after the last block.
        return self._snapshot.last_block if found is None else found

    def _first_missing_batch(self) -> int | None:
        for height in range(1, self.height + 1):
            for place in range(len(self._snapshot.body(height).executed)):
                if self._snapshot.get(BATCHES, records.batch_key(height, place), height) is None:
                    return height
        return None

    def _first_missing_certificate(self) -> int | None:
        for height in range(1, height_of(self._snapshot.meta(records.META_CERTIFIED)) + 1):
            if self._snapshot.get(CERTIFICATES, height_key(height), height) is None:
                return height
        return None

    def _first_missing_transaction(self) -> int | None:
        folded = folded_heights(self._snapshot.meta(records.META_FOLDED))
        for height in range(1, self.height + 1):
            for outcome in self._snapshot.body(height).outcomes:
                tx_id = outcome.transaction_id
                if height > folded[slice_of(tx_id)]:
                    continue
                if self._snapshot.get(TRANSACTIONS, tx_id[: records.ID_BYTES], height) is None:
                    return height
        return None

    def _first_missing_undo(self) -> int | None:
        for height in range(height_of(self._snapshot.meta(records.META_CERTIFIED)) + 1, self.height + 1):
            if self._snapshot.get(UNDO, height_key(height), height) is None:
                return height
        return None

    def _first_missing_version(self) -> int | None:
        """Return the height that a version's successor, or the world state, names without it being there."""
        newest, prefix = 0, b""
        for key, value in self._snapshot.rows(HISTORY):
            before, _ = records.unpack_version(height_of(key[-8:]), value)
            expected = newest if key[:-8] == prefix else 0
            if before != expected:
                return before
            newest, prefix = height_of(key[-8:]), key[:-8]
        for key, value in self._snapshot.rows(STATE):
            if has_history(key):
                version = records.history_prefix(key) + value[:8]
                if self._snapshot.get(HISTORY, version, height_of(value)) is None:
                    return height_of(value)
        return None


def _shown(key: bytes) -> str:
    return repr(key.decode()) if key.isascii() and key.decode().isprintable() else key.hex()
