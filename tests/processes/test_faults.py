"""Faults on a live network: only where genesis allows them, and always with an end and a report."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bcami.config import load_network
from tests.processes.cluster import Cluster, wait_until
from tests.unit.cli.test_main import run

QUIET = """title = "Dead, then lying"
claim = "Nothing is lost"
seed = 5

[load]
meters = 12
rate_per_s = 30
for_s = 9

[[fault]]
at_s = 2.5
for_s = 0.5
kind = "kill"
on = "node4"

[[fault]]
at_s = 3
for_s = 3
kind = "equivocating_voter"
on = "node2"

[expect]
evidence = ["node2"]
"""
IDLE = """title = "A fault that has no occasion"
claim = "A node that only lies about shares leaves evidence, which is not true"

[load]
meters = 4
rate_per_s = 20
for_s = 3

[[fault]]
at_s = 1.5
for_s = 0.5
kind = "lying_shares"
on = "node2"

[expect]
evidence = ["node3"]
"""


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running network that takes fault commands."""
    cluster = Cluster(tmp_path_factory.mktemp("breakable") / "home")
    cluster.init("--allow-faults")
    try:
        cluster.run("up", "--detach")
        yield cluster
    finally:
        cluster.stop()


def call(cluster: Cluster, name: str, method: str, **options: Any) -> httpx.Response:
    token = cluster.home.operator_token.read_text().strip()
    url = load_network(cluster.home).node(name).url
    headers = {"authorization": f"Bearer {token}"}
    return httpx.request(method, f"{url}/v1/operator/faults", headers=headers, trust_env=False, **options)


def test_a_network_without_the_flag_cannot_be_told_to_misbehave(fresh: Cluster) -> None:
    fresh.run("up", "--detach")
    form = {"behaviour": "mute", "for_s": 5}
    for method, options in (("POST", {"json": form}), ("GET", {}), ("DELETE", {})):
        assert call(fresh, "node1", method, **options).status_code == httpx.codes.NOT_FOUND
    told = fresh.run("fault", "inject", "node1", "mute", "--for", "5", expect=2)
    assert "--allow-faults" in told
    assert "--allow-faults" in fresh.run("fault", "stop", expect=2)
    scenario = fresh.home.folder / "s.toml"
    scenario.write_text(QUIET)
    assert "--allow-faults" in fresh.run("fault", "run", str(scenario), expect=2)
    fresh.wait_level()


def test_an_honest_node_does_not_load_the_code(fresh: Cluster) -> None:
    program = (
        "import sys; from pathlib import Path; from bcami.paths import HomePaths; "
        "from bcami.processes.node import NodeProcess; "
        f"NodeProcess(HomePaths(Path({str(fresh.home.folder)!r})), 'node1')._core_type(); "
        "print([name for name in sys.modules if name.startswith('bcami.faults')])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip().endswith("[]")


def test_a_node_is_told_to_misbehave_and_to_stop(breakable: Cluster) -> None:
    told = breakable.json("fault", "inject", "node3", "mute", "--for", "60", "--seed", "4")
    assert (told["node"], told["behaviour"], told["seed"]) == ("node3", "mute", 4)
    wait_until(lambda: call(breakable, "node3", "GET").json()["faults"][0]["acted"] > 0, "it acts")
    stopped = breakable.json("fault", "stop")["stopped"]
    assert [(item["node"], item["behaviour"]) for item in stopped] == [("node3", "mute")]
    answer = call(breakable, "node3", "GET").json()
    assert answer["faults"] == []
    assert answer["ended"][-1]["behaviour"] == "mute"
    assert "no node was told" in breakable.run("fault", "stop")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("node3", "muet", "--for", "5"), "did you mean 'mute'"),
        (("node33", "mute", "--for", "5"), "did you mean 'node3'"),
        (("node3", "loss", "--for", "5", "--set", "shre=1"), "did you mean 'share'"),
        (("node3", "loss", "--for", "5", "--set", "share=7"), "share"),
        (("node3", "loss", "--for", "5", "--set", "share"), "OPTION=VALUE"),
        (("node3", "cut", "--for", "5", "--set", "peers=node9"), "node9"),
    ],
)
def test_what_cannot_be_injected_is_told(
    breakable: Cluster,
    arguments: tuple[str, ...],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "fault", "inject", *arguments, "--home", str(breakable.home.folder)) == 2
    assert what in capsys.readouterr().err


