"""Queries of the MDMS on DuckDB: each on a connection of its own, beside the writer, on one consistent state."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bcami.mdms.duckdb_store import DuckDbStore
from bcami.mdms.records import START_S_MAX
from bcami.mdms.store import Gap, MeterSummary, ProfileSlot
from bcami.mdms.vee import CONTEXT_S, DAY_S, Flag, FlagColumn, compute_flags

CHUNK_READINGS: Final = 500_000
"""Readings sorted and held at once while many are passed on."""
CHUNK_METERS: Final = 2_000
_HID_HEX: Final = 64

_SUMMARY: Final = """
select m.number, m.hid, d.meter_id, coalesce(r.readings, 0), r.first_s, r.last_s
from meters as m left join directory as d on d.hid = m.hid
left join (select meter, count(*) as readings, min(start_s) as first_s, max(start_s) as last_s
           from readings where meter in (select unnest(?::INTEGER[])) group by meter) as r on r.meter = m.number
where m.number in (select unnest(?::INTEGER[])) order by m.number
"""
_ROWS: Final = """
select r.meter::BIGINT as meter, r.start_s, r.energy, r.interval_s::BIGINT as interval_s, r.height,
       r.place::BIGINT as place, coalesce(p.flags, 0)::UTINYINT as flags
from readings as r
left join (select meter, start_s, bit_or(case when equal then 1 else 2 end) as flags
           from repeats where meter in (select unnest($meters::INTEGER[])) group by all) as p
       on p.meter = r.meter and p.start_s = r.start_s
where r.meter in (select unnest($meters::INTEGER[])) and r.start_s between $low and $high
order by r.meter, r.start_s
"""
assert (Flag.DUPLICATE, Flag.CONFLICT) == (1, 2)
_BEFORE: Final = """
select meter::BIGINT, max(start_s), arg_max(interval_s, start_s)::BIGINT from readings
where meter in (select unnest($meters::INTEGER[])) and start_s < $low group by meter
"""
_GAPS: Final = """
select meter, stop_s, start_s, interval_s from (
    select meter, start_s, interval_s,
           lag(start_s + interval_s) over (partition by meter order by start_s) as stop_s
    from readings where meter in (select unnest($meters::INTEGER[])) and start_s between $low and $high)
