"""Rows to readings: each rejected row once, under its reason, with file and line; filters; all layouts."""

import csv
from pathlib import Path

import pytest

from bcami.errors import InputError
from bcami.replay.lines import read_blocks
from bcami.replay.meters import MeterIndex
from bcami.replay.options import Filters, parse_moment
from bcami.replay.rejects import RejectLog
from bcami.replay.sources import discover
from bcami.replay.survey import survey
from tests.unit.replay.files import (
    HALFHOURLY,
    HHBLOCK,
    UKPN,
    UKPN_ACORN,
    halfhour,
    readings_of,
    rejects_of,
    stream_of,
    write,
)

DAY = parse_moment("2013-01-01", "")
GOOD = halfhour("MAC000002", "2013-01-01 00:30:00", "0.219")


def one(path: Path) -> tuple[list[tuple[str, int, int]], dict[str, int]]:
    stream = stream_of(path)
    return readings_of(stream), rejects_of(stream)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("MAC000002,2013-01-01 01:00:00.0000000,Null", "null"),
        ("MAC000002,2013-01-01 01:00:00.0000000, ", "null"),
        ("MAC000002,2012-12-19 12:37:27.0000000,Null", "null"),
        ("MAC000002,2013-01-01 01:00:01.0000000, 0.2 ", "off_grid"),
        ("MAC000002,2013-01-01 01:00:00.0000001, 0.2 ", "off_grid"),
        ("MAC000002,2013-01-01 01:15:00, 0.2 ", "off_grid"),
        (GOOD, "duplicate"),
        (halfhour("MAC000002", "2013-01-01 00:30:00", "0.21900"), "duplicate"),
        (halfhour("MAC000002", "2013-01-01 00:30:00", "0.22"), "conflict"),
        ("MAC000002,2013-01-01 01:00:00.0000000", "bad_row"),
        ("MAC000002,2013-01-01 01:00:00.0000000, 0.2 ,", "bad_row"),
        ('MAC000002,"2013-01-01 01:00:00, 0.2 ', "bad_row"),
        (HALFHOURLY, "bad_row"),
        (",2013-01-01 01:00:00.0000000, 0.2 ", "bad_meter"),
        ("x" * 65 + ",2013-01-01 01:00:00.0000000, 0.2 ", "bad_meter"),
        ("MAC\x07,2013-01-01 01:00:00.0000000, 0.2 ", "bad_meter"),
        ("MAC000002,2013-02-29 01:00:00.0000000, 0.2 ", "bad_time"),
        ("MAC000002,2013-13-01 01:00:00.0000000, 0.2 ", "bad_time"),
        ("MAC000002,2013-01-01 24:00:00.0000000, 0.2 ", "bad_time"),
        ("MAC000002,2013-01-01, 0.2 ", "bad_time"),
        ("MAC000002,0013-01-01 01:00:00.0000000, 0.2 ", "bad_time"),
        ("MAC000002,yesterday, 0.2 ", "bad_time"),
        ("MAC000002,, 0.2 ", "bad_time"),
        ("MAC000002,2013-01-01 01:00:00.0000000, 0,2 ", "bad_row"),
        ("MAC000002,2013-01-01 01:00:00.0000000, 0.12345678 ", "bad_value"),
        ("MAC000002,2013-01-01 01:00:00.0000000, 1e3 ", "bad_value"),
        ("MAC000002,2013-01-01 01:00:00.0000000, nan ", "bad_value"),
        ("MAC000002,2013-01-01 01:00:00.0000000, .5 ", "bad_value"),
        ("MAC000002,2013-01-01 01:00:00.0000000, 1234567890 ", "bad_value"),
        ("MAC000002,2013-01-01 01:00:00.0000000, 0.2.1 ", "bad_value"),
        ("MAC000002,2013-01-01 01:00:00.0000000, - ", "bad_value"),
    ],
)
def test_a_rejected_row_counts_once_under_its_reason(tmp_path: Path, row: str, reason: str) -> None:
    path = write(tmp_path / "block_0.csv", HALFHOURLY, GOOD, row)
    log = tmp_path / "rejects.csv"
    with RejectLog(log) as rejects:
        stream = stream_of(discover(path), rejects=rejects)
        assert readings_of(stream) == [("MAC000002", DAY + 1800, 2_190_000)]
    assert rejects_of(stream) == {reason: 1}
    assert stream.readings_read == 2
    with log.open(newline="") as file:
        assert list(csv.reader(file)) == [["file", "line", "reason", "text"], ["block_0.csv", "3", reason, row]]


