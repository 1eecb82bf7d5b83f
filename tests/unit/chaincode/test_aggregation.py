"""Rounds of private aggregation: every reason that the contract gives (protocol 9)."""

import msgspec
import pytest

from bcami.model.aggregation import (
    MEMBERS_PER_PART,
    RING,
    AggregationHeads,
    EnlistArgument,
    MemberName,
    Noise,
    RosterHead,
    RoundView,
    TallyArgument,
    bitmap,
)
from bcami.model.reasons import Reason
from tests.unit.contract.rounds import Street, whole_round
from tests.unit.contract.world import World, reporting_meter

EVERYBODY = set(range(9))


@pytest.fixture
def street() -> Street:
    return Street(World())


@pytest.fixture
def fixed(street) -> Street:
    assert [street.world.submit(tx) for tx in (street.enlist(), street.fix())] == [Reason.VALID] * 2
    return street


@pytest.fixture
def started(fixed) -> Street:
    assert fixed.world.submit(fixed.start(1)) is Reason.VALID
    return fixed


def view(world: World, number: int) -> RoundView:
    return msgspec.msgpack.decode(world.query("aggregation", "round", number.to_bytes(8, "big")), type=RoundView)


def test_whole_rounds():
    world = World()
    for tx, expected in whole_round(world):
        assert world.submit(tx) is expected, tx.function
    shown = view(world, 1)
    assert shown.group == "street"
    assert shown.settlement.contributors == bitmap(set(range(8)), 9)
    assert (shown.result.reason, shown.result.count, shown.result.is_proven) == (Reason.VALID, 8, True)
    assert shown.result.sums == (sum(100 + member for member in range(8)), 7 * sum(range(8)))
    assert shown.result.time_ms == world.time_ms
    assert (view(world, 2).result.reason, view(world, 2).result.sums) == (Reason.TIMED_OUT, ())
    assert not view(world, 3).result.is_proven, "nothing proves what a ring summed"
    heads = msgspec.msgpack.decode(world.query("aggregation", "head", b""), type=AggregationHeads)
    assert heads == AggregationHeads(1, 3)


def test_only_the_utility(street):
    party = street.parties[0]
    argument = EnlistArgument(1, 0, (MemberName(party.hid, 1),))
    tx = street.world.transaction("aggregation", "enlist", party.hid, 1, 1, argument, [party.keys[1]])
    assert street.world.check(tx) is Reason.NOT_AUTHORIZED


