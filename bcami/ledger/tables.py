"""Tables of checksummed records in one LMDB environment: what the ledger and the promises are both made of."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import lmdb
import msgspec

from bcami.codec import encode
from bcami.errors import EnvironmentFault
from bcami.ledger import records
from bcami.ledger.environment import MAP_BYTES, MappedFile, WriterLock, disk_faults, fault_of, open_environment
from bcami.ledger.records import META, DamagedRecordError, Table
from bcami.ledger.store import CommitRefused

SCATTERED_READS_MAX: Final = 64
"""Reads at random keys before mapped pages are given back: with each the kernel maps 64 KB of neighbours."""


class Tables:
    """One open environment. Reads take their own snapshot and may run in any thread while one thread writes."""

    def __init__(
        self, path: Path, tables: Sequence[Table], *, write: bool, create: bool, map_bytes: int = MAP_BYTES
    ) -> None:
        """Open (with `create`, make) the tables in a folder. Raises EnvironmentFault."""
        self.path = path
        self._write = write
        self._fault: EnvironmentFault | None = None
        self._scattered_reads = 0
        self._dbs: dict[Table, Any] = {}
        with contextlib.ExitStack() as opened:
            if write:
                with disk_faults(path):
                    path.mkdir(parents=True, exist_ok=True)
                    opened.callback(WriterLock(path).release)
            self._env = open_environment(path, len(tables), write=write, map_bytes=map_bytes)
            opened.callback(self._env.close)
            with disk_faults(path):
                for table in tables:
                    self._dbs[table] = self._env.open_db(table.name.encode(), create=create)
                self._mapped = MappedFile(path)
            self._opened = opened.pop_all()

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return a value. Raises DamagedRecordError when its checksum does not fit."""
        try:
            # Not `with`: its protocol costs as much as the read itself.
            txn = self._env.begin(db=self._dbs[table])
            try:
                stored = txn.get(key)
            finally:
                txn.abort()
        except (lmdb.Error, OSError) as error:
            raise fault_of(error, self.path) from error
        return None if stored is None else table.unseal(key, stored)

    def required(self, table: Table, key: bytes) -> bytes:
        value = self.get(table, key)
        if value is None:
            raise DamagedRecordError(table.name, key, "the record is missing")
        return value

    def meta(self, *names: bytes) -> tuple[bytes, ...]:
        """Return records of META, all of one moment. Raises DamagedRecordError when one is missing."""
        with disk_faults(self.path), self._env.begin(db=self._dbs[META]) as txn:
            stored = [txn.get(name) for name in names]
        for name, value in zip(names, stored, strict=True):
            if value is None:
                raise DamagedRecordError(META.name, name, f"the record {name.decode()!r} is missing")
        return tuple(META.unseal(name, value) for name, value in zip(names, stored, strict=True))

    def rows(self, table: Table, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values below a prefix, all of one moment, which is held until the last one."""
        last: bytes | None = None
        with disk_faults(self.path), self._env.begin(db=self._dbs[table]) as txn:
            cursor = txn.cursor()
            there = cursor.set_range(prefix) if prefix else cursor.first()
            while there:
                key = cursor.key()
                if not key.startswith(prefix):
                    return
                if last is not None and key <= last:
                    raise DamagedRecordError(table.name, key, "keys are out of order")
                last = key
                yield key, table.unseal(key, cursor.value())
                there = cursor.next()

    def reading(self) -> "Reading":
        """Return a moment of the store that stays as it is until it is closed."""
        with disk_faults(self.path):
            return Reading(self.path, self._env.begin(), self._dbs)

    def stats(self) -> dict[str, Any]:
        """Return LMDB's figures of each table."""
        with disk_faults(self.path), self._env.begin() as txn:
            return {table.name: txn.stat(db) for table, db in self._dbs.items()}

    @contextlib.contextmanager
    def writing(self) -> Iterator["Writing"]:
        """One write: durable as a whole when the block ends, or not at all.

        After the disk refused once, no further write is tried: what it kept is unknown. A full map is no such case.
        """
        if not self._write:
            raise CommitRefused("the store is open read-only")
        if self._fault is not None:
            raise self._fault
        try:
            with disk_faults(self.path), self._env.begin(write=True) as txn:
                writing = Writing(txn, self._dbs)
                yield writing
                writing.put_counts()
        except EnvironmentFault as fault:
            if not isinstance(fault.__cause__, lmdb.MapFullError):
                self._fault = fault
            raise

    def release_pages(self) -> None:
        """Give mapped pages back to the page cache."""
        self._scattered_reads = 0
        self._mapped.release()

    def count_scattered_read(self) -> None:
        """Take note of a read at a random key, and give mapped pages back when there were many."""
        self._scattered_reads += 1
        if self._scattered_reads >= SCATTERED_READS_MAX:
            self.release_pages()

    def close(self) -> None:
        self._opened.close()


class Reading:
    """One moment of the store; of one thread at a time."""

    def __init__(self, path: Path, txn: Any, dbs: dict[Table, Any]) -> None:
        self._path = path
        self._txn = txn
        self._dbs = dbs

    def get(self, table: Table, key: bytes) -> bytes | None:
        with disk_faults(self._path):
            stored = self._txn.get(key, db=self._dbs[table])
        return None if stored is None else table.unseal(key, stored)

    def rows_after(self, table: Table, after: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys above `after` and their values."""
        with disk_faults(self._path):
            cursor = self._txn.cursor(self._dbs[table])
            there = cursor.set_range(after + b"\x00") if after else cursor.first()
            while there:
                yield cursor.key(), table.unseal(cursor.key(), cursor.value())
                there = cursor.next()

    def close(self) -> None:
        self._txn.abort()


class Writing:
    """One write in progress; it sees what it has written so far."""

    def __init__(self, txn: Any, dbs: dict[Table, Any]) -> None:
        self._txn = txn
        self._dbs = dbs

    def put(self, table: Table, key: bytes, value: bytes, *, append: bool = False) -> None:
        self._txn.put(key, table.seal(key, value), db=self._dbs[table], append=append)

    def put_sealed(self, table: Table, rows: Sequence[tuple[bytes, bytes]], *, overwrite: bool = True) -> None:
        """Write rows that are sealed, best sorted by key."""
        if rows:
            self._txn.cursor(self._dbs[table]).putmulti(rows, overwrite=overwrite)

    def delete(self, table: Table, key: bytes) -> None:
        self._txn.delete(key, db=self._dbs[table])

    def delete_up_to(self, table: Table, last: bytes) -> None:
        """Delete every record whose key is at most `last`."""
        cursor = self._txn.cursor(self._dbs[table])
        there = cursor.first()
        while there and cursor.key() <= last:
            there = cursor.delete()

    def clear(self, table: Table) -> None:
        self._txn.drop(self._dbs[table], delete=False)

    def rows(self, table: Table, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values below a prefix, of what was there before other tables are written meanwhile."""
        cursor = self._txn.cursor(self._dbs[table])
        there = cursor.set_range(prefix) if prefix else cursor.first()
        while there and cursor.key().startswith(prefix):
            yield cursor.key(), table.unseal(cursor.key(), cursor.value())
            there = cursor.next()

    def has(self, table: Table, key: bytes) -> bool:
        return self._txn.get(key, db=self._dbs[table]) is not None

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Return those of the keys that are there, with their values."""
        found = self._txn.cursor(self._dbs[table]).getmulti(keys) if keys else []
        return [(key, table.unseal(key, stored)) for key, stored in found]

    def last_key(self, table: Table, prefix: bytes, suffix_bytes: int) -> bytes | None:
        """Return the last key that is the prefix and so many bytes."""
        cursor = self._txn.cursor(self._dbs[table])
        there = cursor.prev() if cursor.set_range(prefix + b"\xff" * suffix_bytes) else cursor.last()
        key: bytes = cursor.key() if there else b""
        return key if key.startswith(prefix) and len(key) == len(prefix) + suffix_bytes else None

    def put_counts(self) -> None:
        """Record how many entries each table has: a record that disappears is then missed."""
        counts = {table.name: self._txn.stat(db)["entries"] for table, db in self._dbs.items() if table is not META}
        self.put(META, records.META_COUNTS, encode(counts))


def counts_of(data: bytes) -> dict[str, int]:
    """Return the record of counts. Raises DamagedRecordError."""
    try:
        return msgspec.msgpack.decode(data, type=dict[str, int])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DamagedRecordError(META.name, records.META_COUNTS, f"the counts are no counts: {error}") from None