@pytest.mark.parametrize(
    ("row", "start_s", "energy"),
    [
        ("MAC000003,2013-01-01 01:00:00.0000000, 0 ", 3600, 0),
        ("MAC000003,2013-01-01 01:00:00, 1.1799999 ", 3600, 11_799_999),
        ("MAC000003,2013-01-01T01:00:00.000,-0.5", 3600, -5_000_000),
        ("MAC000003,2013-01-01 01:00,+0.5", 3600, 5_000_000),
        ("  MAC000003 , 2013-01-01 01:00:00 ,    0.50000000000 ", 3600, 5_000_000),
        ('"MAC000003","2013-01-01 01:00:00.0000000"," 0.25 "', 3600, 2_500_000),
        ("MAC000003,01/01/2013 01:00:00,999999999.9999999", 3600, 9_999_999_999_999_999),
        ("MAC000003,1/1/2013 1:00,007", 3600, 70_000_000),
    ],
)
def test_uncommon_forms_are_read_exactly(tmp_path: Path, row: str, start_s: int, energy: int) -> None:
    assert one(write(tmp_path / "a.csv", HALFHOURLY, row)) == ([("MAC000003", DAY + start_s, energy)], {})
    # The same among rows of the common form.
    found, rejects = one(write(tmp_path / "b.csv", HALFHOURLY, GOOD, row, GOOD.replace("00:30", "02:30")))
    assert found[1] == ("MAC000003", DAY + start_s, energy)
    assert (len(found), rejects) == (3, {})


def test_all_layouts_give_the_same_readings(tmp_path: Path) -> None:
    values = [f"{slot * 7 % 1000 / 1000:.3f}" for slot in range(48)]
    times = [f"{slot // 2:02d}:{slot % 2 * 30:02d}:00" for slot in range(48)]
    pairs = list(zip(times, values, strict=True))
    files = [
        write(tmp_path / "a.csv", HALFHOURLY, *(halfhour("M1", f"2013-01-01 {t}", v) for t, v in pairs)),
        write(tmp_path / "b.csv", HALFHOURLY, *(f"M1,2013-01-01 {t}, {v} " for t, v in pairs), end="\r\n"),
        write(tmp_path / "c.csv", HHBLOCK, f"M1,2013-01-01,{','.join(values)}"),
        write(tmp_path / "d.csv", UKPN, *(f"M1,Std,2013-01-01 {t}.0000000, {v} " for t, v in pairs), end="\r\n"),
        write(tmp_path / "e.csv", UKPN_ACORN, *(f"M1,Std,01/01/2013 {t},{v},ACORN-A,Affluent" for t, v in pairs)),
        write(tmp_path / "f.csv.gz", HALFHOURLY, *(halfhour("M1", f"2013-01-01 {t}", v) for t, v in pairs)),
        write(tmp_path / "g.zip", HALFHOURLY, *(halfhour("M1", f"2013-01-01 {t}", v) for t, v in pairs)),
        write(tmp_path / "h.csv", "tstp,x,energy(kWh/hh),LCLid", *(f"2013-01-01 {t},, {v} ,M1" for t, v in pairs)),
    ]
    expected = [("M1", DAY + slot * 1800, slot * 7 % 1000 * 10_000) for slot in range(48)]
    for path in files:
        assert one(path) == (expected, {}), path.name


def test_a_wide_row_is_rejected_by_the_cell(tmp_path: Path) -> None:
    cells = ["0.1"] * 48
    cells[3], cells[7] = "Null", "x"
    path = write(tmp_path / "block_0.csv", HHBLOCK, f"M1,2013-01-01,{','.join(cells)}", f"M1,2013-01-02,{'0.1,' * 46}0")
    log = tmp_path / "rejects.csv"
    with RejectLog(log) as rejects:
        stream = stream_of(discover(path), rejects=rejects)
        assert len(readings_of(stream)) == 46
    assert rejects_of(stream) == {"null": 1, "bad_value": 1, "bad_row": 1}
    with log.open(newline="") as file:
        assert [(row[1], row[2], row[3][:5]) for row in csv.reader(file)][1:] == [
            ("2", "null", "hh_3:"),
            ("2", "bad_value", "hh_7:"),
            ("3", "bad_row", "M1,20"),
        ]


