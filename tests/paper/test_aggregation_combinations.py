"""Sums of a day, added and subtracted until a few households are left: what falls two by two, and what the meters allow.

A household's use is taken to be the same in all sums of a day, which is the worst case. Attackers choose the groups and
whom they leave out. `allowed` plays one honest meter that is in all of these sums; the last class says what that is worth
against a head-end which shows each meter another part of them.
"""

from collections import Counter
from itertools import combinations, product

import pytest

from bcami.aggregation.bounds import DEFAULT_POLICY, plan_for
from bcami.aggregation.records import MeterMemory
from bcami.aggregation.rules import (
    Contributors,
    contributors_of,
    refuse_set,
    refuse_start,
    remembering,
    set_digest,
    settled,
    smallest_part,
)
from bcami.model.aggregation import MASKED, NO_NOISE, StartArgument
from bcami.model.ids import NO_HASH
from bcami.model.reasons import Reason

FIRST_S = 1_800 * 100_000
LEAST = DEFAULT_POLICY.group_min
Members = frozenset[int]


def hid(member: int) -> bytes:
    return member.to_bytes(32, "big")


def contributors(members: Members) -> Contributors:
    return contributors_of(tuple(map(hid, sorted(members))))


def use(member: int) -> int:
    return 1_000_003 * (member + 1)


def total(members: Members) -> int:
    return sum(map(use, members))


def start(number: int) -> StartArgument:
    return StartArgument(number, 1, NO_HASH, MASKED, FIRST_S + 1800 * number, 1, 10**9, NO_NOISE)


def allowed(sums: list[Members], groups: list[Members] | None = None) -> list[Reason | None]:
    """Return, of each sum in turn, why the meter does not help to it; a sum that it was in counts from then on."""
    memory, sets, answers = MeterMemory(), {}, []
    for number, members in enumerate(sums, 1):
        group = set_digest(tuple(map(hid, sorted(groups[number - 1])))) if groups else NO_HASH
        wanted = contributors(members)
        objection = refuse_start(memory, start(number), group)
        if objection is None:
            memory = remembering(memory, start(number), group)
            objection = refuse_set(memory, sets, start(number), wanted, DEFAULT_POLICY)
            if objection is None:
                sets[wanted.digest] = wanted
                memory = settled(memory, number, wanted.digest)
        answers.append(objection and objection.reason)
    return answers


def some(first: int, count: int) -> Members:
    return frozenset(range(first, first + count))


WHOLE, TARGET = some(0, 200), 0
ONE, OTHER = some(1, LEAST - 1), some(100, LEAST - 1)
FOUR = [WHOLE, WHOLE - ONE - {TARGET}, WHOLE - OTHER - {TARGET}, WHOLE - ONE - OTHER]


class TestFourSums:
    """W, W less A, W less B, W less A and B, where A and B have nobody but the target in common."""

    def test_they_tell_its_reading_although_each_two_differ_by_many(self):
        first, second, third, fourth = map(total, FOUR)
        assert first - second - third + fourth == 2 * use(TARGET)
        assert min(len(one ^ other) for one, other in combinations(FOUR, 2)) == LEAST
        assert all(len(members) >= plan_for(len(WHOLE)).contributors_min for members in FOUR)

    def test_no_order_of_them_is_allowed(self):
        for sums in ([FOUR[place] for place in order] for order in product(range(4), repeat=4) if len({*order}) == 4):
            answers = allowed(sums)
            assert answers[0] is None
            assert Reason.GROUP_TOO_ALIKE in answers
            helped = [members for members, no in zip(sums, answers, strict=True) if no is None]
            assert len(helped) < 3

    def test_what_is_allowed_instead(self):
        """The target comes and goes with seven others: what the sums tell is what these eight used together."""
        assert allowed([WHOLE, WHOLE - ONE - {TARGET}, WHOLE]) == [None] * 3
        gone, more = some(0, LEAST), some(100, LEAST)
        assert allowed([WHOLE, WHOLE - gone, WHOLE - more, WHOLE - gone - more]) == [None] * 4


