"""The ledger on disk: one LMDB environment, one durable write for each block.

Almost everything is keyed by height and so appended: headers, bodies, batches, certificates, links. What is keyed by
something else is kept small: the world state and the newest place of each signer grow with the number of meters, not
of transactions. Only the index of transaction ids is keyed at random and grows with every transaction (see `index`).

A signer's transactions are a linked list: `signers` points to the newest, `links` holds for each outcome of a block
the place of the same signer's transaction before. An index row per signer and transaction would touch one page of the
file for each transaction.

Reads may run in any thread while one thread commits.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from bcami.codec import encode
from bcami.errors import EnvironmentFault
from bcami.ledger import records
from bcami.ledger.environment import MAP_BYTES
from bcami.ledger.index import SLICES, Fold, PendingPlaces
from bcami.ledger.lmdb_snapshot import LmdbSource, StagedBlocks, drop_staged, put_places, stage, take_staged_state
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
    UNDO,
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
from bcami.ledger.rules import (
    check_certificate,
    check_commit,
    check_installed,
    check_prune,
    proof_of,
    pruned_batch,
    transactions_of,
)
from bcami.ledger.store import LTHASH_BYTES, LedgerCommit, SignerEntry, SnapshotSource, TableSize, has_history
from bcami.ledger.tables import Tables, Writing
from bcami.model.block import BlockCertificate, Header, Outcome, Receipt, header_hash
from bcami.model.chain import BlockBundle, ChainBlock, StateEntry, StateRow, StateVersion, StoredBatch, TransactionPlace
from bcami.model.genesis import Genesis, chain_id
from bcami.model.quorum import Quorum
from bcami.model.transaction import Transaction

T = TypeVar("T")

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
        self._chain = chain_id(genesis)
        self._quorum = Quorum(len(genesis.members))
        self._newest: dict[bytes, bytes] = {}
        self._tables = Tables(path, LEDGER_TABLES, write=write, create=write, map_bytes=map_bytes)
        try:
            if write and self._tables.get(META, records.META_FORMAT) is None:
                self._create()
            self._check_identity()
            if write:
                drop_staged(self._tables)
            self._load_head()
        except BaseException:
            self._tables.close()
            raise
        self._receipts = ReceiptMaker(self.block, self.certificate)

    def _create(self) -> None:
        with self._tables.writing() as write:
            for name, value in (
                (records.META_FORMAT, records.LEDGER_FORMAT),
                (records.META_CHAIN, self._chain),
                (records.META_HEAD, height_key(0) + self._chain),
                (records.META_CERTIFIED, height_key(0)),
                (records.META_PRUNED, height_key(0)),
                (records.META_LTHASH, bytes(LTHASH_BYTES)),
                (records.META_FOLDED, bytes(8 * SLICES)),
                (records.META_SNAPSHOT, height_key(0)),
            ):
                write.put(META, name, value)

    def _check_identity(self) -> None:
        found, chain = self._tables.meta(records.META_FORMAT, records.META_CHAIN)
        if found != records.LEDGER_FORMAT:
            raise EnvironmentFault(
                "this is not a ledger of this version of bcami",
                where=str(self._tables.path),
                likely=f"made by another version (format {found!r})",
                do="use the version that made it, or rebuild the ledger from the node's peers",
            )
        if chain != self._chain:
            raise EnvironmentFault(
                "the ledger belongs to another network",
                where=str(self._tables.path),
                likely="the home folder was mixed with that of another network",
                do="name the home folder that this ledger was made in",
            )

    def _load_head(self) -> None:
        head, certified, pruned, folded, snapshot = self._tables.meta(
            records.META_HEAD,
            records.META_CERTIFIED,
            records.META_PRUNED,
            records.META_FOLDED,
            records.META_SNAPSHOT,
        )
        self._snapshot = height_of(snapshot)
        self._height, self._head_hash = height_of(head), head[8:]
        self._certified, self._pruned = height_of(certified), height_of(pruned)
        self._pending = PendingPlaces(folded)
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
        self._load_head()

    def header(self, height: int) -> Header | None:
        return self._read(HEADERS, height_key(height), HEADER_DECODER)

    def block(self, height: int) -> ChainBlock | None:
        header, body = self.header(height), self._read(BLOCKS, height_key(height), BODY_DECODER)
        if header is None or body is None:
            return None
        return ChainBlock(header, body.proposal, body.executed, body.outcomes)

    def batches(self, height: int) -> tuple[StoredBatch, ...]:
        rows = self._tables.rows(BATCHES, height_key(height))
        return tuple(decoded(BATCHES, key, value, BATCH_DECODER) for key, value in rows)

    def certificate(self, height: int) -> BlockCertificate | None:
        return self._read(CERTIFICATES, height_key(height), CERTIFICATE_DECODER)

    def bundle(self, height: int) -> BlockBundle | None:
        block = self.block(height)
        proof = proof_of(height, self.certified_height, self.header, self.certificate)
        if block is None or proof is None:
            return None
        return BlockBundle(block, self.batches(height), proof[1], proof[0])

    def state(self, key: bytes) -> StateEntry | None:
        value = self._tables.get(STATE, key) if len(key) <= records.KEY_BYTES_MAX else None
        return None if value is None else unpack_state(value)

    def scan(self, prefix: bytes, limit: int) -> Iterator[tuple[bytes, StateEntry]]:
        return iter([(key, unpack_state(value)) for key, value in islice(self._tables.rows(STATE, prefix), limit)])

    def place(self, transaction_id: bytes) -> TransactionPlace | None:
        # Memory first: a slice leaves memory only after the table has it, so that no reader misses both.
        pending = self._pending.get(transaction_id)
        value = self._tables.get(TRANSACTIONS, transaction_id[: records.ID_BYTES])
        self._tables.count_scattered_read()
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
        value = self._tables.get(SIGNERS, signer)
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
        key = height_key(height)
        return decoded(BLOCKS, key, self._tables.required(BLOCKS, key), BODY_DECODER).outcomes

    def _place_before(self, place: TransactionPlace) -> TransactionPlace | None:
        links = self._tables.get(LINKS, height_key(place.height)) or b""
        start = place.index * records.PLACE_BYTES
        link = links[start : start + records.PLACE_BYTES]
        return None if len(link) < records.PLACE_BYTES or link == records.NO_PLACE else unpack_place(link)

    def history(self, key: bytes) -> list[StateVersion]:
        prefix = records.history_prefix(key)
        return [
            records.unpack_version(height_of(row[len(prefix) :]), value)[1]
            for row, value in self._tables.rows(HISTORY, prefix)
        ]

    def lthash(self) -> bytes:
        return self._tables.required(META, records.META_LTHASH)

    def sizes(self) -> dict[str, TableSize]:
        return {
            name: TableSize(
                stat["entries"],
                stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]),
            )
            for name, stat in self._tables.stats().items()
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
        with self._tables.writing() as write:
            self._put_block(write, commit)
            newest = self._put_signers(write, header.height, transactions)
            self._put_folds(write, folds)
            if certified < header.height:
                self._put_undo(write, commit)
            self._put_state(write, commit)
            self._put_certificates(write, certificates, certified)
            write.put(META, records.META_HEAD, height_key(header.height) + new_hash)
            write.put(META, records.META_LTHASH, commit.lthash)
        self._pending.drop(folds, self._height)
        self._pending.add(header.height, commit.block.outcomes)
        if len(self._newest) > NEWEST_MAX:
            self._newest.clear()
        self._newest.update(newest)
        self._height, self._head_hash, self._certified = header.height, new_hash, certified
        self._tables.release_pages()

    def put_certificates(self, certificates: Sequence[BlockCertificate]) -> None:
        fresh = []
        for certificate in certificates:
            check_certificate(certificate, self._height, self._own_hash(certificate.height))
            if self.certificate(certificate.height) is None:
                fresh.append(certificate)
        if not fresh:
            return
        certified = max(self._certified, *(item.height for item in fresh))
        with self._tables.writing() as write:
            self._put_certificates(write, fresh, certified)
        self._certified = certified

    def prune(self, up_to_height: int) -> None:
        check_prune(up_to_height, self._certified)
        while self._pruned < up_to_height:
            last = min(up_to_height, self._pruned + PRUNE_BLOCKS)
            with self._tables.writing() as write:
                for height in range(self._pruned + 1, last + 1):
                    for place, stored in enumerate(self.batches(height)):
                        pruned = pruned_batch(stored)
                        if pruned is not None:
                            write.put(BATCHES, batch_key(height, place), encode(pruned))
                write.put(META, records.META_PRUNED, height_key(last))
            self._pruned = last
            self._tables.release_pages()

    # Snapshots.

    @property
    def snapshot_height(self) -> int:
        return self._snapshot

    def open_snapshot(self) -> SnapshotSource | None:
        return LmdbSource(self._tables) if self._certified else None

    def stage(self, bundles: Sequence[BlockBundle], rows: Sequence[StateRow], *, fresh: bool = False) -> None:
        stage(self._tables, bundles, rows, fresh=fresh)

    def install(self, header: Header, certificate: BlockCertificate, lthash: bytes) -> None:
        if header.height <= self._height:
            return
        self._newest.clear()
        with self._tables.writing() as write:
            self._put_folds(write, self._pending.all())
            staged = StagedBlocks(write, self._height, self._head_hash)
            for bundle in staged:
                block, own = bundle.block, bundle.certificate.height == bundle.block.header.height
                transactions = transactions_of(block, bundle.batches, self._quorum)
                self._put_block(write, LedgerCommit(block, bundle.batches, (), b""))
                self._put_signers(write, block.header.height, transactions)
                self._put_certificates(write, (bundle.certificate,) if own else (), block.header.height)
                put_places(write, block)
            is_whole = staged.height == header.height
            check_installed(header, certificate, staged.head_hash, lthash, is_whole=is_whole)
            self._put_certificates(write, (certificate,), header.height)
            take_staged_state(write)
            height = height_key(header.height)
            for name, value in (
                (records.META_HEAD, height + staged.head_hash),
                (records.META_LTHASH, lthash),
                (records.META_FOLDED, height * SLICES),
                (records.META_SNAPSHOT, height),
                (records.META_PRUNED, height_key(max(self._pruned, staged.pruned_to))),
            ):
                write.put(META, name, value)
        self._load_head()
        self._tables.release_pages()

    def close(self) -> None:
        self._tables.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put_block(self, write: Writing, commit: LedgerCommit) -> None:
        block, key = commit.block, height_key(commit.block.header.height)
        write.put(HEADERS, key, encode(block.header), append=True)
        body = BlockBody(block.proposal, block.executed, block.outcomes)
        write.put(BLOCKS, key, encode(body), append=True)
        for place, stored in enumerate(commit.batches):
            write.put(BATCHES, batch_key(block.header.height, place), encode(stored), append=True)

    def _put_folds(self, write: Writing, folds: Sequence[Fold]) -> None:
        if not folds:
            return
        for _, rows in folds:
            write.put_sealed(TRANSACTIONS, rows, overwrite=False)
            self._tables.release_pages()
        write.put(META, records.META_FOLDED, self._pending.folded_after(folds, self._height))

    def _put_signers(self, write: Writing, height: int, transactions: Sequence[Transaction]) -> dict[bytes, bytes]:
        """Write links and newest places; return the newest places, to be remembered once they are durable."""
        signers = [tx.signer for tx in transactions]
        newest = self._newest_places(write, set(signers))
        links = []
        for index, signer in enumerate(signers):
            links.append(newest.get(signer, records.NO_PLACE))
            newest[signer] = pack_place(height, index)
        seal = SIGNERS.seal
        rows = [(signer, seal(signer, newest[signer])) for signer in sorted(newest)]
        write.put_sealed(SIGNERS, rows)
        write.put(LINKS, height_key(height), b"".join(links), append=True)
        return newest

    def _newest_places(self, write: Writing, signers: set[bytes]) -> dict[bytes, bytes]:
        known = self._newest
        newest = {signer: known[signer] for signer in signers if signer in known}
        newest.update(write.get_many(SIGNERS, sorted(signers - newest.keys())))
        return newest

    def _put_undo(self, write: Writing, commit: LedgerCommit) -> None:
        """Keep what the block replaces until it is certified: a snapshot is of a certified state."""
        keys = [key for key, _ in commit.writes]
        held = {key: unpack_state(value) for key, value in write.get_many(STATE, keys)}
        rows = [(key, held.get(key)) for key in keys]
        write.put(UNDO, height_key(commit.block.header.height), encode(rows), append=True)

    def _put_state(self, write: Writing, commit: LedgerCommit) -> None:
        height = height_key(commit.block.header.height)
        seal = STATE.seal
        rows = [(key, seal(key, height + value)) for key, value in commit.writes if value is not None]
        write.put_sealed(STATE, rows)
        for key, value in commit.writes:
            if value is None:
                write.delete(STATE, key)
            if has_history(key):
                prefix = records.history_prefix(key)
                before = write.last_key(HISTORY, prefix, len(height))
                version = records.pack_version(height_of(before[-8:]) if before else 0, value)
                write.put(HISTORY, prefix + height, version)

    def _put_certificates(self, write: Writing, certificates: Sequence[BlockCertificate], certified: int) -> None:
        for certificate in certificates:
            key = height_key(certificate.height)
            if not write.has(CERTIFICATES, key):
                write.put(CERTIFICATES, key, encode(certificate))
        if certificates:
            write.put(META, records.META_CERTIFIED, height_key(certified))
            write.delete_up_to(UNDO, height_key(certified))

    # Records.

    def _own_hash(self, height: int) -> bytes | None:
        if height == self._height:
            return self._head_hash
        header = self.header(height)
        return None if header is None else header_hash(header)

    def _read(self, table: Table, key: bytes, decoder: "msgspec.msgpack.Decoder[T]") -> T | None:
        value = self._tables.get(table, key)
        return None if value is None else decoded(table, key, value, decoder)
