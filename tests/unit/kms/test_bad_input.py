"""Every bad input has its own reason, changes nothing and is told as an event, so that it is counted."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bcami.codec import encode
from bcami.kms import Refused
from bcami.kms.messages import (
    DOWN_CODEC,
    UP_CODEC,
    UP_CONTENTS,
    Answer,
    Confirm,
    ControlAction,
    Direction,
    DownPayload,
    Envelope,
    EventKind,
    GroupKeys,
    JoinProject,
    LeaveProject,
    MeterDataCall,
    Mode,
    NodeKey,
    Notification,
    Pricing,
    PublishProject,
    Rekey,
    RemoteControl,
    group_party,
)
from bcami.kms.records import OUTBOX_MAX
from bcami.kms.window import ALL_SEEN, admit
from bcami.model.reasons import Reason
from tests.unit.kms.network import Network

PRICE = Pricing(0, 1800, (1,))
CONTROL = RemoteControl(ControlAction.DISCONNECT, 0, 0, 1)
NOTE = Notification(EventKind.TAMPERED, 1)


def last_down(network: Network) -> Envelope:
    message = DOWN_CODEC.decode(network.down[-1][1])
    assert isinstance(message, Envelope)
    return message


def last_up(network: Network) -> Envelope:
    message = UP_CODEC.decode(network.up[-1])
    assert isinstance(message, Envelope)
    return message


@pytest.fixture
def network() -> Network:
    made = Network(3)
    made.publish(1)
    made.publish(2, excludes=(1,))
    return made


# What a meter may be sent.


def control_for(network: Network) -> Envelope:
    network.send(CONTROL, hid=network.meters[0].hid)
    return last_down(network)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"body": b"x" * 64}, Reason.WRONG_KEY),
        ({"body": b""}, Reason.WRONG_KEY),
        ({"counter": 10}, Reason.WRONG_KEY),
        ({"counter": 1}, Reason.REPLAY),
        ({"version": 9}, Reason.OUT_OF_STEP),
        ({"epoch": 0}, Reason.WRONG_KMS_EPOCH),
        ({"party": bytes(32)}, Reason.UNKNOWN_HID),
        ({"direction": Direction.UP}, Reason.WRONG_MODE),
        ({"mode": Mode.MULTICAST}, Reason.NOT_A_MEMBER),
        ({"sign": bytes(64)}, Reason.MALFORMED),
    ],
)
def test_a_unicast_that_was_tampered_with(network: Network, change: dict[str, object], reason: Reason) -> None:
    meter = network.meters[0]
    envelope = control_for(network)
    before = len(meter.accepted)
    assert network.give(meter, encode(replace(envelope, **change))).refusals == [reason]
    assert len(meter.accepted) == before
    assert not network.give(meter, encode(envelope)).refusals, "and the real one is still good"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"body": b"x" * 64}, Reason.BAD_SIGNATURE),
        ({"counter": 10}, Reason.BAD_SIGNATURE),
        ({"version": 9}, Reason.BAD_SIGNATURE),
        ({"sign": bytes(64)}, Reason.BAD_SIGNATURE),
        ({"epoch": 0}, Reason.WRONG_KMS_EPOCH),
        ({"party": group_party(1)}, Reason.WRONG_MODE),
        ({"party": group_party(1), "mode": Mode.MULTICAST}, Reason.NOT_A_MEMBER),
        ({"mode": Mode.MULTICAST}, Reason.WRONG_MODE),
    ],
)
def test_a_broadcast_that_was_tampered_with(network: Network, change: dict[str, object], reason: Reason) -> None:
    meter = network.meters[2]
    network.send(CONTROL, group=0)
    envelope = last_down(network)
    assert network.give(meter, encode(replace(envelope, **change))).refusals == [reason]
    assert not network.give(meter, encode(envelope)).refusals
    assert network.give(meter, encode(envelope)).refusals == [Reason.REPLAY]


def test_a_message_that_comes_after_its_time_is_not_obeyed(network: Network) -> None:
    meter = network.meters[0]
    network.send(CONTROL, hid=meter.hid, until_ms=network.now_ms + 1_000)
    (held,) = network.down
    network.down.clear()
    network.now_ms += 1_001
    assert network.give(*held).refusals == [Reason.EXPIRED]
    network.flow()
    assert network.server.summaries(network.now_ms)[-1].statuses["expired"] == 1


def test_a_message_too_old_for_the_window(network: Network) -> None:
    meter = network.meters[0]
    late = encode(control_for(network))
    network.down.clear()
    for _ in range(70):
        network.send(CONTROL, hid=meter.hid)
    network.flow()
    assert network.give(meter, late).refusals == [Reason.SEQUENCE_TOO_OLD]


@pytest.mark.parametrize(("payload", "reason"), [(CONTROL, Reason.SEQUENCE_TOO_OLD), (PRICE, Reason.DUPLICATE)])
def test_what_was_taken_long_ago_is_not_taken_again(network: Network, payload: DownPayload, reason: Reason) -> None:
    """The acknowledgement was lost; the repetition comes after 64 others. What stands is not forgotten."""
    meter = network.meters[0]
    network.send(payload, group=0)
    network.give(meter, network.down[0][1])
    network.up.clear()
    network.down.clear()
    for number in range(70):
        network.send(RemoteControl(ControlAction.LIMIT, number, 0, 1), hid=meter.hid)
        network.flow()
    network.wait()
    network.flow()
    assert reason in meter.refused
    assert [event.payload for event in meter.accepted].count(payload) == 1


def test_a_rekeying_that_was_tampered_with(network: Network) -> None:
    for meter in network.meters:
        network.ask(meter, JoinProject(1))
        network.flow()
    network.do(network.server.change(network.meters[2].hid, 1, network.now_ms, network.entropy(), join=False))
    meter, data = next(item for item in network.down if isinstance(DOWN_CODEC.decode(item[1]), Rekey))
    rekey = DOWN_CODEC.decode(data)
    assert isinstance(rekey, Rekey)
    wrap = replace(rekey.wraps[0], sealed=bytes(32))
    for change, reason in (
        ({"version": rekey.version + 1}, Reason.BAD_SIGNATURE),
        ({"wraps": (wrap, *rekey.wraps[1:])}, Reason.BAD_SIGNATURE),
        ({"sign": bytes(64)}, Reason.BAD_SIGNATURE),
        ({"epoch": rekey.epoch + 1}, Reason.WRONG_KMS_EPOCH),
        ({"group": 2}, Reason.NOT_A_MEMBER),
    ):
        assert network.give(meter, encode(replace(rekey, **change))).refusals == [reason]
    assert not network.give(meter, data).refusals
    old = next(item for item in network.seen_down if isinstance(DOWN_CODEC.decode(item), Rekey))
    assert network.give(meter, old).refusals[0] in {Reason.REPLAY, Reason.NOT_A_MEMBER}


# What a meter may send.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"body": b"x" * 64}, Reason.WRONG_KEY),
        ({"counter": 10}, Reason.WRONG_KEY),
        ({"counter": 1}, Reason.REPLAY),
        ({"version": 9}, Reason.OUT_OF_STEP),
        ({"epoch": 0}, Reason.WRONG_KMS_EPOCH),
        ({"party": bytes(32)}, Reason.UNKNOWN_HID),
        ({"direction": Direction.DOWN}, Reason.WRONG_MODE),
        ({"mode": Mode.MULTICAST, "party": group_party(1)}, Reason.MEMBER_CANNOT_SEND),
        ({"mode": Mode.BROADCAST, "party": group_party(0)}, Reason.MEMBER_CANNOT_SEND),
    ],
)
def test_a_request_that_was_tampered_with(network: Network, change: dict[str, object], reason: Reason) -> None:
    network.ask(network.meters[0], NOTE)
    envelope = last_up(network)
    assert network.receive(encode(replace(envelope, **change))).refusals == [reason]
    assert not network.accepted
    assert not network.receive(encode(envelope)).refusals


def test_another_meters_key_is_the_wrong_key(network: Network) -> None:
    network.ask(network.meters[1], NOTE)
    envelope = replace(last_up(network), party=network.meters[0].hid)
    assert network.receive(encode(envelope)).refusals == [Reason.WRONG_KEY]


def test_a_member_that_sends_to_its_own_group(network: Network) -> None:
    meter = network.meters[0]
    held = meter.keys.record.memberships[0]
    profile = network.server._profile
    _, envelope = profile.protect_shared(held.channel, Mode.BROADCAST, group_party(0), b"x", meter.key)
    assert network.receive(encode(envelope)).refusals == [Reason.MEMBER_CANNOT_SEND]
    assert network.give(network.meters[1], encode(envelope)).refusals == [Reason.BAD_SIGNATURE]


def test_a_removed_meter(network: Network) -> None:
    meter = network.meters[0]
    network.ask(meter, NOTE)
    network.remove(meter)
    assert network.receive(network.up[-1]).refusals == [Reason.REVOKED_HID]
    assert network.send(CONTROL, hid=meter.hid).refusals == [Reason.REVOKED_HID]
    assert network.remove(meter).refusals == [Reason.REVOKED_HID]
    step = network.server.change(meter.hid, 1, network.now_ms, network.entropy(), join=True)
    assert step.refusals == [Reason.REVOKED_HID]


def test_contents_that_are_not_a_request(network: Network) -> None:
    meter = network.meters[0]
    profile = network.server._profile
    channel = meter.keys.record.unicast
    assert channel is not None
    for contents in (b"", b"\xc0", encode(Answer(bytes(16), Reason.VALID)), UP_CONTENTS.encode(Confirm(())) + b"\x00"):
        channel, envelope = profile.protect(channel, Direction.UP, meter.hid, contents)
        assert network.receive(encode(envelope)).refusals == [Reason.MALFORMED]


# What an operator, or a meter, may ask for.


@pytest.mark.parametrize(
    ("payload", "target", "reason"),
    [
        (CONTROL, {"hid": bytes(32)}, Reason.UNKNOWN_HID),
        (CONTROL, {"group": 9}, Reason.UNKNOWN_GROUP),
        (CONTROL, {}, Reason.BAD_ARGUMENT),
        (CONTROL, {"group": 0, "hid": bytes(32)}, Reason.BAD_ARGUMENT),
        (PRICE, {"hid": bytes(32)}, Reason.WRONG_MODE),
        (MeterDataCall(0, 1), {"group": 1}, Reason.WRONG_MODE),
        (PublishProject(5, "x", ()), {"group": 1}, Reason.WRONG_MODE),
    ],
)
def test_messages_that_cannot_be_sent(
    network: Network, payload: Pricing, target: dict[str, object], reason: Reason
) -> None:
    before = network.server.counts
    assert network.send(payload, **target).refusals == [reason]
    assert network.server.counts == before
    assert not network.down


def test_projects_that_cannot_be_joined_or_left(network: Network) -> None:
    meter = network.meters[0]
    asked = [
        (JoinProject(9), Reason.UNKNOWN_GROUP),
        (JoinProject(0), Reason.UNKNOWN_GROUP),
        (LeaveProject(0), Reason.UNKNOWN_GROUP),
        (LeaveProject(1), Reason.NOT_A_MEMBER),
        (JoinProject(1), Reason.VALID),
        (JoinProject(1), Reason.ALREADY_MEMBER),
        (JoinProject(2), Reason.INCOMPATIBLE_PROJECT),
        (LeaveProject(1), Reason.VALID),
        (JoinProject(2), Reason.VALID),
        (JoinProject(1), Reason.INCOMPATIBLE_PROJECT),
    ]
    for payload, reason in asked:
        identity = network.ask(meter, payload)
        network.flow()
        assert meter.keys.answers[identity] is reason
    assert [reason for reason in network.refused if reason is not Reason.VALID] == [
        reason for _, reason in asked if reason is not Reason.VALID
    ]
    assert set(meter.keys.groups) == {0, 2}
    step = network.server.publish(1, "again", (), network.now_ms, network.entropy())
    assert step.refusals == [Reason.GROUP_EXISTS]


def test_a_full_outbox_takes_no_more(network: Network) -> None:
    meter = network.meters[0]
    for _ in range(OUTBOX_MAX):
        network.ask(meter, NOTE)
    _, step = meter.keys.request(NOTE, network.now_ms, network.entropy())
    assert step.refusals == [Reason.QUEUE_FULL]
    network.flow()
    assert not meter.keys.record.outbox


# What a network reorders.


def test_a_grant_that_was_overtaken_by_a_dismissal_is_stale(network: Network) -> None:
    meter = network.meters[0]
    for join in (True, False):
        network.do(network.server.change(meter.hid, 1, network.now_ms, network.entropy(), join=join))
    for data in [data for to, data in reversed(network.down) if to is meter]:
        network.give(meter, data)
    assert Reason.STALE in meter.refused
    assert set(meter.keys.groups) == {0}


def test_a_dismissal_that_was_overtaken_by_a_new_grant_is_stale(network: Network) -> None:
    meter = network.meters[0]
    for join in (True, False, True):
        network.do(network.server.change(meter.hid, 1, network.now_ms, network.entropy(), join=join))
    for data in [data for to, data in reversed(network.down) if to is meter]:
        network.give(meter, data)
    assert set(meter.keys.groups) == {0, 1}
    assert meter.keys.groups[1] == network.server.groups.get(1).version


def test_a_meter_that_never_heard_of_its_dismissal_learns_it_at_its_next_check_in(network: Network) -> None:
    meter = network.meters[0]
    network.ask(meter, JoinProject(1))
    network.flow()
    network.do(network.server.change(meter.hid, 1, network.now_ms, network.entropy(), join=False))
    network.down.clear()
    assert set(meter.keys.groups) == {0, 1}
    network.by(meter, meter.keys.check_in(network.now_ms))
    network.flow()
    assert set(meter.keys.groups) == {0}


def test_a_newcomer_takes_nothing_that_was_sent_before_under_the_same_key(network: Network) -> None:
    """The floor of a grant: a meter that restarts gets the group's present key, and no message twice."""
    meter = network.meters[0]
    network.send(PRICE, group=0)
    broadcast = network.down[0][1]
    network.flow()
    network.restart_meter(meter)
    network.flow()
    assert network.give(meter, broadcast).refusals[0] in {Reason.REPLAY, Reason.SEQUENCE_TOO_OLD}


