"""Which reports count: every reason that the contract gives (protocol 2.5, 3)."""

import pytest

from bcami.contract.guard import guard_key
from bcami.model.reasons import Reason
from tests.unit.contract.world import World, meter, reporting_meter, signing_key


@pytest.fixture
def world():
    return World()


@pytest.fixture
def party(world):
    return reporting_meter(world)


def both(world, tx):
    return world.check(tx), world.execute(tx).reason


@pytest.mark.parametrize("readings", [1, 48, 336])
def test_valid_and_nothing_is_kept_but_the_guard(world, party, readings):
    execution = world.execute(party.report(1, 1, readings=readings))
    assert execution.reason is Reason.VALID
    assert set(execution.writes) == {guard_key(party.hid, 1)}


@pytest.mark.parametrize("length", [0, 20, 35, 37, 20 + 16 * 337])
def test_length(world, party, length):
    tx = world.transaction("usage", "report", party.hid, 1, 1, bytes(length), [party.keys[1]])
    assert both(world, tx) == (Reason.BAD_ARGUMENT, Reason.BAD_ARGUMENT)


def test_unknown_hid(world, party):
    other = meter(world, "other")
    other.keys[1] = signing_key("pr")
    assert both(world, other.report(1, 1)) == (Reason.UNKNOWN_HID, Reason.UNKNOWN_HID)


def test_enrolled_without_a_session(world, party):
    other = meter(world, "other")
    other.keys[1] = signing_key("pr")
    assert world.submit(world.enrol(other)) is Reason.VALID
    assert world.check(other.report(1, 1)) is Reason.UNKNOWN_SESSION


@pytest.mark.parametrize("session", [0, 2])
def test_unknown_session(world, party, session):
    party.keys[session] = party.keys[1]
    assert both(world, party.report(session, 7)) == (Reason.UNKNOWN_SESSION, Reason.UNKNOWN_SESSION)


def test_register_is_a_barrier(world, party):
    """Protocol 2.6: what has no receipt by then is sealed again in the new session."""
    late = party.report(1, 2)
    assert world.submit(party.report(1, 1)) is Reason.VALID
    world.time_ms += 2_000
    assert world.submit(party.register(2)) is Reason.VALID
    assert both(world, late) == (Reason.SESSION_CLOSED, Reason.SESSION_CLOSED)
    assert world.submit(party.report(2, 1)) is Reason.VALID
    assert both(world, party.report(1, 3)) == (Reason.SESSION_CLOSED, Reason.SESSION_CLOSED)


def test_key_of_the_former_session(world, party):
    former = party.keys[1]
    world.time_ms += 2_000
    assert world.submit(party.register(2)) is Reason.VALID
    party.keys[2] = former
    assert world.check(party.report(2, 1)) is Reason.BAD_SIGNATURE


def test_enrolment_key_does_not_report(world, party):
    party.keys[1] = party.enrolment
    assert world.check(party.report(1, 1)) is Reason.BAD_SIGNATURE


def test_period_and_its_grace(world, party):
    world.time_ms += 1_000
    assert world.submit(world.open_period(2)) is Reason.VALID
    world.time_ms += world.genesis.parameters.period_grace_ms - 1
    assert world.submit(party.report(1, 1)) is Reason.VALID
    world.time_ms += 1
    assert world.submit(party.report(1, 2)) is Reason.PERIOD_EXPIRED
    assert world.submit(party.register(2, period=2)) is Reason.VALID
    assert world.submit(party.report(2, 1)) is Reason.VALID


def test_reordering_loses_nothing_and_a_replay_adds_nothing(world, party):
    transactions = [party.report(1, number) for number in (5, 1, 9, 3, 1024, 2)]
    assert [world.submit(tx) for tx in transactions] == [Reason.VALID] * 6
    assert [world.execute(tx).reason for tx in transactions] == [Reason.REPLAY] * 6
    assert world.submit(party.report(1, 1024 + 1023)) is Reason.VALID
    assert world.execute(party.report(1, 1023)).reason is Reason.SEQUENCE_TOO_OLD
