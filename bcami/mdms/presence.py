"""Which (meter, interval start) pairs are stored: one bit each, in memory, rebuilt from the store at start.

Exactly-once per interval needs a look-up for every reading. A primary key in DuckDB costs six times the file and
memory that grows with the number of rows; an anti-join against the table costs time that grows with it (figures in
docs/decisions). Half-hour starts are dense, so a bit for each is the compact form: about 2.2 kB for a meter-year.

A start on the half-hour grid is slot start/1800. Any other whole minute has a slot of its own above them, so shorter
intervals work too, less compactly. The slots of a meter lie in chunks that exist only where something is stored.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from bcami.mdms.records import MINUTE_S, START_S_MAX, Int64Column
from bcami.units import HALF_HOUR_S

FINE_FIRST: Final = 1 << 22
"""First slot of starts off the half-hour grid; above every half-hour slot."""
_SLOT_BITS: Final = 27
CHUNK_SLOT_BITS: Final = 12
"""4096 slots, 512 bytes: 85 days of half-hours. The first slot is the highest bit of the first byte."""
CHUNK_BYTES: Final = (1 << CHUNK_SLOT_BITS) // 8
_ROWS_FIRST: Final = 256

assert START_S_MAX // HALF_HOUR_S < FINE_FIRST
assert FINE_FIRST + START_S_MAX // MINUTE_S < 1 << _SLOT_BITS


class Presence:
    """A set of (meter, start_s). Not locked: one writer uses it."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._bits: npt.NDArray[np.uint8] = np.zeros((_ROWS_FIRST, CHUNK_BYTES), np.uint8)
        self.count = 0

    @property
    def bytes_used(self) -> int:
        return int(self._bits.nbytes)

    def is_first(self, meter: Int64Column, start_s: Int64Column) -> npt.NDArray[np.bool_]:
        """Return for each pair whether it is absent here and did not occur earlier in these columns."""
        first = np.zeros(len(meter), np.bool_)
        keys, places = np.unique(_keys(meter, start_s), return_index=True)
        rows = self._find(keys >> CHUNK_SLOT_BITS)
        byte, bit = _position(keys)
        present = (self._bits[rows, byte] & bit) != 0
        first[places] = ~(present & (rows >= 0))
        return first

    def add(self, meter: Int64Column, start_s: Int64Column) -> None:
        """Add pairs of which none is here and no two are equal."""
        keys = _keys(meter, start_s)
        chunks = keys >> CHUNK_SLOT_BITS
        self._make(chunks)
        byte, bit = _position(keys)
        np.bitwise_or.at(self._bits, (self._find(chunks), byte), bit)
        self.count += len(keys)

    def restore(self, meter: Int64Column, chunk: Int64Column, bits: npt.NDArray[np.uint8]) -> None:
        """Take up whole chunks into an empty set: one row of `bits` for each (meter, chunk), no two equal."""
        assert not self._rows
        keys = (meter << (_SLOT_BITS - CHUNK_SLOT_BITS)) | chunk
        self._rows = {key: row for row, key in enumerate(keys.tolist())}
        self._bits = bits
        self.count = int(np.bitwise_count(bits).sum())

    def _find(self, chunks: Int64Column) -> Int64Column:
        """Return the row of each chunk, -1 where there is none."""
        distinct, inverse = np.unique(chunks, return_inverse=True)
        known = self._rows.get
        rows = np.fromiter((known(chunk, -1) for chunk in distinct.tolist()), np.int64, len(distinct))
        return rows[inverse]

    def _make(self, chunks: Int64Column) -> None:
        for chunk in np.unique(chunks).tolist():
            self._rows.setdefault(chunk, len(self._rows))
        if len(self._rows) > len(self._bits):
            grown = np.zeros((len(self._rows) * 5 // 4 + _ROWS_FIRST, CHUNK_BYTES), np.uint8)
            grown[: len(self._bits)] = self._bits
            self._bits = grown


def _keys(meter: Int64Column, start_s: Int64Column) -> Int64Column:
    slots = np.where(start_s % HALF_HOUR_S == 0, start_s // HALF_HOUR_S, FINE_FIRST + start_s // MINUTE_S)
    return (meter << _SLOT_BITS) | slots


def _position(keys: Int64Column) -> tuple[Int64Column, npt.NDArray[np.uint8]]:
    within = keys & ((1 << CHUNK_SLOT_BITS) - 1)
    return within >> 3, np.right_shift(0x80, within & 7).astype(np.uint8)
