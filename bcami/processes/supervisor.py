"""Starts and stops the processes of a network: each node and the MDMS is one of its own.

*Attached* processes end with the one that started them, also when that is killed (`attached.py`); *detached* ones live
on until `bcami down`. Either way a process is known by its pid file (`identity.py`), so that any later command can find
and stop it. `up` starts whatever is not running, a killed node included.
"""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from bcami.config import Network
from bcami.errors import EnvironmentFault, InputError
from bcami.paths import HomePaths
from bcami.processes.attached import STOP_S
from bcami.processes.identity import ProcessIdentity, identify, running, signal_process, write_pid_file
from bcami.processes.ports import check_free

READY_S: Final = 60.0
"""Longest time from start to readiness: a node checks its whole ledger's checksums first."""
MDMS_NAME: Final = "mdms"
_POLL_S: Final = 0.05
_LOG_LINES: Final = 8


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the network."""

    name: str
    url: str
    pid_file: Path
    log: Path
    command: tuple[str, ...]
    """Module and arguments."""
    ready_path: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """What `up` reports of a process as soon as it is known."""

    name: str
    url: str
    pid: int
    seconds: float | None
    """From start to readiness; None when it was running already."""


class Supervisor:
    """Starts, watches and stops the processes of one home."""

    def __init__(
        self, home: HomePaths, network: Network, *, attached: bool, listed: tuple[Service, ...] | None = None
    ) -> None:
        self._home = home
        self._network = network
        self._attached = attached
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self.services = services(home, network) if listed is None else listed

    def up(
        self, report: Callable[[Readiness], None], names: Sequence[str] = (), *, ready_s: float = READY_S
    ) -> list[Readiness]:
        """Start whatever of `names` (all when empty) is not running, and return when all of it is ready.

        Raises EnvironmentFault with the last log lines of the process that did not become ready. What was ready by
        then goes on.
        """
        chosen = [service for service in self.services if not names or service.name in names]
        with _lock(self._home):
            self.ended()
            found = {service.name: running(service.pid_file) for service in chosen}
            missing = [service for service in chosen if found[service.name] is None]
            check_free(self._network, {service.name for service in missing})
            results = []
            for service in chosen:
                identity = found[service.name]
                if identity is not None:
                    results.append(Readiness(service.name, service.url, identity.pid, None))
                    report(results[-1])
            try:
                results += self._start(missing, report, ready_s)
                places = {service.name: place for place, service in enumerate(self.services)}
                return sorted(results, key=lambda item: places[item.name])
            finally:
                if not self._attached:
                    self._disown()

    def down(self, names: Sequence[str] = (), *, stop_s: float = STOP_S) -> list[tuple[str, bool]]:
        """Stop whatever of `names` (all when empty) runs; return (name, ended by itself) of each that ran."""
        with _lock(self._home):
            return self._stop([service for service in self.services if not names or service.name in names], stop_s)

    @property
    def is_anything_running(self) -> bool:
        """Tell whether any process of this home is, whoever started it."""
        return any(running(service.pid_file) is not None for service in self.services)

    def identity(self, name: str) -> ProcessIdentity | None:
        """Return the living process of that name."""
        return running(self.service(name).pid_file)

    def service(self, name: str) -> Service:
        """Return the service of that name. Raises InputError."""
        for service in self.services:
            if service.name == name:
                return service
        known = ", ".join(service.name for service in self.services)
        raise InputError(f"nothing here is called {name!r}", do=f"names: {known}")

    def ended(self) -> list[tuple[str, str]]:
        """Return (name, how) of each attached process that ended since the last call, and forget it."""
        gone = []
        for name, child in list(self._children.items()):
            status = child.poll()
            if status is not None:
                self._forget(name)
                gone.append((name, how_it_ended(status)))
        return gone

    def _start(self, chosen: Sequence[Service], report: Callable[[Readiness], None], ready_s: float) -> list[Readiness]:
        began = time.monotonic()
        offsets = {service.name: _size(service.log) for service in chosen}
        for service in chosen:
            self._spawn(service)
        waiting = list(chosen)
        results: list[Readiness] = []
        with httpx.Client(timeout=2.0, trust_env=False) as client:
            while waiting:
                for service in list(waiting):
                    status = self._children[service.name].poll()
                    seconds = time.monotonic() - began
                    if status is not None:
                        raise _not_ready(service, offsets[service.name], how_it_ended(status))
                    if _is_ready(client, service):
                        waiting.remove(service)
                        pid = self._children[service.name].pid
                        results.append(Readiness(service.name, service.url, pid, seconds))
                        report(results[-1])
                    elif seconds > ready_s:
                        raise _not_ready(service, offsets[service.name], f"not ready after {ready_s:.0f} s")
                _pause()
        return results

    def _disown(self) -> None:
        """Let go of detached processes, which are found by their pid files from now on."""
        for child in self._children.values():
            if child.poll() is None:
                child.returncode = 0  # otherwise Popen complains that nobody waited
        self._children.clear()

    def _forget(self, name: str) -> None:
        """Collect an attached process that ended, and close its lifeline."""
        child = self._children.pop(name, None)
        if child is not None:
            child.wait(STOP_S)
            if child.stdin is not None:
                child.stdin.close()

    def _spawn(self, service: Service) -> None:
        service.log.parent.mkdir(parents=True, exist_ok=True)
        starter = ("bcami.processes.attached", *service.command) if self._attached else service.command
        with service.log.open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", *starter],
                stdin=subprocess.PIPE if self._attached else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children[service.name] = child
        identity = identify(child.pid)
        if identity is not None:
            write_pid_file(service.pid_file, identity)

    def _stop(self, chosen: Sequence[Service], stop_s: float) -> list[tuple[str, bool]]:
        alive = {service.name: identity for service in chosen if (identity := running(service.pid_file)) is not None}
        for identity in alive.values():
            signal_process(identity, signal.SIGTERM)
        stubborn = self._wait_gone(alive, stop_s)
        for identity in stubborn.values():
            signal_process(identity, signal.SIGKILL)
        self._wait_gone(stubborn, stop_s)
        for service in chosen:
            service.pid_file.unlink(missing_ok=True)
            self._forget(service.name)
        return [(name, name not in stubborn) for name in alive]

    def _wait_gone(self, alive: dict[str, ProcessIdentity], bound_s: float) -> dict[str, ProcessIdentity]:
        deadline = time.monotonic() + bound_s
        left = dict(alive)
        while left and time.monotonic() < deadline:
            left = {name: identity for name, identity in left.items() if identify(identity.pid) == identity}
            if left:
                _pause()
        return left


def services(home: HomePaths, network: Network) -> tuple[Service, ...]:
    """Return the processes of a network: the nodes in their order, then the MDMS."""
    folder = str(home.folder.absolute())
    nodes = [
        Service(
            name=node.name,
            url=node.url,
            pid_file=home.node(node.name).pid,
            log=home.node(node.name).log,
            command=("bcami.processes.node", "--home", folder, "--name", node.name),
            ready_path="/readyz",
        )
        for node in network.nodes
    ]
    mdms = Service(
        name=MDMS_NAME,
        url=network.mdms.url,
        pid_file=home.mdms_pid,
        log=home.mdms_log,
        command=("bcami.processes.mdms", "--home", folder),
        ready_path="/healthz",
    )
    return (*nodes, mdms)


def last_log_lines(log: Path, count: int, offset: int = 0) -> list[str]:
    """Return the last lines of a log, of what was written after `offset`."""
    try:
        with log.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            begin = offset if offset <= size else 0  # else it was put aside since, and begun anew
            stream.seek(max(begin, size - 64 * 1024))
            return stream.read().decode("utf-8", errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


@contextmanager
def _lock(home: HomePaths) -> Iterator[None]:
    """Keep a second `up` or `down` of the same home away."""
    with (home.folder / "processes.lock").open("w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EnvironmentFault(
                "another command is starting or stopping this network",
                where=str(home.folder),
                do="wait until it is done",
            ) from None
        yield


def _is_ready(client: httpx.Client, service: Service) -> bool:
    try:
        return client.get(service.url + service.ready_path).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _not_ready(service: Service, offset: int, how: str) -> EnvironmentFault:
    lines = last_log_lines(service.log, _LOG_LINES, offset)
    tail = "".join(f"\n    {line}" for line in lines) or "\n    (it wrote nothing)"
    return EnvironmentFault(
        f"{service.name} did not become ready: {how}\n  last lines of {service.log}:{tail}",
        do=f"bcami logs {service.name}; bcami doctor",
    )


def how_it_ended(status: int) -> str:
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"ended with exit code {status}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _pause() -> None:
    threading.Event().wait(_POLL_S)
