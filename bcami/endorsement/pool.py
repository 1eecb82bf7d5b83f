"""Batches that a node holds, by digest, with what execution needs precomputed."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from bcami.codec import encode
from bcami.model.batch import Batch, batch_digest, leaf_hash
from bcami.model.transaction import transaction_id


@dataclass(frozen=True, slots=True)
class HeldBatch:
    """A batch with its digest and the id of each transaction."""

    batch: Batch
    digest: bytes
    ids: tuple[bytes, ...]
    size_bytes: int


def hold(batch: Batch, chain: bytes, ids: Sequence[bytes] | None = None) -> HeldBatch:
    """Return the batch with digest and ids computed from its own bytes, never taken from a peer (bug shape B3)."""
    leaves = [leaf_hash(tx) for tx in batch.transactions]
    digest = batch_digest(chain, batch.epoch, batch.collector, batch.number, batch.anchor_height, leaves)
    if ids is None:
        ids = [transaction_id(tx, chain, batch.epoch) for tx in batch.transactions]
    return HeldBatch(batch, digest, tuple(ids), len(encode(batch)))


class BatchPool:
    """Unexecuted batches, and the newest executed ones for peers that still ask."""

    EXECUTED_KEPT_BYTES = 8 * 1024 * 1024

    def __init__(self) -> None:
        self._held: dict[bytes, HeldBatch] = {}
        self._executed: OrderedDict[bytes, HeldBatch] = OrderedDict()
        self._executed_bytes = 0

    def add(self, held: HeldBatch) -> None:
        self._held[held.digest] = held

    def get(self, digest: bytes) -> HeldBatch | None:
        return self._held.get(digest) or self._executed.get(digest)

    def executed(self, digest: bytes) -> None:
        """Move a durably executed batch to the bounded memory of recent ones."""
        held = self._held.pop(digest, None)
        if held is None:
            return
        self._executed[digest] = held
        self._executed_bytes += held.size_bytes
        while self._executed_bytes > self.EXECUTED_KEPT_BYTES:
            _, old = self._executed.popitem(last=False)
            self._executed_bytes -= old.size_bytes

    def drop(self, digest: bytes) -> None:
        self._held.pop(digest, None)

    def drop_executed(self, lanes: Sequence[int]) -> None:
        """Forget what is not above the last executed number of its lane."""
        self._held = {
            digest: item for digest, item in self._held.items() if item.batch.number > lanes[item.batch.collector]
        }

    @property
    def held_bytes(self) -> int:
        return sum(item.size_bytes for item in self._held.values())
