"""One moment of a stored ledger, for an audit: every read comes from one LMDB snapshot, and marks its place first."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import lmdb
import msgspec

from bcami.errors import EnvironmentFault
from bcami.ledger import records
from bcami.ledger.environment import DAMAGE, MappedFile, open_environment
from bcami.ledger.position import PositionMark
from bcami.ledger.records import (
    BATCH_DECODER,
    BODY_DECODER,
    CERTIFICATE_DECODER,
    HEADER_DECODER,
    LEDGER_TABLES,
    META,
    BlockBody,
    DamagedRecordError,
    Table,
    batch_key,
    decoded,
    height_key,
)
from bcami.ledger.report import AuditError
from bcami.model.block import BlockCertificate, Header
from bcami.model.chain import StoredBatch
from bcami.model.genesis import Genesis, chain_id

T = TypeVar("T")
RELEASE_READS: Final = 50_000


class Snapshot:
    """A read-only view of a ledger's tables; raises AuditError for what is not readable."""

    def __init__(self, path: Path, genesis: Genesis, mark: PositionMark) -> None:
        self.mark = mark
        mark.at(META, 0)
        self._env = _open(path)
        self._mapped = MappedFile(path)
        self._reads = 0
        self.dbs: dict[str, Any] = {}
        for table in LEDGER_TABLES:
            try:
                self.dbs[table.name] = self._env.open_db(table.name.encode(), create=False)
            except lmdb.Error as error:
                raise AuditError(table.name, None, f"the table cannot be opened: {error}") from None
        self.txn = self._env.begin()
        self.entries = {table.name: int(self.txn.stat(self.dbs[table.name])["entries"]) for table in LEDGER_TABLES}
        self._check_identity(genesis)

    def _check_identity(self, genesis: Genesis) -> None:
        if self.meta(records.META_FORMAT) != records.LEDGER_FORMAT:
            raise EnvironmentFault("this is not a ledger of this version of bcami", where=self._env.path())
        if self.meta(records.META_CHAIN) != chain_id(genesis):
            raise EnvironmentFault("the ledger belongs to another network", where=self._env.path())

    def close(self) -> None:
        self.txn.abort()
        self._env.close()

    @property
    def last_block(self) -> int | None:
        """The last block by what the header table holds, where META cannot be asked."""
        return self.entries["headers"] or None

    def meta(self, name: bytes) -> bytes:
        value = self.get(META, name, 0)
        if value is None:
            raise AuditError(META.name, self.last_block, f"the record {name.decode()!r} is missing")
        return value

    def get(self, table: Table, key: bytes, height: int) -> bytes | None:
        """Return a value; `height` is the block that is to blame if it is damaged."""
        self.mark.at(table, height)
        self._reads += 1
        if self._reads % RELEASE_READS == 0:
            self._mapped.release()
        stored = self.txn.get(key, db=self.dbs[table.name])
        if stored is None:
            return None
        try:
            return table.unseal(key, stored)
        except DamagedRecordError as error:
            raise AuditError(table.name, height or self.last_block, error.reason) from None

    def required(self, table: Table, key: bytes, height: int) -> bytes:
        value = self.get(table, key, height)
        if value is None:
            raise AuditError(table.name, height, "the record is missing")
        return value

    def rows(self, table: Table, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value; the scan has checked them, a damage now is of the moment."""
        cursor = self.txn.cursor(self.dbs[table.name])
        there = cursor.set_range(prefix) if prefix else cursor.first()
        while there:
            key = cursor.key()
            if not key.startswith(prefix):
                return
            self.mark.at(table, 0)
            yield key, table.unseal(key, cursor.value())
            there = cursor.next()

    # Typed records.

    def header(self, height: int) -> Header:
        return self._typed(records.HEADERS, height_key(height), height, HEADER_DECODER)

    def body(self, height: int) -> BlockBody:
        return self._typed(records.BLOCKS, height_key(height), height, BODY_DECODER)

    def batch(self, height: int, place: int) -> StoredBatch:
        return self._typed(records.BATCHES, batch_key(height, place), height, BATCH_DECODER)

    def certificate(self, height: int) -> BlockCertificate | None:
        key = height_key(height)
        value = self.get(records.CERTIFICATES, key, height)
        return None if value is None else self._decode(records.CERTIFICATES, key, value, height, CERTIFICATE_DECODER)

    def _typed(self, table: Table, key: bytes, height: int, decoder: msgspec.msgpack.Decoder[T]) -> T:
        return self._decode(table, key, self.required(table, key, height), height, decoder)

    def _decode(self, table: Table, key: bytes, value: bytes, height: int, decoder: msgspec.msgpack.Decoder[T]) -> T:
        try:
            return decoded(table, key, value, decoder)
        except DamagedRecordError as error:
            raise AuditError(table.name, height, error.reason) from None


def _open(path: Path) -> Any:
    try:
        return open_environment(path, len(LEDGER_TABLES), write=False)
    except EnvironmentFault as fault:
        if isinstance(fault.__cause__, DAMAGE):
            raise AuditError(META.name, None, f"the file is no store: {fault.__cause__}") from None
        raise
