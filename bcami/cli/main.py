"""The program `bcami`: its commands, and the one place where an error becomes a message and an exit code."""

import json
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from bcami.cli import (
    aggregate,
    bench,
    data,
    demo,
    doctor,
    fault,
    kms,
    mdms,
    network,
    rebuild,
    report,
    show,
    simulate,
    verify,
)
from bcami.cli.options import HOME_DEFAULT
from bcami.cli.runs import new_run
from bcami.cli.screen import SCREEN
from bcami.errors import BcamiError
from bcami.paths import HomePaths

EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

app = typer.Typer(
    name="bcami",
    help="A permissioned-blockchain backend for smart metering: run a cluster, replay meter data, break it, audit it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for group in (demo, network, data, verify, bench, fault, show, mdms, kms, doctor, rebuild, simulate, report, aggregate):
    group.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        from bcami import __version__

        typer.echo(f"bcami {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Only `--version` stands before the command."""


def run() -> NoReturn:
    """Run one command and end with its exit code (design, section 4)."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except BcamiError as error:
        _report(str(error), error.exit_code, error)
        sys.exit(error.exit_code)
    except Exception as error:
        place = _save_traceback(error)
        _report(f"a bug in bcami: {type(error).__name__}: {error}; traceback in {place}", EXIT_BUG)
        sys.exit(EXIT_BUG)
    sys.exit(0)


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)


def _report(text: str, code: int, error: BcamiError | None = None) -> None:
    _say(f"error: {text}")
    if SCREEN.wants_json and not SCREEN.answered:
        parts = {} if error is None else {"where": error.where, "likely": error.likely, "do": error.do}
        what = text if error is None else error.what
        sys.stdout.write(json.dumps({"schema": "bcami/error/1", "exit_code": code, "error": what, **parts}) + "\n")


def _say(text: str) -> None:
    sys.stderr.write(text.splitlines()[0] + "\n" + "".join(f"{line}\n" for line in text.splitlines()[1:]))


def _save_traceback(error: Exception) -> str:
    try:
        place = new_run(HomePaths(Path(SCREEN.home or HOME_DEFAULT)), "crash") / "traceback.txt"
        place.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except (BcamiError, OSError):
        traceback.print_exception(error)
        return "the lines above"
    return str(place)


if __name__ == "__main__":
    run()
