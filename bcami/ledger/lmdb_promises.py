"""The promise store on disk: an LMDB environment of its own, made once together with the node's key.

A node that votes rests on what is here. So a store that is missing, damaged or another node's ends the start: its
node must never vote again under this key (protocol 6.3).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bcami.errors import EnvironmentFault
from bcami.ledger import records
from bcami.ledger.environment import DATA_FILE, MAP_BYTES, MappedFile, WriterLock, disk_faults, open_environment
from bcami.ledger.position import PositionMark
from bcami.ledger.records import META, PROMISES, DamagedRecordError

RELEASE_WRITES: Final = 1024
_AMNESIA: Final = (
    "rebuild the node's ledger if need be, and let it return under a new key: this key must never vote again"
)


class LmdbPromises:
    """Implements `bcami.ledger.store.PromiseStore`."""

    @classmethod
    def create(cls, path: Path, owner: bytes, *, map_bytes: int = MAP_BYTES) -> None:
        """Make an empty store for the owner of a new consensus key (its public key).

        Raises EnvironmentFault when there is one already.
        """
        if (path / DATA_FILE).exists():
            raise EnvironmentFault("there is a promise store already", where=str(path), do="do not make the key again")
        with disk_faults(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = WriterLock(path)
            try:
                env = open_environment(path, 2, write=True, map_bytes=map_bytes)
                try:
                    meta = env.open_db(META.name.encode())
                    env.open_db(PROMISES.name.encode())
                    with env.begin(write=True, db=meta) as txn:
                        for name, value in (
                            (records.META_FORMAT, records.PROMISES_FORMAT),
                            (records.META_OWNER, owner),
                            (records.META_COUNTS, records.height_key(0)),
                        ):
                            txn.put(name, META.seal(name, value))
                finally:
                    env.close()
            finally:
                lock.release()

    def __init__(
        self, path: Path, owner: bytes, *, map_bytes: int = MAP_BYTES, mark: PositionMark | None = None
    ) -> None:
        """Open the store that was made with the key of `owner`, and check every record.

        `mark` is told of every record: see `bcami.ledger.audit.check_promises`, which survives a damaged page.
        Raises EnvironmentFault when it is missing, damaged, another key's, or open elsewhere.
        """
        if not (path / DATA_FILE).is_file():
            raise EnvironmentFault(
                "the promise store is missing although the node has a key (amnesia)",
                where=str(path),
                likely="it was deleted, or the key was copied without it",
                do=_AMNESIA,
            )
        self._path = path
        self._fault: EnvironmentFault | None = None
        with disk_faults(path):
            self._lock: WriterLock | None = WriterLock(path)
        try:
            self._env = open_environment(path, 2, write=True, map_bytes=map_bytes)
            try:
                self._open_tables(owner, mark)
            except BaseException:
                self._env.close()
                raise
        except BaseException:
            self._lock.release()
            raise
        self._mapped = MappedFile(path)
        self._writes = 0

    def _open_tables(self, owner: bytes, mark: PositionMark | None) -> None:
        with disk_faults(self._path):
            self._meta = self._env.open_db(META.name.encode(), create=False)
            self._db = self._env.open_db(PROMISES.name.encode(), create=False)
            with self._env.begin() as txn:
                values = {name: self._meta_value(txn, name) for name in (records.META_FORMAT, records.META_OWNER)}
                count = records.height_of(self._meta_value(txn, records.META_COUNTS))
        if values[records.META_FORMAT] != records.PROMISES_FORMAT:
            raise EnvironmentFault("this is not a promise store of this version of bcami", where=str(self._path))
        if values[records.META_OWNER] != owner:
            raise EnvironmentFault(
                "the promise store was made with another key",
                where=str(self._path),
                likely="folders of two nodes were mixed",
                do="give each node the folder that was made with its key",
            )
        found = 0
        try:
            for _ in self.items():
                found += 1
                if mark is not None:
                    mark.at(PROMISES, 0)
        except DamagedRecordError as error:
            raise damaged_promises(self._path, error.reason) from None
        if found != count:
            raise damaged_promises(self._path, f"{found} records, {count} were written")

    def _meta_value(self, txn: Any, name: bytes) -> bytes:
        stored = txn.get(name, db=self._meta)
        if stored is None:
            raise damaged_promises(self._path, f"the record {name.decode()!r} is missing")
        try:
            return META.unseal(name, stored)
        except DamagedRecordError as error:
            raise damaged_promises(self._path, error.reason) from None

    def apply(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        """Make a group of puts, then deletes, durable in one write."""
        if self._fault is not None:
            raise self._fault
        rows = [(key, PROMISES.seal(key, value)) for key, value in puts]
        try:
            with disk_faults(self._path), self._env.begin(write=True, db=self._db) as txn:
                for key, stored in rows:
                    txn.put(key, stored)
                for key in deletes:
                    txn.delete(key)
                count = records.height_key(txn.stat(self._db)["entries"])
                txn.put(records.META_COUNTS, META.seal(records.META_COUNTS, count), db=self._meta)
        except EnvironmentFault as fault:
            self._fault = fault
            raise
        self._writes += 1
        if self._writes % RELEASE_WRITES == 0:
            self._mapped.release()

    def put(self, key: bytes, value: bytes) -> None:
        self.apply([(key, value)])

    def delete(self, key: bytes) -> None:
        self.apply([], [key])

    def get(self, key: bytes) -> bytes | None:
        with disk_faults(self._path), self._env.begin(db=self._db) as txn:
            stored = txn.get(key)
        return None if stored is None else PROMISES.unseal(key, stored)

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the records below a prefix in key order, as of now; one record is held at a time."""
        last: bytes | None = None
        with disk_faults(self._path), self._env.begin(db=self._db) as txn:
            cursor = txn.cursor()
            there = cursor.set_range(prefix) if prefix else cursor.first()
            while there:
                key = cursor.key()
                if not key.startswith(prefix):
                    return
                if last is not None and key <= last:
                    raise DamagedRecordError(PROMISES.name, key, "keys are out of order")
                last = key
                yield key, PROMISES.unseal(key, cursor.value())
                there = cursor.next()

    def __len__(self) -> int:
        with disk_faults(self._path), self._env.begin() as txn:
            return int(txn.stat(self._db)["entries"])

    def close(self) -> None:
        self._env.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def damaged_promises(path: Path, reason: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the promise store is damaged: {reason}",
        where=str(path),
        likely="the disk or another program changed the store",
        do=_AMNESIA,
    )
