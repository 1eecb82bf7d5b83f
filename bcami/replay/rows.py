"""From a block of lines to readings and rejects, by the columns of its layout.

`read_row` is the definition of what a row means. `read_block` gives the same, vectorised where rows have the common
form. A reject is a row (in hhblock: a cell) that holds no reading, under exactly one reason, decided in this order:
bad_row, bad_meter, bad_time, null, bad_value, off_grid; duplicate and conflict come later (`seen`). So a Null row
with an off-grid time, as the original has them, is one `null`.
"""

import csv
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bcami.replay.fields import (
    YEAR_FIRST,
    YEAR_LAST,
    Integers,
    Mask,
    dates,
    energy_units,
    meter_numbers,
    times_of_day,
)
from bcami.replay.layouts import Columns, Layout
from bcami.replay.lines import Block, split_fields
from bcami.replay.meters import INVALID, MeterIndex
from bcami.units import HALF_HOUR_S, energy_from_text


class Reject(StrEnum):
    """Why a row of the data set is no reading that can be sent."""

    NULL = "null"
    """The value is `Null` or empty: the source says that there is no reading."""
    DUPLICATE = "duplicate"
    """Same meter, time and value as an earlier row."""
    CONFLICT = "conflict"
    """Same meter and time as an earlier row, another value; the first row stays."""
    OFF_GRID = "off_grid"
    """The time is not on a half-hour."""
    BAD_ROW = "bad_row"
    """Another number of fields than the header, broken quoting, no UTF-8, or a header repeated inside."""
    BAD_METER = "bad_meter"
    """No meter id: empty, too long, not printable."""
    BAD_TIME = "bad_time"
    """Not a date and time of the years 1970 to 2099."""
    BAD_VALUE = "bad_value"
    """Not a decimal number of kWh with at most seven decimals."""


class RowReject(NamedTuple):
    row: int
    """Place in the block."""
    reason: Reject
    meter: int = INVALID
    """Known unless the reason is bad_row or bad_meter."""
    start_s: int | None = None
    """Known unless the reason is bad_row, bad_meter or bad_time."""
    column: str = ""
    """For hhblock: which cell."""


class RowCell(NamedTuple):
    """One value of a good row, or why it is none."""

    start_s: int
    energy: int
    reason: Reject | None


@dataclass(frozen=True, slots=True)
class ParsedBlock:
    """Candidate readings in file order, all on the grid, and the rejects."""

    row: Integers
    meter: npt.NDArray[np.int32]
    start_s: Integers
    energy: Integers
    rejects: list[RowReject]


_ISO: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?", re.ASCII)
_DAY_FIRST: Final = re.compile(r"(\d\d?)/(\d\d?)/(\d{4})(?: (\d\d?):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?", re.ASCII)


def read_time(text: str) -> tuple[int, bool, bool] | None:
    """Return (Unix seconds, has a fraction of a second, has a time of day), or None when it is no date and time.

    The source's clock is taken as UTC: it follows no summer time.
    """
    match = _ISO.fullmatch(text)
    if match is not None:
        year, month, day, *clock = match.groups()
    else:
        match = _DAY_FIRST.fullmatch(text)
        if match is None:
            return None
        day, month, year, *clock = match.groups()
    hour, minute, second, fraction = clock
    try:
        moment = datetime(
            int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=UTC
        )
    except ValueError:
        return None
    if not YEAR_FIRST <= moment.year <= YEAR_LAST:
        return None
    return int(moment.timestamp()), bool((fraction or "").strip("0")), hour is not None


