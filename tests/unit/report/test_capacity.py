"""The capacity plan multiplies measured unit costs, and says so; by hand for round figures."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from bcami.cli.report import capacity
from bcami.errors import InputError
from bcami.report.capacity import Demand, capacity_report, parse_interval_s, parse_meters, plan
from bcami.report.folder import load_report, report_data, write_report
from bcami.report.units import UnitCosts, at_readings, measured_elsewhere, read_units
from tests.unit.report.test_folder import SETTING

ONE = UnitCosts(4, 1, 200.0, 100.0, 30.0, 250.0, 198.0, 400.0, 50.0)
DAY = UnitCosts(4, 48, 300.0, 300.0, 40.0, 800.0, 950.0, 1200.0, 40.0)


def test_a_plan_by_hand() -> None:
    found = plan(Demand(30e6, 1800.0, 1), ONE)
    assert found.reports_per_second == pytest.approx(16_666.67, abs=0.01)
    assert found.peak_per_second == pytest.approx(33_333.33, abs=0.01)
    assert found.cluster_per_second == 2500.0, "half a core of 200 µs each"
    assert found.clusters == 14
    assert found.node_cores == pytest.approx(33_333.33 * 200e-6 * 4 / 0.5, rel=1e-6)
    assert found.mdms_cores == pytest.approx(6.667, abs=0.001)
    assert found.node_mbps == pytest.approx(33_333.33 / 14 * 250 * 8 / 1e6, rel=1e-6)
    assert found.all_ledgers_tb_year == pytest.approx(16_666.67 * 31_536_000 * 400 * 4 / 1e12, rel=1e-6)
    assert found.mdms_tb_year == pytest.approx(16_666.67 * 31_536_000 * 50 / 1e12, rel=1e-6)


def test_more_readings_in_a_report_need_less() -> None:
    single, daily = plan(Demand(1e6, 1800.0, 1), ONE), plan(Demand(1e6, 1800.0, 48), DAY)
    assert daily.node_cores < single.node_cores / 30
    assert daily.all_ledgers_tb_year < single.all_ledgers_tb_year / 10


def test_between_measured_readings_lies_a_line() -> None:
    assert at_readings([DAY, ONE], 1) is ONE
    middle = at_readings([ONE, DAY], 24)
    assert middle.node_us == pytest.approx(200 + 100 * 23 / 47)
    assert (middle.readings, middle.nodes) == (24, 4)
    with pytest.raises(InputError, match="not measured"):
        at_readings([ONE, DAY], 96)


def test_readings_that_are_not_measured_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="were not measured"):
        capacity(readings=96, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800.0), ("15m", 900.0), ("1h", 3600.0), ("900s", 900.0)])
def test_intervals(text: str, seconds: float) -> None:
    assert parse_interval_s(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "0s", "2d", "-5m", "30 min"])
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not an interval"):
        parse_interval_s(text)


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "nan", "inf", "1e12"])
def test_what_is_no_number_of_meters_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a number of meters"):
        parse_meters(text)


def test_the_report_can_be_read_back_as_unit_costs(tmp_path: Path) -> None:
    report = capacity_report(Demand(parse_meters("30e6"), 1800.0, 4), [ONE, DAY], SETTING)
    write_report(report, tmp_path)
    units = read_units(load_report(tmp_path))
    assert [unit.readings for unit in units] == [1, 4, 48]
    assert units[0] == ONE
    assert report.table("capacity_plan").rows[0].cells[2] == 30e6
    assert [row.cells[0] for row in report.table("capacity_by_readings").rows] == [1, 4, 48]
    data = json.loads(json.dumps(report_data(report)))
    data["sections"] = []
    with pytest.raises(InputError, match="no unit costs"):
        read_units(data)


def test_a_plan_from_another_report_says_where_its_costs_were_measured(tmp_path: Path) -> None:
    there = capacity_report(Demand(1e6, 1800.0, 1), [ONE, DAY], replace(SETTING, machine={"cores": "64"}, seed=9))
    write_report(there, tmp_path)
    found = measured_elsewhere(replace(SETTING, quick=False, command="here"), load_report(tmp_path))
    assert (found.command, found.seed, found.quick) == ("here", 9, True), "a quick report gives a quick plan"
    assert found.machine["cores"] == "64"
    assert found.machine["unit costs by"] == SETTING.command
    with pytest.raises(InputError, match="where it was made"):
        measured_elsewhere(SETTING, {"setting": {}})