class TestThreeGroups:
    """A group of two halves and the target, and each half as a group of its own: no meter but the target sees them all."""

    HALVES = [some(1, 90), some(101, 90)]
    SUMS = [HALVES[0] | HALVES[1] | {TARGET}, *HALVES]

    def test_they_tell_its_reading(self):
        whole, one, other = map(total, self.SUMS)
        assert whole - one - other == use(TARGET)

    @pytest.mark.parametrize("half", [0, 1])
    def test_a_meter_is_in_sums_over_one_group_within_a_day(self, half):
        seen = [self.SUMS[0], self.SUMS[1 + half]]
        assert smallest_part((contributors(seen[0]), contributors(seen[1]))) > LEAST, "the sets alone would pass"
        assert allowed(seen, seen) == [None, Reason.OTHER_GROUP]
        assert allowed(seen[::-1], seen[::-1]) == [None, Reason.OTHER_GROUP]


class TestBound:
    """Whatever comes of the sums weighs the members of a part alike."""

    FAMILY = (WHOLE, WHOLE - some(0, 8), WHOLE - some(4, 12), WHOLE - some(0, 16), WHOLE - some(50, 9))

    def combined(self, family: tuple[Members, ...]) -> list[int]:
        """Return, of every combination with small weights, how many members it is about."""
        counts = Counter(tuple(member in members for members in family) for member in frozenset().union(*family))
        found = []
        for weights in product(range(-2, 3), repeat=len(family)):
            about = {
                pattern: sum(weight for weight, is_in in zip(weights, pattern, strict=True) if is_in)
                for pattern in counts
            }
            found.append(sum(counts[pattern] for pattern, weight in about.items() if weight))
        return found

    def test_above_it_no_combination_is_about_a_few(self):
        family = (WHOLE, WHOLE - some(0, 8), WHOLE - some(0, 16), WHOLE - some(8, 8), WHOLE - some(50, 9))
        assert allowed(list(family)) == [None] * 5
        assert min(count for count in self.combined(family) if count) == LEAST

    def test_below_it_one_is(self):
        """The third set parts the first eight in two: four of them are told."""
        assert allowed(list(self.FAMILY))[2] is Reason.GROUP_TOO_ALIKE
        assert min(count for count in self.combined(self.FAMILY) if count) < LEAST


class TestWhatIsNotShown:
    """A head-end that shows each meter only some of the sums, each of them to enough neighbours of everybody.

    Any two sums have an honest helper (`bounds`), so each two are checked together. Of three sets that differ by so many
    two by two, and have so many in common, no combination is about fewer: that is proven. Of four it is not.
    """

    def test_three_sums_that_each_two_may_be_are_safe_together(self):
        blocks, whole = [some(first, 8) for first in (0, 8, 16)], some(0, 60)
        holes = [frozenset().union(*chosen) for count in range(4) for chosen in combinations(blocks, count)]
        holes += [hole | {50} for hole in holes[1:]] + [hole - {0} for hole in holes if 0 in hole]
        sets = [contributors(whole - hole) for hole in holes]
        fit = {pair for pair in combinations(sets, 2) if smallest_part(pair) >= LEAST}
        tried = [three for three in combinations(sets, 3) if fit.issuperset(combinations(three, 2))]
        assert len(tried) > 50
        assert any(smallest_part(three) < LEAST for three in tried), "together they would not be allowed"
        for three in tried:
            family = tuple(frozenset(item.hids) for item in three)
            assert min(count for count in TestBound().combined(family) if count) >= LEAST

    def test_the_four_sums_need_more_meters_than_there_are(self):
        """Each meter may help to two of them at most, and four sums need more than half of a meter's neighbours each."""
        may = [
            names
            for count in (2, 3, 4)
            for names in combinations(range(4), count)
            if allowed([FOUR[name] for name in names]) == [None] * count
        ]
        assert max(map(len, may)) == 2
        plan = plan_for(1000)
        assert 4 * plan.threshold > 2 * plan.degree
