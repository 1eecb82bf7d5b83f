"""What a fault run does to a live network: tell nodes to misbehave, kill, pause and start them, and heal all of it."""

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from bcami.cli.ask import delete_json, get_json, http_client, post_json
from bcami.config import Network
from bcami.crypto.hid import hid
from bcami.errors import BcamiError, InputError
from bcami.faults.scenario import resolve_options
from bcami.paths import HomePaths
from bcami.processes.home import load_operator_token, load_utility
from bcami.processes.identity import signal_process
from bcami.processes.pause import end_pause, start_pause
from bcami.processes.supervisor import Readiness, Supervisor

PATH: Final = "/v1/operator/faults"


class Control:
    """The operator's hand on one network. Every method blocks until it is done."""

    def __init__(self, home: HomePaths, network: Network, *, attached: bool, meter_ids: Sequence[str] = ()) -> None:
        """`meter_ids` are those that options may name by number."""
        self._network = network
        self._meter_ids = meter_ids
        self._names = [node.name for node in network.nodes]
        self._headers = {"authorization": f"Bearer {load_operator_token(home)}"}
        self._network_key = load_utility(home).network
        self._attached = attached
        self._supervisor = Supervisor(home, network, attached=attached)
        self._pauses: dict[str, subprocess.Popen[bytes]] = {}
        self._started: set[str] = set()

    def inject(self, name: str, behaviour: str, for_s: float, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Have a node misbehave. Raises InputError when the network was made without --allow-faults."""
        resolved = resolve_options(options, self._names, self.hid_of)
        form = {"behaviour": behaviour, "for_s": for_s, "options": resolved, "seed": seed}
        with http_client() as client:
            return post_json(client, self._url(name), PATH, absent=not_allowed(name), json=form, headers=self._headers)

    def shown(self, name: str) -> dict[str, Any]:
        """Return what a node shows, and the newest of what is over."""
        with http_client() as client:
            return get_json(client, self._url(name), PATH, absent=not_allowed(name), headers=self._headers)

    def stop(self, name: str) -> list[dict[str, Any]]:
        """End a node's faults; returns them."""
        with http_client() as client:
            answer = delete_json(client, self._url(name), PATH, absent=not_allowed(name), headers=self._headers)
        stopped: list[dict[str, Any]] = answer["stopped"]
        return stopped

    def evidence(self, name: str) -> list[dict[str, Any]]:
        """Return the evidence that a node holds."""
        with http_client() as client:
            told = get_json(client, self._url(name), "/v1/operator/evidence", headers=self._headers)
        found: list[dict[str, Any]] = told["evidence"]
        return found

    def kill(self, name: str) -> None:
        """End the process without a word: kill -9."""
        identity = self._supervisor.identity(name)
        if identity is not None:
            signal_process(identity, signal.SIGKILL)

    def start(self, names: list[str], report: Callable[[Readiness], None]) -> None:
        """Start again whatever of these does not run, and return when it is ready."""
        self._started.update(names)
        self._supervisor.up(report, names)

    def pause(self, name: str, for_s: float) -> None:
        """SIGSTOP for so long."""
        identity = self._supervisor.identity(name)
        if identity is not None:
            self._pauses[name] = start_pause(identity, for_s)

    def go_on(self, name: str) -> None:
        """End a pause."""
        pause = self._pauses.pop(name, None)
        if pause is not None:
            end_pause(pause)

    def heal(self) -> list[str]:
        """End every fault that is under way; returns what could not be reached."""
        for name in list(self._pauses):
            self.go_on(name)
        silent = []
        for name in self._names:
            try:
                self.stop(name)
            except InputError:
                raise
            except BcamiError:
                silent.append(name)
        return silent

    def close(self) -> None:
        """Continue what is paused; stop the processes that were started again from here and end with it."""
        for name in list(self._pauses):
            self.go_on(name)
        if self._started and self._attached:
            self._supervisor.down(sorted(self._started))

    def pids(self) -> list[int]:
        """Return the processes of the network."""
        found = (self._supervisor.identity(service.name) for service in self._supervisor.services)
        return [identity.pid for identity in found if identity is not None]

    def is_running(self, name: str) -> bool:
        return self._supervisor.identity(name) is not None

    def hid_of(self, meter: str | int) -> bytes:
        """Return the HID of a meter, given by id or by its number."""
        return hid(self._network_key, self._meter_ids[meter] if isinstance(meter, int) else meter)

    def _url(self, name: str) -> str:
        return self._network.node(name).url


def not_allowed(name: str) -> str:
    """Return what to say where a node has no fault endpoint."""
    return f"{name} cannot be told to misbehave: its network was made without --allow-faults"
