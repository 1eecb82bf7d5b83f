"""The reports as a user makes them: one quick run on a small real network, and what follows from it."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bcami.report.folder import SCHEMA
from tests.processes.cluster import Cluster

RUN_S = 500.0
"""Less than a minute on a machine that does nothing else; CI's does."""
EXPECTED_TABLES = {
    "bc_ami_table_3": ["quantity", "unit", "printed", "printed_to", "recomputed", "recomputed_to", "measured"],
    "kms_table_12": ["quantity", "unit", "printed", "printed_to", "recomputed", "recomputed_to", "measured"],
    "phase_cpu": ["phase", "n4_us", "n4_us_q1", "n4_us_q3", "n4_us_n"],
    "live_phases": ["phase", "took_ms", "took_ms_q1", "took_ms_q3", "took_ms_n", "until_ms", "until_ms_q1"],
    "live_gateway": ["reports", "bytes", "cpu_us"],
    "unit_costs": ["nodes", "readings", "node_us", "mdms_us", "meter_us", "sent_bytes"],
    "london_files": ["file", "rows", "readings", "meters", "kwh", "kwh_cut"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cluster, Path, dict[str, Any]]:
    """One report, for every test here."""
    cluster = Cluster(tmp_path_factory.mktemp("report") / "home")
    folder = cluster.home.folder.parent / "costs"
    return (
        cluster,
        folder,
        cluster.json("report", "costs", "--quick", "--seed", "5", "--out", str(folder), within_s=RUN_S),
    )


def test_a_quick_report_has_everything(made: tuple[Cluster, Path, dict[str, Any]]) -> None:
    _, folder, told = made
    assert told["schema"] == SCHEMA
    assert told["kind"] == "costs"
    assert told["setting"]["seed"] == 5
    items = [item for section in told["sections"] for item in section["items"]]
    tables = {item["key"]: item for item in items if item["is"] == "table"}
    charts = [item["key"] for item in items if item["is"] == "chart"]
    assert {path.stem for path in (folder / "tables").glob("*.csv")} == set(tables)
    for kind in ("svg", "png", "csv"):
        assert {path.stem for path in (folder / "figures").glob(f"*.{kind}")} == set(charts)
    assert json.loads((folder / "report.json").read_text())["sections"] == told["sections"]
    page = (folder / "report.html").read_text()
    for item in items:
        assert f'id="{item["key"]}"' in page
        assert f'href="#{item["key"]}"' in page, "it is in the contents"
    assert 'src="data:image/svg+xml;base64,' in page
    assert 'src="http' not in page
    assert not (folder / "networks").exists(), "the networks are gone"


def test_every_table_has_its_columns_as_csv(made: tuple[Cluster, Path, dict[str, Any]]) -> None:
    _, folder, _ = made
    for key, columns in EXPECTED_TABLES.items():
        with (folder / "tables" / f"{key}.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))
        assert rows[0][: len(columns)] == columns, key
        assert all(len(row) == len(rows[0]) for row in rows), key


def test_what_was_measured_is_of_a_real_network(made: tuple[Cluster, Path, dict[str, Any]]) -> None:
    _, folder, _ = made
    with (folder / "tables" / "live_throughput.csv").open(encoding="utf-8", newline="") as stream:
        runs = list(csv.DictReader(stream))
    assert [(run["nodes"], run["readings"]) for run in runs] == [("4", "1"), ("4", "48")]
    for run in runs:
        assert float(run["transactions_per_second"]) > 0
        assert float(run["nodes_us"]) > 50, "four nodes check signatures"
    with (folder / "tables" / "live_phases.csv").open(encoding="utf-8", newline="") as stream:
        until = {row["phase"]: float(row["until_ms"]) for row in csv.DictReader(stream)}
    assert list(until) == ["meter", "gateway", "endorsement", "ordering", "commit", "receipt", "release", "MDMS"]
    assert until["release"] > 1900, "released two seconds after its certificate"
    with (folder / "tables" / "live_gateway.csv").open(encoding="utf-8", newline="") as stream:
        reports = [float(row["reports"]) for row in csv.DictReader(stream)]
    assert reports[0] == 1 < reports[1], "one report in a request, and many"


def test_a_plan_rests_on_the_report(made: tuple[Cluster, Path, dict[str, Any]]) -> None:
    cluster, folder, _ = made
    told = cluster.json("report", "capacity", "--meters", "30e6", "--interval", "30m", "--costs", str(folder))
    plan = {row["cells"][0]: row["cells"][2] for row in told["sections"][0]["items"][0]["rows"]}
    assert plan["reports in the mean"] == pytest.approx(30e6 / 1800)
    assert plan["nodes"] == 4 * plan["clusters (channels)"]
    assert Path(told["page"]).is_file()
    latest = (cluster.home.runs / "latest").resolve()
    assert Path(told["page"]).parent == latest, "it is a run of the home"


def test_a_report_does_not_differ_from_itself(made: tuple[Cluster, Path, dict[str, Any]], tmp_path: Path) -> None:
    cluster, folder, told = made
    same = cluster.json("report", "diff", str(folder), str(folder))
    assert same["summary"][1].startswith("All else is the same")
    other = {**told, "title": "another"}
    for section in other["sections"]:
        for item in section["items"]:
            if item["key"] == "bc_ami_bits":
                item["rows"][0]["cells"][2] = 513
    (tmp_path / "report.json").write_text(json.dumps(other))
    assert "1 cells differ" in cluster.run("report", "diff", str(folder), str(tmp_path), expect=1)


def test_wrong_input_is_told(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    assert "not an interval" in cluster.run("report", "capacity", "--interval", "soon", expect=2)
    assert "no report can be read" in cluster.run("report", "diff", str(tmp_path), str(tmp_path), expect=2)
    (tmp_path / "file").write_text("")
    told = cluster.run("report", "costs", "--out", str(tmp_path / "file"), expect=2)
    assert "--out is a file" in told
