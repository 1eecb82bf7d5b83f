"""mdms status, gaps, export, backup: what the MDMS holds."""

from pathlib import Path
from typing import Annotated

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

mdms = typer.Typer(no_args_is_help=True, help="Ask the MDMS: what it stored, what is missing; export it, back it up.")

Target = Annotated[str, typer.Argument(metavar="PATH", help="Written on this machine; must not exist yet.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(mdms, name="mdms")


@mdms.command()
def status(home: Home = HOME_DEFAULT, json: Json = False) -> None:
    """Show how far the MDMS is and what it holds.

    Example: bcami mdms status
    """
    from bcami.cli.ask import mdms_get

    told = mdms_get(home_paths(home), "/v1/status")
    for name, value in told.items():
        SCREEN.line(f"{name:<22}{_text(value)}")
    SCREEN.result("bcami/mdms_status/1", told)


@mdms.command()
def gaps(
    meter: Annotated[str | None, typer.Option(metavar="ID", help="Only this meter.")] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="ISO", help="Only from this time on, UTC.")] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="ISO", help="Only before this time, UTC.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=20_000, help="At most so many.")] = 100,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Show half-hours that are missing between a meter's readings.

    Example: bcami mdms gaps --meter MAC000012
    """
    from bcami.cli.ask import mdms_get

    asked = {"meter": meter, "from": from_, "to": to, "limit": limit}
    told = mdms_get(
        home_paths(home), "/v1/gaps", params={name: value for name, value in asked.items() if value is not None}
    )
    SCREEN.table(
        ("meter", "from", "to", "half-hours"),
        [(gap["meter_id"], gap["start"], gap["end"], gap["intervals"]) for gap in told["gaps"]],
    )
    SCREEN.line("there may be more: --limit" if told["truncated"] else f"{len(told['gaps'])} gaps")
    SCREEN.result("bcami/mdms_gaps/1", told)


@mdms.command()
def export(path: Target, home: Home = HOME_DEFAULT, json: Json = False) -> None:
    """Write all readings with their validation flags to a Parquet file.

    Example: bcami mdms export readings.parquet
    """
    from bcami.cli.ask import mdms_post

    told = mdms_post(home_paths(home), "/v1/export", {"path": str(Path(path).absolute())})
    SCREEN.line(f"{told['readings']:,} readings in {told['path']}")
    SCREEN.result("bcami/mdms_export/1", told)


@mdms.command()
def backup(path: Target, home: Home = HOME_DEFAULT, json: Json = False) -> None:
    """Copy the store and all keys to a new folder: once keys are erased, nothing else holds the readings.

    Example: bcami mdms backup backups/monday
    """
    from bcami.cli.ask import mdms_post

    told = mdms_post(home_paths(home), "/v1/backup", {"path": str(Path(path).absolute())})
    SCREEN.line(f"backup up to height {told['height']} in {told['path']}")
    SCREEN.result("bcami/mdms_backup/1", told)


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
