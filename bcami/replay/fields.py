"""Many fields at once: vectorised parsing of decimals, times and ids out of one block of bytes.

Each function takes the bytes and the bounds of one field per row and returns values with a mask. A row whose mask
is False is not wrong: it is merely not of the common form, and goes to the definition, one row at a time
(`rows.read_row`). So the functions here may be narrow, but what they accept must equal the definition; a property
test compares the two. No floats.

The buffer must have FIELD_PADDING bytes behind its last line, since fixed-width windows may reach past a field.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from bcami.replay.meters import INVALID, MeterIndex

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FIELD_PADDING: Final = 64
METER_BYTES_MAX: Final = 32
YEAR_FIRST: Final = 1970
YEAR_LAST: Final = 2099
"""Times outside are no times of meter readings: `bad_time`."""

_SPACE, _PLUS, _MINUS, _DOT, _ZERO, _COLON, _SLASH = (ord(letter) for letter in " +-.0:/")
_WHOLE_DIGITS_MAX = 9
_DECIMALS_MAX = 7
_NUMBER_BYTES_MAX = _WHOLE_DIGITS_MAX + 1 + _DECIMALS_MAX
_POWER_OF_TEN = np.array([10**power for power in range(_DECIMALS_MAX + 1)], dtype=np.int64)

_MONTH_STARTS = np.arange(
    np.datetime64(f"{YEAR_FIRST}-01", "M"), np.datetime64(f"{YEAR_LAST + 1}-02", "M"), dtype="datetime64[M]"
)
_DAY_OF_MONTH_START = _MONTH_STARTS.astype("datetime64[D]").astype(np.int64)
_DAYS_IN_MONTH = np.diff(_DAY_OF_MONTH_START)


def energy_units(buffer: Bytes, starts: Integers, ends: Integers) -> tuple[Integers, Mask]:
    """Return energy units of decimals with blanks around them: those of `energy_from_text` where the mask is set."""
    starts, ends = _without_blanks(buffer, starts, ends)
    first = buffer[starts]
    negative = first == _MINUS
    starts = starts + (negative | (first == _PLUS))
    width = ends - starts
    good: Mask = (width >= 1) & (width <= _NUMBER_BYTES_MAX)
    value = np.zeros(len(starts), dtype=np.int64)
    whole = np.zeros(len(starts), dtype=np.int64)
    decimals = np.zeros(len(starts), dtype=np.int64)
    dotted = np.zeros(len(starts), dtype=np.bool_)
    widest = min(int(width.max(initial=0)), _NUMBER_BYTES_MAX)
    for place in range(widest):
        letter = buffer[starts + place]
        inside = width > place
        figure = letter - np.uint8(_ZERO)
        digit = inside & (figure <= 9)
        dot = inside & (letter == _DOT) & ~dotted
        good &= digit | dot | ~inside
        value = np.where(digit, value * 10 + figure, value)
        whole += digit & ~dotted
        decimals += digit & dotted
        dotted |= dot
    good &= (whole >= 1) & (whole <= _WHOLE_DIGITS_MAX) & (decimals <= _DECIMALS_MAX) & (~dotted | (decimals > 0))
    value *= _POWER_OF_TEN[np.where(good, _DECIMALS_MAX - decimals, 0)]
    return np.where(negative, -value, value), good


def times_of_day(buffer: Bytes, starts: Integers, ends: Integers) -> tuple[Integers, Mask]:
    """Return Unix seconds of `YYYY-MM-DD HH:MM:SS[.0000000]` or `dd/mm/yyyy HH:MM:SS`, one form for all rows."""
    width = ends - starts
    good: Mask = (width == 19) | (width == 27)
    figures = _windows(buffer, starts, 19)
    if len(starts) and buffer[starts[0] + 2] == _SLASH:
        seconds, valid = _days(figures, year=6, month=3, day=0, marks=((2, _SLASH), (5, _SLASH)))
    else:
        seconds, valid = _days(figures, year=0, month=5, day=8, marks=((4, _MINUS), (7, _MINUS)))
    good &= valid & (figures[10] == _SPACE) & (figures[13] == _COLON) & (figures[16] == _COLON)
    seconds *= 86_400
    for place, limit, unit_s in ((11, 24, 3600), (14, 60, 60), (17, 60, 1)):
        number, digits = _number(figures, place, 2)
        good &= digits & (number < limit)
        seconds += number * unit_s
    if bool((width == 27).any()):
        tail = _windows(buffer, starts + 19, 8)
        whole = (tail[0] == _DOT) & (tail[1:] == _ZERO).all(axis=0)
        good &= whole | (width != 27)
    return seconds, good


def dates(buffer: Bytes, starts: Integers, ends: Integers) -> tuple[Integers, Mask]:
    """Return Unix seconds of midnight of `YYYY-MM-DD`."""
    days, valid = _days(_windows(buffer, starts, 10), year=0, month=5, day=8, marks=((4, _MINUS), (7, _MINUS)))
    return days * 86_400, valid & (ends - starts == 10)


def meter_numbers(buffer: Bytes, starts: Integers, ends: Integers, meters: MeterIndex) -> npt.NDArray[np.int32]:
    """Return each row's meter number; INVALID for ids that are none, empty or unusually long."""
    heads, run_of_row = meter_runs(buffer, starts, ends)
    raw = buffer.tobytes() if len(heads) > 1000 else None
    numbers = np.empty(len(heads), dtype=np.int32)
    for place, row in enumerate(heads.tolist()):
        start, end = int(starts[row]), int(ends[row])
        field = raw[start:end] if raw is not None else buffer[start:end].tobytes()
        numbers[place] = meters.of_bytes(field) if len(field) <= METER_BYTES_MAX else INVALID
    return numbers[run_of_row]


