"""What a meter remembers and insists on, so that no choice of groups and rounds tells its reading (notes 3.2).

* Each interval goes into one sum only. Two groups that overlap, or a round that is repeated without one member, would
  otherwise differ by a few readings of the same interval.
* All sums of a day are made of the same *parts* of at least `group_min` members: who is in the same of these sums is
  in one part (`smallest_part`). A household's use hardly changes from one half-hour to the next, so that sums of a day
  can be added and subtracted as if they were of one time. Whatever comes of any number of them weighs the members of a
  part alike, so it is about that many members or about nobody. (Comparing two by two is not enough: of W, W less A, W
  less B and W less A and B, each two may differ by many, and A and B have one member in common.) Members whom the
  head-end knows to collude fill a part too; only noise helps against that.
* All sums of a day are over one group. Who is in W alone sees no more than W; so W, the two halves of W without one
  member, and their difference, would pass the rule above.
* A ring tells its members no set that could be compared. So within a day a meter takes part in masked sums or in ring
  sums, not in both.
* With noise, the ε of all sums of a day stay within a budget.

A reading counts as spent from the moment when its masked form leaves. It is free again only by a receipt that says that
the round is void, or that the meter is not among its contributors. What a ring was given is never free again: nothing
shows that a void ring told no sum.

A sum is forgotten only when nothing near it can be summed any more (`horizon_s`). Only what cannot be taken back moves
that time: a round that may still be void does not.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

from bcami.aggregation.bounds import Policy
from bcami.aggregation.records import MeterMemory, PastSum
from bcami.model.aggregation import StartArgument
from bcami.model.ids import NO_HASH
from bcami.model.reasons import Reason
from bcami.units import HALF_HOUR_S

MEMORY_S: Final = 86_400
"""Intervals closer than this are compared."""
FORGET_S: Final = 40 * 86_400
"""Intervals this much older than the newest sum are not summed any more, and sums a day older still are forgotten."""
EPSILON_BUDGET_MILLIONTHS: Final = 10_000_000
"""ε that a meter spends on the intervals of a day: 10."""
PAST_MAX: Final = 4_000
"""Sums that are remembered; beyond that a meter contributes no more until some are old."""


class Objection(NamedTuple):
    """Why a meter does not help to a sum."""

    reason: Reason
    earlier: int = 0
    """Round of the earlier sum that stands against it, if one does."""


@dataclass(frozen=True, slots=True)
class Contributors:
    """A set of meters, known by its digest: two with one digest are one."""

    digest: bytes
    hids: tuple[bytes, ...] = field(compare=False, repr=False)
    whole: frozenset[bytes] = field(compare=False, repr=False)


@lru_cache(maxsize=256)
def contributors_of(hids: tuple[bytes, ...]) -> Contributors:
    """Return the set of these meters, ascending; the same object for as many meters as ask for it."""
    return Contributors(set_digest(hids), hids, frozenset(hids))


def set_digest(hids: tuple[bytes, ...]) -> bytes:
    """Return the name of a set of contributors."""
    return sha256(b"bcami/aggregation/set/1" + b"".join(hids)).digest()


@lru_cache(maxsize=256)
def smallest_part(family: tuple[Contributors, ...]) -> int:
    """Return how many members the smallest part has, a part being those who are in the same sets of the family."""
    patterns: dict[bytes, int] = {}
    for place, contributors in enumerate(family):
        for hid in contributors.hids:
            patterns[hid] = patterns.get(hid, 0) | 1 << place
    return min(Counter(patterns.values()).values())


def refuse_start(memory: MeterMemory, start: StartArgument, group: bytes) -> Objection | None:
    """Return why the meter takes no part in the masked round, or None; `group` is the digest of all members."""
    if start.round <= memory.round_high:
        return Objection(Reason.ROUND_NOT_ABOVE)
    if start.first_s < horizon_s(memory, with_rings=True):
        return Objection(Reason.STALE)
    for past in memory.past:
        if overlap(past, start):
            return Objection(Reason.INTERVAL_SPENT, past.round)
        if past.is_ring and are_near(past, start):
            return Objection(Reason.GROUP_TOO_ALIKE, past.round)
        if past.group != group and are_near(past, start):
            return Objection(Reason.OTHER_GROUP, past.round)
    if len(memory.past) >= PAST_MAX:
        return Objection(Reason.OVER_QUOTA)
    if start.noise.epsilon_millionths:
        spent = sum(past.epsilon_millionths * past.slots for past in memory.past if are_near(past, start))
        if spent + start.noise.epsilon_millionths * start.slots > EPSILON_BUDGET_MILLIONTHS:
            return Objection(Reason.BUDGET_SPENT)
    return None


def refuse_ring(memory: MeterMemory, start: StartArgument) -> Objection | None:
    """Return why the meter takes no part in the ring round, or None; earlier rings are a reason only when too many."""
    if start.first_s < horizon_s(memory, with_rings=False):
        return Objection(Reason.STALE)
    for past in memory.past:
        if not past.is_ring and overlap(past, start):
            return Objection(Reason.INTERVAL_SPENT, past.round)
        if not past.is_ring and are_near(past, start):
            return Objection(Reason.GROUP_TOO_ALIKE, past.round)
    return Objection(Reason.OVER_QUOTA) if len(remembering_ring(memory, start).past) > PAST_MAX else None


def refuse_set(
    memory: MeterMemory,
    sets: Mapping[bytes, Contributors],
    start: StartArgument,
    wanted: Contributors,
    policy: Policy,
) -> Objection | None:
    """Return why the meter helps to no sum over these contributors, or None."""
    if len(wanted.hids) < policy.group_min:
        return Objection(Reason.GROUP_TOO_SMALL)
    former = {past.members: past.round for past in memory.past if past.round != start.round and are_near(past, start)}
    others = [sets[digest] for digest in sorted(former.keys() - {NO_HASH, wanted.digest})]
    if smallest_part((wanted, *others)) < policy.group_min:
        against = [item for item in others if smallest_part((wanted, item)) < policy.group_min] or others
        return Objection(Reason.GROUP_TOO_ALIKE, max(former[item.digest] for item in against))
    return None


def remembering(memory: MeterMemory, start: StartArgument, group: bytes) -> MeterMemory:
    """Return the memory with the round's intervals spent, and without what is old."""
    past = PastSum(start.round, start.first_s, start.slots, NO_HASH, start.noise.epsilon_millionths, group=group)
    return msgspec.structs.replace(memory, round_high=start.round, past=(*_remembered(memory), past))


