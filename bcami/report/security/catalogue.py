"""All attacks, in the order of the report."""

from typing import Final

from bcami.report.security import (
    between,
    byzantine,
    forward,
    identity,
    messages,
    replacement,
    replays,
    symmetric,
    tampering,
)
from bcami.report.security.attack import Attack
from bcami.report.security.properties import PROPERTIES

_RANK: Final = {item.key: place for place, item in enumerate(PROPERTIES)}


def _place(attack: Attack) -> tuple[int, int]:
    home, _, number = attack.key.partition(".")
    return _RANK[home], int(number)


_MODULES: Final = (
    forward,
    replacement,
    messages,
    between,
    identity,
    replays,
    byzantine,
    symmetric,
    tampering,
)
ATTACKS: Final[tuple[Attack, ...]] = tuple(
    sorted((attack for module in _MODULES for attack in module.ATTACKS), key=_place)
)