where stop_s < start_s order by meter, stop_s limit $rows
"""
_PROFILE: Final = """
select (start_s % 86400) // 1800 * 1800 as slot, count(*), sum(energy)::HUGEINT, min(energy), max(energy)
from readings where meter = $meter and start_s between $low and $high group by slot order by slot
"""


class DuckDbQueries:
    """`bcami.mdms.store.ReadingQueries` on the store's file."""

    def __init__(self, store: DuckDbStore) -> None:
        self._store = store

    def find_meter(self, name: str) -> MeterSummary | None:
        with self._snapshot() as connection:
            rows = connection.execute(
                "select m.number from directory as d join meters as m on m.hid = d.hid where d.meter_id = ?", [name]
            ).fetchall()
            if not rows and len(name) == _HID_HEX:
                rows = connection.execute("select number from meters where lower(hex(hid)) = ?", [name]).fetchall()
            return _summaries(connection, [rows[0][0]])[0] if rows else None

    def names_of(self, hids: Sequence[bytes]) -> dict[bytes, str]:
        query = "select hid, meter_id from directory where hid in (select unnest(?::BLOB[]))"
        with self._snapshot() as connection:
            return {bytes(hid): name for hid, name in connection.execute(query, [list(hids)]).fetchall()}

    def meters(self, after: int, limit: int) -> list[MeterSummary]:
        with self._snapshot() as connection:
            rows = connection.execute(
                "select number from meters where number > ? order by number limit ?", [after, limit]
            ).fetchall()
            return _summaries(connection, [row[0] for row in rows])

    def readings(self, meter: int, from_s: int, to_s: int, limit: int) -> pa.Table:
        with self._snapshot() as connection:
            last = connection.execute(
                "select max(start_s) from (select start_s from readings where meter = ? and start_s between ? and ? "
                "order by start_s limit ?)",
                [meter, from_s, to_s - 1, limit],
            ).fetchall()[0][0]
            return _flagged(connection, [meter], from_s, from_s if last is None else last + 1)

    def profile(self, meter: int, from_s: int, to_s: int) -> list[ProfileSlot]:
        with self._snapshot() as connection:
            values = {"meter": meter, "low": from_s, "high": to_s - 1}
            return [ProfileSlot(*map(int, row)) for row in connection.execute(_PROFILE, values).fetchall()]

    def gaps(self, meter: int | None, from_s: int, to_s: int, limit: int) -> list[Gap]:
        found: list[Gap] = []
        with self._snapshot() as connection:
            labels = _labels(connection)
            for chunk in _chunks(connection, sorted(labels) if meter is None else [meter]):
                values = {"meters": chunk, "low": from_s, "high": to_s - 1, "rows": limit - len(found)}
                for number, stop_s, start_s, interval_s in connection.execute(_GAPS, values).fetchall():
                    found.append(Gap(labels[number], stop_s, start_s, (start_s - stop_s) // interval_s))
                if len(found) >= limit:
                    break
        return found

    def unreadable(self, limit: int) -> pa.Table:
        with self._snapshot() as connection:
            return _arrow(
                connection,
                "select height, place, lower(hex(transaction_id)) as transaction_id, lower(hex(hid)) as hid, session, "
                "sequence, timestamp_ms, fault, octet_length(content) as bytes "
                "from unreadable order by height desc, place desc limit $rows",
                {"rows": limit},
            )

    def sorted_readings(
        self, meters: Sequence[str] | None, from_s: int, to_s: int, *, flags: bool
    ) -> Iterator[pa.RecordBatch]:
        with self._snapshot() as connection:
            labels = _labels(connection)
            wanted = None if meters is None else set(meters)
            ordered = sorted((name, number) for number, name in labels.items() if wanted is None or name in wanted)
            for chunk in _chunks(connection, [number for _, number in ordered]):
                table = _flagged(connection, chunk, from_s, to_s) if flags else _plain(connection, chunk, from_s, to_s)
                yield from _by_label(table, {number: labels[number] for number in chunk}, flags=flags).to_batches()

    @contextmanager
    def _snapshot(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Let all queries inside see one state of the store."""
        connection = self._store.reader()
        try:
            connection.execute("begin transaction read only")
            yield connection
            connection.execute("commit")
        finally:
            connection.close()


def _arrow(connection: duckdb.DuckDBPyConnection, query: str, values: dict[str, Any]) -> pa.Table:
    relation = connection.sql(query, params=values)
    assert relation is not None
    table: pa.Table = relation.to_arrow_table()
    return table


def _summaries(connection: duckdb.DuckDBPyConnection, numbers: list[int]) -> list[MeterSummary]:
    return [MeterSummary(*row) for row in connection.execute(_SUMMARY, [numbers, numbers]).fetchall()]


def _labels(connection: duckdb.DuckDBPyConnection) -> dict[int, str]:
    """Return the meter id of each meter number; the HID in hexadecimal while the directory does not name it."""
    query = (
        "select m.number, coalesce(d.meter_id, lower(hex(m.hid))) from meters as m left join directory as d "
        "on d.hid = m.hid"
    )
    return dict(connection.execute(query).fetchall())


def _chunks(connection: duckdb.DuckDBPyConnection, numbers: list[int]) -> Iterator[list[int]]:
    """Split meters into runs with a bounded number of readings."""
    counts = dict(connection.execute("select meter, count(*) from readings group by meter").fetchall())
    chunk: list[int] = []
    readings = 0
    for number in numbers:
        more = counts.get(number, 0)
        if chunk and (readings + more > CHUNK_READINGS or len(chunk) >= CHUNK_METERS):
            yield chunk
            chunk, readings = [], 0
        if more:
            chunk.append(number)
            readings += more
    if chunk:
        yield chunk


def _plain(connection: duckdb.DuckDBPyConnection, numbers: list[int], from_s: int, to_s: int) -> pa.Table:
    query = (
        "select meter::BIGINT as meter, start_s, energy from readings "
        "where meter in (select unnest($meters::INTEGER[])) and start_s between $low and $high"
    )
    return _arrow(connection, query, {"meters": numbers, "low": from_s, "high": to_s - 1})


def _flagged(connection: duckdb.DuckDBPyConnection, numbers: list[int], from_s: int, to_s: int) -> pa.Table:
    """Return the readings of meters in [from, to) by (meter, start), with all their flags."""
    low = max(from_s // DAY_S * DAY_S - CONTEXT_S, 0)
    high = min(-(-to_s // DAY_S) * DAY_S + CONTEXT_S, START_S_MAX)
    table = _arrow(connection, _ROWS, {"meters": numbers, "low": low, "high": high})
    meter, start_s, energy, interval_s = (table.column(place).to_numpy() for place in range(4))
    flags = table.column("flags").to_numpy() | compute_flags(meter, start_s, energy, interval_s)
    before = connection.execute(_BEFORE, {"meters": numbers, "low": low}).fetchall()
    flags |= _gaps_at_edge(meter, start_s, {row[0]: row[1] + row[2] for row in before})
    inside = (start_s >= from_s) & (start_s < to_s)
    table = table.set_column(table.schema.get_field_index("flags"), "flags", pa.array(flags))
    return table.filter(pa.array(inside))


def _gaps_at_edge(meter: npt.NDArray[np.int64], start_s: npt.NDArray[np.int64], stops: dict[int, int]) -> FlagColumn:
    """Flag the first row of each meter where the reading before it, which is not among the rows, ends earlier."""
    flags = np.zeros(len(meter), np.uint8)
    numbers, firsts = np.unique(meter, return_index=True)
    for number, first in zip(numbers.tolist(), firsts.tolist(), strict=True):
        if number in stops and stops[number] < start_s[first]:
            flags[first] |= np.uint8(Flag.AFTER_GAP)
    return flags


def _by_label(table: pa.Table, labels: dict[int, str], *, flags: bool) -> pa.Table:
    """Return meter_id, start_s, energy (and flags), sorted by meter id and start."""
    numbers = np.array(sorted(labels, key=labels.__getitem__), np.int64)
    by_number = np.argsort(numbers)
    rank = by_number[np.searchsorted(numbers[by_number], table.column("meter").to_numpy())]
    order = np.lexsort((table.column("start_s").to_numpy(), rank))
    columns = [
        pa.array([labels[number] for number in numbers.tolist()], pa.string()).take(rank[order]),
        *(table.column(name).combine_chunks().take(order) for name in ("start_s", "energy")),
    ]
    names = ["meter_id", "start_s", "energy"]
    if flags:
        columns.append(table.column("flags").combine_chunks().take(order))
        names.append("flags")
    return pa.Table.from_arrays(columns, names=names)
