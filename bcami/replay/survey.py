"""A quick first pass: which meters there are, how many rows, and whether every file can be read to its end.

It runs before anything is sent, so that a truncated archive in the last file of a folder is found first. An id
counts as a meter when at least one of its rows is a reading, so that a stray line does not take one of the
`--meters N` places. Only ids are looked at: about three times as fast as reading.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bcami.replay.fields import meter_runs
from bcami.replay.layouts import Columns
from bcami.replay.lines import Block, read_blocks, split_fields
from bcami.replay.meters import INVALID, METERS_MAX, MeterIndex, too_many_meters
from bcami.replay.rows import RowReject, read_row
from bcami.replay.sources import Source


@dataclass(frozen=True, slots=True)
class Survey:
    meters: tuple[str, ...]
    """Sorted."""
    rows: int
    """Lines behind the headers."""
    readings_at_most: int
    """Rows times readings per row: what progress is measured by."""

    def first(self, count: int | None) -> frozenset[str] | None:
        """Return the first ids, sorted; None when all are meant."""
        return None if count is None else frozenset(self.meters[:count])


def survey(source: Source, on_progress: Callable[[int], None] | None = None) -> Survey:
    """Return what a source holds. `on_progress` gets the bytes on disk that were read.

    Raises InputError for a file that breaks off.
    """
    confirmed: set[str] = set()
    rows = readings = before = 0
    for file in source.files:
        known: set[bytes] = set()
        for block in read_blocks(file):
            rows += len(block.starts)
            readings += len(block.starts) * len(file.columns.values)
            _note_meters(block, file.columns, known, confirmed)
            if on_progress is not None:
                on_progress(before + block.bytes_packed)
        before += file.bytes_packed
    return Survey(tuple(sorted(confirmed)), rows, readings)


def _note_meters(block: Block, columns: Columns, known: set[bytes], confirmed: set[str]) -> None:
    regular, commas = split_fields(block, columns.width)
    starts = block.starts[regular] if columns.meter == 0 else commas[:, columns.meter - 1] + 1
    ends = block.ends[regular] if columns.meter == columns.width - 1 else commas[:, columns.meter]
    heads, _ = meter_runs(block.buffer, starts, ends)
    raw = block.buffer.tobytes()
    bounds = [*heads.tolist(), len(regular)]
    for first, last in pairwise(bounds):
        field = raw[int(starts[first]) : int(ends[first])]
        if field not in known and _confirm(block, columns, regular[first:last].tolist(), confirmed):
            known.add(field)
    odd = np.ones(len(block.starts), dtype=np.bool_)
    odd[regular] = False
    for row in np.flatnonzero(odd).tolist():
        _confirm(block, columns, [row], confirmed)


def _confirm(block: Block, columns: Columns, rows: list[int], confirmed: set[str]) -> bool:
    """Note the id of these rows when one of them is a reading."""
    for row in rows:
        index = MeterIndex()
        result = read_row(block.text(row), columns, index)
        if not isinstance(result, RowReject) and result[0] != INVALID and any(c.reason is None for c in result[1]):
            confirmed.add(index.ids[0])
            if len(confirmed) > METERS_MAX:
                raise too_many_meters(index.ids[0])
            return True
    return False
