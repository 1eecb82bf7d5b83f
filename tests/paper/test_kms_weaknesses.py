"""What is wrong with the paper's scheme (notes on the KMS, weaknesses): each attack works on `paper` and not on `hardened`.

The attacker owns the network and, where it says so, one meter.
"""

from collections.abc import Callable
from hashlib import sha256

import pytest
from msgspec.structs import replace

from bcami.codec import encode
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.kms import HardenedProfile, MeterKeys, PaperProfile, Profile
from bcami.kms.messages import (
    DOWN_CODEC,
    DOWN_CONTENTS,
    ControlAction,
    Delivery,
    DeliveryId,
    Direction,
    Envelope,
    EventKind,
    GroupKeys,
    JoinProject,
    Mode,
    NodeKey,
    Notification,
    Pricing,
    RemoteControl,
    group_party,
)
from bcami.kms.records import METER_KEYS, Accepted
from bcami.kms.server import FOREVER_MS
from bcami.model.reasons import Reason
from tests.unit.kms.network import SCOPE, MeterHost, Network, make_profile

PRICE = Pricing(0, 1800, (1_500_000,))
DISCONNECT = RemoteControl(ControlAction.DISCONNECT, 0, 0, 1)
HID = sha256(b"one meter").digest()

Attack = Callable[[str], bool]
"""Carries the attack out on a profile; True when it worked."""


def lose_one_message(profile: str) -> bool:
    """Desynchronisation: counters step on each side; one blocked message and the two ends part for ever."""
    network = Network(2, profile)
    meter = network.meters[0]
    network.send(DISCONNECT, hid=meter.hid)
    network.down.clear()
    for _ in range(5):
        network.send(RemoteControl(ControlAction.CONNECT, 0, 0, 1), hid=meter.hid)
        network.settle(2)
    return not meter.accepted


def miss_one_rekeying(profile: str) -> bool:
    """Rekeying is one message per member, without acknowledgement or catch-up: who was away stays out."""
    network = Network(3, profile, degree=0)
    network.publish(1)
    for meter in network.meters[:2]:
        network.ask(meter, JoinProject(1))
        network.flow()
    away, newcomer = network.meters[0], network.meters[2]
    network.ask(newcomer, JoinProject(1))
    while network.up or network.down:
        network.down = [(meter, data) for meter, data in network.down if meter is not away]
        network.receive(network.up.pop(0)) if network.up else network.give(*network.down.pop(0))
    before = len(away.accepted)
    for _ in range(3):
        network.send(PRICE, group=1)
        network.settle(2)
    return len(away.accepted) == before


def edit_a_reading(profile: str) -> bool:
    """M_i is part of the key: an edit or an estimate on one side, and nothing verifies any more."""

    def end(metered: bytes) -> Profile:
        return HardenedProfile(SCOPE) if profile == "hardened" else PaperProfile(lambda hid: metered)

    mdms, meter = end(b"edited by VEE...."[:16]), end(b"as it was metered"[:16])
    _, envelope = mdms.protect(mdms.unicast(bytes(16), bytes(16), 1, 1), Direction.DOWN, HID, b"data")
    return isinstance(meter.open(meter.unicast(bytes(16), bytes(16), 1, 1), envelope), Reason)


def read_after_the_periodic_refresh(profile: str) -> bool:
    """k <- H(k) never heals: who copied a meter's symmetric keys once computes all later ones."""
    network = Network(2, profile)
    victim = network.meters[0]
    thief = thief_of(victim, profile)
    if profile == "paper":
        network.do(network.server.refresh(network.now_ms))
        for meter in network.meters:
            network.by(meter, meter.keys.refresh())
        thief.refresh()
    else:
        network.open_epoch()
        network.flow()
    first = len(network.seen_down)
    network.send(DISCONNECT, hid=victim.hid)
    network.send(PRICE, group=0)
    network.flow()
    assert len(victim.accepted) == 2
    return reads(thief, network.seen_down[first:], network.now_ms)


def read_after_removal(profile: str) -> bool:
    """No exit from the system: k_0 is known to a removed meter for ever."""
    network = Network(6, profile)
    removed = network.meters[0]
    thief = thief_of(removed, profile)
    network.remove(removed)
    network.settle()
    first = len(network.seen_down)
    network.send(PRICE, group=0)
    network.flow()
    assert all(meter.accepted for meter in network.meters[1:])
    return reads(thief, network.seen_down[first:], network.now_ms)


def forge_a_disconnect(profile: str) -> bool:
    """No source authentication: any meter can send what all meters obey."""
    network = Network(3, profile)
    insider, victim = network.meters[:2]
    forged = as_the_mdms(network, insider, Delivery(DeliveryId(1, 99), network.now_ms, FOREVER_MS, DISCONNECT, 0))
    network.give(victim, encode(forged))
    return any(event.payload == DISCONNECT for event in victim.accepted)


def take_a_broadcast_twice(profile: str) -> bool:
    """Nothing in a message says which one it is: in one session a copy is as good as the original."""
    network = Network(2, profile)
    network.send(DISCONNECT, group=0)
    network.flow()
    victim = network.meters[0]
    assert len(victim.accepted) == 1
    for data in network.seen_down:
        network.give(victim, data)
    return len(victim.accepted) > 1


def take_a_request_twice(profile: str) -> bool:
    """Requests carry no nonce."""
    network = Network(2, profile)
    network.ask(network.meters[0], Notification(EventKind.POWER_LOST, 1))
    request = network.up[-1]
    network.flow()
    network.receive(request)
    return len(network.accepted) > 1


