"""What both implementations decide alike: whether a commit continues the chain, who signed, what pruning leaves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from bcami.crypto.lthash import LtHash
from bcami.crypto.verification import executed_transactions
from bcami.ledger.store import LTHASH_BYTES, CommitRefused, LedgerCommit
from bcami.model.batch import leaf_hash
from bcami.model.block import BlockCertificate, Header, header_hash
from bcami.model.chain import (
    HEADERS_ABOVE_MAX,
    STATE_KEY_BYTES_MAX,
    STATE_VALUE_BYTES_MAX,
    BlockBundle,
    ChainBlock,
    StateEntry,
    StateRow,
    StoredBatch,
)
from bcami.model.quorum import Quorum
from bcami.model.transaction import Transaction
from bcami.model.wire import SNAPSHOT_ROW_BYTES

USAGE_CONTRACT: Final = "usage"


def check_commit(commit: LedgerCommit, height: int, head_hash: bytes, chain: bytes) -> bytes:
    """Return the header hash of a commit that continues the chain after (height, head_hash).

    Raises CommitRefused with the first rule that it breaks.
    """
    header = commit.block.header
    if header.chain != chain:
        raise CommitRefused(f"block {header.height} belongs to another chain")
    if header.height != height + 1:
        raise CommitRefused(f"block {header.height} cannot follow block {height}")
    if header.previous != head_hash:
        raise CommitRefused(f"block {header.height} names another parent than the block {height} of this ledger")
    if len(commit.batches) != len(commit.block.executed):
        raise CommitRefused(f"block {header.height} executed {len(commit.block.executed)} batches, not all are given")
    if len(commit.block.outcomes) != header.transaction_count:
        raise CommitRefused(f"block {header.height} counts other transactions than it has outcomes")
    if len(commit.lthash) != LTHASH_BYTES:
        raise CommitRefused(f"block {header.height} comes with an LtHash of {len(commit.lthash)} bytes")
    _check_writes(commit)
    return header_hash(header)


def _check_writes(commit: LedgerCommit) -> None:
    last: bytes | None = None
    for key, value in commit.writes:
        if last is not None and key <= last:
            raise CommitRefused("the writes of a block are not sorted by key, each key once")
        if not 1 <= len(key) <= STATE_KEY_BYTES_MAX:
            raise CommitRefused(f"a state key of {len(key)} bytes, 1 to {STATE_KEY_BYTES_MAX} are possible")
        if value is not None and len(value) > STATE_VALUE_BYTES_MAX:
            raise CommitRefused(f"a state value of {len(value)} bytes, at most {STATE_VALUE_BYTES_MAX} are possible")
        last = key


def transactions_of(block: ChainBlock, batches: Sequence[StoredBatch], quorum: Quorum) -> list[Transaction]:
    """Return the transactions behind `block.outcomes`, in that order.

    Raises CommitRefused when their number is not that of the outcomes, or a batch is not the one ordered.
    """
    height = block.header.height
    for place, stored in zip(block.executed, batches, strict=True):
        if place >= len(block.proposal.certificates):
            raise CommitRefused(f"block {height} executed a batch that it does not order")
        batch, certificate = stored.batch, block.proposal.certificates[place]
        ordered = (certificate.collector, certificate.number, certificate.count)
        if (batch.collector, batch.number, len(batch.transactions)) != ordered:
            raise CommitRefused(f"block {height} comes with another batch than it orders")
    transactions = [tx for _, _, tx in executed_transactions(block, batches, quorum)]
    if len(transactions) != len(block.outcomes):
        raise CommitRefused(f"block {height} has {len(block.outcomes)} outcomes for {len(transactions)} transactions")
    return transactions


def check_certificate(certificate: BlockCertificate, height: int, own_hash: bytes | None) -> None:
    """Check that a certificate speaks of this ledger's block.

    Raises CommitRefused otherwise; a node that sees a valid one stop here must stop (protocol 5.4).
    """
    if own_hash is None:
        raise CommitRefused(f"a certificate of block {certificate.height}, the ledger ends at block {height}")
    if own_hash != certificate.header_hash:
        raise CommitRefused(f"the certificate of block {certificate.height} contradicts the block of this ledger")


def proof_of(
    height: int,
    certified_height: int,
    header: Callable[[int], Header | None],
    certificate: Callable[[int], BlockCertificate | None],
) -> tuple[tuple[Header, ...], BlockCertificate] | None:
    """Return the headers above a block up to the first one that has a certificate, and that certificate.

    None when there is none, or it is too far above.
    """
    above: list[Header] = []
    for place in range(height, min(certified_height, height + HEADERS_ABOVE_MAX) + 1):
        if place > height:
            found = header(place)
            assert found is not None
            above.append(found)
        proof = certificate(place)
        if proof is not None:
            return tuple(above), proof
    return None


def check_staged(bundle: BlockBundle, height: int, head_hash: bytes) -> bytes:
    """Return the header hash of a staged block that follows (height, head_hash). Raises CommitRefused otherwise."""
    header = bundle.block.header
    if header.height != height + 1 or header.previous != head_hash:
        raise CommitRefused(f"what is staged does not continue block {height}")
    return header_hash(header)


def check_installed(
    header: Header, certificate: BlockCertificate, head_hash: bytes, lthash: bytes, *, is_whole: bool
) -> None:
    """Check that staged blocks end with this header, and the LtHash is that of its state. Raises CommitRefused."""
    if not is_whole or head_hash != header_hash(header):
        raise CommitRefused(f"what is staged does not end with block {header.height}")
    if len(lthash) != LTHASH_BYTES or LtHash(lthash).root() != header.state_root:
        raise CommitRefused(f"the LtHash is not that of block {header.height}")
    check_certificate(certificate, header.height, head_hash if certificate.height == header.height else None)


def is_pruned_batch(stored: StoredBatch) -> bool:
    return bool(stored.leaves)


class Part:
    """Rows of a snapshot in key order, up to a number of bytes: stored ones, but for those that were different then."""

    def __init__(self, before: Mapping[bytes, StateEntry | None], after: bytes, bytes_max: int) -> None:
        """`before` holds what keys held then (None: nothing) that blocks above have written."""
        self._before = before
        self._waiting = sorted(key for key, entry in before.items() if entry is not None and key > after)[::-1]
        self._left = bytes_max
        self.rows: list[StateRow] = []

    @property
    def is_full(self) -> bool:
        return self._left <= 0

    def stored(self, key: bytes, entry: StateEntry) -> None:
        """Take the next stored row."""
        self.up_to(key)
        if not self.is_full and key not in self._before:
            self._add(key, entry)

    def up_to(self, key: bytes | None) -> None:
        """Take what was there then up to and with this key; None stands for the end."""
        while self._waiting and not self.is_full and (key is None or self._waiting[-1] <= key):
            earlier = self._waiting.pop()
            entry = self._before[earlier]
            assert entry is not None
            self._add(earlier, entry)

    @property
    def is_last(self) -> bool:
        """Tell, after the end was taken, whether nothing is left."""
        return not self.is_full and not self._waiting

    def _add(self, key: bytes, entry: StateEntry) -> None:
        self.rows.append((key, entry))
        self._left -= SNAPSHOT_ROW_BYTES + len(key) + len(entry.value)


def check_prune(up_to_height: int, certified_height: int) -> None:
    if up_to_height > certified_height:
        raise CommitRefused(f"cannot prune up to block {up_to_height}: certified is block {certified_height}")


def is_payload(tx: Transaction) -> bool:
    """Tell whether pruning empties the argument of this transaction (protocol 7.2)."""
    return tx.contract == USAGE_CONTRACT and bool(tx.argument)


def pruned_batch(stored: StoredBatch) -> StoredBatch | None:
    """Return the batch without usage payloads and with all leaf hashes; None when there is nothing to drop."""
    transactions = stored.batch.transactions
    if not any(map(is_payload, transactions)):
        return None
    leaves = stored.leaves or tuple(leaf_hash(tx) for tx in transactions)
    kept = tuple(msgspec.structs.replace(tx, argument=b"") if is_payload(tx) else tx for tx in transactions)
    return StoredBatch(msgspec.structs.replace(stored.batch, transactions=kept), leaves)