@pytest.mark.parametrize(
    "form",
    [
        {"behaviour": "mute"},
        {"behaviour": "mute", "for_s": 0},
        {"behaviour": "mute", "for_s": 1e9},
        {"behaviour": "none", "for_s": 1},
        {"behaviour": "loss", "for_s": 1, "options": {"share": "much"}},
        {"behaviour": "cut", "for_s": 1, "options": {"peers": ["node9"]}},
        {"behaviour": "mute", "for_s": 1, "also": 1},
    ],
)
def test_the_node_itself_refuses_what_is_no_fault(breakable: Cluster, form: dict[str, Any]) -> None:
    answer = call(breakable, "node2", "POST", json=form)
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert answer.json()["reason"] in {"malformed", "bad_argument"}
    url = load_network(breakable.home).node("node2").url
    bare = httpx.post(f"{url}/v1/operator/faults", json={"behaviour": "mute", "for_s": 1}, trust_env=False)
    assert bare.status_code == httpx.codes.UNAUTHORIZED


def test_a_scenario_leaves_a_whole_report(breakable: Cluster, tmp_path: Path) -> None:
    scenario = tmp_path / "dead-then-lying.toml"
    scenario.write_text(QUIET)
    told = breakable.json("fault", "run", str(scenario), expect={0, 3})
    doubted = {item["expectation"] for item in told["findings"] if item["verdict"] != "PASS"}
    assert doubted <= {"the load stood before the first fault"}, "a slow machine leaves this open, and nothing else"
    verdict = "INCONCLUSIVE" if doubted else "PASS"
    assert told["verdict"] == verdict
    assert told["reports"]["committed"] == told["reports"]["sent"] > 200
    assert told["evidence"]["node2"] > 0
    assert told["evidence_recorded"]["node2"] > 0
    assert [item["kind"] for item in told["faults"]] == ["kill", "equivocating_voter"]
    assert told["faults"][1]["acted"] > 0
    run = Path(told["run"])
    assert (breakable.home.runs / "latest").resolve() == run.resolve()
    files = {path.name for path in run.iterdir()}
    assert files >= {"scenario.toml", "summary.json", "report.md", "plot.png", "series.csv", "events.jsonl"}
    assert files >= {"evidence.json", "nodes.jsonl", "history.json", "sent", "logs"}
    assert (run / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "summary.json").read_text())["verdict"] == verdict
    assert "| no fork | PASS |" in (run / "report.md").read_text()
    assert "kill on node4" in (run / "events.jsonl").read_text()
    again = breakable.json("reconcile", str(run / "sent"))
    assert again["missing"] == again["different"] == 0


def test_an_expectation_that_does_not_hold_fails_the_run(breakable: Cluster, tmp_path: Path) -> None:
    scenario = tmp_path / "idle.toml"
    scenario.write_text(IDLE)
    told = breakable.json("fault", "run", str(scenario), expect=1)
    assert told["verdict"] == "FAIL"
    found = {item["expectation"]: item["verdict"] for item in told["findings"]}
    assert found["evidence against node3"] == "FAIL"
    assert found["the faults really happened"] == "INCONCLUSIVE", "nobody asked for shares"
    assert found["no fork"] == found["readings reconcile"] == "PASS"


def test_a_bad_scenario_starts_nothing(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    scenario = tmp_path / "bad.toml"
    scenario.write_text(QUIET.replace('kind = "kill"', 'kind = "kil"'))
    assert f"{scenario}:13" in cluster.run("fault", "run", str(scenario), expect=2)
    assert "did you mean 'primary-killed'" in cluster.run("fault", "run", "primary-kild", expect=2)
    assert not cluster.home.folder.exists()


def test_the_list_names_behaviours_and_scenarios(tmp_path: Path) -> None:
    told = Cluster(tmp_path / "home").json("fault", "list")
    assert {"mute", "equivocating_primary", "cut"} <= {item["name"] for item in told["behaviours"]}
    assert {"primary-killed", "site-loses-power"} <= {item["name"] for item in told["scenarios"]}