# Bytes from anywhere.


def test_bytes_that_are_no_message(network: Network) -> None:
    meter = network.meters[0]
    good = encode(control_for(network))
    for data in (b"", b"\xc0", b"\x91\xc0", good[:-1], good + b"\x00", bytes(100_000), b"\x9f" * 5_000):
        assert network.give(meter, data).refusals == [Reason.MALFORMED]
        assert network.receive(data).refusals == [Reason.MALFORMED]


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything(data: bytes) -> None:
    network = _SHARED[0]
    for step in (network.receive(data), network.give(network.meters[0], data)):
        assert all(isinstance(event, Refused) for event in step.events)
        assert not step.writes


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), up=st.booleans())
def test_no_altered_message_is_taken(place: int, bit: int, up: bool) -> None:
    network, down_data, up_data = _SHARED
    altered = bytearray(up_data if up else down_data)
    altered[place % len(altered)] ^= 1 << bit
    step = network.receive(bytes(altered)) if up else network.give(network.meters[0], bytes(altered))
    assert step.events
    assert all(isinstance(event, Refused) for event in step.events)


def _shared() -> tuple[Network, bytes, bytes]:
    network = Network(2)
    network.send(CONTROL, group=0)
    network.ask(network.meters[0], NOTE)
    found = network.down[0][1], network.up[0]
    network.down.clear()
    network.up.clear()
    return network, *found


