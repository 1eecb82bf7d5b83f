"""The index of transaction ids: random keys, written in slices.

An id is a hash. Inserting the ids of a block as they come would touch one page of the file for each of them, and
write and map that page for a few bytes. So the newest places stay in memory, in slices by the first bits of the id, and
the slice that waited longest is written at once when there are too many. Its ids are neighbours in the table, so many
share a page. Nothing of this has to be durable by itself: blocks hold the ids too, and `folded` tells for each slice
up to which height the table has it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from bcami.ledger.records import ID_BYTES, TRANSACTIONS, height_key, height_of
from bcami.model.block import Outcome
from bcami.model.chain import TransactionPlace

SLICES: Final = 128
_SHIFT: Final = 1
"""First byte of an id to its slice."""
PENDING_MAX: Final = 65_536
"""Places in memory, about 12 MB."""
PENDING_BLOCKS_MAX: Final = 4_096
"""Blocks that are read at the start to find the places that are not in the table."""
_INDEX_BITS: Final = 32

Fold = tuple[int, list[tuple[bytes, bytes]]]
"""A slice and its rows, sorted by key."""


class PendingPlaces:
    """Places that are not in the table yet; changed only after the write that it follows is durable."""

    def __init__(self, folded: bytes) -> None:
        self.folded = folded_heights(folded)
        self._slices: list[dict[bytes, int]] = [{} for _ in range(SLICES)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def load(self, height: int, outcomes_of: Callable[[int], Iterable[Outcome]]) -> None:
        """Take in what the blocks up to `height` hold above what is folded."""
        for block in range(min(self.folded) + 1, height + 1):
            self.add(block, outcomes_of(block))

    def add(self, height: int, outcomes: Iterable[Outcome]) -> None:
        """Take in the outcomes of a block that is durable."""
        slices, folded = self._slices, self.folded
        place = height << _INDEX_BITS
        for index, outcome in enumerate(outcomes, place):
            key = outcome.transaction_id[:ID_BYTES]
            number = key[0] >> _SHIFT
            if height > folded[number] and slices[number].setdefault(key, index) == index:
                self._count += 1

    def get(self, transaction_id: bytes) -> TransactionPlace | None:
        """Return a place that is not in the table; a place in the table is older and goes before it."""
        place = self._slices[transaction_id[0] >> _SHIFT].get(transaction_id[:ID_BYTES])
        return None if place is None else TransactionPlace(place >> _INDEX_BITS, place & (1 << _INDEX_BITS) - 1)

    def due(self, height: int) -> list[Fold]:
        """Return the slices that are to be written with the block after `height`, where all pending are up to."""
        folds: list[Fold] = []
        remaining = self._count
        for number in sorted(range(SLICES), key=self.folded.__getitem__):
            if remaining <= PENDING_MAX and height - self.folded[number] < PENDING_BLOCKS_MAX:
                break
            places = self._slices[number]
            remaining -= len(places)
            folds.append((number, [(key, _row(key, places[key])) for key in sorted(places)]))
        return folds

    def all(self) -> list[Fold]:
        """Return every slice, to be written at once."""
        return [
            (number, [(key, _row(key, places[key])) for key in sorted(places)])
            for number, places in enumerate(self._slices)
        ]

    def folded_after(self, folds: Sequence[Fold], height: int) -> bytes:
        """Return the record of what is folded once `folds` are written."""
        written = {number for number, _ in folds}
        return b"".join(height_key(height if number in written else at) for number, at in enumerate(self.folded))

    def drop(self, folds: Sequence[Fold], height: int) -> None:
        """Forget slices that the table has now, durably."""
        for number, rows in folds:
            self._slices[number] = {}
            self.folded[number] = height
            self._count -= len(rows)


def folded_heights(data: bytes) -> list[int]:
    """Return for each slice the height up to which the table has its places."""
    return [height_of(data[start : start + 8]) for start in range(0, 8 * SLICES, 8)]


def slice_of(transaction_id: bytes) -> int:
    return transaction_id[0] >> _SHIFT


def _row(key: bytes, place: int) -> bytes:
    return TRANSACTIONS.seal(key, place.to_bytes(12, "big"))
