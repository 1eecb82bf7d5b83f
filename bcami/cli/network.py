"""init, up, status, down, logs: the life of a network's processes."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    from bcami.config import Definition
    from bcami.processes.supervisor import Readiness, Supervisor

_WATCH_S = 0.3

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Nodes, or mdms; everything when empty.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(init)
    app.command()(up)
    app.command()(status)
    app.command()(down)
    app.command()(logs)


def init(
    nodes: Annotated[int | None, typer.Option(help="How many nodes, when no definition is given. [default: 4]")] = None,
    definition: Annotated[
        str | None, typer.Option(metavar="FILE", help="A network definition; local-4 and local-7 come with bcami.")
    ] = None,
    allow_faults: Annotated[bool, typer.Option("--allow-faults", help="Let nodes take fault commands.")] = False,
    base_port: Annotated[int | None, typer.Option(metavar="N", help="First of the ports; 0 finds free ones.")] = None,
    kms_profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Symmetric keys: hardened (default), or paper with its holes.")
    ] = None,
    kms_rekeying: Annotated[
        str | None, typer.Option(metavar="NAME", help="lkh, a key tree (default), or flat, a message to each member.")
    ] = None,
    kms_degree: Annotated[int | None, typer.Option(metavar="D", help="Children in the key tree, 2 to 64.")] = None,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Make a network: keys, stores, chaincode and genesis. Starts nothing, overwrites nothing.

    Example: bcami init --nodes 7 --base-port 28000
    """
    from bcami.config import default_definition
    from bcami.errors import InputError
    from bcami.model.genesis import chain_id
    from bcami.processes.home import create_home, load_genesis
    from bcami.processes.ports import free_base_port

    if nodes is not None and definition is not None:
        raise InputError("--nodes and --definition exclude each other", do="give one of them")
    file, chosen = _definition(definition) if definition else (None, default_definition(4 if nodes is None else nodes))
    chosen = _with_kms(chosen, {"profile": kms_profile, "rekeying": kms_rekeying, "degree": kms_degree})
    if base_port == 0:
        base_port = free_base_port(2 * len(chosen.nodes) + 1)
    paths = home_paths(home)
    network = create_home(paths, chosen, definition_file=file, base_port=base_port, allow_faults=allow_faults)
    chain = chain_id(load_genesis(paths)).hex()
    tolerated = (len(network.nodes) - 1) // 3
    SCREEN.line(f"network {network.name}: {len(network.nodes)} nodes, {tolerated} of them may be faulty, and one MDMS")
    SCREEN.line(f"chain {chain[:16]}…  home {paths.folder}")
    SCREEN.line(f"start it with: bcami up{_home_hint(home)}")
    SCREEN.result(
        "bcami/init/1",
        {
            "home": str(paths.folder),
            "network": network.name,
            "chain": chain,
            "nodes": [{"name": node.name, "url": node.url, "peer_port": node.peer_port} for node in network.nodes],
            "mdms": {"url": network.mdms.url},
            "kms": network.kms.model_dump(),
        },
    )


def _with_kms(chosen: "Definition", given: dict[str, str | int | None]) -> "Definition":
    """Return the definition with what was said of the symmetric keys. Raises InputError."""
    from pydantic import ValidationError

    from bcami.config import KmsPolicy, check_kms
    from bcami.errors import InputError

    said = {name: value for name, value in given.items() if value is not None}
    try:
        policy = KmsPolicy.model_validate({**chosen.kms.model_dump(), **said})
    except ValidationError as error:
        (first, *_) = error.errors()
        option = f"--kms-{first['loc'][0]}"
        raise InputError(f"{first['input']!r}: {first['msg'].lower()}", where=option) from None
    check_kms(policy, "--kms-degree")
    return chosen.model_copy(update={"kms": policy})


