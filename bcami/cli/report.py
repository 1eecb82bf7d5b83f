"""report: what a researcher would put into a paper, from one command each."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bcami.paths import HomePaths
    from bcami.report.costs.assemble import Parts, Step
    from bcami.report.document import Report, Section, Setting
    from bcami.report.measuring import Effort
    from bcami.report.units import UnitCosts

Out = Annotated[
    str | None, typer.Option("--out", metavar="DIR", help="Folder for the report; a new one in HOME/runs otherwise.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Few samples, small networks: less than a minute.")]
Data = Annotated[
    str, typer.Option("--data", metavar="PATH", help="Half-hourly London files, or `sample`, for BC-AMI's experiment.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of all that is drawn.")]

_SHOWN: Final = 15
"""Measured cells that `diff` prints."""

app = typer.Typer(
    no_args_is_help=True, help="Reports: the papers' figures, their formulas, and measurements of this system."
)


def register(parent: typer.Typer) -> None:
    """Add the commands of this module."""
    parent.add_typer(app, name="report")


@app.command()
def costs(
    out: Out = None,
    quick: Quick = False,
    seed: Seed = 0,
    data: Data = "sample",
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Measure what everything costs, beside the papers' tables and figures; a page, CSV, JSON, SVG and PNG.

    Example: bcami report costs --quick --out costs
    """
    from bcami.report.costs.assemble import cost_report
    from bcami.report.measuring import Effort

    london = _london(data)
    effort = Effort(quick=quick, seed=seed)
    command = f"bcami report costs{' --quick' if quick else ''} --seed {seed}"
    command += f" --data {data}" if data != "sample" else ""
    with SCREEN.progress("report costs") as progress:
        folder = _folder(home_paths(home), out, "report-costs")
        setting = _setting(command, effort.seed, quick=quick)
        more = [
            ("the running cluster", _live(home_paths(home), folder, setting.load)),
            ("London data", london),
        ]
        report = cost_report(effort, setting, folder, _steps(progress), more)
        place = _write(report, folder, progress)
    _say(report, place)


