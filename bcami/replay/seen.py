"""Which (meter, half-hour) was seen already, and with which value, over the whole input and in bounded memory.

Half-hours are kept as bits, in pages of 4,096 half-hours (85 days) of one meter: 512 bytes of memory each. The
5,566 London households over 27 months need about 62,000 pages, 32 MB. The value, needed only to tell a duplicate
from a conflict, goes to a scratch file (8 bytes a half-hour, sparse, removed with the process) and is read back
only for a half-hour that was seen before. PAGES_MAX limits both; beyond it the input is refused by name.
"""

import errno
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from bcami.errors import EnvironmentFault, InputError
from bcami.replay.fields import Integers, Mask
from bcami.units import HALF_HOUR_S

PAGES_MAX: Final = 1 << 18
"""128 MiB of bits at most: four times all of London."""
_PAGE_SLOTS: Final = 4096
_PAGE_BITS: Final = 12
_PAGES_OF_METER: Final = 1024
_VALUE_BYTES: Final = 8

NEW: Final = 0
DUPLICATE: Final = 1
CONFLICT: Final = 2


class SeenReadings:
    """Remembers the first value of every (meter, half-hour)."""

    def __init__(self, scratch: Path | None = None) -> None:
        self._pages: dict[int, int] = {}
        # The whole limit at once: untouched pages of zeros take no memory.
        self._bits = np.zeros((PAGES_MAX, _PAGE_SLOTS // 8), dtype=np.uint8)
        self._values = tempfile.TemporaryFile(dir=scratch, prefix="bcami-seen-")  # noqa: SIM115 - closed by close

    def close(self) -> None:
        self._values.close()

    def add(self, meter: npt.NDArray[np.int32], start_s: Integers, energy: Integers) -> npt.NDArray[np.uint8]:
        """Return NEW, DUPLICATE or CONFLICT for each reading in order; new ones are remembered.

        Raises InputError above PAGES_MAX, EnvironmentFault when the scratch file cannot grow.
        """
        verdict = np.zeros(len(meter), dtype=np.uint8)
        if len(meter) == 0:
            return verdict
        slot = start_s // HALF_HOUR_S
        place = self._places(meter, slot)
        page, bit = place >> _PAGE_BITS, place & (_PAGE_SLOTS - 1)
        byte, mask = bit >> 3, np.left_shift(1, bit & 7).astype(np.uint8)
        known: Mask = (self._bits[page, byte] & mask) != 0
        known |= _repeated(place)
        fresh = np.flatnonzero(~known)
        np.bitwise_or.at(self._bits, (page[fresh], byte[fresh]), mask[fresh])
        try:
            self._write(place[fresh], energy[fresh])
        except OSError as error:
            raise _scratch_fault(error) from error
        old = np.flatnonzero(known)
        if len(old):
            verdict[old] = np.where(self._read(place[old]) == energy[old], DUPLICATE, CONFLICT)
        return verdict

    def _places(self, meter: npt.NDArray[np.int32], slot: Integers) -> Integers:
        """Return page number · 4096 + half-hour in the page."""
        key = meter.astype(np.int64) * _PAGES_OF_METER + (slot >> _PAGE_BITS)
        heads = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
        numbers = np.array([self._page(one) for one in key[heads].tolist()], dtype=np.int64)
        lengths = np.diff(np.append(heads, len(key)))
        return (np.repeat(numbers, lengths) << _PAGE_BITS) + (slot & (_PAGE_SLOTS - 1))

    def _page(self, key: int) -> int:
        number = self._pages.get(key)
        if number is None:
            number = len(self._pages)
            if number == PAGES_MAX:
                raise InputError(
                    f"the input spans more than {PAGES_MAX:,} quarters of single meters",
                    likely="the times or the meter ids are not what they should be",
                    do="check the columns, or replay the data set in parts (--meters, --from, --to)",
                )
            self._pages[key] = number
        return number

    def _write(self, place: Integers, energy: Integers) -> None:
        handle = self._values.fileno()
        for first, last in _runs(place):
            os.pwrite(handle, energy[first:last].tobytes(), int(place[first]) * _VALUE_BYTES)

    def _read(self, place: Integers) -> Integers:
        handle = self._values.fileno()
        values = np.empty(len(place), dtype=np.int64)
        for first, last in _runs(place):
            data = os.pread(handle, (last - first) * _VALUE_BYTES, int(place[first]) * _VALUE_BYTES)
            values[first:last] = np.frombuffer(data, dtype=np.int64)
        return values


def _repeated(place: Integers) -> Mask:
    """Return which places occurred earlier in the same array."""
    repeated = np.zeros(len(place), dtype=np.bool_)
    if bool((place[1:] > place[:-1]).all()):
        return repeated
    order = np.argsort(place, kind="stable")
    ordered = place[order]
    repeated[order[1:][ordered[1:] == ordered[:-1]]] = True
    return repeated


def _runs(place: Integers) -> list[tuple[int, int]]:
    """Return [first, last) of each run of consecutive places."""
    if len(place) == 0:
        return []
    cuts = np.flatnonzero(place[1:] != place[:-1] + 1) + 1
    bounds = [0, *cuts.tolist(), len(place)]
    return list(pairwise(bounds))


def _scratch_fault(error: OSError) -> EnvironmentFault:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return EnvironmentFault(
        f"the scratch file cannot be written: {error.strerror}",
        where=tempfile.gettempdir(),
        likely="the disk is full" if full else "",
        do="free some space, or point TMPDIR elsewhere; it needs 8 bytes for each half-hour of the data set",
    )