def forge_a_membership(profile: str) -> bool:
    """A recorded join undoes the operator's decision."""
    network = Network(2, profile, changes_wait=True)
    network.publish(1)
    meter = network.meters[0]
    network.ask(meter, JoinProject(1))
    request = network.up[-1]
    network.flow()
    network.do(network.server.change(meter.hid, 1, network.now_ms, network.entropy(), join=False))
    network.receive(request)
    network.do(network.server.end_period(network.now_ms, network.entropy()))
    return bool(network.server.groups.audience(1))


def reflect(profile: str) -> bool:
    """The session key knows no direction: a meter takes its own message for one of the MDMS."""
    end = make_profile(profile)
    after, envelope = end.protect(end.unicast(bytes(16), bytes(16), 1, 1), Direction.UP, HID, b"data")
    return not isinstance(end.open(after, replace(envelope, direction=Direction.DOWN)), Reason)


def see_what_two_messages_have_in_common(profile: str) -> bool:
    """No nonce: question and answer of one session are encrypted alike, and to authenticate the same key is used."""
    end = make_profile(profile)
    channel, question = end.protect(end.unicast(bytes(16), bytes(16), 1, 1), Direction.DOWN, HID, b"price 0015 cent")
    _, answer = end.protect(channel, Direction.UP, HID, b"price 9915 cent", answers=True)
    common = [place for place in range(15) if question.body[place] == answer.body[place]]
    return common == [place for place in range(15) if place not in (6, 7)]


def change_the_header(profile: str) -> bool:
    """No associated data: whose message it is, and of what kind, is not protected."""
    end = make_profile(profile)
    keys = GroupKeys(7, 0, 0, 1, 0, b"" if profile == "hardened" else bytes(16), (NodeKey(0, bytes(16)),))
    signer = SecretKey.generate(bytes(32))
    _, envelope = end.protect_shared(end.shared(keys, 1), Mode.MULTICAST, group_party(7), b"data", signer)
    moved = replace(envelope, mode=Mode.BROADCAST, party=group_party(0))
    return not isinstance(end.open_shared(end.shared(keys, 1), moved, signer.public_key), Reason)


ATTACKS: list[Attack] = [
    lose_one_message,
    miss_one_rekeying,
    edit_a_reading,
    read_after_the_periodic_refresh,
    read_after_removal,
    forge_a_disconnect,
    take_a_broadcast_twice,
    take_a_request_twice,
    forge_a_membership,
    reflect,
    see_what_two_messages_have_in_common,
    change_the_header,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_the_attack_works_on_the_papers_scheme(attack: Attack) -> None:
    assert attack("paper")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_the_attack_is_refused(attack: Attack) -> None:
    assert not attack("hardened")


def test_a_forged_broadcast_is_refused_for_its_signature_and_counted() -> None:
    network = Network(3)
    insider, victim = network.meters[:2]
    forged = as_the_mdms(network, insider, Delivery(DeliveryId(1, 99), network.now_ms, FOREVER_MS, DISCONNECT, 0))
    assert network.give(victim, encode(forged)).refusals == [Reason.BAD_SIGNATURE]


def test_catching_up_after_a_missed_rekeying_takes_one_unicast() -> None:
    network = Network(6)
    network.publish(1)
    for meter in network.meters[:5]:
        network.ask(meter, JoinProject(1))
        network.flow()
    away, leaver = network.meters[:2]
    network.do(network.server.change(leaver.hid, 1, network.now_ms, network.entropy(), join=False))
    network.down = [(meter, data) for meter, data in network.down if meter is not away]
    network.flow()
    network.send(PRICE, group=1)
    sent: list[bytes] = []
    while network.up or network.down:
        if network.up:
            network.receive(network.up.pop(0))
        else:
            meter, data = network.down.pop(0)
            sent += [data] if meter is away else []
            network.give(meter, data)
    assert Reason.OUT_OF_STEP in away.refused
    envelopes = [message for message in map(DOWN_CODEC.decode, sent) if isinstance(message, Envelope)]
    unicasts = [message for message in envelopes if message.mode is Mode.UNICAST]
    assert len(unicasts) == 1  # the group's keys, and the price that was waiting
    assert away.keys.groups[1] == network.server.groups.get(1).version
    assert [event.payload for event in away.accepted][-1] == PRICE


# What an attacker has.


def thief_of(victim: MeterHost, profile: str) -> MeterKeys:
    """Return a machine with a copy of a meter's symmetric keys, and none of its private ones."""
    record = METER_KEYS.decode(METER_KEYS.encode(victim.keys.record))
    other = sha256(b"the thief's own").digest()
    return MeterKeys(
        SCOPE, make_profile(profile), victim.hid, 1, SecretKey.generate(other), KemSecretKey.generate(other), record
    )


def reads(thief: MeterKeys, messages: list[bytes], now_ms: int) -> bool:
    return any(isinstance(event, Accepted) for data in messages for event in thief.receive(data, now_ms).events)


def as_the_mdms(network: Network, insider: MeterHost, delivery: Delivery) -> Envelope:
    """Return what a meter makes of k_0 and everything else that it has."""
    held = next(held for held in insider.keys.record.memberships if held.group == 0)
    profile = network.server._profile
    _, envelope = profile.protect_shared(
        held.channel, Mode.BROADCAST, group_party(0), DOWN_CONTENTS.encode(delivery), insider.key
    )
    return envelope
