"""The demo does the whole way, uses and removes a network of its own, and leaves no process behind."""

import signal
import socket
from pathlib import Path

import pytest

from bcami.config import load_network
from bcami.paths import HomePaths
from bcami.processes.identity import running
from bcami.processes.supervisor import services
from tests.processes.cluster import COMMAND_S, Cluster


def own_network(cluster: Cluster) -> HomePaths:
    return HomePaths(cluster.home.runs / "latest" / "network")


def test_the_demo_runs_twice_and_removes_its_networks(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    told = cluster.json("demo")
    assert told["replay"]["meters"] >= 30
    assert told["reconcile"]["missing"] == told["reconcile"]["extra"] == told["reconcile"]["different"] == 0
    assert len(told["verify"]["nodes"]) == 4
    assert told["verify"]["ok"]
    sent = told["downstream"]["deliveries"]
    assert [item["mode"] for item in sent] == ["broadcast", "multicast", "unicast"]
    assert [item["meters"] for item in sent] == [told["replay"]["meters"], 3, 1]
    assert all(0 <= item["latency_ms_max"] and item["deadline_ms"] > 0 for item in sent)
    assert told["seconds"] > 0
    assert not own_network(cluster).folder.exists()
    run = (cluster.home.runs / "latest").resolve()
    assert {path.name for path in run.iterdir()} >= {"logs", "network.toml", "summary.json", "rejects.csv"}
    shown = cluster.run("demo")
    assert "ledgers that verify and agree" in shown


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process(tmp_path: Path, signal_number: int) -> None:
    cluster = Cluster(tmp_path / "home")
    with cluster.start("demo") as demo:
        assert demo.stdout is not None
        assert any("[2/7]" in line for line in demo.stdout), "the network is up"
        home = HomePaths(own_network(cluster).folder.resolve())
        identities = [running(service.pid_file) for service in services(home, load_network(home))]
        assert all(identities)
        demo.send_signal(signal_number)
        demo.communicate(timeout=COMMAND_S)
    assert demo.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[signal.Signals(signal_number)]
    assert not home.folder.exists(), "its network is gone"


def test_a_demo_on_a_busy_port_says_which(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = cluster.run("demo", "--base-port", str(port), expect=4)
    assert f"port {port} on 127.0.0.1 is taken" in told


def test_the_demo_uses_a_network_that_is_up(replayed: Cluster) -> None:
    """It holds the sample already: a second replay is made of new transactions, and doubles no reading."""
    replayed.run("up", "--detach")
    told = replayed.json("demo")
    assert told["replay"]["transactions_committed"] == told["replay"]["readings_sent"]
    assert told["reconcile"]["missing"] == told["reconcile"]["extra"] == told["reconcile"]["different"] == 0
    assert len(replayed.alive()) == 5, "it was left running"