def up(
    names: Names = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when ready; the processes go on.")] = False,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Start whatever is not running, a killed node included. Without --detach, Ctrl-C stops everything.

    Example: bcami up --detach
    """
    from bcami.processes.amnesia import amnesia_lines, amnesia_summary, lost_votes
    from bcami.processes.supervisor import Supervisor

    paths = home_paths(home)
    network = _opened(home)
    supervisor = Supervisor(paths, network, attached=not detach)
    began = time.monotonic()
    started: list[Readiness] = []
    ready = False

    def report(item: "Readiness") -> None:
        if item.seconds is not None:
            started.append(item)
        state = "was running" if item.seconds is None else f"ready after {item.seconds:.1f} s"
        SCREEN.note(f"  {item.name:8} {state:20} {item.url}  pid {item.pid}")

    try:
        SCREEN.note(f"network {network.name}")
        listed = supervisor.up(report, _checked(supervisor, names))
        ready = True
        SCREEN.note(f"up in {time.monotonic() - began:.1f} s. Stop with: " + ("bcami down" if detach else "Ctrl-C"))
        lost = amnesia_summary(lost_votes(paths, network), len(network.nodes))
        for line in amnesia_lines(lost):
            SCREEN.note(line, style="bold")
        processes = [{"name": item.name, "pid": item.pid, "url": item.url} for item in listed]
        SCREEN.result("bcami/up/1", {"processes": processes, "amnesia": lost})
        if not detach:
            _watch(supervisor)
    except KeyboardInterrupt:
        if detach and not ready:
            supervisor.down([service.name for service in supervisor.services if service.name in _names(started)])
        raise
    finally:
        if not detach:
            _stop(supervisor, [])


def status(home: Home = HOME_DEFAULT, json: Json = False) -> None:
    """Show every node and the MDMS: view, primary, height, lag, connections.

    Example: bcami status --json
    """
    from bcami.processes.amnesia import amnesia_lines
    from bcami.processes.overview import overview

    view = overview(home_paths(home), _opened(home))
    nodes, mdms = view["nodes"], view["mdms"]
    headings = ("name", "pid", "url", "view", "primary", "height", "peers", "lag", "block")
    keys = ("name", "pid", "url", "view", "primary", "height", "peers_connected", "lag", "block_hash")
    SCREEN.table(headings, [[_short(node[key]) for key in keys] for node in nodes])
    SCREEN.line()
    SCREEN.table(("mdms", "pid", "height", "readings"), [[mdms[key] for key in ("url", "pid", "height", "readings")]])
    for line in amnesia_lines(view["amnesia"]):
        SCREEN.line(line, style="bold")
    SCREEN.result("bcami/status/1", view)


def down(names: Names = None, home: Home = HOME_DEFAULT, json: Json = False) -> None:
    """Stop the network's processes, or some of them.

    Example: bcami down node3
    """
    from bcami.processes.supervisor import Supervisor

    supervisor = Supervisor(home_paths(home), _opened(home), attached=False)
    ended = _stop(supervisor, _checked(supervisor, names))
    SCREEN.result("bcami/down/1", {"stopped": [{"name": name, "by_itself": polite} for name, polite in ended]})


def logs(
    name: Annotated[str, typer.Argument(metavar="NODE", help="A node, or mdms.")],
    lines: Annotated[int, typer.Option(min=1, max=100_000, help="How many of the last lines.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with new lines until Ctrl-C.")] = False,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Show the last lines of a process's log.

    Example: bcami logs node2 --lines 100
    """
    from bcami.processes.supervisor import Supervisor, last_log_lines

    service = Supervisor(home_paths(home), _opened(home), attached=False).service(name)
    shown = last_log_lines(service.log, lines)
    if json:
        SCREEN.result("bcami/logs/1", {"name": name, "file": str(service.log), "lines": shown})
    for line in shown:
        SCREEN.line(line)
    if follow:
        _follow(service.log)


def _definition(given: str) -> "tuple[Path, Definition]":
    from bcami.bundled import find_bundled
    from bcami.config import load_definition

    path = Path(given)
    if not path.exists():
        bundled = find_bundled("network") / (path.name if path.suffix else f"{path.name}.toml")
        path = bundled if bundled.exists() else path
    return path, load_definition(path)


def _opened(home: str) -> Any:
    from bcami.processes.home import open_home

    return open_home(home_paths(home))[0]


def _checked(supervisor: "Supervisor", names: list[str] | None) -> list[str]:
    return [supervisor.service(name).name for name in names or []]


def _names(started: "list[Readiness]") -> set[str]:
    return {item.name for item in started}


def _stop(supervisor: "Supervisor", names: list[str]) -> list[tuple[str, bool]]:
    ended = supervisor.down(names)
    for name, polite in ended:
        SCREEN.note(f"  {name:8} {'stopped' if polite else 'did not stop in time and was killed'}")
    if not ended:
        SCREEN.note("nothing was running")
    return ended


def _watch(supervisor: "Supervisor") -> None:
    """Say when a process ends; return on Ctrl-C, or when nothing is left, as after `bcami down` elsewhere."""
    from bcami.processes.supervisor import last_log_lines

    while supervisor.is_anything_running:
        for name, how in supervisor.ended():
            SCREEN.note(f"{name} {how}; start it again with: bcami up {name} --detach", style="bold")
            for line in last_log_lines(supervisor.service(name).log, 5):
                SCREEN.note(f"    {line}")
        time.sleep(_WATCH_S)


def _follow(log: Path) -> None:
    """Show new lines for ever, also those of the file that follows when this one is full."""
    stream = log.open(encoding="utf-8", errors="replace")
    try:
        stream.seek(0, 2)
        while True:
            line = stream.readline()
            if line:
                SCREEN.line(line.rstrip("\n"))
                continue
            time.sleep(_WATCH_S)
            if log.exists() and not os.path.samestat(os.fstat(stream.fileno()), log.stat()):
                rest = stream.read()
                stream.close()
                stream = log.open(encoding="utf-8", errors="replace")
                for line in rest.splitlines():
                    SCREEN.line(line)
    finally:
        stream.close()


def _short(value: object) -> object:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else value


def _home_hint(home: str) -> str:
    return "" if Path(home) == Path(HOME_DEFAULT).absolute() else f" --home {home}"
