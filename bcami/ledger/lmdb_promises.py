"""The promise store on disk: an LMDB environment of its own, made once together with the node's key.

A node that votes rests on what is here. So a store that is missing, damaged or another node's ends the start: its
node must never vote again under this key (protocol 6.3).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bcami.errors import EnvironmentFault
from bcami.ledger import records
from bcami.ledger.environment import DATA_FILE, MAP_BYTES
from bcami.ledger.position import PositionMark
from bcami.ledger.records import META, PROMISES, DamagedRecordError
from bcami.ledger.tables import Tables, counts_of

_TABLES: Final = (META, PROMISES)
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
        tables = Tables(path, _TABLES, write=True, create=True, map_bytes=map_bytes)
        try:
            with tables.writing() as write:
                write.put(META, records.META_FORMAT, records.PROMISES_FORMAT)
                write.put(META, records.META_OWNER, owner)
        finally:
            tables.close()

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
        self._tables = Tables(path, _TABLES, write=True, create=False, map_bytes=map_bytes)
        self._writes = 0
        try:
            self._check(owner, mark)
        except DamagedRecordError as error:
            self._tables.close()
            raise damaged_promises(path, error.reason) from None
        except BaseException:
            self._tables.close()
            raise

    def _check(self, owner: bytes, mark: PositionMark | None) -> None:
        found_format, found_owner, counts = self._tables.meta(
            records.META_FORMAT, records.META_OWNER, records.META_COUNTS
        )
        where = str(self._tables.path)
        if found_format != records.PROMISES_FORMAT:
            raise EnvironmentFault("this is not a promise store of this version of bcami", where=where)
        if found_owner != owner:
            raise EnvironmentFault(
                "the promise store was made with another key",
                where=where,
                likely="folders of two nodes were mixed",
                do="give each node the folder that was made with its key",
            )
        found, expected = 0, counts_of(counts).get(PROMISES.name, 0)
        for _ in self.items():
            found += 1
            if mark is not None:
                mark.at(PROMISES, 0)
        if found != expected:
            raise damaged_promises(self._tables.path, f"{found} records, {expected} were written")

    def apply(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        """Make a group of puts, then deletes, durable in one write."""
        with self._tables.writing() as write:
            for key, value in puts:
                write.put(PROMISES, key, value)
            for key in deletes:
                write.delete(PROMISES, key)
        self._writes += 1
        if self._writes % RELEASE_WRITES == 0:
            self._tables.release_pages()

    def put(self, key: bytes, value: bytes) -> None:
        self.apply([(key, value)])

    def delete(self, key: bytes) -> None:
        self.apply([], [key])

    def get(self, key: bytes) -> bytes | None:
        return self._tables.get(PROMISES, key)

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the records below a prefix in key order, as of now; one record is held at a time."""
        return self._tables.rows(PROMISES, prefix)

    def __len__(self) -> int:
        return int(self._tables.stats()[PROMISES.name]["entries"])

    def close(self) -> None:
        self._tables.close()

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
