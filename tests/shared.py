"""Finds the folder of published vectors and real data that lies beside a checkout; tests skip where it is not."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def shared_folder() -> Path:
    """Return BCAMI_SHARED, else `../shared` beside the checkout, whether it exists or not."""
    return Path(os.environ.get("BCAMI_SHARED") or REPOSITORY.parent / "shared")


def shared_path(*parts: str) -> Path:
    """Return a path under the shared folder; skips the calling test, with the reason, when it is not there."""
    path = shared_folder().joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not there: set BCAMI_SHARED to the folder that holds it")
    return path


def vectors(name: str) -> Any:
    """Return the parsed JSON of one file of published vectors; skips the calling test when it is not there."""
    return _parsed(shared_path("vectors", name))


@cache
def _parsed(path: Path) -> Any:
    return json.loads(path.read_bytes())


def wycheproof(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (group, test) pairs of one Wycheproof file."""
    return [(group, test) for group in vectors(name)["testGroups"] for test in group["tests"]]
