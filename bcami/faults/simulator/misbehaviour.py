"""What Byzantine nodes of a run do: drawn from the one list, `bcami.faults.catalogue`, with drawn options."""

from random import Random
from typing import Any, Final

from bcami.errors import InputError
from bcami.faults.behaviour import AnyBehaviour
from bcami.faults.catalogue import BEHAVIOURS, make_behaviour

AT_ONCE_MAX: Final = 3
FOR_EVER_MS: Final = 10**12
"""Longer than any jump of a clock."""

_KINDS: Final = (
    "pre_prepare",
    "prepare",
    "commit",
    "checkpoint",
    "view_change",
    "new_view",
    "endorsement",
    "batch",
    "batch_certificate",
    "status",
)


def _options(name: str, draw: Random, nodes: int, signer: bytes) -> dict[str, Any]:
    """Return options for behaviours whose defaults say too little; others run with their defaults."""
    match name:
        case "censor_signer":
            return {"signer": signer.hex()}
        case "censor_collector" | "late_collector":
            return {"collector": draw.randrange(nodes)}
        case "throttling_primary":
            return {"every_ms": draw.choice((50, 150, 500))}
        case "partial_silence":
            return {"peers": tuple(draw.sample(range(nodes), draw.randint(1, nodes - 1)))}
        case "withhold":
            return {"kinds": tuple(draw.sample(_KINDS, draw.randint(1, 3)))}
        case "mutate":
            return {"share": draw.choice((0.05, 0.5)), "signed": draw.random() < 0.5}
        case "false_time":
            return {"ahead_ms": draw.choice((-86_400_000, -4_000, 4_500, 6_000, 86_400_000))}
        case "slow_primary":
            return {"share": draw.choice((0.5, 0.9, 1.1))}
        case "bogus_endorsements":
            return {"refused": draw.random(), "garbled": draw.choice((0.0, 0.3))}
        case _:
            return {}


def draw_behaviours(draw: Random, nodes: int, signer: bytes) -> list[AnyBehaviour]:
    """Return what one node does wrong now, one to three things at once; `signer` is whom a censor may leave out."""
    names = draw.sample(sorted(BEHAVIOURS), draw.choice((1, 1, 2, AT_ONCE_MAX)))
    made = [_make(name, draw, nodes, signer) for name in names]
    return [behaviour for behaviour in made if behaviour is not None]


def _make(name: str, draw: Random, nodes: int, signer: bytes) -> AnyBehaviour | None:
    try:
        return make_behaviour(name, _options(name, draw, nodes, signer), draw.getrandbits(63))
    except InputError:
        return None  # a new behaviour that wants to be told something
