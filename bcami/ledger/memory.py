"""Ledger and promises in memory: the same rules as on disk, for the deterministic driver and as a model in tests."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import msgspec

from bcami.codec import encode
from bcami.ledger.receipts import ReceiptMaker
from bcami.ledger.rules import check_certificate, check_commit, check_prune, proof_of, pruned_batch, transactions_of
from bcami.ledger.store import LTHASH_BYTES, LedgerCommit, SignerEntry, TableSize, has_history
from bcami.model.block import BlockCertificate, Header, Receipt, header_hash
from bcami.model.chain import BlockBundle, ChainBlock, StateEntry, StateVersion, StoredBatch, TransactionPlace
from bcami.model.genesis import Genesis, chain_id
from bcami.model.quorum import Quorum


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
        self._commits.append(msgspec.structs.replace(commit, writes=()))
        self._head_hash = new_hash
        for index, (tx, outcome) in enumerate(zip(transactions, commit.block.outcomes, strict=True)):
            self._places.setdefault(outcome.transaction_id, TransactionPlace(header.height, index))
            self._by_signer.setdefault(tx.signer, []).append((header.height, index, outcome.transaction_id))
        self._apply(commit.writes, header.height)
        self.put_certificates(certificates)

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
