"""Compares a data set with what the MDMS holds: every half-hour of every meter, to the last digit.

Both sides go into a DuckDB file in a scratch folder and are joined there under a memory limit, so that neither side
has to fit into memory. The data set's side is the same stream, with the same filters and the same rule for
duplicates, that `replay` sends. Energy is summed as integers.

One network may hold many data sets. The stored side is limited to the meters of this data set and to its time: from
its first reading to its last, or what `--from` and `--to` say. What the MDMS holds beside that is counted as
`outside`; it is told, and no difference.

    missing      in the data set, not stored
    extra        stored, not in the data set (a half-hour stored twice counts once as extra)
    different    on both sides, with another energy
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import duckdb
import msgspec
import numpy as np
import pyarrow as pa

from bcami.errors import EnvironmentFault, InputError
from bcami.replay.layouts import Layout
from bcami.replay.meters import INVALID, MeterIndex
from bcami.replay.options import Filters
from bcami.replay.readings import ReadingStream
from bcami.replay.rejects import RejectLog
from bcami.replay.sources import Source, discover
from bcami.replay.survey import survey
from bcami.units import energy_to_text

MEMORY_LIMIT: Final = "256MB"
EXAMPLES_MAX: Final = 20


class Difference(msgspec.Struct, frozen=True):
    """One half-hour on which the sides do not agree."""

    meter: str
    start_s: int
    kind: str
    """missing, extra or different."""
    expected: str | None
    """kWh as a decimal text."""
    stored: str | None


class Reconciliation(msgspec.Struct, frozen=True):
    """The fields of `reconcile --json` (design 4), and a few more at the end."""

    readings_expected: int
    readings_stored: int
    missing: int
    extra: int
    different: int
    kwh_expected: str
    kwh_stored: str
    meters_expected: int
    meters_stored: int
    outside: int
    """Readings in the MDMS of other meters or times than this data set's (other data sets were replayed too)."""
    examples: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        return self.missing == self.extra == self.different == 0


