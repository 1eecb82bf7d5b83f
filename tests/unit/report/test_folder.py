"""The machinery: what a report leaves, whatever it is about."""

import csv
import io
import json
from pathlib import Path

import pytest

from bcami.cli.report import _folder
from bcami.errors import InputError
from bcami.paths import HomePaths
from bcami.report.document import Chart, Column, Measured, Range, Report, Row, Section, Series, Setting, Table
from bcami.report.figures import cell_text, number_text, spread_text
from bcami.report.folder import SCHEMA, load_report, table_csv, write_report

SETTING = Setting("bcami report x", "2026-01-02T03:04:05+00:00", 7, True, {"cores": "2"}, {"bcami": "0"})


def small_report(measured: float = 2.5) -> Report:
    columns = (
        Column("what", "What"),
        Column("printed", "Printed", "printed"),
        Column("measured", "Measured", "measured"),
        Column("verdict", "Verdict", "verdict"),
    )
    rows = (
        Row(("a & <b>", Range(0.384, 7.68), Measured(measured, 2.0, 3.0, 31), "PASS"), "by counting", "a note"),
        Row(("c", 4.5, None, "FAIL"), "by counting"),
    )
    chart = Chart(
        "chart",
        "A chart",
        "bars",
        "x",
        "y, ms",
        (Series("paper", "printed", ("p", "q"), (1.0, None)), Series("here", "measured", ("p", "q"), (2.0, 3.0))),
    )
    table = Table("table", "A table", columns, rows, "Somebody, Table 1")
    section = Section("section", "A section", ("Text.",), (table, chart))
    return Report("x", "A report", ("A sentence.",), ("How.",), SETTING, (section,))


def test_the_folder_has_page_data_tables_and_figures(tmp_path: Path) -> None:
    page = write_report(small_report(), tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        "report.html",
        "report.json",
        "tables/table.csv",
        "figures/chart.svg",
        "figures/chart.png",
        "figures/chart.csv",
    }
    text = page.read_text()
    assert "a &amp; &lt;b&gt;" in text, "text is escaped"
    assert "http" not in text.replace('lang="en"', ""), "the page needs no network"
    for word in (
        "Table 1. A table",
        "Figure 1.",
        "Somebody, Table 1",
        "by counting",
        "seed 7",
        "2.5",
        "n\u00a0=\u00a031",
    ):
        assert word in text


def test_two_reports_of_the_same_numbers_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_report(small_report(), tmp_path / name)
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path.name


def test_csv_holds_ranges_quartiles_methods_and_notes() -> None:
    rows = list(csv.DictReader(io.StringIO(table_csv(small_report().tables[0]))))
    assert rows[0] == {
        "what": "a & <b>",
        "printed": "0.384",
        "printed_to": "7.68",
        "measured": "2.5",
        "measured_q1": "2.0",
        "measured_q3": "3.0",
        "measured_n": "31",
        "verdict": "PASS",
        "method": "by counting",
        "note": "a note",
    }
    assert rows[1]["printed_to"] == rows[1]["measured"] == rows[1]["note"] == ""


def test_json_has_the_schema_and_is_read_back(tmp_path: Path) -> None:
    write_report(small_report(), tmp_path)
    data = load_report(tmp_path)
    assert data["schema"] == SCHEMA
    assert data["kind"] == "x"
    assert data["setting"]["seed"] == 7
    table, chart = data["sections"][0]["items"]
    assert (table["is"], chart["is"]) == ("table", "chart")
    assert table["rows"][0]["cells"][1] == {"type": "range", "low": 0.384, "high": 7.68}
    assert table["rows"][0]["cells"][2] == {"type": "measured", "median": 2.5, "low": 2.0, "high": 3.0, "n": 31}
    (tmp_path / "report.json").write_text(json.dumps({**data, "schema": "other/1"}))
    with pytest.raises(InputError, match="not a report"):
        load_report(tmp_path)
    for lost in ("kind", "setting", "sections"):
        part = {name: value for name, value in data.items() if name != lost}
        (tmp_path / "report.json").write_text(json.dumps(part))
        with pytest.raises(InputError, match="not a whole report"):
            load_report(tmp_path)


def test_a_report_of_another_kind_is_not_written_over(tmp_path: Path) -> None:
    write_report(small_report(), tmp_path)
    assert _folder(HomePaths(tmp_path), str(tmp_path), "report-x") == tmp_path
    with pytest.raises(InputError, match="another kind"):
        _folder(HomePaths(tmp_path), str(tmp_path), "report-costs")


def test_a_row_that_does_not_fit_its_table_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells under 1 columns"):
        Table("t", "t", (Column("a", "a"),), (Row((1, 2)),))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.031248, "0.03125"),
        (1346, "1\u202f346"),
        (12345.6, "12\u202f346"),
        (0.00012345, "0.0001234"),
        (1.5e-7, "1.50·10^-7"),
        (2.0, "2"),
        (-3.14159, "-3.142"),
        (0.0, "0"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


def test_printed_figures_keep_their_digits_and_exact_counts_have_no_spread() -> None:
    assert cell_text(252_237.9, "printed") == "252\u202f237.9"
    assert cell_text(Range(0.38, 6.98), "printed") == "0.38–6.98"
    assert spread_text(Measured(5, 5, 5, 1)) == ""