def read_row(line: bytes, columns: Columns, meters: MeterIndex) -> tuple[int, list[RowCell]] | RowReject:
    """Return (meter, cells) of one line: the definition. A RowReject (its row is 0) means the row as a whole."""
    try:
        fields = next(csv.reader([line.decode("utf-8")], strict=True))
    except (UnicodeDecodeError, csv.Error, StopIteration):
        return RowReject(0, Reject.BAD_ROW)
    if len(fields) != columns.width or fields[columns.meter].strip().lower() == "lclid":
        return RowReject(0, Reject.BAD_ROW)
    meter = meters.of_text(fields[columns.meter].strip())
    if meter == INVALID:
        return RowReject(0, Reject.BAD_METER)
    time = read_time(fields[columns.time].strip())
    whole_day = columns.layout is Layout.HHBLOCK
    if time is None or (not whole_day and not time[2]) or (whole_day and (time[1] or time[0] % 86_400)):
        return RowReject(0, Reject.BAD_TIME, meter)
    cells = []
    for slot, place in enumerate(columns.values):
        start_s = time[0] + slot * HALF_HOUR_S
        cells.append(_read_value(fields[place].strip(), start_s, on_grid=start_s % HALF_HOUR_S == 0 and not time[1]))
    return meter, cells


def _read_value(text: str, start_s: int, *, on_grid: bool) -> RowCell:
    if text.lower() in {"null", ""}:
        return RowCell(start_s, 0, Reject.NULL)
    try:
        energy = energy_from_text(text)
    except ValueError:
        return RowCell(start_s, 0, Reject.BAD_VALUE)
    return RowCell(start_s, energy, None if on_grid else Reject.OFF_GRID)


def read_block(block: Block, columns: Columns, meters: MeterIndex) -> ParsedBlock:
    """Return the readings and rejects of a block: the same as `read_row` line by line."""
    count, slots = len(block.starts), len(columns.values)
    meter = np.full(count, INVALID, dtype=np.int32)
    start_s = np.zeros((count, slots), dtype=np.int64)
    energy = np.zeros((count, slots), dtype=np.int64)
    good: Mask = np.zeros((count, slots), dtype=np.bool_)
    common = np.zeros(count, dtype=np.bool_)
    rows, numbers, begins, values, accepted = _read_common(block, columns, meters)
    meter[rows], start_s[rows], energy[rows] = numbers, begins, values
    good[rows] = accepted[:, None]
    common[rows] = accepted
    rejects: list[RowReject] = []
    for row in np.flatnonzero(~common).tolist():
        line = block.text(row)
        if not line.strip():
            continue
        result = read_row(line, columns, meters)
        if isinstance(result, RowReject):
            rejects.append(result._replace(row=row))
            continue
        meter[row] = result[0]
        for slot, cell in enumerate(result[1]):
            if cell.reason is None:
                start_s[row, slot], energy[row, slot], good[row, slot] = cell.start_s, cell.energy, True
            else:
                column = f"hh_{slot}" if slots > 1 else ""
                rejects.append(RowReject(row, cell.reason, result[0], cell.start_s, column))
    place = np.flatnonzero(good)
    row_of = place // slots
    return ParsedBlock(row_of, meter[row_of], start_s.ravel()[place], energy.ravel()[place], rejects)


def _read_common(
    block: Block, columns: Columns, meters: MeterIndex
) -> tuple[Integers, npt.NDArray[np.int32], Integers, Integers, Mask]:
    """Return rows, meters, starts and energies (rows, slots), and which rows are wholly of the common form."""
    rows, commas = split_fields(block, columns.width)
    line_starts, line_ends = block.starts[rows], block.ends[rows]

    def bounds(place: int) -> tuple[Integers, Integers]:
        begins = line_starts if place == 0 else commas[:, place - 1] + 1
        return begins, line_ends if place == columns.width - 1 else commas[:, place]

    numbers = meter_numbers(block.buffer, *bounds(columns.meter), meters)
    read = dates if columns.layout is Layout.HHBLOCK else times_of_day
    seconds, good = read(block.buffer, *bounds(columns.time))
    good &= (numbers != INVALID) & (seconds % HALF_HOUR_S == 0)
    energies = np.empty((len(rows), len(columns.values)), dtype=np.int64)
    for slot, place in enumerate(columns.values):
        energies[:, slot], decimal = energy_units(block.buffer, *bounds(place))
        good &= decimal
    starts = seconds[:, None] + np.arange(len(columns.values)) * HALF_HOUR_S
    return rows, numbers, starts, energies, good
