"""The options that every command has."""

from pathlib import Path
from typing import Annotated

import typer

from bcami.cli.screen import SCREEN
from bcami.paths import HomePaths


def _choose_json(value: bool) -> bool:
    SCREEN.wants_json = value
    SCREEN.answered = False
    return value


def _home_paths(value: str) -> str:
    SCREEN.home = str(Path(value).absolute())
    return SCREEN.home


Home = Annotated[
    str,
    typer.Option("--home", envvar="BCAMI_HOME", callback=_home_paths, metavar="DIR", help="Where the network lives."),
]
Json = Annotated[
    bool, typer.Option("--json", callback=_choose_json, is_eager=True, help="Print one JSON object, logs to stderr.")
]
HOME_DEFAULT = "./.bcami"


def home_paths(home: str) -> HomePaths:
    return HomePaths(Path(home))
