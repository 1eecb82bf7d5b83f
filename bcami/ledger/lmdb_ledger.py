"""The ledger on disk: one LMDB environment, one durable write for each block.

Almost everything is keyed by height and so appended: headers, bodies, batches, certificates, links. What is keyed by
something else is kept small: the world state and the newest place of each signer grow with the number of meters, not
of transactions. Only the index of transaction ids is keyed at random and grows with every transaction (see `index`).

A signer's transactions are a linked list: `signers` points to the newest, `links` holds for each outcome of a block
the place of the same signer's transaction before. An index row per signer and transaction would touch one page of the
file for each transaction.

Reads take their own snapshot and may run in any thread while one thread commits.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import lmdb
import msgspec

from bcami.codec import encode
from bcami.errors import EnvironmentFault
from bcami.ledger import records
from bcami.ledger.environment import MAP_BYTES, MappedFile, WriterLock, disk_faults, fault_of, open_environment
from bcami.ledger.index import SLICES, Fold, PendingPlaces
from bcami.ledger.receipts import ReceiptMaker
from bcami.ledger.records import (
    BATCH_DECODER,
    BATCHES,
    BLOCKS,
    BODY_DECODER,
    CERTIFICATE_DECODER,
    CERTIFICATES,
    HEADER_DECODER,
    HEADERS,
    HISTORY,
    LEDGER_TABLES,
    LINKS,
    META,
    SIGNERS,
    STATE,
    TRANSACTIONS,
    BlockBody,
    DamagedRecordError,
    Table,
    batch_key,
    decoded,
    height_key,
    height_of,
    pack_place,
    unpack_place,
    unpack_state,
)
from bcami.ledger.rules import check_certificate, check_commit, check_prune, pruned_batch, transactions_of
from bcami.ledger.store import LTHASH_BYTES, CommitRefused, LedgerCommit, SignerEntry, TableSize, has_history
from bcami.model.block import BlockCertificate, Header, Outcome, Receipt, header_hash
from bcami.model.chain import BlockBundle, ChainBlock, StateEntry, StateVersion, StoredBatch, TransactionPlace
from bcami.model.genesis import Genesis, chain_id
from bcami.model.quorum import Quorum
from bcami.model.transaction import Transaction

T = TypeVar("T")

RELEASE_BLOCKS: Final = 16
"""Commits after which mapped pages go back to the page cache."""
NEWEST_MAX: Final = 16_384
"""Signers whose newest place is remembered, about 3 MB."""
PRUNE_BLOCKS: Final = 64
"""Blocks that one write of `prune` covers, so that commits get their turn."""


class LmdbLedger:
    """Implements `bcami.ledger.store.Ledger`."""

    def __init__(self, path: Path, genesis: Genesis, *, write: bool = True, map_bytes: int = MAP_BYTES) -> None:
        """Open the ledger in a folder; to write, make it if it is not there.

        Raises EnvironmentFault when another process writes it, it is damaged, or belongs to another chain.
        """
        self._path = path
        self._chain = chain_id(genesis)
        self._quorum = Quorum(len(genesis.members))
        self._write = write
        self._fault: EnvironmentFault | None = None
        self._newest: dict[bytes, bytes] = {}
        self._lock: WriterLock | None = None
        if write:
            with disk_faults(path):
                path.mkdir(parents=True, exist_ok=True)
                self._lock = WriterLock(path)
        try:
            self._env = open_environment(path, len(LEDGER_TABLES), write=write, map_bytes=map_bytes)
            self._open_tables()
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        self._mapped = MappedFile(path)
        self._receipts = ReceiptMaker(self.block, self.certificate)

    def _open_tables(self) -> None:
        with disk_faults(self._path):
            try:
                self._dbs: dict[Table, Any] = {
                    table: self._env.open_db(table.name.encode(), create=self._write) for table in LEDGER_TABLES
                }
                if self._write and self._meta(records.META_FORMAT) is None:
                    self._create()
                self._check_identity()
                self._load_head()
            except BaseException:
                self._env.close()
                raise

    def _create(self) -> None:
        with self._env.begin(write=True) as txn:
            for name, value in (
                (records.META_FORMAT, records.LEDGER_FORMAT),
                (records.META_CHAIN, self._chain),
                (records.META_HEAD, height_key(0) + self._chain),
                (records.META_CERTIFIED, height_key(0)),
                (records.META_PRUNED, height_key(0)),
                (records.META_LTHASH, bytes(LTHASH_BYTES)),
                (records.META_FOLDED, bytes(8 * SLICES)),
            ):
                self._put(txn, META, name, value)
            self._put_counts(txn)

    def _check_identity(self) -> None:
        found, chain = self._meta(records.META_FORMAT), self._meta(records.META_CHAIN)
        if found != records.LEDGER_FORMAT:
            raise EnvironmentFault(
                "this is not a ledger of this version of bcami",
                where=str(self._path),
                likely=f"made by another version (format {found!r})",
                do="use the version that made it, or rebuild the ledger from the node's peers",
            )
        if chain != self._chain:
            raise EnvironmentFault(
                "the ledger belongs to another network",
                where=str(self._path),
                likely="the home folder was mixed with that of another network",
                do="name the home folder that this ledger was made in",
            )

    def _load_head(self) -> None:
        with self._env.begin() as txn:
            head = self._required_meta(txn, records.META_HEAD)
            self._height, self._head_hash = height_of(head), head[8:]
            self._certified = height_of(self._required_meta(txn, records.META_CERTIFIED))
            self._pruned = height_of(self._required_meta(txn, records.META_PRUNED))
            self._pending = PendingPlaces(self._required_meta(txn, records.META_FOLDED))
        self._pending.load(self._height, self._outcomes)

    # Reading.

    @property
    def height(self) -> int:
        return self._height

    @property
    def head_hash(self) -> bytes:
        return self._head_hash

    @property
    def certified_height(self) -> int:
        return self._certified

    @property
    def pruned_to(self) -> int:
        return self._pruned

    def refresh(self) -> None:
        """Take over what a writer in another process has committed; for read-only use."""
        with disk_faults(self._path):
            self._load_head()

    def header(self, height: int) -> Header | None:
        return self._read(HEADERS, height_key(height), HEADER_DECODER)

    def block(self, height: int) -> ChainBlock | None:
        header, body = self.header(height), self._read(BLOCKS, height_key(height), BODY_DECODER)
        if header is None or body is None:
            return None
        return ChainBlock(header, body.proposal, body.executed, body.outcomes)

    def batches(self, height: int) -> tuple[StoredBatch, ...]:
        rows = self._rows(BATCHES, height_key(height), None)
        return tuple(decoded(BATCHES, key, value, BATCH_DECODER) for key, value in rows)

    def certificate(self, height: int) -> BlockCertificate | None:
        return self._read(CERTIFICATES, height_key(height), CERTIFICATE_DECODER)

    def bundle(self, height: int) -> BlockBundle | None:
        block, certificate = self.block(height), self.certificate(height)
        if block is None or certificate is None:
            return None
        return BlockBundle(block, self.batches(height), certificate)

    def state(self, key: bytes) -> StateEntry | None:
        value = self._get(STATE, key) if len(key) <= records.KEY_BYTES_MAX else None
        return None if value is None else unpack_state(value)

    def scan(self, prefix: bytes, limit: int) -> Iterator[tuple[bytes, StateEntry]]:
        return iter([(key, unpack_state(value)) for key, value in self._rows(STATE, prefix, limit)])

    def place(self, transaction_id: bytes) -> TransactionPlace | None:
        # Memory first: a slice leaves memory only after the table has it, so that no reader misses both.
        pending = self._pending.get(transaction_id)
        value = self._get(TRANSACTIONS, transaction_id[: records.ID_BYTES])
        return pending if value is None else unpack_place(value)

    def receipt(self, transaction_id: bytes) -> Receipt | None:
        place = self.place(transaction_id)
        return None if place is None else self._receipts.receipt(transaction_id, place)

    def by_signer(self, signer: bytes, limit: int = 100, before: TransactionPlace | None = None) -> list[SignerEntry]:
        entries: list[SignerEntry] = []
        place = self._newest_before(signer, before)
        height, outcomes = 0, tuple[Outcome, ...]()
        while place is not None and len(entries) < limit:
            if place.height != height:
                height, outcomes = place.height, self._outcomes(place.height)
            if place.index >= len(outcomes):
                raise DamagedRecordError(LINKS.name, height_key(place.height), "points outside its block")
            entries.append((place.height, place.index, outcomes[place.index].transaction_id))
            place = self._place_before(place)
        return entries

    def _newest_before(self, signer: bytes, before: TransactionPlace | None) -> TransactionPlace | None:
        if before is not None and self._is_signed_by(before, signer):
            return self._place_before(before)
        value = self._get(SIGNERS, signer)
        place = None if value is None else unpack_place(value)
        while before is not None and place is not None and (place.height, place.index) >= (before.height, before.index):
            place = self._place_before(place)
        return place

    def _is_signed_by(self, place: TransactionPlace, signer: bytes) -> bool:
        block = self.block(place.height)
        if block is None or place.index >= len(block.outcomes):
            return False
        return transactions_of(block, self.batches(place.height), self._quorum)[place.index].signer == signer

    def _outcomes(self, height: int) -> tuple[Outcome, ...]:
        body = self._read(BLOCKS, height_key(height), BODY_DECODER)
        if body is None:
            raise DamagedRecordError(BLOCKS.name, height_key(height), "the record is missing")
        return body.outcomes

    def _place_before(self, place: TransactionPlace) -> TransactionPlace | None:
        links = self._get(LINKS, height_key(place.height)) or b""
        start = place.index * records.PLACE_BYTES
        link = links[start : start + records.PLACE_BYTES]
        return None if len(link) < records.PLACE_BYTES or link == records.NO_PLACE else unpack_place(link)

    def history(self, key: bytes) -> list[StateVersion]:
        prefix = records.history_prefix(key)
        return [
            records.unpack_version(height_of(row[len(prefix) :]), value)[1]
            for row, value in self._rows(HISTORY, prefix, None)
        ]

    def lthash(self) -> bytes:
        with disk_faults(self._path), self._env.begin() as txn:
            return self._required_meta(txn, records.META_LTHASH)

    def sizes(self) -> dict[str, TableSize]:
        with disk_faults(self._path), self._env.begin() as txn:
            stats = {table.name: txn.stat(self._dbs[table]) for table in LEDGER_TABLES}
        return {
            name: TableSize(
                stat["entries"],
                stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]),
            )
            for name, stat in stats.items()
        }

    # Writing.

    def commit(self, commit: LedgerCommit, certificates: Sequence[BlockCertificate] = ()) -> None:
        header = commit.block.header
        if header.height <= self._height and self._own_hash(header.height) == header_hash(header):
            if certificates:
                self.put_certificates(certificates)
            return
        new_hash = check_commit(commit, self._height, self._head_hash, self._chain)
        transactions = transactions_of(commit.block, commit.batches, self._quorum)
        for certificate in certificates:
            own = new_hash if certificate.height == header.height else self._own_hash(certificate.height)
            check_certificate(certificate, header.height, own)
        certified = max([self._certified, *(item.height for item in certificates)])
        folds = self._pending.due(self._height)
        with self._writing() as txn:
            self._put_block(txn, commit)
            newest = self._put_signers(txn, header.height, transactions)
            self._put_folds(txn, folds)
            self._put_state(txn, commit)
            self._put_certificates(txn, certificates, certified)
            self._put(txn, META, records.META_HEAD, height_key(header.height) + new_hash)
            self._put(txn, META, records.META_LTHASH, commit.lthash)
            self._put_counts(txn)
        self._pending.drop(folds, self._height)
        self._pending.add(header.height, commit.block.outcomes)
        if len(self._newest) > NEWEST_MAX:
            self._newest.clear()
        self._newest.update(newest)
        self._height, self._head_hash, self._certified = header.height, new_hash, certified
        if header.height % RELEASE_BLOCKS == 0:
            self._mapped.release()

    def put_certificates(self, certificates: Sequence[BlockCertificate]) -> None:
        fresh = []
        for certificate in certificates:
            check_certificate(certificate, self._height, self._own_hash(certificate.height))
            if self.certificate(certificate.height) is None:
                fresh.append(certificate)
        if not fresh:
            return
        certified = max(self._certified, *(item.height for item in fresh))
        with self._writing() as txn:
            self._put_certificates(txn, fresh, certified)
            self._put_counts(txn)
        self._certified = certified

    def prune(self, up_to_height: int) -> None:
        check_prune(up_to_height, self._certified)
        while self._pruned < up_to_height:
            last = min(up_to_height, self._pruned + PRUNE_BLOCKS)
            with self._writing() as txn:
                for height in range(self._pruned + 1, last + 1):
                    for place, stored in enumerate(self.batches(height)):
                        pruned = pruned_batch(stored)
                        if pruned is not None:
                            self._put(txn, BATCHES, batch_key(height, place), encode(pruned))
                self._put(txn, META, records.META_PRUNED, height_key(last))
            self._pruned = last
            self._mapped.release()

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

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Any]:
        """One durable write. After the disk refused once, no further write is tried: what it kept is unknown."""
        if not self._write:
            raise CommitRefused("the ledger is open read-only")
        if self._fault is not None:
            raise self._fault
        try:
            with disk_faults(self._path), self._env.begin(write=True) as txn:
                yield txn
        except EnvironmentFault as fault:
            if not isinstance(fault.__cause__, lmdb.MapFullError):
                self._fault = fault
            raise

    def _put_block(self, txn: Any, commit: LedgerCommit) -> None:
        block, key = commit.block, height_key(commit.block.header.height)
        self._put(txn, HEADERS, key, encode(block.header), append=True)
        body = BlockBody(block.proposal, block.executed, block.outcomes)
        self._put(txn, BLOCKS, key, encode(body), append=True)
        for place, stored in enumerate(commit.batches):
            self._put(txn, BATCHES, batch_key(block.header.height, place), encode(stored), append=True)

    def _put_folds(self, txn: Any, folds: Sequence[Fold]) -> None:
        if not folds:
            return
        for _, rows in folds:
            if rows:
                txn.cursor(self._dbs[TRANSACTIONS]).putmulti(rows, overwrite=False)
        self._put(txn, META, records.META_FOLDED, self._pending.folded_after(folds, self._height))

    def _put_signers(self, txn: Any, height: int, transactions: Sequence[Transaction]) -> dict[bytes, bytes]:
        """Write links and newest places; return the newest places, to be remembered once they are durable."""
        signers = [tx.signer for tx in transactions]
        newest = self._newest_places(txn, set(signers))
        links = []
        for index, signer in enumerate(signers):
            links.append(newest.get(signer, records.NO_PLACE))
            newest[signer] = pack_place(height, index)
        seal = SIGNERS.seal
        rows = [(signer, seal(signer, newest[signer])) for signer in sorted(newest)]
        if rows:
            txn.cursor(self._dbs[SIGNERS]).putmulti(rows)
        self._put(txn, LINKS, height_key(height), b"".join(links), append=True)
        return newest

    def _newest_places(self, txn: Any, signers: set[bytes]) -> dict[bytes, bytes]:
        known = self._newest
        newest = {signer: known[signer] for signer in signers if signer in known}
        others = sorted(signers - newest.keys())
        if others:
            for signer, stored in txn.cursor(self._dbs[SIGNERS]).getmulti(others):
                newest[signer] = SIGNERS.unseal(signer, stored)
        return newest

    def _put_state(self, txn: Any, commit: LedgerCommit) -> None:
        height = height_key(commit.block.header.height)
        seal, db = STATE.seal, self._dbs[STATE]
        rows = [(key, seal(key, height + value)) for key, value in commit.writes if value is not None]
        if rows:
            txn.cursor(db).putmulti(rows)
        for key, value in commit.writes:
            if value is None:
                txn.delete(key, db=db)
            if has_history(key):
                prefix = records.history_prefix(key)
                version = records.pack_version(self._newest_version(txn, prefix), value)
                self._put(txn, HISTORY, prefix + height, version)

    def _newest_version(self, txn: Any, prefix: bytes) -> int:
        cursor = txn.cursor(self._dbs[HISTORY])
        there = cursor.set_range(prefix + b"\xff" * 8)
        there = cursor.prev() if there else cursor.last()
        key = cursor.key() if there else b""
        return height_of(key[len(prefix) :]) if key.startswith(prefix) and len(key) == len(prefix) + 8 else 0

    def _put_certificates(self, txn: Any, certificates: Sequence[BlockCertificate], certified: int) -> None:
        for certificate in certificates:
            key = height_key(certificate.height)
            if txn.get(key, db=self._dbs[CERTIFICATES]) is None:
                self._put(txn, CERTIFICATES, key, encode(certificate))
        if certificates:
            self._put(txn, META, records.META_CERTIFIED, height_key(certified))

    def _put_counts(self, txn: Any) -> None:
        """Record how many entries each table has: a record that disappears is then missed."""
        counts = {table.name: txn.stat(self._dbs[table])["entries"] for table in LEDGER_TABLES if table is not META}
        self._put(txn, META, records.META_COUNTS, encode(counts))

    def _put(self, txn: Any, table: Table, key: bytes, value: bytes, *, append: bool = False) -> None:
        txn.put(key, table.seal(key, value), db=self._dbs[table], append=append)

    # Records.

    def _own_hash(self, height: int) -> bytes | None:
        if height == self._height:
            return self._head_hash
        header = self.header(height)
        return None if header is None else header_hash(header)

    def _get(self, table: Table, key: bytes) -> bytes | None:
        try:
            # Not `with`: its protocol costs as much as the read itself.
            txn = self._env.begin(db=self._dbs[table])
            try:
                stored = txn.get(key)
            finally:
                txn.abort()
        except (lmdb.Error, OSError) as error:
            raise fault_of(error, self._path) from error
        return None if stored is None else table.unseal(key, stored)

    def _read(self, table: Table, key: bytes, decoder: "msgspec.msgpack.Decoder[T]") -> T | None:
        value = self._get(table, key)
        return None if value is None else decoded(table, key, value, decoder)

    def _rows(self, table: Table, prefix: bytes, limit: int | None) -> list[tuple[bytes, bytes]]:
        rows: list[tuple[bytes, bytes]] = []
        with disk_faults(self._path), self._env.begin(db=self._dbs[table]) as txn:
            cursor = txn.cursor()
            there = cursor.set_range(prefix) if prefix else cursor.first()
            while there and (limit is None or len(rows) < limit):
                key = cursor.key()
                if not key.startswith(prefix):
                    break
                rows.append((key, table.unseal(key, cursor.value())))
                there = cursor.next()
        return rows

    def _meta(self, name: bytes) -> bytes | None:
        return self._get(META, name)

    def _required_meta(self, txn: Any, name: bytes) -> bytes:
        stored = txn.get(name, db=self._dbs[META])
        if stored is None:
            raise DamagedRecordError(META.name, name, "the record is missing")
        return META.unseal(name, stored)
