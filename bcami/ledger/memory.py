"""Ledger and promises in memory: the same rules as on disk, for the deterministic driver and as a model in tests."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import msgspec

from bcami.codec import encode
from bcami.ledger.receipts import ReceiptMaker
from bcami.ledger.rules import (
    Part,
    check_certificate,
    check_commit,
    check_installed,
    check_prune,
    check_staged,
    is_pruned_batch,
    proof_of,
    pruned_batch,
    transactions_of,
)
from bcami.ledger.store import LTHASH_BYTES, LedgerCommit, SignerEntry, SnapshotSource, TableSize, has_history
from bcami.model.block import BlockCertificate, Header, Receipt, header_hash
from bcami.model.chain import (
    BlockBundle,
    ChainBlock,
    StateEntry,
    StateRow,
    StateVersion,
    StoredBatch,
    TransactionPlace,
)
from bcami.model.genesis import Genesis, chain_id
from bcami.model.quorum import Quorum
from bcami.model.transaction import Transaction


class MemoryLedger:
    """Implements `bcami.ledger.store.Ledger`; durable as long as the object lives."""

    def __init__(self, genesis: Genesis) -> None:
        self._chain = chain_id(genesis)
        self._quorum = Quorum(len(genesis.members))
        self._commits: list[LedgerCommit] = []
        self._head_hash = self._chain
        self._certificates: dict[int, BlockCertificate] = {}
        self._certified = 0
        self._pruned = 0
        self._state: dict[bytes, StateEntry] = {}
        self._history: dict[bytes, list[StateVersion]] = {}
        self._places: dict[bytes, TransactionPlace] = {}
        self._by_signer: dict[bytes, list[SignerEntry]] = {}
        self._undo: dict[int, dict[bytes, StateEntry | None]] = {}
        self._staged: dict[int, BlockBundle] = {}
        self._staged_state: dict[bytes, StateEntry] = {}
        self._snapshot = 0
        self._receipts = ReceiptMaker(self.block, self.certificate)

    @property
    def height(self) -> int:
        return len(self._commits)

    @property
    def head_hash(self) -> bytes:
        return self._head_hash

    @property
    def certified_height(self) -> int:
        return self._certified

    @property
    def pruned_to(self) -> int:
        return self._pruned

    def header(self, height: int) -> Header | None:
        block = self.block(height)
        return None if block is None else block.header

    def block(self, height: int) -> ChainBlock | None:
        return self._commits[height - 1].block if 1 <= height <= self.height else None

    def batches(self, height: int) -> tuple[StoredBatch, ...]:
        return self._commits[height - 1].batches if 1 <= height <= self.height else ()

    def commit(self, commit: LedgerCommit, certificates: Sequence[BlockCertificate] = ()) -> None:
        header = commit.block.header
        if header.height <= self.height and self._own_hash(header.height) == header_hash(header):
            self.put_certificates(certificates)
            return
        new_hash = check_commit(commit, self.height, self._head_hash, self._chain)
        transactions = transactions_of(commit.block, commit.batches, self._quorum)
        for certificate in certificates:
            own = new_hash if certificate.height == header.height else self._own_hash(certificate.height)
            check_certificate(certificate, header.height, own)
        # What pruning drops and the world state repeats is not held twice.
        self._append(msgspec.structs.replace(commit, writes=()), new_hash, transactions)
        self._undo[header.height] = {key: self._state.get(key) for key, _ in commit.writes}
        self._apply(commit.writes, header.height)
        self.put_certificates(certificates)

    def _append(self, commit: LedgerCommit, new_hash: bytes, transactions: Sequence[Transaction]) -> None:
        self._commits.append(commit)
        self._head_hash = new_hash
        height = self.height
        for index, (tx, outcome) in enumerate(zip(transactions, commit.block.outcomes, strict=True)):
            self._places.setdefault(outcome.transaction_id, TransactionPlace(height, index))
            self._by_signer.setdefault(tx.signer, []).append((height, index, outcome.transaction_id))

    def _apply(self, writes: Sequence[tuple[bytes, bytes | None]], height: int) -> None:
        for key, value in writes:
            if value is None:
                self._state.pop(key, None)
            else:
                self._state[key] = StateEntry(value, height)
            if has_history(key):
                self._history.setdefault(key, []).append(StateVersion(height, value))

    def put_certificates(self, certificates: Sequence[BlockCertificate]) -> None:
        for certificate in certificates:
            check_certificate(certificate, self.height, self._own_hash(certificate.height))
        for certificate in certificates:
            self._certificates.setdefault(certificate.height, certificate)
            self._certified = max(self._certified, certificate.height)
        for height in [item for item in self._undo if item <= self._certified]:
            del self._undo[height]

    def _own_hash(self, height: int) -> bytes | None:
        if height == self.height:
            return self._head_hash
        header = self.header(height)
        return None if header is None else header_hash(header)

    def certificate(self, height: int) -> BlockCertificate | None:
        return self._certificates.get(height)

    def bundle(self, height: int) -> BlockBundle | None:
        block = self.block(height)
        proof = proof_of(height, self.certified_height, self.header, self.certificate)
        if block is None or proof is None:
            return None
        return BlockBundle(block, self.batches(height), proof[1], proof[0])

    def state(self, key: bytes) -> StateEntry | None:
        return self._state.get(key)

    def scan(self, prefix: bytes, limit: int) -> Iterator[tuple[bytes, StateEntry]]:
        keys = sorted(key for key in self._state if key.startswith(prefix))
        return iter([(key, self._state[key]) for key in keys[:limit]])

    def place(self, transaction_id: bytes) -> TransactionPlace | None:
        return self._places.get(transaction_id)

    def receipt(self, transaction_id: bytes) -> Receipt | None:
        place = self.place(transaction_id)
        return None if place is None else self._receipts.receipt(transaction_id, place)

    def by_signer(self, signer: bytes, limit: int = 100, before: TransactionPlace | None = None) -> list[SignerEntry]:
        entries = self._by_signer.get(signer, [])
        if before is not None:
            entries = [entry for entry in entries if entry[:2] < (before.height, before.index)]
        return entries[::-1][:limit]

    def history(self, key: bytes) -> list[StateVersion]:
        return list(self._history.get(key, ()))

    def lthash(self) -> bytes:
        return self._commits[-1].lthash if self._commits else bytes(LTHASH_BYTES)

    def prune(self, up_to_height: int) -> None:
        check_prune(up_to_height, self._certified)
        for height in range(self._pruned + 1, up_to_height + 1):
            batches = tuple(pruned_batch(stored) or stored for stored in self.batches(height))
            self._commits[height - 1] = msgspec.structs.replace(self._commits[height - 1], batches=batches)
        self._pruned = max(self._pruned, up_to_height)

    # Snapshots.

    @property
    def snapshot_height(self) -> int:
        return self._snapshot

    def open_snapshot(self) -> SnapshotSource | None:
        if self._certified == 0:
            return None
        return MemorySource(self._certified, self._state, self._undo)

    def stage(self, bundles: Sequence[BlockBundle], rows: Sequence[StateRow], *, fresh: bool = False) -> None:
        if fresh:
            self._staged.clear()
            self._staged_state.clear()
        self._staged.update((bundle.block.header.height, bundle) for bundle in bundles)
        self._staged_state.update(rows)

    def install(self, header: Header, certificate: BlockCertificate, lthash: bytes) -> None:
        if header.height <= self.height:
            return
        head_hash = self._head_hash
        bundles = [self._staged.get(height) for height in range(self.height + 1, header.height + 1)]
        whole = [bundle for bundle in bundles if bundle is not None]
        for height, bundle in enumerate(whole, self.height):
            head_hash = check_staged(bundle, height, head_hash)
        check_installed(header, certificate, head_hash, lthash, is_whole=len(whole) == len(bundles))
        for bundle in whole:
            block, height = bundle.block, bundle.block.header.height
            commit = LedgerCommit(block, bundle.batches, (), lthash if height == header.height else b"")
            self._append(commit, header_hash(block.header), transactions_of(block, bundle.batches, self._quorum))
            if bundle.certificate.height == height:
                self._certificates[height] = bundle.certificate
            if any(map(is_pruned_batch, bundle.batches)):
                self._pruned = height
        self._certificates[header.height] = certificate
        self._state, self._staged_state = self._staged_state, {}
        self._history = {
            key: [StateVersion(entry.height, entry.value)] for key, entry in self._state.items() if has_history(key)
        }
        self._staged, self._undo = {}, {}
        self._snapshot, self._certified = header.height, header.height

    def sizes(self) -> dict[str, TableSize]:
        return {
            "blocks": TableSize(self.height, sum(len(encode(item.block)) for item in self._commits)),
            "batches": TableSize(
                sum(len(item.batches) for item in self._commits),
                sum(len(encode(stored)) for item in self._commits for stored in item.batches),
            ),
            "certificates": TableSize(
                len(self._certificates), sum(len(encode(item)) for item in self._certificates.values())
            ),
            "state": TableSize(
                len(self._state), sum(len(key) + len(entry.value) for key, entry in self._state.items())
            ),
            "transactions": TableSize(len(self._places), sum(len(item) for item in self._places)),
        }

    def close(self) -> None:
        """Nothing to close: the object is the store."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemorySource:
    """Implements `bcami.ledger.store.SnapshotSource`."""

    def __init__(
        self, height: int, state: dict[bytes, StateEntry], undo: dict[int, dict[bytes, StateEntry | None]]
    ) -> None:
        self.height = height
        self._state = dict(state)
        self._before: dict[bytes, StateEntry | None] = {}
        for above in sorted(undo, reverse=True):
            self._before.update(undo[above])

    def part(self, after: bytes, bytes_max: int) -> tuple[list[StateRow], bool]:
        part = Part(self._before, after, bytes_max)
        for key in sorted(self._state):
            if key > after and not part.is_full:
                part.stored(key, self._state[key])
        part.up_to(None)
        return part.rows, part.is_last

    def close(self) -> None:
        """Nothing to close."""


class MemoryPromises:
    """Implements `bcami.ledger.store.PromiseStore`; what a simulated disk keeps is a copy of `records`."""

    def __init__(self, records: dict[bytes, bytes] | None = None) -> None:
        self.records = {} if records is None else records

    def apply(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        self.records.update(puts)
        for key in deletes:
            self.records.pop(key, None)

    def put(self, key: bytes, value: bytes) -> None:
        self.apply([(key, value)])

    def delete(self, key: bytes) -> None:
        self.apply([], [key])

    def get(self, key: bytes) -> bytes | None:
        return self.records.get(key)

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted((key, value) for key, value in self.records.items() if key.startswith(prefix)))

    def close(self) -> None:
        """Nothing to close."""