_SHARED = _shared()


# The window.


@given(st.lists(st.integers(1, 200), max_size=80))
def test_the_window_takes_each_counter_once_and_never_one_that_it_cannot_tell(counters: list[int]) -> None:
    high, seen, taken = 0, 0, set[int]()
    for counter in counters:
        result = admit(high, seen, counter)
        if isinstance(result, Reason):
            assert counter in taken or high - counter > 63
            assert result is (Reason.SEQUENCE_TOO_OLD if high - counter > 63 else Reason.REPLAY)
        else:
            assert counter not in taken
            taken.add(counter)
            high, seen = result
            assert high == max(taken)


def test_a_window_with_a_floor_takes_only_what_is_above_it() -> None:
    assert all(isinstance(admit(10, ALL_SEEN, counter), Reason) for counter in range(11))
    assert admit(10, ALL_SEEN, 2**63 - 1) == (2**63 - 1, 0)
    assert admit(2**63 - 1, 0, 1) is Reason.SEQUENCE_TOO_OLD


# Names.


def test_every_reason_of_the_kms_has_been_seen_here() -> None:
    """A reason that nothing can cause explains nothing."""
    from pathlib import Path

    here = Path(__file__).parent
    tests = "".join(
        path.read_text() for path in (*here.glob("test_*.py"), *(here.parents[1] / "paper").glob("test_kms*"))
    )
    reasons = list(Reason)
    first, last = reasons.index(Reason.WRONG_KEY), reasons.index(Reason.INCOMPATIBLE_PROJECT)
    for reason in itertools.islice(reasons, first, last + 1):
        assert f"Reason.{reason.name}" in tests


def test_a_grant_holds_no_key_in_its_repr(network: Network) -> None:
    record = network.meters[0].keys.record
    keys = [held.channel.key for held in record.memberships]
    for shown in (
        repr(record),
        repr(record.memberships[0]),
        repr(record.unicast),
        str(network.server.roll.get(network.meters[0].hid)),
    ):
        assert not any(repr(key)[2:-1] in shown or key.hex() in shown for key in keys)
    assert "secret" in repr(GroupKeys(0, 1, 4, 1, 0, b"", (NodeKey(0, bytes(16)),)))
