"""A network for one run: made under HOME/runs when none is up, and removed afterwards; its logs stay."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bcami.cli.runs import new_run
from bcami.config import Network, default_definition
from bcami.model.genesis import Genesis
from bcami.paths import HomePaths
from bcami.processes.home import create_home, open_home
from bcami.processes.identity import running
from bcami.processes.ports import free_base_port
from bcami.processes.supervisor import Readiness, Supervisor, services


@dataclass(frozen=True, slots=True)
class RunNetwork:
    """Where a run works."""

    run: Path
    """The run's folder."""
    home: HomePaths
    network: Network
    genesis: Genesis
    is_own: bool
    """False when the user's network was up and is used."""


@contextmanager
def network_for_run(
    home: HomePaths,
    what: str,
    report: Callable[[Readiness], None],
    *,
    nodes: int = 4,
    base_port: int | None = None,
    allow_faults: bool = False,
) -> Iterator[RunNetwork]:
    """Yield the network that is up in `home`, or one made for this run.

    The own one is stopped in any case. After a success or an interrupt it is removed; after an error it stays for
    inspection, in the run's folder, and can be started again with `bcami up --home`.
    """
    run = new_run(home, what)
    if is_up(home):
        network, genesis = open_home(home)
        yield RunNetwork(run, home, network, genesis, is_own=False)
        return
    own = HomePaths(run / "network")
    count = 2 * nodes + 1
    first_port = free_base_port(count) if base_port is None else base_port
    network = create_home(own, default_definition(nodes), base_port=first_port, allow_faults=allow_faults)
    supervisor = Supervisor(own, network, attached=True)
    is_kept = False
    try:
        supervisor.up(report)
        yield RunNetwork(run, own, network, open_home(own)[1], is_own=True)
    except Exception:
        is_kept = True
        raise
    finally:
        supervisor.down()
        _keep_logs(own, network, run)
        if not is_kept:
            shutil.rmtree(own.folder)


def is_up(home: HomePaths) -> bool:
    """Tell whether every process of the home's network runs."""
    if not home.network.is_file():
        return False
    network, _ = open_home(home)
    return all(running(service.pid_file) is not None for service in services(home, network))


def _keep_logs(home: HomePaths, network: Network, run: Path) -> None:
    logs = run / "logs"
    logs.mkdir(exist_ok=True)
    for service in services(home, network):
        if service.log.exists():
            shutil.copyfile(service.log, logs / f"{service.name}.log")
    shutil.copyfile(home.network, run / "network.toml")
