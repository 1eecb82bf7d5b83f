"""report: what a researcher would put into a paper, from one command each."""

from typing import TYPE_CHECKING, Annotated

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bcami.paths import HomePaths
    from bcami.report.costs.assemble import Parts, Step
    from bcami.report.document import Report, Section, Setting

Out = Annotated[
    str | None, typer.Option("--out", metavar="DIR", help="Folder for the report; a new one in HOME/runs otherwise.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Few samples, small networks: less than a minute.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of all that is drawn.")]

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
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Measure what everything costs, beside the papers' tables and figures; a page, CSV, JSON, SVG and PNG.

    Example: bcami report costs --quick --out costs
    """
    from bcami.report.costs.assemble import cost_report
    from bcami.report.measuring import Effort

    effort = Effort(quick=quick, seed=seed)
    command = f"bcami report costs{' --quick' if quick else ''} --seed {seed}"
    with SCREEN.progress("report costs") as progress:
        folder = _folder(home_paths(home), out, "report-costs")
        setting = _setting(command, effort.seed, quick=quick)
        more = [("the running cluster", _live(home_paths(home), folder, setting.load))]
        report = cost_report(effort, setting, folder, _steps(progress), more)
        place = _write(report, folder, progress)
    _say(report, place)


def _live(home: "HomePaths", folder: "Path", load: str) -> "Step":
    """Return the step that measures running networks."""
    from bcami.cli.report_live import LiveEffort, measure_live
    from bcami.report.costs.live import live_section

    def step(parts: "Parts") -> "list[Section]":
        runs, probes = measure_live(home, folder, LiveEffort.of(parts.effort), parts.show)
        parts.found["live"] = runs
        return [live_section(runs, probes, load)]

    return step


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
    """Return the folder that the report goes to, made if it is not there. Raises InputError, EnvironmentFault."""
    from pathlib import Path

    from bcami.cli.runs import new_run
    from bcami.errors import EnvironmentFault, InputError

    if out is None:
        return new_run(home, what)
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError("--out is a file", where=str(folder), do="name a folder")
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
