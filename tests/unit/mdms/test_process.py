"""The MDMS as a process of its own: starts without nodes, ends on a signal, says what is in its way."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from bcami.config import default_definition
from bcami.paths import HomePaths
from bcami.processes.home import create_home, load_mdms_secrets, load_operator_token, open_home
from tests.ports import free_ports


@pytest.fixture
def home(tmp_path: Path) -> HomePaths:
    paths = HomePaths(tmp_path / "home")
    create_home(paths, default_definition(1), base_port=free_ports(4))
    return paths


def start(home: HomePaths) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bcami.processes.mdms", "--home", str(home.folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def started(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "started"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_without_nodes_and_ends_on_a_signal(home: HomePaths, number: signal.Signals) -> None:
    network, genesis = open_home(home)
    process = start(home)
    try:
        started(process)
        with httpx.Client(trust_env=False, timeout=60) as client:
            status = client.get(f"{network.mdms.url}/v1/status").json()
            assert client.get(f"{network.mdms.url}/healthz").status_code == 200
        assert (status["pid"], status["height"], status["readings"]) == (process.pid, 0, 0)
        second = start(home)
        _, told = second.communicate(timeout=120)
        assert second.returncode == 4
        assert "store is open in another process" in told
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert err == ""
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[-1]["event"] == "stopped"
    secrets = load_mdms_secrets(home)
    for secret in (secrets.network.hex(), load_operator_token(home)):
        assert secret not in out
    assert (home.mdms / "store.duckdb").stat().st_mode & 0o077 == 0


def test_a_port_in_use_is_named(home: HomePaths) -> None:
    network, _ = open_home(home)
    with socket.create_server((network.mdms.host, network.mdms.http_port)):
        process = start(home)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 4
    assert str(network.mdms.http_port) in err


def test_a_missing_key_is_named(home: HomePaths) -> None:
    (home.mdms / "enrolment.key").unlink()
    process = start(home)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "enrolment.key" in err