class Reconciler:
    """Collects both sides, then compares. `expect` first, so that the filters' meters are known."""

    def __init__(self, path: Path, filters: Filters, layout: Layout | None = None, scratch: Path | None = None) -> None:
        self.filters = filters
        self.source: Source = discover(path, layout)
        self.chosen: frozenset[str] | None = None
        """The ids that `--meters N` means, once `expect` has run; None: all. The MDMS may be asked for these only."""
        self.readings_read = 0
        self._scratch = scratch
        self._folder = tempfile.TemporaryDirectory(dir=scratch, prefix="bcami-reconcile-")
        self._meters = MeterIndex()
        self._expected_meters = 0
        self._first_s: int | None = None
        self._last_s: int | None = None
        self._outside = 0
        folder = Path(self._folder.name)
        options = {"memory_limit": MEMORY_LIMIT, "threads": "2", "preserve_insertion_order": "false"}
        self._database = duckdb.connect(str(folder / "sides.duckdb"), config={**options, "temp_directory": str(folder)})
        for side in ("expected", "stored"):
            self._database.execute(f"CREATE TABLE {side} (meter INTEGER, start_s BIGINT, energy BIGINT)")

    def expect(self, on_progress: Callable[[float, int], None] | None = None) -> None:
        """Read the data set. `on_progress` gets the fraction read and the readings so far. Raises InputError."""
        if self.filters.meters is not None:
            self.chosen = survey(self.source).first(self.filters.meters)
        total = max(self.source.bytes_packed, 1)
        with RejectLog() as rejects:
            stream = ReadingStream(self.source, self.filters, rejects, self.chosen, self._scratch)
            for chunk in stream:
                numbers = np.array([self._meters.of_text(one) for one in stream.meters.ids], dtype=np.int32)
                self._insert("expected", numbers[chunk.meter], chunk.start_s, chunk.energy)
                self._widen(chunk.start_s)
                self.readings_read = stream.readings_read
                if on_progress is not None:
                    on_progress(stream.bytes_read / total, stream.readings_read)
        self._expected_meters = len(self._meters)

    def store(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Take record batches of (meter_id string, start_s int64, energy int64), as often as wanted."""
        for batch in batches:
            start_s = _integers(batch, "start_s")
            energy = _integers(batch, "energy")
            meter = self._numbers(batch)
            wanted = (meter >= 0) & (meter < self._expected_meters) & self._in_time(start_s)
            self._outside += int(len(wanted) - wanted.sum())
            self._insert("stored", meter[wanted], start_s[wanted], energy[wanted])

    def compare(self, examples: int = EXAMPLES_MAX) -> Reconciliation:
        """Return the result; both sides stay as they are."""
        try:
            self._database.execute(_JOIN)
            row: Any = self._database.execute(_COUNTS).fetchone()
            sides = [self._database.execute(_TOTALS.format(side=side)).fetchone() for side in ("expected", "stored")]
            listed = self._database.execute(_EXAMPLES, [examples]).fetchall()
        except duckdb.Error as error:
            raise _database_fault(error, self._folder.name) from error
        expected, stored = ((int(total[0]), int(total[1]), int(total[2])) for total in sides if total is not None)
        return Reconciliation(
            readings_expected=expected[0],
            readings_stored=stored[0],
            missing=int(row[0]),
            extra=int(row[1]),
            different=int(row[2]),
            kwh_expected=energy_to_text(expected[1]),
            kwh_stored=energy_to_text(stored[1]),
            meters_expected=expected[2],
            meters_stored=stored[2],
            outside=self._outside,
            examples=tuple(
                Difference(
                    self._meters.ids[meter] if meter != INVALID else "?", start_s, kind, _kwh(wanted), _kwh(held)
                )
                for meter, start_s, kind, wanted, held in listed
            ),
        )

    def close(self) -> None:
        """Remove the scratch files."""
        self._database.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _widen(self, start_s: Any) -> None:
        if len(start_s):
            first, last = int(start_s.min()), int(start_s.max())
            self._first_s = first if self._first_s is None else min(first, self._first_s)
            self._last_s = last if self._last_s is None else max(last, self._last_s)

    def _in_time(self, start_s: Any) -> Any:
        """Tell which times this data set speaks of."""
        first = self.filters.from_s if self.filters.from_s is not None else self._first_s
        end = self.filters.to_s
        if end is None and self._last_s is not None:
            end = self._last_s + 1
        if first is None or end is None:
            return np.zeros(len(start_s), dtype=np.bool_)
        return (start_s >= first) & (start_s < end)

    def _numbers(self, batch: pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.int32]]:
        column = batch.column("meter_id")
        coded: Any = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        names = coded.dictionary.to_pylist()
        numbers = np.array([self._number_of(name) for name in names], dtype=np.int32)
        found: np.ndarray[Any, np.dtype[np.int32]] = numbers[coded.indices.to_numpy(zero_copy_only=False)]
        return found

    def _number_of(self, name: str) -> int:
        return self._meters.of_text(name) if self.chosen is None or name in self.chosen else INVALID

    def _insert(self, side: str, meter: Any, start_s: Any, energy: Any) -> None:
        if len(meter) == 0:
            return
        table = pa.table({"meter": pa.array(meter), "start_s": pa.array(start_s), "energy": pa.array(energy)})
        try:
            self._database.register("fresh", table)
            self._database.execute(f"INSERT INTO {side} SELECT meter, start_s, energy FROM fresh")  # noqa: S608
            self._database.unregister("fresh")
        except duckdb.Error as error:
            raise _database_fault(error, self._folder.name) from error


_JOIN = """
CREATE OR REPLACE TABLE differences AS
SELECT coalesce(e.meter, s.meter) AS meter, coalesce(e.start_s, s.start_s) AS start_s,
       e.energy AS expected, s.lowest AS lowest, s.highest AS highest, coalesce(s.copies, 0) AS copies
FROM expected e
FULL OUTER JOIN (
    SELECT meter, start_s, min(energy) AS lowest, max(energy) AS highest, count(*) AS copies
    FROM stored GROUP BY meter, start_s
) s ON e.meter = s.meter AND e.start_s = s.start_s
WHERE e.energy IS DISTINCT FROM s.lowest OR e.energy IS DISTINCT FROM s.highest OR s.copies > 1
"""
_COUNTS = """
SELECT count(*) FILTER (WHERE copies = 0),
       coalesce(sum(CASE WHEN expected IS NULL THEN copies WHEN copies > 1 THEN copies - 1 ELSE 0 END), 0),
       count(*) FILTER (WHERE copies > 0 AND (lowest <> expected OR highest <> expected))
FROM differences
"""
_TOTALS = "SELECT count(*), coalesce(sum(energy), 0), count(DISTINCT meter) FROM {side}"
_EXAMPLES = """
SELECT meter, start_s,
       CASE WHEN copies = 0 THEN 'missing' WHEN expected IS NULL THEN 'extra'
            WHEN lowest <> expected OR highest <> expected THEN 'different' ELSE 'extra' END AS kind,
       expected, CASE WHEN copies = 0 THEN NULL WHEN lowest <> expected THEN lowest ELSE highest END
FROM differences ORDER BY kind, meter, start_s LIMIT ?
"""


def reconcile(
    path: Path,
    batches: Iterable[pa.RecordBatch],
    filters: Filters | None = None,
    *,
    layout: Layout | None = None,
    scratch: Path | None = None,
) -> Reconciliation:
    """Return how a data set compares with the MDMS's readings. Raises InputError, EnvironmentFault."""
    with Reconciler(path, filters or Filters(), layout, scratch) as work:
        work.expect()
        work.store(batches)
        return work.compare()


def _integers(batch: pa.RecordBatch, name: str) -> Any:
    column = batch.column(name)
    if column.null_count or not pa.types.is_integer(column.type):
        raise InputError(f"the MDMS's column {name} is not made of integers", do="check the version of the MDMS")
    return column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)


def _kwh(units: int | None) -> str | None:
    return None if units is None else energy_to_text(units)


def _database_fault(error: duckdb.Error, folder: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the comparison could not use its scratch database: {str(error).splitlines()[0]}",
        where=folder,
        likely="the disk is full",
        do="free some space, or point TMPDIR elsewhere; it needs about 40 bytes for each half-hour",
    )
