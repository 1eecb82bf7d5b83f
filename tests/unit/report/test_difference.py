"""Two reports: measured cells may differ, all others may not."""

import json
from typing import Any

import pytest

from bcami.errors import InputError
from bcami.report.difference import compare_reports, difference_report
from bcami.report.folder import report_data
from tests.unit.report.test_folder import SETTING, small_report


def data(measured: float = 2.5) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(report_data(small_report(measured))))
    return found


def test_the_same_numbers_have_no_difference() -> None:
    found = compare_reports(data(), data())
    assert found.fixed == ()
    assert found.measured == (("table", "a & <b>", "Measured", 2.5, 2.5, False),)


def test_a_measured_cell_may_differ() -> None:
    second = data(5.0)
    cell = second["sections"][0]["items"][0]["rows"][0]["cells"][2]
    cell.update(low=4.5, high=5.5)
    found = compare_reports(data(), second)
    assert found.fixed == ()
    assert found.measured == (("table", "a & <b>", "Measured", 2.5, 5.0, True),)
    shown = difference_report(found, ("one", "two"), SETTING)
    assert shown.table("difference_measured").rows[0].cells[5:] == (2.0, "apart")
    assert "All else is the same" in shown.summary[1]


def test_a_measured_cell_names_no_row() -> None:
    first, second = data(), data()
    for place, report in enumerate((first, second)):
        table = report["sections"][0]["items"][0]
        table["columns"][0]["kind"] = "measured"
        table["rows"][1]["cells"][0] = 111 * (1 + place)
    found = compare_reports(first, second)
    assert found.fixed == ()
    assert ("table", "row", "What", 111.0, 222.0, False) in found.measured


def test_any_other_cell_may_not() -> None:
    second = data()
    second["sections"][0]["items"][0]["rows"][1]["cells"][1] = 4.6
    second["setting"]["versions"]["bcami"] = "9"
    found = compare_reports(data(), second)
    assert found.fixed == (("table", "c", "Printed", "4.5", "4.6"),)
    assert ("bcami", "0", "9") in found.setting
    assert difference_report(found, ("one", "two"), SETTING).table("difference_settings").rows[0].cells[0] == "bcami"


def test_reports_of_two_kinds_do_not_compare() -> None:
    with pytest.raises(InputError, match="does not compare"):
        compare_reports(data(), {**data(), "kind": "security"})


def test_a_row_that_is_gone_is_told() -> None:
    second = data()
    del second["sections"][0]["items"][0]["rows"][1]
    gone = {item[2:] for item in compare_reports(data(), second).fixed}
    assert ("Printed", "4.5", "(not there)") in gone
