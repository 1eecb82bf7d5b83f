"""Run folders: every run that measures or breaks something leaves one, and `runs/latest` points at it."""

import datetime as dt
import itertools
from pathlib import Path

from bcami.errors import EnvironmentFault
from bcami.paths import HomePaths


def new_run(home: HomePaths, what: str) -> Path:
    """Return a new folder under the home's runs, to which `runs/latest` now points."""
    moment = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H-%M-%S")
    try:
        home.runs.mkdir(parents=True, exist_ok=True)
        for attempt in itertools.count(1):
            folder = home.runs / (f"{moment}-{what}" if attempt == 1 else f"{moment}-{what}-{attempt}")
            if not folder.exists():
                folder.mkdir()
                _point_latest(home.runs, folder.name)
                return folder
    except OSError as error:
        raise EnvironmentFault(f"no run folder can be made: {error.strerror}", where=str(home.runs)) from None
    raise AssertionError("unreachable: the attempts never end")


def _point_latest(runs: Path, name: str) -> None:
    partial = runs / ".latest"
    partial.unlink(missing_ok=True)
    partial.symlink_to(name)
    partial.replace(runs / "latest")