class TestRoster:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda names: (*names, names[-1]), Reason.MEMBER_TWICE),
            (lambda names: names[::-1], Reason.MEMBER_TWICE),
            (lambda names: (MemberName(bytes(31) + b"\x01", 1), *names), Reason.UNKNOWN_HID),
            (lambda names: (MemberName(names[0].hid, 2), *names[1:]), Reason.UNKNOWN_SESSION),
        ],
    )
    def test_registered_meters_once_each(self, street, change, reason):
        names = tuple(MemberName(member.hid, member.session) for member in street.members)
        assert street.world.submit(street.enlist(names=change(names))) is reason

    def test_current_sessions_of_customers(self, street):
        party = street.parties[3]
        street.world.time_ms += 10_000
        assert street.world.submit(party.register(2)) is Reason.VALID
        names = tuple(MemberName(one.hid, 1) for one in street.parties)
        assert street.world.submit(street.enlist(names=names)) is Reason.SESSION_CLOSED
        street.world.submit(street.world.revoke(street.parties[4]))
        names = tuple(MemberName(one.hid, 2 if one is party else 1) for one in street.parties)
        assert street.world.submit(street.enlist(names=names)) is Reason.REVOKED_HID

    def test_parts_in_order_and_full_but_the_last(self, street):
        names = tuple(MemberName(member.hid, member.session) for member in street.members)
        assert street.world.submit(street.enlist(1, names[:3])) is Reason.ROSTER_MISMATCH
        assert street.world.submit(street.enlist(0, names[:3])) is Reason.VALID
        assert street.world.submit(street.enlist(1, names[3:])) is Reason.ROSTER_MISMATCH

    def test_a_roster_of_two_parts(self):
        world = World()
        street = Street(world, MEMBERS_PER_PART + 9)
        names = tuple(MemberName(member.hid, member.session) for member in street.members)
        twice = (names[MEMBERS_PER_PART - 1], *names[MEMBERS_PER_PART:])
        assert world.submit(street.enlist(0, names[:MEMBERS_PER_PART])) is Reason.VALID
        assert world.submit(street.enlist(1, twice)) is Reason.MEMBER_TWICE
        assert world.submit(street.enlist(1, names[MEMBERS_PER_PART:])) is Reason.VALID
        assert world.submit(street.fix()) is Reason.VALID
        members = set(range(0, len(names), 2)) | {1}
        assert world.submit(street.start(1)) is Reason.VALID
        assert world.submit(street.settle(1, 0, members, is_final=True)) is Reason.VALID
        first = {member for member in members if member < MEMBERS_PER_PART}
        assert world.submit(street.tally(1, members - first, part=1)) is Reason.VALID
        assert world.submit(street.finish(1, members)) is Reason.NOT_SETTLED
        assert world.submit(street.tally(1, first)) is Reason.VALID
        assert world.submit(street.tally(1, first)) is Reason.STALE
        assert world.submit(street.finish(1, members)) is Reason.VALID
        assert view(world, 1).result.count == len(members)

    def test_too_small(self):
        world = World()
        street = Street(world, 7)
        assert world.submit(street.enlist()) is Reason.VALID
        assert world.submit(street.fix()) is Reason.GROUP_TOO_SMALL

    def test_numbers_rise(self, fixed):
        fixed.roster = 5
        assert fixed.world.submit(fixed.enlist()) is Reason.VALID
        fixed.roster = 4
        assert fixed.world.submit(fixed.enlist()) is Reason.ROUND_NOT_ABOVE

    def test_the_query_tells_how_far_it_got(self, fixed):
        answer = fixed.world.query("aggregation", "roster", (1).to_bytes(8, "big"))
        head = msgspec.msgpack.decode(answer, type=RosterHead)
        assert head == RosterHead("street", 1, 9, fixed.digest, fixed.parties[-1].hid)


class TestStart:
    def test_numbers_rise_over_all_groups(self, started):
        assert started.world.submit(started.start(1)) is Reason.ROUND_NOT_ABOVE

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"roster": 2}, Reason.UNKNOWN_ROSTER),
            ({"roster_digest": bytes(32)}, Reason.ROSTER_MISMATCH),
            ({"first_s": 1801}, Reason.BAD_ARGUMENT),
            ({"reading_max": 0}, Reason.BAD_ARGUMENT),
            ({"mode": RING, "noise": Noise(1, 1, 1)}, Reason.BAD_ARGUMENT),
        ],
    )
    def test_bad_ones(self, fixed, changes, reason):
        assert fixed.world.submit(fixed.start(1, **changes)) is reason


class TestSettle:
    def test_needs_a_round_that_is_open_and_masked(self, started):
        assert started.world.submit(started.settle(2, 0, EVERYBODY, is_final=True)) is Reason.UNKNOWN_ROUND
        assert started.world.submit(started.start(2, RING)) is Reason.VALID
        assert started.world.submit(started.settle(2, 0, EVERYBODY, is_final=True)) is Reason.UNKNOWN_ROUND
        assert started.world.submit(started.claim(1, 9)) is Reason.UNKNOWN_ROUND

    def test_waves_follow_each_other(self, started):
        assert started.world.submit(started.settle(1, 1, EVERYBODY, is_final=False)) is Reason.STALE
        assert started.world.submit(started.settle(1, 0, EVERYBODY, is_final=False)) is Reason.VALID
        assert started.world.submit(started.settle(1, 2, EVERYBODY, is_final=False)) is Reason.STALE

    def test_members_only_and_enough(self, started):
        from bcami.model.aggregation import SettleArgument

        world = started.world
        wide = started.tx("settle", SettleArgument(1, 0, b"\xff\xff", True))
        assert world.submit(wide) is Reason.BAD_ARGUMENT
        long = started.tx("settle", SettleArgument(1, 0, b"\xff\x01\x00", True))
        assert world.submit(long) is Reason.BAD_ARGUMENT
        assert world.submit(started.settle(1, 0, set(range(7)), is_final=True)) is Reason.GROUP_TOO_SMALL