@app.command()
def capacity(
    meters: Annotated[str, typer.Option("--meters", metavar="N", help="How many meters, such as 30e6.")] = "1e6",
    interval: Annotated[str, typer.Option("--interval", metavar="T", help="Of a reading: 30m, 15m, 1h.")] = "30m",
    readings: Annotated[
        int, typer.Option("--readings-per-report", min=1, max=336, metavar="K", help="Readings in one report.")
    ] = 1,
    utilisation: Annotated[float, typer.Option(min=0.05, max=1.0, help="Share of a core that is planned with.")] = 0.5,
    peak: Annotated[float, typer.Option(min=1.0, max=100.0, help="Rate of the worst minutes over the mean.")] = 2.0,
    costs_of: Annotated[
        str | None,
        typer.Option("--costs", metavar="REPORT", help="A report of `report costs`; measured anew otherwise."),
    ] = None,
    out: Out = None,
    quick: Quick = False,
    seed: Seed = 0,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Compute cores, bandwidth, storage and clusters for a number of meters, from measured unit costs.

    Example: bcami report capacity --meters 30e6 --interval 30m --readings-per-report 48
    """
    from pathlib import Path

    from bcami.report.capacity import Demand, capacity_report, parse_interval_s, parse_meters
    from bcami.report.costs.phases import READINGS
    from bcami.report.folder import load_report
    from bcami.report.measuring import Effort
    from bcami.report.units import measured_elsewhere, read_units, require_measured

    demand = Demand(parse_meters(meters), parse_interval_s(interval), readings, utilisation, peak)
    measured = load_report(Path(costs_of)) if costs_of else None
    known = None if measured is None else read_units(measured)
    require_measured(readings, READINGS if known is None else [unit.readings for unit in known])
    command = f"bcami report capacity --meters {meters} --interval {interval} --readings-per-report {readings}"
    command += f" --utilisation {utilisation:g} --peak {peak:g}"
    command += f" --costs {costs_of}" if costs_of else f"{' --quick' if quick else ''} --seed {seed}"
    setting = _setting(command, seed, quick=quick)
    if measured is not None:
        setting = measured_elsewhere(setting, measured)
    with SCREEN.progress("report capacity") as progress:
        folder = _folder(home_paths(home), out, "report-capacity")
        units = known or _measure_units(home_paths(home), folder, Effort(quick=quick, seed=seed), progress)
        report = capacity_report(demand, units, setting)
        place = _write(report, folder, progress)
    _say(report, place)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="Folder of a report, or its JSON.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    out: Out = None,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Compare two reports: ratios of what was measured, and whatever differs that should not (then it ends with 1).

    Example: bcami report diff before after
    """
    from pathlib import Path

    from bcami.errors import ExpectationError
    from bcami.report.difference import compare_reports, difference_report
    from bcami.report.folder import load_report

    found = compare_reports(load_report(Path(first)), load_report(Path(second)))
    report = difference_report(found, (first, second), _setting(f"bcami report diff {first} {second}", 0, quick=False))
    with SCREEN.progress("report diff") as progress:
        place = _write(report, _folder(home_paths(home), out, "report-difference"), progress)
    SCREEN.table(
        ("table", "row", "column", "A", "B", "B/A"),
        [tuple(row.cells[:6]) for row in report.table("difference_measured").rows[:_SHOWN]],
    )
    _say(report, place)
    if found.fixed:
        table, row, column, one, two = found.fixed[0]
        raise ExpectationError(
            f"{len(found.fixed)} cells differ that should not; the first: {one!r} and {two!r}",
            where=f"{table}, {row}, {column}",
            likely="another version, another seed, or a quick run beside a full one",
        )


def _measure_units(
    home: "HomePaths", folder: "Path", effort: "Effort", progress: "Callable[[str], None]"
) -> "list[UnitCosts]":
    """Measure meters, phases and the running cluster of the usual size, and nothing else."""
    from bcami.cli.report_live import LiveEffort, measure_live
    from bcami.report.costs.assemble import Parts, measure_for_units, units_of

    parts = Parts(effort, folder, progress)
    measure_for_units(parts)
    found = measure_live(home, folder, LiveEffort.of(effort).of_base_only(), progress)
    parts.found["live"] = found.runs
    return units_of(parts)


def _live(home: "HomePaths", folder: "Path", load: str) -> "Step":
    """Return the step that measures running networks."""
    from bcami.cli.report_live import LiveEffort, measure_live
    from bcami.report.costs.assemble import units_of
    from bcami.report.costs.live import live_section
    from bcami.report.units import unit_table

    def step(parts: "Parts") -> "list[Section]":
        found = measure_live(home, folder, LiveEffort.of(parts.effort), parts.show)
        parts.found["live"] = found.runs
        return [live_section(found, load, unit_table(units_of(parts)))]

    return step


def _london(data: str) -> "Step":
    """Return the step that sums data. Raises InputError now, not after all other steps, when there are none."""
    from bcami.cli.data import data_path
    from bcami.replay.sources import discover
    from bcami.report.costs.london import london_section, measure_london

    place = data_path(data)
    discover(place)

    def step(parts: "Parts") -> "list[Section]":
        return [london_section(measure_london(place, parts.show), data)]

    return step


@app.command()
def security(
    out: Out = None,
    quick: Quick = False,
    seed: Seed = 0,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Carry out attacks on every security property that BC-AMI's Table 4 ticks, and on more; transcripts and verdicts.

    Exits with 1 when a property that must hold falls, with 3 when an attack proves nothing.

    Example: bcami report security --out security
    """
    from bcami.cli.report_attacks import live_attacks
    from bcami.errors import ExpectationError, InconclusiveError
    from bcami.report.security.assemble import security_report
    from bcami.report.security.catalogue import ATTACKS

    command = f"bcami report security{' --quick' if quick else ''} --seed {seed}"
    with SCREEN.progress("report security") as progress:
        folder = _folder(home_paths(home), out, "report-security")
        attacks = (*ATTACKS, *live_attacks(folder, progress))
        found = security_report(seed, _setting(command, seed, quick=quick), _steps(progress), attacks)
        place = _write(found.report, folder, progress)
    _say(found.report, place)
    if found.fallen:
        raise ExpectationError(f"these attacks succeeded: {', '.join(found.fallen)}", where=str(place))
    if found.void:
        raise InconclusiveError(f"these attacks prove nothing: {', '.join(found.void)}", where=str(place))


def _setting(command: str, seed: int, *, quick: bool) -> "Setting":
    import datetime as dt

    from bcami.report.document import Setting
    from bcami.report.machine import describe_machine, load_text, versions

    return Setting(
        command=command,
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        seed=seed,
        quick=quick,
        machine=describe_machine(),
        versions=versions(),
        load=load_text(),
    )


def _steps(progress: "Callable[[str], None]") -> "Callable[[int, int, str], None]":
    """Return what shows a bar for (steps done, steps in all, what is being done)."""

    def show(done: int, of: int, what: str) -> None:
        filled = round(24 * done / of)
        progress(f"{'█' * filled}{'░' * (24 - filled)} {done + 1}/{of}  {what}")

    return show


def _folder(home: "HomePaths", out: str | None, what: str) -> "Path":
    """Return the folder that the report goes to, made if it is not there. Raises InputError, EnvironmentFault.

    A report of the same kind that is in it is replaced; one of another kind is not.
    """
    from pathlib import Path

    from bcami.cli.runs import new_run
    from bcami.errors import EnvironmentFault, InputError
    from bcami.report.folder import DATA, load_report

    if out is None:
        return new_run(home, what)
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError("--out is a file", where=str(folder), do="name a folder")
    if (folder / DATA).exists() and f"report-{load_report(folder)['kind']}" != what:
        raise InputError("--out holds a report of another kind", where=str(folder), do="name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"the folder cannot be made: {error.strerror}", where=str(folder)) from None
    return folder


def _write(report: "Report", folder: "Path", progress: "Callable[[str], None]") -> "Path":
    from bcami.report.folder import write_report

    return write_report(report, folder, progress)


def _say(report: "Report", page: "Path") -> None:
    from bcami.report.folder import SCHEMA, report_data

    for sentence in report.summary:
        SCREEN.line(sentence)
    SCREEN.line()
    SCREEN.line(f"page    {page}")
    SCREEN.line(f"data    {page.parent / 'report.json'}, {len(report.tables)} tables, {len(report.charts)} figures")
    data = report_data(report)
    del data["schema"]
    SCREEN.result(SCHEMA, {"page": str(page), **data})
