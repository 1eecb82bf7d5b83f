"""What Byzantine nodes of a run do: drawn from the one list, `bcami.faults.catalogue`, with drawn options."""

from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

from bcami.errors import InputError
from bcami.faults.behaviour import AnyBehaviour
from bcami.faults.catalogue import BEHAVIOURS, make_behaviour

AT_ONCE_MAX: Final = 3
FOR_EVER_MS: Final = 10**12
"""Longer than any jump of a clock."""

_Draw = Callable[[Random, int], Mapping[str, Any]]

_OPTIONS: Final[Mapping[str, _Draw]] = {
    "censor_signer": lambda draw, nodes: {"signer": "00" * 32},
    "censor_collector": lambda draw, nodes: {"collector": draw.randrange(nodes)},
    "partial_silence": lambda draw, nodes: {"peers": tuple(draw.sample(range(nodes), draw.randint(1, nodes - 1)))},
    "withhold": lambda draw, nodes: {
        "kinds": tuple(
            draw.sample(
                ("pre_prepare", "prepare", "commit", "checkpoint", "view_change", "new_view", "endorsement", "batch"), 2
            )
        )
    },
    "mutate": lambda draw, nodes: {"share": draw.choice((0.05, 0.5)), "signed": draw.random() < 0.5},
    "false_time": lambda draw, nodes: {"ahead_ms": draw.choice((-86_400_000, -4_000, 4_500, 6_000, 86_400_000))},
    "slow_primary": lambda draw, nodes: {"share": draw.choice((0.5, 0.9, 1.1))},
    "bogus_endorsements": lambda draw, nodes: {"refused": draw.random(), "garbled": draw.choice((0.0, 0.3))},
}
"""For behaviours whose defaults say too little; others run with their defaults."""


def draw_behaviours(draw: Random, nodes: int, signer: bytes) -> list[AnyBehaviour]:
    """Return what one node does wrong now, one to three things at once; `signer` is whom a censor may leave out."""
    names = draw.sample(sorted(BEHAVIOURS), draw.choice((1, 1, 2, AT_ONCE_MAX)))
    made = [_make(name, draw, nodes, signer) for name in names]
    return [behaviour for behaviour in made if behaviour is not None]


def _make(name: str, draw: Random, nodes: int, signer: bytes) -> AnyBehaviour | None:
    options = dict(_OPTIONS[name](draw, nodes)) if name in _OPTIONS else {}
    if name == "censor_signer":
        options = {"signer": signer.hex()}
    try:
        return make_behaviour(name, options, draw.getrandbits(63))
    except InputError:
        return None  # a new behaviour that wants to be told something
