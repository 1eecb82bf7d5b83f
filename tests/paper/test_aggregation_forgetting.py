"""Attacks on what a meter remembers of its sums: to have it forgotten, and then the same interval summed less a member.

A meter forgets what nothing can be near to any more. Whoever opens rounds tries to move that time, or to pass by it.
"""

import msgspec
import pytest

from bcami.aggregation.records import Contribution, Declined, MeterMemory, Reveal, RevealCall, RoundCall, RoundVoid
from bcami.aggregation.rehearsal import Rehearsal
from bcami.aggregation.rules import (
    FORGET_S,
    PAST_MAX,
    Objection,
    freed,
    refuse_ring,
    refuse_start,
    remembering,
    remembering_ring,
    settled,
)
from bcami.model.aggregation import RING, SettleArgument, StartArgument, VoidArgument, bitmap
from bcami.model.ids import HASH_BYTES
from bcami.model.reasons import Reason

DAY_S = 86_400
FIRST_S = 1_800 * 100_000
GROUP = b"\x01" * HASH_BYTES
MEMBERS = 9


@pytest.fixture
def street() -> Rehearsal:
    return Rehearsal(MEMBERS, b"street")


def ring_round(street: Rehearsal, number: int, first_s: int, slots: int = 1) -> StartArgument:
    return msgspec.structs.replace(street.start(number, first_s, slots), mode=RING)


def summed(memory: MeterMemory, *starts: StartArgument) -> MeterMemory:
    """Return the memory after masked sums that came to their end."""
    for start in starts:
        assert refuse_start(memory, start, GROUP) is None
        memory = settled(remembering(memory, start, GROUP), start.round, GROUP)
    return memory


def ask(street: Rehearsal, start: StartArgument):
    """Return what the first meter says to a round's start."""
    return street.step(0, RoundCall(street.reader.record("start", start)), lambda _: 7).message


def test_a_void_round_of_a_later_time_makes_it_forget_nothing(street):
    street.step(0, street.notice, lambda _: None)
    assert isinstance(ask(street, street.start(1, FIRST_S)), Contribution)
    final = SettleArgument(1, 0, bitmap(range(MEMBERS), MEMBERS), True)
    call = RevealCall(street.reader.record("settle", final), ())
    assert isinstance(street.step(0, call, lambda _: None).message, Reveal)
    assert isinstance(ask(street, street.start(2, FIRST_S + FORGET_S + DAY_S)), Contribution)
    void = RoundVoid(street.reader.record("void", VoidArgument(2, Reason.TIMED_OUT)))
    assert street.step(0, void, lambda _: None).message is None
    assert ask(street, street.start(3, FIRST_S)) == Declined(3, Reason.INTERVAL_SPENT, earlier=1)
    street.restart(0)
    assert ask(street, street.start(4, FIRST_S)) == Declined(4, Reason.INTERVAL_SPENT, earlier=1)


def test_what_is_forgotten_is_stale_for_both_modes(street):
    late = street.start(2, FIRST_S + FORGET_S + 3 * DAY_S)
    memory = summed(MeterMemory(), street.start(1, FIRST_S), late, street.start(3, late.first_s + 1800))
    assert [past.round for past in memory.past] == [2, 3]
    assert refuse_start(memory, street.start(4, FIRST_S), GROUP) == Objection(Reason.STALE)
    assert refuse_ring(memory, ring_round(street, 4, FIRST_S)) == Objection(Reason.STALE)


def test_a_sum_of_several_intervals_is_kept_as_long_as_one_of_them_can_be_summed(street):
    """And a day longer, since it stands against what is near it."""
    memory = summed(MeterMemory(), street.start(1, FIRST_S, 48), street.start(2, FIRST_S + FORGET_S + 1800))
    assert refuse_start(memory, street.start(3, FIRST_S), GROUP) == Objection(Reason.STALE)
    memory = summed(memory, street.start(3, FIRST_S + FORGET_S + 3600))
    again = street.start(4, FIRST_S + 2 * 1800)
    assert refuse_start(memory, again, GROUP) == Objection(Reason.INTERVAL_SPENT, earlier=1)
    later = street.start(4, FIRST_S + DAY_S)
    assert refuse_start(memory, later, bytes(HASH_BYTES)) == Objection(Reason.OTHER_GROUP, earlier=1)


def test_a_void_ring_gives_nothing_back(street):
    """The supplier may have had every ciphertext before it called the round void."""
    given = ring_round(street, 1, FIRST_S)
    street.meters[0].memory = remembering_ring(MeterMemory(), given)
    street.step(0, street.notice, lambda _: None)
    void = RoundVoid(street.reader.record("void", VoidArgument(1, Reason.TIMED_OUT)))
    assert street.step(0, void, lambda _: None).message is None
    assert ask(street, street.start(2, FIRST_S)) == Declined(2, Reason.INTERVAL_SPENT, earlier=1)


def test_many_rings_push_nothing_out(street):
    """A ring needs no reading to be remembered: times can be made up."""
    memory = summed(MeterMemory(), street.start(1, FIRST_S))
    late_s = FIRST_S + 3 * DAY_S
    one = remembering_ring(memory, ring_round(street, 2, late_s)).past[-1]
    made_up = (
        msgspec.structs.replace(one, first_s=late_s + 1800 * (number % 1500), slots=1 + number // 1500)
        for number in range(PAST_MAX - 1)
    )
    full = msgspec.structs.replace(memory, past=(*memory.past, *made_up))
    assert refuse_ring(full, ring_round(street, 3, late_s)) is None, "one that it knows"
    assert refuse_ring(full, ring_round(street, 3, late_s, 9)) == Objection(Reason.OVER_QUOTA)
    assert remembering_ring(full, ring_round(street, 3, late_s, 9)).past[0] == memory.past[0]


def test_rings_alone_go_on_for_ever(street):
    """They forget each other, and what they forget is no masked sum's any more."""
    memory = MeterMemory()
    for number in range(1, 60):
        start = ring_round(street, number, FIRST_S + DAY_S * number)
        assert refuse_ring(memory, start) is None
        memory = remembering_ring(memory, start)
    assert len(memory.past) < 45
    assert refuse_start(memory, street.start(99, FIRST_S + DAY_S), GROUP) == Objection(Reason.STALE)
    assert refuse_ring(memory, ring_round(street, 99, FIRST_S + DAY_S)) is None


def test_a_ring_of_one_interval_does_not_take_the_place_of_one_of_many(street):
    memory = remembering_ring(MeterMemory(), ring_round(street, 1, FIRST_S, 4))
    memory = remembering_ring(memory, ring_round(street, 2, FIRST_S))
    third = street.start(3, FIRST_S + 3 * 1800)
    assert refuse_start(memory, third, GROUP) == Objection(Reason.INTERVAL_SPENT, earlier=1)
    assert freed(freed(memory, 1), 2) == memory
