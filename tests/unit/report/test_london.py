"""True totals beside those of a file that a spreadsheet has cut, on made-up files with a low limit."""

from pathlib import Path

import pytest

from bcami.bundled import find_bundled
from bcami.cli import report_live
from bcami.cli.report import costs
from bcami.config import default_definition
from bcami.errors import InputError
from bcami.paths import HomePaths
from bcami.processes.home import create_home
from bcami.replay.sources import discover
from bcami.report.costs.london import ROWS_KEPT, london_section, measure_london, total
from bcami.report.document import Table

TEXT = """LCLid,tstp,energy(kWh/hh)
MAC000002,2013-01-01 00:00:00.0000000, 0.5
MAC000002,2013-01-01 00:30:00.0000000, 0.25
MAC000002,2013-01-01 00:37:00.0000000, Null
MAC000003,2013-01-01 00:00:00.0000000, 1
MAC000004,2013-01-01 00:00:00.0000000, 2
"""


@pytest.fixture
def block(tmp_path: Path) -> Path:
    (tmp_path / "block_1.csv").write_text(TEXT)
    return tmp_path


@pytest.mark.parametrize(("kept", "units", "meters"), [(1, 5_000_000, 1), (3, 7_500_000, 1), (4, 17_500_000, 2)])
def test_a_cut_loses_what_comes_after_its_rows(block: Path, kept: int, units: int, meters: int) -> None:
    found = total(discover(block).files[0], kept)
    assert (found.rows, found.readings, found.meters, found.units) == (5, 4, 3, 37_500_000)
    assert (found.cut_units, found.cut_meters) == (units, meters), "a Null row is a row too"


def test_a_spreadsheet_keeps_all_but_its_header_row(block: Path) -> None:
    assert ROWS_KEPT == 1_048_575
    assert total(discover(block).files[0]).cut_units == 37_500_000


def test_the_section_shows_the_papers_sums_and_the_files(block: Path) -> None:
    section = london_section(measure_london(block, lambda _: None), "here")
    tables = {item.key: item for item in section.items if isinstance(item, Table)}
    printed = tables["london_paper"].column("printed")
    assert printed == (None, 424_552.0, 365_857.0, 252_237.9, 244_846.1, 290_359.9)
    assert tables["london_paper"].column("percent") == (None, 71.5, 67.6, 71.1, 73.1, 73.4)
    assert tables["london_files"].rows[0].cells == ("block_1.csv", 5, 4, 3, 3.75, 3.75, 3, 100.0)


def test_the_bundled_sample_is_read(tmp_path: Path) -> None:
    found = measure_london(find_bundled("datasets/sample"), lambda _: None)
    assert found
    assert all(item.units == item.cut_units for item in found)


def test_data_that_are_not_there_are_told_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing at"):
        costs(data=str(tmp_path / "none"), out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("nodes", "is_used"), [(4, True), (7, False)])
def test_the_users_network_is_measured_when_it_has_the_usual_size(
    nodes: int, is_used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = HomePaths(tmp_path / "home")
    create_home(home, default_definition(nodes), base_port=20_000)
    monkeypatch.setattr(report_live, "is_up", lambda _: True)
    assert report_live._is_usable(home) is is_used
