"""What the store answers: ranges, flags, profile, gaps, sorted streams."""

import numpy as np
import pytest

from bcami.errors import EnvironmentFault, InputError
from bcami.mdms import duckdb_queries
from bcami.mdms.duckdb_queries import DuckDbQueries
from bcami.mdms.duckdb_store import DuckDbStore
from bcami.mdms.records import START_S_MAX, CursorMovedError, UnitOfWork
from bcami.mdms.vee import Flag
from bcami.model.report import Reading
from tests.unit.mdms.conftest import World

T0 = 1_356_998_400
END = START_S_MAX + 1


@pytest.fixture
def queries(world: World) -> DuckDbQueries:
    return DuckDbQueries(world.store)


def store_readings(world: World, *reports: list[Reading], meter=None) -> None:
    world.chain.block([(meter or world.meter).report(report) for report in reports])
    followed = world.follower().follow(world.chain.bundles)
    assert followed.refused is None


def line(energies, first: int = T0) -> list[Reading]:
    return [Reading(first + place * 1800, energy) for place, energy in enumerate(energies)]


def test_meters_by_id_by_hid_and_unnamed(world: World, queries: DuckDbQueries) -> None:
    store_readings(world, line([1, 2, 3]))
    hid = world.meter.hid
    assert queries.find_meter("MAC000002") is None
    assert queries.find_meter(hid.hex()).meter_id is None
    assert world.store.add_to_directory([(hid, "MAC000002"), (bytes(32), "NOT ENROLLED")]) == 2
    assert world.store.add_to_directory([(hid, "MAC000002")]) == 0
    found = queries.find_meter("MAC000002")
    assert (found.hid, found.readings, found.first_start_s, found.last_start_s) == (hid, 3, T0, T0 + 3600)
    assert queries.find_meter("NOT ENROLLED") is None
    assert queries.names_of([hid, bytes(31) + b"?"]) == {hid: "MAC000002"}
    assert queries.names_of([]) == {}
    assert [row.readings for row in queries.meters(0, 10)] == [0, 3]
    assert [row.number for row in queries.meters(1, 10)] == [2]
    world.store.add_to_directory([(hid, "MAC9")])
    world.reopen()
    assert DuckDbQueries(world.store).find_meter("MAC9").hid == hid


def test_readings_in_a_range_with_a_limit(world: World, queries: DuckDbQueries) -> None:
    store_readings(world, line(range(1, 101)))
    number = world.store.meter_number(world.meter.hid)
    table = queries.readings(number, T0 + 1800, T0 + 10 * 1800, 100)
    assert table.column("energy").to_pylist() == list(range(2, 11))
    assert queries.readings(number, T0, END, 3).column("energy").to_pylist() == [1, 2, 3]
    assert queries.readings(number, 0, T0, 3).num_rows == 0
    assert set(table.column("height").to_pylist()) == {world.chain.height}


def test_flags_do_not_depend_on_the_range_asked_for(world: World, queries: DuckDbQueries) -> None:
    rng = np.random.default_rng(7)
    energies = rng.integers(1, 1000, 48 * 12)
    energies[100:180] = 0
    energies[400] = 10**9
    energies[401] = -5
    keep = [place for place in range(len(energies)) if not (250 <= place < 350 or place == 20)]
    readings = [Reading(T0 + place * 1800, int(energies[place])) for place in keep]
    rng.shuffle(readings)
    for place in range(0, len(readings), 300):
        store_readings(world, [Reading(*map(int, pair)) for pair in readings[place : place + 300]])
    store_readings(world, [Reading(T0, int(energies[0])), Reading(T0 + 1800, 77)])
    number = world.store.meter_number(world.meter.hid)
    whole = queries.readings(number, 0, END, 10_000).select(["start_s", "flags"]).to_pylist()
    flags = {row["start_s"]: row["flags"] for row in whole}
    assert flags[T0] == Flag.DUPLICATE
    assert flags[T0 + 1800] == Flag.CONFLICT
    assert flags[T0 + 21 * 1800] & Flag.AFTER_GAP
    assert flags[T0 + 350 * 1800] & Flag.AFTER_GAP
    assert flags[T0 + 150 * 1800] == Flag.ZERO_RUN
    assert flags[T0 + 400 * 1800] == Flag.SPIKE
    assert flags[T0 + 401 * 1800] == Flag.NEGATIVE
    for first in range(0, 48 * 12, 37):
        part = queries.readings(number, T0 + first * 1800, T0 + (first + 25) * 1800, 1000)
        for row in part.to_pylist():
            assert row["flags"] == flags[row["start_s"]]


