"""fault: break a network on purpose, and see what holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    from bcami.cli.own_network import RunNetwork
    from bcami.faults.scenario import Scenario
    from bcami.processes.supervisor import Readiness

fault = typer.Typer(
    name="fault", help="Break a network on purpose, with an end, and see what holds.", no_args_is_help=True
)
_VERDICT_STYLE: Final = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(fault)


@fault.command(name="list")
def list_(home: Home = HOME_DEFAULT, json: Json = False) -> None:
    """List what nodes can be told to do, and the scenarios that come with bcami.

    Example: bcami fault list
    """
    import msgspec

    from bcami.faults.catalogue import BEHAVIOURS
    from bcami.faults.scenario import PROCESS_KINDS, title_of

    told: list[dict[str, Any]] = []
    for name, kind in BEHAVIOURS.items():
        options = {
            field.name: "…" if field.required else msgspec.to_builtins(field.default)
            for field in msgspec.structs.fields(kind.options_type)
        }
        what = (kind.__doc__ or "").strip().splitlines()[0]
        told.append({"name": name, "family": kind.family, "what": what, "claim": kind.claim, "options": options})
    SCREEN.line("behaviours: bcami fault inject NODE BEHAVIOUR --for SECONDS [--set OPTION=VALUE]")
    for item in told:
        SCREEN.line(f"  {item['name']:<24}{item['what']}", style="bold")
        given = "  ".join(f"{key}={value}" for key, value in item["options"].items())
        SCREEN.line(f"    {item['family']}; must hold: {item['claim']}" + (f"; options: {given}" if given else ""))
    SCREEN.line()
    SCREEN.line("only in scenarios:")
    for name, what in PROCESS_KINDS.items():
        SCREEN.line(f"  {name:<24}{what}")
    SCREEN.line()
    SCREEN.line("scenarios: bcami fault run SCENARIO")
    files = [(path.stem, title_of(path)) for path in _scenario_files()]
    for stem, title in files:
        SCREEN.line(f"  {stem:<26}{title}")
    SCREEN.result(
        "bcami/fault_list/1",
        {
            "behaviours": told,
            "process": dict(PROCESS_KINDS),
            "scenarios": [{"name": stem, "title": title} for stem, title in files],
        },
    )


@fault.command()
def inject(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node that is to misbehave.")],
    behaviour: Annotated[str, typer.Argument(metavar="BEHAVIOUR", help="See bcami fault list.")],
    for_s: Annotated[float, typer.Option("--for", min=0.1, max=3600, metavar="S", help="Seconds; every fault ends.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the behaviour; repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="What it draws from; a random one when left out.")] = None,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Tell a running node to misbehave for a while. The network must have been made with --allow-faults.

    Example: bcami fault inject node2 mute --for 10
    """
    import secrets

    from bcami.cli.fault_control import Control
    from bcami.faults.catalogue import make_behaviour
    from bcami.faults.scenario import resolve_options
    from bcami.processes.home import open_home

    paths = home_paths(home)
    network, _ = open_home(paths)
    network.node(node)
    control = Control(paths, network, attached=False)
    options = dict(_option(text) for text in set_ or [])
    drawn = secrets.randbits(62) if seed is None else seed
    resolved = resolve_options(options, [item.name for item in network.nodes], control.hid_of)
    make_behaviour(behaviour, resolved, drawn)
    told = control.inject(node, behaviour, for_s, options, drawn)
    SCREEN.line(f"{node} shows {behaviour} for {for_s:g} s (lease {told['lease']}, seed {told['seed']})")
    SCREEN.result("bcami/fault_inject/1", {"node": node, **told})


@fault.command()
def stop(home: Home = HOME_DEFAULT, json: Json = False) -> None:
    """End every fault that nodes show.

    Example: bcami fault stop
    """
    from bcami.cli.ask import running_nodes
    from bcami.cli.fault_control import Control
    from bcami.processes.home import open_home

    paths = home_paths(home)
    network, _ = open_home(paths)
    control = Control(paths, network, attached=False)
    stopped = []
    for node in running_nodes(paths, network):
        for item in control.stop(node.name):
            stopped.append({"node": node.name, **item})
            SCREEN.line(f"{node.name} stopped {item['behaviour']}, which acted {item['acted']} times")
    if not stopped:
        SCREEN.line("no node was told to misbehave")
    SCREEN.result("bcami/fault_stop/1", {"stopped": stopped})


