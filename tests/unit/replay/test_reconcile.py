"""Every kind of difference is counted as what it is, and sums are exact."""

from pathlib import Path

import pyarrow as pa
import pytest

from bcami.errors import InputError
from bcami.replay.options import Filters, parse_moment
from bcami.replay.reconcile import Reconciler, Reconciliation, reconcile
from tests.unit.replay.files import HALFHOURLY, halfhour, write

DAY = parse_moment("2013-01-01", "")
ROWS = [(meter, DAY + slot * 1800, 1_000_000 + slot) for meter in ("A", "B", "C") for slot in range(10)]


def batch(rows: list[tuple[str, int, int]], *, coded: bool = False) -> pa.RecordBatch:
    names = pa.array([row[0] for row in rows], pa.string())
    return pa.record_batch(
        {
            "meter_id": names.dictionary_encode() if coded else names,
            "start_s": pa.array([row[1] for row in rows], pa.int64()),
            "energy": pa.array([row[2] for row in rows], pa.int64()),
        }
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = [
        halfhour(meter, f"2013-01-01 {slot // 2:02d}:{slot % 2 * 30:02d}:00", f"0.{1_000_000 + slot}")
        for meter in ("A", "B", "C")
        for slot in range(10)
    ]
    return write(tmp_path / "block_0.csv", HALFHOURLY, *lines, lines[0], "A,2013-01-01 00:00:00, 9 ", "A,x,y")


def counts(result: Reconciliation) -> tuple[int, int, int]:
    return result.missing, result.extra, result.different


def test_equal_sides_agree(data: Path, tmp_path: Path) -> None:
    result = reconcile(data, [batch(ROWS[:11]), batch(ROWS[11:], coded=True), batch([])], scratch=tmp_path)
    assert result.agrees
    assert (result.readings_expected, result.readings_stored) == (30, 30)
    assert result.kwh_expected == result.kwh_stored == "3.0000135"
    assert (result.meters_expected, result.meters_stored, result.examples) == (3, 3, ())
    assert [path.name for path in tmp_path.iterdir()] == ["block_0.csv"]


def test_each_difference_counts_as_what_it_is(data: Path) -> None:
    meter, start_s, energy = ROWS[3]
    stored = [
        *ROWS[:3],
        (meter, start_s, energy + 1),  # different
        *ROWS[5:],  # ROWS[4] is missing
        ROWS[7],  # stored twice: extra
        ("A", DAY + 900, 5),  # extra
        ("A", DAY - 1800, 5),  # outside: before the data set begins
        ("D", DAY, 7),  # outside: of a meter that the data set does not have
    ]
    result = reconcile(data, [batch(stored)])
    assert counts(result) == (1, 2, 1)
    assert not result.agrees
    assert result.outside == 2
    assert (result.readings_expected, result.readings_stored) == (30, 31)
    found = {(one.kind, one.meter, one.start_s, one.expected, one.stored) for one in result.examples}
    assert found == {
        ("different", "A", start_s, "0.1000003", "0.1000004"),
        ("missing", "A", ROWS[4][1], "0.1000004", None),
        ("extra", "A", ROWS[7][1], "0.1000007", "0.1000007"),
        ("extra", "A", DAY + 900, None, "0.0000005"),
    }


def test_nothing_stored(data: Path) -> None:
    result = reconcile(data, [])
    assert counts(result) == (30, 0, 0)
    assert result.kwh_stored == "0.0000000"
    assert len(result.examples) == 20


def test_filters_limit_both_sides(data: Path) -> None:
    filters = Filters(2, DAY + 1800, DAY + 3 * 1800)
    stored = [batch([*ROWS, ("D", DAY + 1800, 1)])]
    with Reconciler(data, filters) as work:
        work.expect()
        assert work.chosen == frozenset("AB")
        work.store(stored)
        result = work.compare()
    assert result.agrees
    assert (result.readings_expected, result.readings_stored) == (4, 4)
    assert reconcile(data, [batch(ROWS[:10])], Filters(meters=1)).agrees


def test_a_stored_id_that_is_none_is_outside(data: Path) -> None:
    result = reconcile(data, [batch([*ROWS, ("", DAY, 1)])])
    assert (counts(result), result.outside) == ((0, 0, 0), 1)


def test_other_data_sets_in_the_same_network_are_no_difference(data: Path) -> None:
    later = [(meter, start_s + 86_400, energy) for meter, start_s, energy in ROWS]
    others = [("Z" + meter, start_s, energy) for meter, start_s, energy in ROWS]
    result = reconcile(data, [batch([*later, *ROWS, *others])])
    assert result.agrees
    assert (result.outside, result.kwh_stored) == (60, result.kwh_expected)


def test_sums_beyond_64_bits_are_exact(tmp_path: Path) -> None:
    rows = [halfhour("A", f"2013-01-{day:02d} 00:00:00", "999999999.9999999") for day in range(1, 29)]
    lines = [row.replace("A,", f"M{n},") for n in range(50) for row in rows]
    path = write(tmp_path / "a.csv", HALFHOURLY, *lines)
    assert reconcile(path, []).kwh_expected == "1399999999999.9998600"


def test_a_column_of_another_kind_is_refused(data: Path) -> None:
    wrong = pa.record_batch({"meter_id": ["A"], "start_s": [DAY], "energy": [0.5]})
    with pytest.raises(InputError, match="energy"):
        reconcile(data, [wrong])