def test_profile(world: World, queries: DuckDbQueries) -> None:
    store_readings(world, line([4] * 48), line([8] * 48, T0 + 86_400))
    number = world.store.meter_number(world.meter.hid)
    slots = queries.profile(number, 0, END)
    assert len(slots) == 48
    assert slots[1] == (1800, 2, 12, 4, 8)
    assert queries.profile(number, T0, T0 + 86_400)[0] == (0, 1, 4, 4, 4)


def test_gaps(world: World, queries: DuckDbQueries, monkeypatch: pytest.MonkeyPatch) -> None:
    other = world.chain.meters["MAC000003"]
    world.chain.open_session(other, world.period)
    store_readings(world, [Reading(T0, 1), Reading(T0 + 4 * 1800, 1), Reading(T0 + 6 * 1800, 1)])
    store_readings(world, [Reading(T0, 1), Reading(T0 + 1800, 1), Reading(T0 + 7200, 1)], meter=other)
    world.store.add_to_directory([(world.meter.hid, "B"), (other.hid, "A")])
    monkeypatch.setattr(duckdb_queries, "CHUNK_METERS", 1)
    found = queries.gaps(None, 0, END, 100)
    assert [(gap.meter, gap.from_s - T0, gap.to_s - T0, gap.intervals) for gap in found] == [
        ("A", 3600, 7200, 2),
        ("B", 1800, 7200, 3),
        ("B", 9000, 10800, 1),
    ]
    assert len(queries.gaps(None, 0, END, 2)) == 2
    number = world.store.meter_number(world.meter.hid)
    assert [gap.meter for gap in queries.gaps(number, 0, END, 100)] == ["B", "B"]


@pytest.mark.parametrize("chunk", [1, 1_000_000])
@pytest.mark.parametrize("flags", [True, False])
def test_sorted_readings(world: World, queries, chunk: int, flags: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    other = world.chain.meters["MAC000003"]
    world.chain.open_session(other, world.period)
    store_readings(world, line([5, 6]), line([3, 4], T0 - 3600))
    store_readings(world, line([7, 8]), meter=other)
    world.store.add_to_directory([(world.meter.hid, "MAC000002"), (other.hid, "MAC000003")])
    monkeypatch.setattr(duckdb_queries, "CHUNK_READINGS", chunk)
    rows = [row for batch in queries.sorted_readings(None, 0, END, flags=flags) for row in batch.to_pylist()]
    assert [(row["meter_id"], row["start_s"] - T0, row["energy"]) for row in rows] == [
        ("MAC000002", -3600, 3),
        ("MAC000002", -1800, 4),
        ("MAC000002", 0, 5),
        ("MAC000002", 1800, 6),
        ("MAC000003", 0, 7),
        ("MAC000003", 1800, 8),
    ]
    assert ("flags" in rows[0]) == flags
    part = [
        row
        for batch in queries.sorted_readings(["MAC000003", "NOBODY"], T0 + 1, END, flags=flags)
        for row in batch.to_pylist()
    ]
    assert [row["energy"] for row in part] == [8]


def test_a_reader_sees_one_state_while_the_writer_goes_on(world: World, queries: DuckDbQueries, monkeypatch) -> None:
    monkeypatch.setattr(duckdb_queries, "CHUNK_READINGS", 1)
    store_readings(world, line([1, 2]))
    stream = queries.sorted_readings(None, 0, END, flags=False)
    first = next(stream)
    store_readings(world, line([3, 4], T0 + 86_400))
    assert sum(batch.num_rows for batch in stream) + first.num_rows == 2
    assert world.store.counts.readings == 4


def test_a_unit_of_work_on_another_cursor_is_refused(world: World) -> None:
    before = world.store.cursor
    store_readings(world, line([1]))
    with pytest.raises(CursorMovedError):
        world.store.absorb(UnitOfWork(before, before))


def test_a_store_of_another_chain_is_refused(world: World) -> None:
    world.store.close()
    with pytest.raises(InputError, match="another chain"):
        DuckDbStore(world.folder / "store.duckdb", bytes(32), 0)
    world.store = world.open_store()


def test_a_file_that_is_no_store(tmp_path) -> None:
    path = tmp_path / "store.duckdb"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(EnvironmentFault, match="cannot be opened"):
        DuckDbStore(path, bytes(32), 0)


def test_a_revoked_meter_keeps_its_readings(world: World, queries: DuckDbQueries) -> None:
    store_readings(world, line([1]))
    world.chain.block([world.chain.revoke_tx(world.meter)])
    world.follower().follow(world.chain.bundles)
    assert world.rows("select revoked_height from meters order by number") == [(None,), (world.chain.height,)]
    assert queries.find_meter(world.meter.hid.hex()).readings == 1