def test_duplicates_and_conflicts_are_found_across_files(tmp_path: Path) -> None:
    write(tmp_path / "block_2.csv", HALFHOURLY, GOOD, halfhour("B", "2013-01-01 00:00:00", "1"))
    write(
        tmp_path / "block_10.csv",
        HALFHOURLY,
        halfhour("B", "2013-01-01 00:00:00", "2"),
        GOOD,
        halfhour("C", "2013-01-01 00:00:00", "3"),
        GOOD,
    )
    found, rejects = one(tmp_path)
    assert [(meter, energy) for meter, _, energy in found] == [
        ("MAC000002", 2_190_000),
        ("B", 10_000_000),
        ("C", 30_000_000),
    ]
    assert rejects == {"duplicate": 2, "conflict": 1}


def test_filters_leave_out_without_rejecting(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        HALFHOURLY,
        "A,2013-01-01 00:00:00, 1 ",
        "A,2013-01-01 00:30:00, 2 ",
        "A,2013-01-01 01:00:00, 3 ",
        "A,2013-01-01 00:45:00,Null",
        "A,2013-01-01 01:15:00,Null",
        "C,2013-01-01 00:30:00, 5 ",
        "C,2013-01-01 00:31:00, 5 ",
        "C,never, 5 ",
        "B,2013-01-01 00:30:00, 4 ",
        "never,never,never",
        "A,never, 1 ",
    )
    filters = Filters(2, DAY + 1800, DAY + 3600)
    stream = stream_of(path, filters)
    assert readings_of(stream) == [("A", DAY + 1800, 20_000_000), ("B", DAY + 1800, 40_000_000)]
    # Rows whose time or meter cannot be told are not outside.
    assert rejects_of(stream) == {"null": 1, "bad_time": 1}
    assert stream.readings_read == 4


def test_a_stray_line_takes_no_meters_place(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv", HALFHOURLY, "AAA,never,0", HALFHOURLY, GOOD, "aa", '"MAC000003",2013-01-01 00:00, 1 '
    )
    assert survey(discover(path)).meters == ("MAC000002", "MAC000003")


def test_blank_lines_are_no_rows_and_keep_the_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HALFHOURLY, "", GOOD, "   ", "x", "")
    log = tmp_path / "rejects.csv"
    with RejectLog(log) as rejects:
        assert len(readings_of(stream_of(discover(path), rejects=rejects))) == 1
    assert log.read_text().splitlines()[1] == "a.csv,5,bad_row,x"


def test_a_last_line_without_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{HALFHOURLY}\n{GOOD}")
    assert len(one(path)[0]) == 1


def test_bytes_that_are_no_text_are_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"{HALFHOURLY}\n{GOOD}\n".encode() + b"M\xff,2013-01-01 00:00:00, 1 \n")
    found, rejects = one(path)
    assert (len(found), rejects) == (1, {"bad_row": 1})


def test_lines_are_numbered_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcami.replay.lines.BLOCK_BYTES", 100)
    rows = [halfhour("A", f"2013-01-{day:02d} 00:00:00", "1") for day in range(1, 30)]
    path = write(tmp_path / "a.csv.gz", HALFHOURLY, *rows[:20], "x", *rows[20:], "y")
    log = tmp_path / "rejects.csv"
    with RejectLog(log) as rejects:
        stream = stream_of(discover(path), rejects=rejects)
        assert len(readings_of(stream)) == 29
    assert log.read_text().splitlines()[1:] == ["a.csv.gz,22,bad_row,x", "a.csv.gz,32,bad_row,y"]
    assert sum(len(block.starts) for block in read_blocks(discover(path).files[0])) == 31


def test_too_many_meters_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcami.replay.meters.METERS_MAX", 2)
    index = MeterIndex()
    assert [index.of_text(name) for name in ("a", "b", "a")] == [0, 1, 0]
    with pytest.raises(InputError, match="different meter ids"):
        index.of_text("c")


def test_too_many_months_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcami.replay.seen.PAGES_MAX", 3)
    rows = [f"A,{year}-01-01 00:00:00, 1 " for year in range(2001, 2005)]
    with pytest.raises(InputError, match="quarters of single meters"):
        readings_of(stream_of(write(tmp_path / "a.csv", HALFHOURLY, *rows)))


def test_rejects_that_cannot_be_written_say_so(tmp_path: Path) -> None:
    from bcami.errors import EnvironmentFault

    with pytest.raises(EnvironmentFault, match="rejects file"):
        RejectLog(tmp_path / "no" / "rejects.csv")
