"""The one list of behaviours: what `bcami fault list` prints, nodes take, and the simulator draws from."""

import difflib
from collections.abc import Mapping
from random import Random
from typing import Any, Final

import msgspec

from bcami.errors import InputError
from bcami.faults.answers import BadStateTransfer, FalseStatus, FalseSuspicion, Flood, LyingShares
from bcami.faults.batches import (
    BogusEndorsements,
    CensorCollector,
    CensorSigner,
    EquivocatingCollector,
    InvalidBatch,
    WithheldBatch,
)
from bcami.faults.behaviour import AnyBehaviour
from bcami.faults.disk import SlowDisk
from bcami.faults.links import Cut, Delay, Duplicate, Loss
from bcami.faults.primary import (
    EquivocatingPrimary,
    FalseTime,
    ForgedCertificate,
    LateCollector,
    SequenceGap,
    SlowPrimary,
    SwappedProposal,
    ThrottlingPrimary,
)
from bcami.faults.silence import Mute, PartialSilence, Withhold
from bcami.faults.views import ForgedNewView, ForgedPrepared, ForgedStable, ViewSpam
from bcami.faults.votes import CheckpointLiar, EquivocatingVoter, Mutate, ReplayedVotes

BEHAVIOURS: Final[Mapping[str, type[AnyBehaviour]]] = {
    behaviour.name: behaviour
    for behaviour in (
        Mute,
        PartialSilence,
        Withhold,
        EquivocatingPrimary,
        SwappedProposal,
        SlowPrimary,
        ThrottlingPrimary,
        LateCollector,
        SequenceGap,
        FalseTime,
        ForgedCertificate,
        EquivocatingVoter,
        CheckpointLiar,
        ReplayedVotes,
        Mutate,
        ViewSpam,
        ForgedPrepared,
        ForgedNewView,
        ForgedStable,
        CensorSigner,
        CensorCollector,
        InvalidBatch,
        WithheldBatch,
        EquivocatingCollector,
        BogusEndorsements,
        BadStateTransfer,
        FalseStatus,
        FalseSuspicion,
        LyingShares,
        Flood,
        Cut,
        Loss,
        Delay,
        Duplicate,
        SlowDisk,
    )
}


def behaviour_type(name: str) -> type[AnyBehaviour]:
    """Return the behaviour of that name. Raises InputError naming the nearest."""
    if name in BEHAVIOURS:
        return BEHAVIOURS[name]
    close = difflib.get_close_matches(name, BEHAVIOURS, 1, cutoff=0.5)
    raise InputError(
        f"no behaviour is called {name!r}", do=f"did you mean {close[0]!r}?" if close else "bcami fault list"
    )


def make_behaviour(name: str, options: Mapping[str, Any], seed: int | str) -> AnyBehaviour:
    """Return a behaviour with its options. Raises InputError naming the option and what is wrong with it."""
    chosen = behaviour_type(name)
    known = [field.name for field in msgspec.structs.fields(chosen.options_type)]
    for key in options:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1, cutoff=0.5)
            valid = f"options of {name}: {', '.join(known) or 'none'}"
            raise InputError(f"unknown option {key!r} of {name}", do=f"did you mean {close[0]!r}?" if close else valid)
    try:
        parsed = msgspec.convert(dict(options), chosen.options_type)
    except msgspec.ValidationError as error:
        raise InputError(f"options of {name}: {error}") from None
    return chosen(parsed, Random(f"{name}/{seed}"))