@fault.command()
def run(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="A file, or the name of one that comes along.")],
    nodes: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=31, help="Instead of what the file says.")
    ] = None,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Run a scenario on real processes: load, faults, healing, audit of all ledgers, comparison of all readings.

    Example: bcami fault run primary-killed
    """
    from bcami.cli.own_network import network_for_run
    from bcami.faults.scenario import load_scenario

    path = _scenario_path(scenario)
    plan = load_scenario(path, nodes)
    SCREEN.note(f"{plan.title} ({plan.nodes} nodes)")
    SCREEN.note(f"claim: {plan.claim}")
    with network_for_run(home_paths(home), f"fault-{path.stem}", _report, nodes=plan.nodes, allow_faults=True) as place:
        summary = _run(place, path, plan)
        _show(summary, place.run)
        SCREEN.result("bcami/fault_run/1", {"run": str(place.run), **summary})
        _raise(summary, place.run)


def _run(place: "RunNetwork", path: Path, plan: "Scenario") -> dict[str, Any]:
    from bcami.cli.fault_report import write_report
    from bcami.cli.fault_run import run_scenario
    from bcami.errors import InputError

    if len(place.network.nodes) != plan.nodes:
        raise InputError(
            f"the scenario is for {plan.nodes} nodes, the network that is up has {len(place.network.nodes)}",
            do=f"bcami down, or --nodes {len(place.network.nodes)}",
        )
    return write_report(place, path, run_scenario(place, plan))


def _show(summary: dict[str, Any], folder: Path) -> None:
    seen = summary["figures"]
    SCREEN.line()
    SCREEN.table(
        ("verdict", "expectation", "wanted", "found"),
        [(item["verdict"], item["expectation"], item["wanted"], item["found"]) for item in summary["findings"]],
    )
    SCREEN.line(
        f"throughput {seen['before_per_s']:g} before, {seen['during_per_s']:g} during ({seen['during_percent']:g} %), "
        f"{seen['after_per_s']:g} after ({seen['after_percent']:g} %); "
        f"longest time without commits {seen['pause_s']:g} s; {seen['view_changes']} view changes"
    )
    SCREEN.line(f"report: {folder / 'report.md'}   plot: {folder / 'plot.png'}")
    SCREEN.line(summary["verdict"], style=_VERDICT_STYLE[summary["verdict"]])


def _raise(summary: dict[str, Any], folder: Path) -> None:
    from bcami.errors import ExpectationError, InconclusiveError

    named = [item for item in summary["findings"] if item["verdict"] == summary["verdict"]]
    what = "; ".join(f"{item['expectation']}: wanted {item['wanted']}, found {item['found']}" for item in named)
    if summary["verdict"] == "FAIL":
        raise ExpectationError(what, where=str(folder), do="see report.md, plot.png and logs/ there")
    if summary["verdict"] == "INCONCLUSIVE":
        raise InconclusiveError(what, where=str(folder))


def _report(item: "Readiness") -> None:
    SCREEN.note(f"  {item.name:8} ready after {item.seconds or 0.0:.1f} s  {item.url}")


def _scenario_files() -> list[Path]:
    from bcami.bundled import find_bundled

    return sorted((find_bundled("network") / "scenarios").glob("*.toml"))


def _scenario_path(given: str) -> Path:
    """Return the file of a scenario. Raises InputError naming the nearest."""
    from bcami.errors import InputError
    from bcami.toml_file import nearest

    path = Path(given)
    if path.suffix == ".toml" and path.is_file():
        return path
    files = {file.stem: file for file in _scenario_files()}
    stem = path.stem if path.suffix == ".toml" else given
    if stem in files:
        return files[stem]
    raise InputError(f"no scenario is called {given!r}", do=nearest(stem, files) or "bcami fault list")


def _option(text: str) -> tuple[str, Any]:
    """Return name and value of OPTION=VALUE: a number, a word, or a list with commas."""
    from bcami.errors import InputError

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"{text!r} is not OPTION=VALUE", where="--set")
    if "," in value:
        return name, [_word(part) for part in value.split(",") if part]
    return name, _word(value)


def _word(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