class TestTally:
    @pytest.fixture
    def settled(self, started) -> Street:
        assert started.world.submit(started.settle(1, 0, EVERYBODY, is_final=True)) is Reason.VALID
        return started

    def test_every_signature_counts(self, settled):
        entries = [settled.entry(1, member) for member in range(9)]
        swapped = (entries[1], entries[0], *entries[2:])
        for bad in (swapped, (settled.entry(2, 0), *entries[1:])):
            assert settled.world.submit(settled.tx("tally", TallyArgument(1, 0, bad))) is Reason.BAD_SIGNATURE
        missing = settled.tx("tally", TallyArgument(1, 0, tuple(entries[1:])))
        assert settled.world.submit(missing) is Reason.NOT_A_MEMBER

    def test_parts_of_the_roster_only(self, settled):
        assert settled.world.submit(settled.tally(1, set(), part=1)) is Reason.BAD_ARGUMENT

    def test_no_other_sum(self, settled):
        assert settled.world.submit(settled.tally(1, EVERYBODY)) is Reason.VALID
        for error in (1, -1, 2**40):
            assert settled.world.submit(settled.finish(1, EVERYBODY, error=error)) is Reason.SUM_MISMATCH
        assert settled.world.submit(settled.finish(1, set(range(8)))) is Reason.SUM_MISMATCH
        assert settled.world.submit(settled.finish(1, EVERYBODY)) is Reason.VALID

    def test_a_session_that_ended_meanwhile_still_proves_its_part(self, settled):
        """The roster holds the key that was current when it was fixed."""
        entries = [settled.entry(1, member) for member in range(9)]
        settled.world.time_ms += 10_000
        assert settled.world.submit(settled.parties[0].register(2)) is Reason.VALID
        assert settled.world.submit(settled.tx("tally", TallyArgument(1, 0, tuple(entries)))) is Reason.VALID


def test_claims_are_bounded(fixed):
    assert fixed.world.submit(fixed.start(1, RING)) is Reason.VALID
    assert fixed.world.submit(fixed.claim(1, 10)) is Reason.BAD_ARGUMENT
    assert fixed.world.submit(fixed.claim(1, 7)) is Reason.GROUP_TOO_SMALL
    assert fixed.world.submit(fixed.claim(1, 8)) is Reason.VALID


def test_void_tells_whether_self_masks_may_have_come_off(started):
    """A member that was not shown the final set must not take its reading for free."""
    world, everybody = started.world, set(range(9))
    assert world.submit(started.void(1, Reason.TOO_FEW_SHARES)) is Reason.BAD_ARGUMENT
    assert world.submit(started.settle(1, 0, everybody, is_final=True)) is Reason.VALID
    assert world.submit(started.void(1, Reason.TIMED_OUT)) is Reason.BAD_ARGUMENT
    assert world.submit(started.void(1, Reason.ALREADY_REVEALED)) is Reason.VALID


def test_void_says_why(started):
    assert started.world.submit(started.void(1, Reason.VALID)) is Reason.BAD_ARGUMENT
    assert started.world.submit(started.void(2)) is Reason.UNKNOWN_ROUND


def test_queries_of_what_is_not_there(street):
    party = reporting_meter(street.world, "one more")
    assert street.world.query("aggregation", "round", bytes(8)) is Reason.UNKNOWN_ROUND
    assert street.world.query("aggregation", "roster", bytes(8)) is Reason.UNKNOWN_ROSTER
    for function in ("round", "roster", "head"):
        assert street.world.query("aggregation", function, party.hid) is Reason.BAD_ARGUMENT
