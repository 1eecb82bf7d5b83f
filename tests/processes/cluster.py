"""A live network in tests: real processes on free ports, driven by the program as a user drives it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bcami.config import load_network
from bcami.paths import HomePaths
from bcami.processes.identity import running
from bcami.processes.overview import overview
from bcami.processes.supervisor import services
from tests.ports import free_ports

PROGRAM = [sys.executable, "-P", "-m", "bcami.cli.main"]
COMMAND_S = 300.0
"""Limits are there to end what hangs: nothing here is decided by a time."""
SINGLY = ("--readings-per-report", "1")
"""One reading in each transaction: a replay of the sample then takes seconds, and not one block."""
DAY = ("--from", "2012-12-18", "--to", "2012-12-19")
"""Of the two days of the sample."""
PACED = (*SINGLY, *DAY, "--speed", "5400")
"""Sixteen seconds: at full speed the sample may be through before a busy machine has told how far it is."""


class Cluster:
    """One network home and the program on it."""

    def __init__(self, folder: Path) -> None:
        self.home = HomePaths(folder)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command and return it; its output goes to pipes."""
        environment = {**os.environ, "BCAMI_HOME": str(self.home.folder), "NO_COLOR": "1"}
        return subprocess.Popen(
            [*PROGRAM, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def init(self, *arguments: str) -> None:
        """Make the network, on ports that no other test uses."""
        self.run("init", "--base-port", str(free_ports(9)), *arguments)

    def run(self, *arguments: str, expect: int = 0) -> str:
        """Run a command to its end and return what it printed, both streams."""
        with self.start(*arguments) as command:
            try:
                out, err = command.communicate(timeout=COMMAND_S)
            except subprocess.TimeoutExpired:
                command.kill()
                raise
        assert command.returncode == expect, (
            f"{arguments} ended with {command.returncode}:\n{out}\n{err}\n{self.logs()}"
        )
        return out + err

    def json(self, *arguments: str, expect: int | set[int] = 0, within_s: float = COMMAND_S) -> dict[str, Any]:
        """Run a command with --json and return its object."""
        with self.start(*arguments, "--json") as command:
            out, err = command.communicate(timeout=within_s)
        assert command.returncode in ({expect} if isinstance(expect, int) else expect), (
            f"{arguments} ended with {command.returncode}:\n{out}\n{err}\n{self.logs()}"
        )
        told: dict[str, Any] = json.loads(out)
        assert "schema" in told
        return told

    def kill(self, *names: str) -> None:
        """kill -9, and wait until the processes are gone."""
        for name in names:
            pid_file = self.home.mdms_pid if name == "mdms" else self.home.node(name).pid
            identity = running(pid_file)
            assert identity is not None, f"{name} does not run"
            os.kill(identity.pid, signal.SIGKILL)
            wait_until(lambda pid_file=pid_file: running(pid_file) is None, f"{name} is gone")

    def status(self) -> dict[str, dict[str, Any]]:
        """Return what `bcami status` tells of each node, asked from here; every node that runs has told."""
        found: dict[str, dict[str, Any]] = {}

        def told() -> bool:
            found.update({node["name"]: node for node in overview(self.home, load_network(self.home))["nodes"]})
            return all(node["pid"] is None or node["height"] is not None for node in found.values())

        wait_until(told, "every node that runs answers")
        return found

    def wait_under_way(self, replay: "subprocess.Popen[str]") -> None:
        """Wait until readings of a first replay of the whole sample are on the chain; fails when it is over by then."""
        before_readings = 2 * 36 + 20  # enrolments and registrations of the meters, what the MDMS sends, and some

        def executed() -> float:
            counts = [0.0]
            for node in load_network(self.home).nodes:
                answer = httpx.get(f"{node.url}/metrics", trust_env=False, timeout=COMMAND_S)
                for line in answer.text.splitlines():
                    name, _, value = line.rpartition(" ")
                    counts += [float(value)] if name == "bcami_transactions_executed_total" else []
            return max(counts)

        wait_until(lambda: executed() > before_readings or replay.poll() is not None, "the replay is under way")
        assert replay.poll() is None, "the replay was over before its test began"

    def primary(self) -> str:
        """Return the name of the primary that most nodes tell."""
        told = [node["primary"] for node in self.status().values() if node["primary"]]
        return max(set(told), key=told.count)

    def wait_level(self) -> None:
        """Wait until every node runs, has every block and says so."""

        def level() -> bool:
            nodes = self.status().values()
            return all(node["height"] is not None and node["lag"] == 0 for node in nodes) and (
                len({node["block_hash"] for node in nodes}) == 1
            )

        wait_until(level, "all nodes are at one height")

    def alive(self) -> list[str]:
        network = load_network(self.home)
        return [service.name for service in services(self.home, network) if running(service.pid_file) is not None]

    def logs(self) -> str:
        tails = []
        for log in sorted(self.home.folder.glob("**/*.log")):
            tails.append(f"--- {log.name} of {log.parent.name}\n" + "\n".join(log.read_text().splitlines()[-8:]))
        return "\n".join(tails)

    def copy(self, folder: Path) -> "Cluster":
        """Return a stopped network's twin; it has the same ports, so only one of them may run at a time."""
        shutil.copytree(self.home.folder, folder, symlinks=True)
        return Cluster(folder)

    def stop(self) -> None:
        if self.home.network.exists():
            self.run("down")


def wait_until(condition: Callable[[], bool], what: str, *, within_s: float = 180.0) -> None:
    """Wait for a condition; fails the test when it does not come true."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within_s:.0f} s: {what}")
        threading.Event().wait(0.05)
