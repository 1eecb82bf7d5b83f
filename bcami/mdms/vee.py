"""Validation of stored readings: findings as flags beside the raw value, never in place of it.

The flags are a pure function of what is stored, computed when readings are read or exported. So they do not depend on
the order in which reports arrived, on restarts or on when a rule changed, and the raw values are never rewritten.
Only *repeats* (the same interval reported again) are facts of arrival; the store keeps them in a table of their own.

    DUPLICATE    the interval was reported again with the same value
    CONFLICT     the interval was reported again with another value; the first one is the stored value
    NEGATIVE     energy below zero: allowed only for a meter with generation, so it is for a person to judge
    SPIKE        the readings above the third highest of a UTC day in which (highest - third highest) / third highest
                 is above 1.8, with at least 24 readings and a third highest above zero.
                 [CA VEE 2.0, spike check]; deviates: UTC days, not local billing days, and every peak is flagged
    ZERO_RUN     part of an unbroken run of zero readings that lasts 24 hours or more
    AFTER_GAP    intervals are missing between the meter's reading before this one and this one
"""

from enum import IntFlag
from typing import Final

import numpy as np
import numpy.typing as npt

from bcami.mdms.records import Int64Column

DAY_S: Final = 86_400
SPIKE_RATIO_TENTHS: Final = 18
"""The 1.8 of the spike rule, in tenths so that the rule is exact in integers."""
SPIKE_READINGS_MIN: Final = 24
ZERO_RUN_S: Final = 24 * 3600
CONTEXT_S: Final = ZERO_RUN_S
"""Readings this long before and after a range, in whole UTC days, decide all flags inside the range."""

FlagColumn = npt.NDArray[np.uint8]


class Flag(IntFlag):
    """One bit for each finding."""

    DUPLICATE = 1
    CONFLICT = 2
    NEGATIVE = 4
    SPIKE = 8
    ZERO_RUN = 16
    AFTER_GAP = 32


def flag_names(flags: int) -> list[str]:
    """Return the names of the findings, in lower case, lowest bit first."""
    return [str(flag.name).lower() for flag in Flag if flags & flag]


def compute_flags(meter: Int64Column, start_s: Int64Column, energy: Int64Column, interval_s: Int64Column) -> FlagColumn:
    """Return the flags of readings sorted by (meter, start); all but the two repeat flags."""
    flags = np.zeros(len(meter), np.uint8)
    if not len(meter):
        return flags
    flags[energy < 0] |= np.uint8(Flag.NEGATIVE)
    follows = np.zeros(len(meter), np.bool_)
    follows[1:] = meter[1:] == meter[:-1]
    touches = follows.copy()
    touches[1:] &= start_s[1:] == start_s[:-1] + interval_s[:-1]
    late = np.zeros(len(meter), np.bool_)
    late[1:] = start_s[1:] > start_s[:-1] + interval_s[:-1]
    flags[follows & late] |= np.uint8(Flag.AFTER_GAP)
    flags[_zero_runs(energy, interval_s, touches)] |= np.uint8(Flag.ZERO_RUN)
    flags[_spikes(meter, start_s, energy)] |= np.uint8(Flag.SPIKE)
    return flags


def _zero_runs(energy: Int64Column, interval_s: Int64Column, touches: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which readings belong to an unbroken run of zeros of at least ZERO_RUN_S."""
    zero = energy == 0
    opens = np.ones(len(energy), np.bool_)
    opens[1:] = ~(touches[1:] & (zero[1:] == zero[:-1]))
    run = np.cumsum(opens) - 1
    length_s = np.bincount(run, weights=interval_s.astype(np.float64))
    long_enough: npt.NDArray[np.bool_] = length_s >= ZERO_RUN_S
    in_run: npt.NDArray[np.bool_] = zero & long_enough[run]
    return in_run


def _spikes(meter: Int64Column, start_s: Int64Column, energy: Int64Column) -> npt.NDArray[np.bool_]:
    """Return which readings stand above the third highest of a day whose highest breaks the rule."""
    day = start_s // DAY_S
    opens = np.ones(len(meter), np.bool_)
    opens[1:] = (meter[1:] != meter[:-1]) | (day[1:] != day[:-1])
    group = np.cumsum(opens) - 1
    sizes = np.bincount(group)
    enough = sizes >= SPIKE_READINGS_MIN
    spikes = np.zeros(len(meter), np.bool_)
    if not enough.any():
        return spikes
    firsts = np.flatnonzero(opens)
    highest, _, third = _three_highest(energy, group, firsts)
    broken = _breaks(highest, third)
    limit = np.where(enough & broken, third, np.iinfo(np.int64).max)
    above: npt.NDArray[np.bool_] = energy > limit[group]
    return above


def _three_highest(energy: Int64Column, group: Int64Column, firsts: Int64Column) -> list[Int64Column]:
    """Return the highest, second and third highest value of each group, equal values counted apart."""
    left = energy.copy()
    found = []
    for _ in range(3):
        highest = np.maximum.reduceat(left, firsts)
        found.append(highest)
        places = np.flatnonzero(left == highest[group])
        owners = group[places]
        is_first = np.ones(len(places), np.bool_)
        is_first[1:] = owners[1:] != owners[:-1]
        left[places[is_first]] = np.iinfo(np.int64).min
    return found


def _breaks(highest: Int64Column, third: Int64Column) -> npt.NDArray[np.bool_]:
    """Return where 10·highest > 28·third > 0, without overflow for any 64-bit value."""
    candidates = (third > 0) & (highest // 2 >= third)
    broken = np.zeros(len(highest), np.bool_)
    ratio = SPIKE_RATIO_TENTHS + 10
    for place in np.flatnonzero(candidates).tolist():
        broken[place] = 10 * int(highest[place]) > ratio * int(third[place])
    return broken
