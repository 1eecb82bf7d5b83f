"""The plan: which reports go to the fleet, in which order. The same input and options always give the same plan.

In *file order* (`--speed max`) readings are collected to rounds of ROUND_READINGS; within a round the meters take
turns, first every meter's first report, then every meter's second, so that many meters are in flight although the
files list one meter after the other. In *time order* (a finite speed) all readings are first sorted into scratch
files, one for each day, and come out merged over the meters; a report is due when its last half-hour has ended.

In both, the reports of one meter are its accepted readings in order, K at a time, and only its last report may be
shorter. So a meter with n readings has ceil(n / K) reports, numbered 0, 1, 2 ….
"""

import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bcami.model.report import Reading
from bcami.replay.fields import Integers
from bcami.replay.readings import ReadingChunk
from bcami.units import HALF_HOUR_S

ROUND_READINGS: Final = 1_000_000
"""About 60 London meters with a year each; 20 MB."""
_DAY_S: Final = 86_400
_SPOOLED = np.dtype([("start_s", "<i8"), ("energy", "<i8"), ("meter", "<i4")])


class PlannedReport(NamedTuple):
    meter: int
    """Number in the stream's MeterIndex."""
    ordinal: int
    """0, 1, 2 … among the reports of this meter."""
    readings: tuple[Reading, ...]
    due_s: int
    """End of the last half-hour in it, Unix seconds of the data; never falls in time order."""


def reports_in_file_order(
    chunks: Iterable[ReadingChunk], readings_per_report: int, round_readings: int = ROUND_READINGS
) -> Generator[PlannedReport, None, None]:
    """Yield the reports of a plan in file order. Memory: one round and the readings short of a whole report."""
    ordinals: dict[int, int] = {}
    held: list[ReadingChunk] = []
    count = 0
    for chunk in chunks:
        held.append(chunk)
        count += len(chunk)
        if count >= round_readings:
            whole, rest = _cut_round(_joined(held), readings_per_report)
            yield from _turns(whole, readings_per_report, ordinals)
            held = [rest]
            count = 0
    if held:
        yield from _turns(_joined(held), readings_per_report, ordinals)


