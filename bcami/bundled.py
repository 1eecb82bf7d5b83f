"""Finds the files that come with the program: in the wheel under `bcami/bundled`, in a checkout at its top."""

from pathlib import Path
from typing import Final, Literal

from bcami.errors import EnvironmentFault

Kind = Literal["chaincode", "network", "datasets/sample"]

_PACKAGE: Final = Path(__file__).resolve().parent


def find_bundled(kind: Kind) -> Path:
    """Return the folder of that kind. Raises EnvironmentFault when the installation lacks it."""
    for place in (_PACKAGE / "bundled" / kind, _PACKAGE.parent / kind):
        if place.is_dir():
            return place
    raise EnvironmentFault(
        f"the installation has no folder {kind!r}",
        where=str(_PACKAGE),
        likely="the package was copied by hand or only in part",
        do="install bcami again",
    )