def meter_runs(buffer: Bytes, starts: Integers, ends: Integers) -> tuple[Integers, Integers]:
    """Return the first row of each run of equal ids, and each row's run."""
    if len(starts) == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    width = ends - starts
    widest = max(1, min(int(width.max()), METER_BYTES_MAX))
    changed = np.empty(len(starts), dtype=np.bool_)
    changed[0] = True
    changed[1:] = (width[1:] != width[:-1]) | (width[1:] > METER_BYTES_MAX)
    window = np.lib.stride_tricks.sliding_window_view(buffer, widest)[starts]
    if int(width.min()) < widest:
        window[np.arange(widest) >= width[:, None]] = 0
    text = window.view(f"V{widest}").ravel()
    changed[1:] |= text[1:] != text[:-1]
    return np.flatnonzero(changed), np.cumsum(changed) - 1


def _windows(buffer: Bytes, starts: Integers, width: int) -> Bytes:
    """Return `width` bytes of each row, by place: shape (width, rows)."""
    return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(buffer, width)[starts].T)


def _number(figures: Bytes, place: int, count: int) -> tuple[Integers, Mask]:
    number = np.zeros(figures.shape[1], dtype=np.int64)
    good = np.ones(figures.shape[1], dtype=np.bool_)
    for letter in figures[place : place + count]:
        figure = letter - np.uint8(_ZERO)
        good &= figure <= 9
        number = number * 10 + figure
    return number, good


def _days(
    figures: Bytes, *, year: int, month: int, day: int, marks: tuple[tuple[int, int], ...]
) -> tuple[Integers, Mask]:
    """Return days since 1970-01-01 of a date whose parts stand at these places."""
    years, good = _number(figures, year, 4)
    months, month_digits = _number(figures, month, 2)
    days, day_digits = _number(figures, day, 2)
    good &= month_digits & day_digits & (years >= YEAR_FIRST) & (years <= YEAR_LAST) & (months >= 1) & (months <= 12)
    for place, mark in marks:
        good &= figures[place] == mark
    index = np.where(good, (years - YEAR_FIRST) * 12 + months - 1, 0)
    good &= (days >= 1) & (days <= _DAYS_IN_MONTH[index])
    return _DAY_OF_MONTH_START[index] + days - 1, good


def _without_blanks(buffer: Bytes, starts: Integers, ends: Integers) -> tuple[Integers, Integers]:
    """Move the bounds over up to two blanks on each side; more are for the definition."""
    for _ in range(2):
        starts = starts + ((buffer[starts] == _SPACE) & (starts < ends))
        ends = ends - ((buffer[ends - 1] == _SPACE) & (starts < ends))
    return starts, ends