def reports_in_time_order(
    chunks: Iterable[ReadingChunk], readings_per_report: int, ids: Sequence[str], scratch: Path | None = None
) -> Generator[PlannedReport, None, None]:
    """Yield the reports of a plan in the order in which they become due; meters by id where equal.

    Everything is read before the first report comes. `ids` may grow while the chunks are read.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="bcami-days-") as name:
        folder = Path(name)
        days: set[int] = set()
        for chunk in chunks:
            days |= _spool(chunk, folder)
        rank = np.empty(len(ids), dtype=np.int64)
        rank[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
        yield from _merged(folder, sorted(days), rank, readings_per_report)


def _cut_round(chunk: ReadingChunk, size: int) -> tuple[ReadingChunk, ReadingChunk]:
    """Split off the readings that do not fill a report yet: the last few of each meter."""
    nothing = _taken(chunk, np.empty(0, dtype=np.int64))
    if size == 1 or len(chunk) == 0:
        return chunk, nothing
    rank, total = _ranks(chunk.meter)
    full = rank < total - total % size
    return _taken(chunk, np.flatnonzero(full)), _taken(chunk, np.flatnonzero(~full))


def _turns(chunk: ReadingChunk, size: int, ordinals: dict[int, int]) -> Iterator[PlannedReport]:
    if len(chunk) == 0:
        return
    rank, _ = _ranks(chunk.meter)
    turn = rank // size
    # Stable: a meter's readings keep their order inside a report.
    order = np.lexsort((chunk.meter, turn))
    meter, start_s, energy, turn = chunk.meter[order], chunk.start_s[order], chunk.energy[order], turn[order]
    cuts = np.flatnonzero((meter[1:] != meter[:-1]) | (turn[1:] != turn[:-1])) + 1
    bounds = np.concatenate(([0], cuts, [len(meter)]))
    step = 4096
    for base in range(0, len(bounds) - 1, step):
        part = bounds[base : base + step + 1]
        low, high = int(part[0]), int(part[-1])
        pairs = list(map(Reading, start_s[low:high].tolist(), energy[low:high].tolist()))
        owners = meter[part[:-1]].tolist()
        places = (part - low).tolist()
        for owner, first, last in zip(owners, places[:-1], places[1:], strict=True):
            ordinal = ordinals.get(owner, 0)
            ordinals[owner] = ordinal + 1
            readings = tuple(pairs[first:last])
            yield PlannedReport(owner, ordinal, readings, readings[-1].start_s + HALF_HOUR_S)


def _merged(folder: Path, days: list[int], rank: Integers, size: int) -> Iterator[PlannedReport]:
    pending: dict[int, list[Reading]] = {}
    ordinals: dict[int, int] = {}
    due_s = 0
    for day in days:
        data = np.fromfile(_day_file(folder, day), dtype=_SPOOLED)
        order = np.lexsort((rank[data["meter"]], data["start_s"]))
        columns = (data[name][order].tolist() for name in ("meter", "start_s", "energy"))
        for meter, start_s, energy in zip(*columns, strict=True):
            waiting = pending.setdefault(meter, [])
            waiting.append(Reading(start_s, energy))
            if len(waiting) == size:
                due_s = start_s + HALF_HOUR_S
                yield _report(meter, ordinals, pending, due_s)
    for meter in sorted(pending, key=lambda one: int(rank[one])):
        yield _report(meter, ordinals, pending, due_s or pending[meter][-1].start_s + HALF_HOUR_S)


def _report(meter: int, ordinals: dict[int, int], pending: dict[int, list[Reading]], due_s: int) -> PlannedReport:
    ordinal = ordinals.get(meter, 0)
    ordinals[meter] = ordinal + 1
    return PlannedReport(meter, ordinal, tuple(pending.pop(meter)), due_s)


def _spool(chunk: ReadingChunk, folder: Path) -> set[int]:
    """Append the readings to the files of their days."""
    records = np.empty(len(chunk), dtype=_SPOOLED)
    records["start_s"], records["energy"], records["meter"] = chunk.start_s, chunk.energy, chunk.meter
    day = chunk.start_s // _DAY_S
    order = np.argsort(day, kind="stable")
    ordered = day[order]
    cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    days: set[int] = set()
    for part in np.split(order, cuts):
        number = int(day[part[0]])
        days.add(number)
        with _day_file(folder, number).open("ab") as file:
            file.write(records[part].tobytes())
    return days


def _day_file(folder: Path, day: int) -> Path:
    return folder / f"{day}.readings"


def _ranks(meter: npt.NDArray[np.int32]) -> tuple[Integers, Integers]:
    """Return, for each reading, how many of its meter stand before it, and how many its meter has."""
    order = np.argsort(meter, kind="stable")
    ordered = meter[order]
    heads = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    lengths = np.diff(np.append(heads, len(meter)))
    rank = np.empty(len(meter), dtype=np.int64)
    rank[order] = np.arange(len(meter)) - np.repeat(heads, lengths)
    total = np.empty(len(meter), dtype=np.int64)
    total[order] = np.repeat(lengths, lengths)
    return rank, total


def _joined(chunks: list[ReadingChunk]) -> ReadingChunk:
    return ReadingChunk(
        np.concatenate([chunk.meter for chunk in chunks]),
        np.concatenate([chunk.start_s for chunk in chunks]),
        np.concatenate([chunk.energy for chunk in chunks]),
    )


def _taken(chunk: ReadingChunk, places: Integers) -> ReadingChunk:
    return ReadingChunk(chunk.meter[places], chunk.start_s[places], chunk.energy[places])
