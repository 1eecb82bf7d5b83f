"""init, up, status, down, logs, doctor with real processes."""

import os
import signal
import socket
import stat

import pytest

from bcami.config import load_network
from tests.processes.cluster import COMMAND_S, Cluster, wait_until


def test_a_network_lives_and_leaves_nothing_behind(fresh: Cluster) -> None:
    told = fresh.json("up", "--detach")
    assert [item["name"] for item in told["processes"]] == ["node1", "node2", "node3", "node4", "mdms"]
    status = fresh.json("status")
    for node in status["nodes"]:
        assert set(node) == {
            "name", "pid", "url", "view", "primary", "height", "block_hash", "state_root", "peers_connected", "lag",
            "amnesia",
        }  # fmt: skip
        assert node["primary"] == f"node{1 + node['view'] % 4}", "a slow machine may have changed the view"
    assert set(status["mdms"]) == {"pid", "url", "height", "readings"}

    again = fresh.json("up", "--detach")
    assert again["processes"] == told["processes"], "what runs is left alone"
    fresh.kill("node3")
    third = {item["name"]: item["pid"] for item in fresh.json("up", "--detach")["processes"]}
    assert third["node3"] != told["processes"][2]["pid"]
    assert "started" in fresh.run("logs", "node3")
    assert "no evidence against anybody" in fresh.run("show", "evidence")
    fresh.run("doctor")

    stopped = fresh.json("down")["stopped"]
    assert all(item["by_itself"] for item in stopped)
    assert fresh.alive() == []


def test_a_second_init_overwrites_nothing(fresh: Cluster) -> None:
    before = fresh.home.genesis.read_bytes()
    told = fresh.json("init", expect=2)
    assert "not overwritten" in told["error"]
    assert fresh.home.genesis.read_bytes() == before


def test_secrets_are_for_their_owner_only(fresh: Cluster) -> None:
    secrets = [*fresh.home.folder.rglob("*.key"), *fresh.home.folder.rglob("*.kem"), fresh.home.operator_token]
    assert len(secrets) == 4 * 3 + 2 + 3 + 1
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)


def test_a_busy_port_is_named_and_nothing_is_started(fresh: Cluster) -> None:
    port = load_network(fresh.home).nodes[2].http_port
    with socket.create_server(("127.0.0.1", port)):
        told = fresh.run("up", "--detach", expect=4)
    assert f"port {port} on 127.0.0.1 is taken; node3 (http) needs it" in told
    assert "--base-port" in told
    assert str(os.getpid()) in told
    assert fresh.alive() == []


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_attached_network_ends_with_its_starter(fresh: Cluster, signal_number: int) -> None:
    with fresh.start("up") as starter:
        assert starter.stdout is not None
        assert any("up in" in line for line in starter.stdout), "everything runs"
        assert len(fresh.alive()) == 5
        starter.send_signal(signal_number)
        starter.communicate(timeout=COMMAND_S)
    wait_until(lambda: fresh.alive() == [], "everything is gone")
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
    assert starter.returncode == expected[signal.Signals(signal_number)]


def test_a_chaincode_that_genesis_does_not_pin_keeps_a_node_from_starting(fresh: Cluster) -> None:
    with (fresh.home.chaincode / "usage.py").open("a") as stream:
        stream.write("# changed\n")
    told = fresh.run("up", "--detach", "node1", expect=4)
    assert "node1 did not become ready" in told
    assert "chaincode" in told


def test_a_damaged_key_says_which_and_why(fresh: Cluster) -> None:
    path = fresh.home.node("node2").consensus_key
    path.write_text(path.read_text().replace('"checksum": "', '"checksum": "0'))
    told = fresh.run("doctor", expect=4)
    assert f"{path}" in told
    assert "checksum" in told
