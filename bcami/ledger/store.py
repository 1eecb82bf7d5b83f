"""What a node keeps: the ledger and the promises, as two protocols with two implementations each.

The *ledger* is what was decided: blocks, batches, certificates, world state, its history and two indexes. It can be
rebuilt from peers. The *promise store* is what this node said and must never contradict (votes, endorsed and
collected batches, lane numbers). It can not be rebuilt: a node that lost it never votes again (protocol 6.3), which
is why it is an environment of its own, made once, together with the key.

`lmdb_ledger` and `lmdb_promises` keep them on disk; `memory` keeps them in memory for the deterministic driver.
"""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Protocol, Self

import msgspec

from bcami.model.block import BlockCertificate, Header, Receipt
from bcami.model.chain import (
    BlockBundle,
    ChainBlock,
    StateEntry,
    StateRow,
    StateVersion,
    StoredBatch,
    TransactionPlace,
)

PROMISE_KEY_BYTES_MAX: Final = 500
LTHASH_BYTES: Final = 2048

WITHOUT_HISTORY: Final = (b"guard/", b"system/")
"""State keys that change with every transaction or batch; their past is in the blocks."""


def has_history(key: bytes) -> bool:
    return not key.startswith(WITHOUT_HISTORY)


class CommitRefused(ValueError):
    """A commit does not continue the chain: a mistake of the caller, nothing was written."""


class LedgerCommit(msgspec.Struct, frozen=True):
    """Everything that one block changes; it becomes durable as a whole or not at all."""

    block: ChainBlock
    batches: tuple[StoredBatch, ...]
    """One for each entry of `block.executed`, in that order."""
    writes: tuple[tuple[bytes, bytes | None], ...]
    """Net changes of the world state, sorted by key, each key once; None deletes."""
    lthash: bytes
    """LtHash of the world state after the block (design D5)."""


class TableSize(msgspec.Struct, frozen=True):
    entries: int
    stored_bytes: int
    """Pages of the table, in bytes; for a store in memory the sum of its values."""


class SnapshotSource(Protocol):
    """The world state as it was after one certified block, whatever is committed meanwhile; one thread reads it."""

    @property
    def height(self) -> int: ...

    def part(self, after: bytes, bytes_max: int) -> tuple[list[StateRow], bool]:
        """Return rows above a key, in key order, until they have so many bytes, and whether these were the last."""

    def close(self) -> None:
        """Let go of it: while it is open the store keeps what has been replaced since."""


SignerEntry = tuple[int, int, bytes]
"""Height, index and id of one transaction of a signer."""


class Ledger(Protocol):
    """The chain as one node has executed it. One writer; any number of readers."""

    @property
    def height(self) -> int:
        """Highest block that is durable here; 0 is genesis."""

    @property
    def head_hash(self) -> bytes:
        """Header hash at `height`; the chain id at height 0."""

    @property
    def certified_height(self) -> int:
        """Highest height with a certificate; the hash chain makes it speak for all below."""

    @property
    def pruned_to(self) -> int:
        """Usage payloads up to this height are gone (protocol 7.2)."""

    def header(self, height: int) -> Header | None: ...

    def block(self, height: int) -> ChainBlock | None: ...

    def batches(self, height: int) -> tuple[StoredBatch, ...]:
        """Return the executed batches of a block in order; empty for an unknown height."""

    def commit(self, commit: LedgerCommit, certificates: Sequence[BlockCertificate] = ()) -> None:
        """Make the next block durable, atomically; certificates of it or of blocks below may ride along.

        A block that is already here is a no-op, so that ordering, view change and catch-up may share this call.
        Raises CommitRefused when the block does not continue the chain, EnvironmentFault when the disk refuses.
        """

    def put_certificates(self, certificates: Sequence[BlockCertificate]) -> None:
        """Make certificates durable; one that is already there is kept.

        Raises CommitRefused for a height that is not committed, or a hash that is not this ledger's.
        """

    def certificate(self, height: int) -> BlockCertificate | None: ...

    def bundle(self, height: int) -> BlockBundle | None:
        """Return block, batches and the first certificate at the block or above it; None until all are there."""

    def state(self, key: bytes) -> StateEntry | None: ...

    def scan(self, prefix: bytes, limit: int) -> Iterator[tuple[bytes, StateEntry]]:
        """Yield at most `limit` entries below a prefix in key order, all of one height."""

    def place(self, transaction_id: bytes) -> TransactionPlace | None:
        """Return where the first outcome of a transaction stands (protocol 3.5)."""

    def receipt(self, transaction_id: bytes) -> Receipt | None:
        """Return the proof of the first outcome; None without an outcome or while its block has no certificate."""

    def by_signer(self, signer: bytes, limit: int = 100, before: TransactionPlace | None = None) -> list[SignerEntry]:
        """Return a signer's executed transactions, newest first; `before` is where the page before ended."""

    def history(self, key: bytes) -> list[StateVersion]:
        """Return all versions of a key, oldest first; none for keys under `WITHOUT_HISTORY`."""

    def lthash(self) -> bytes:
        """Return the LtHash state after `height`; zeros at genesis."""

    def prune(self, up_to_height: int) -> None:
        """Drop usage payloads up to a certified height; leaf hashes, results and indexes stay (protocol 7.2)."""

    # Snapshots: a world state from a peer, in place of executing the blocks below it (design D5).

    @property
    def snapshot_height(self) -> int:
        """Height of the snapshot that was installed last; the blocks up to it were not executed here. 0: none."""

    def open_snapshot(self) -> SnapshotSource | None:
        """Return the world state at the newest certificate; None while there is none.

        Blocks above it are undone in it: the certified state can be given whatever stands above.
        """

    def stage(self, bundles: Sequence[BlockBundle], rows: Sequence[StateRow], *, fresh: bool = False) -> None:
        """Keep parts of a snapshot aside; `fresh` drops earlier ones first. The ledger itself stays as it is."""

    def install(self, header: Header, certificate: BlockCertificate, lthash: bytes) -> None:
        """Take over what is staged, atomically: the blocks from `height` + 1 to the header's, and its world state.

        The caller has verified all of it. A key's history begins anew with what the snapshot holds. A snapshot not
        above the ledger is a no-op. Raises CommitRefused when what is staged is not that.
        """

    def sizes(self) -> dict[str, TableSize]: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PromiseStore(Protocol):
    """What this node has said: key to bytes, keys given by who promises."""

    def apply(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        """Make a group of records durable in one write; deleting what is not there is fine.

        Raises EnvironmentFault when the disk refuses: then nothing that rests on it may be sent.
        """

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None: ...

    def get(self, key: bytes) -> bytes | None: ...

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the records below a prefix in key order, all of one moment."""

    def close(self) -> None: ...