def remembering_ring(memory: MeterMemory, start: StartArgument) -> MeterMemory:
    """Return the memory with a ring round in it; the same interval counts once."""
    past = PastSum(start.round, start.first_s, start.slots, NO_HASH, 0, is_ring=True)
    same = (True, start.first_s, start.slots)
    kept = tuple(item for item in _remembered(memory) if (item.is_ring, item.first_s, item.slots) != same)
    return msgspec.structs.replace(memory, past=(*kept, past))


def settled(memory: MeterMemory, round_number: int, digest: bytes) -> MeterMemory:
    """Return the memory with the contributors of a round known."""
    past = tuple(
        msgspec.structs.replace(item, members=digest) if item.round == round_number else item for item in memory.past
    )
    return msgspec.structs.replace(memory, past=past)


def freed(memory: MeterMemory, round_number: int) -> MeterMemory:
    """Return the memory without a masked round that told nothing of this meter."""
    past = tuple(item for item in memory.past if item.is_ring or item.round != round_number)
    return msgspec.structs.replace(memory, past=past)


def horizon_s(memory: MeterMemory, *, with_rings: bool) -> int:
    """Return the start (Unix seconds) of the oldest interval that is still summed, by what was summed for good.

    A ring may be about older intervals than the newest ring, but not about older ones than masked sums are kept for.
    """
    firm = [item.first_s for item in memory.past if item.members != NO_HASH or (with_rings and item.is_ring)]
    return max(firm, default=0) - FORGET_S


def _remembered(memory: MeterMemory) -> tuple[PastSum, ...]:
    """Return what some interval that is still summed may be near to."""
    masked_s, ring_s = horizon_s(memory, with_rings=False), horizon_s(memory, with_rings=True)
    return tuple(item for item in memory.past if _end_s(item) + MEMORY_S > (ring_s if item.is_ring else masked_s))


def _end_s(item: PastSum | StartArgument) -> int:
    return item.first_s + item.slots * HALF_HOUR_S


def overlap(past: PastSum | StartArgument, start: StartArgument) -> bool:
    """Tell whether some interval is in both."""
    return start.first_s < _end_s(past) and past.first_s < _end_s(start)


def are_near(past: PastSum | StartArgument, start: StartArgument) -> bool:
    """Tell whether the intervals lie within a day of each other."""
    return past.first_s < _end_s(start) + MEMORY_S and start.first_s < _end_s(past) + MEMORY_S
