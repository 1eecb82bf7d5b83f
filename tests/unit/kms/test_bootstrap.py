"""protocol.md 8: sealed to the meter's KEM key, signed, bound, confirmed, and an epoch that never falls."""

import pytest
from msgspec.structs import replace

from bcami.codec import encode
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.kms.bootstrap import make_bootstrap, make_request
from bcami.kms.messages import (
    DOWN_CODEC,
    UP_CODEC,
    Bootstrap,
    BootstrapRequest,
    Envelope,
    EventKind,
    GroupKeys,
    JoinProject,
    NodeKey,
    Notification,
    Pricing,
)
from bcami.kms.records import METER_KEYS
from bcami.model.reasons import Reason
from tests.unit.kms.network import SCOPE, START_MS, Network

PRICE = Pricing(0, 1800, (1,))


def waiting() -> tuple[Network, Bootstrap]:
    """A meter that has asked, and the answer that did not reach it yet."""
    network = Network(2)
    meter = network.meters[0]
    network.restart_meter(meter)
    network.receive(network.up.pop())
    _, data = network.down.pop()
    answer = DOWN_CODEC.decode(data)
    assert isinstance(answer, Bootstrap)
    return network, answer


def refusal(network: Network, answer: Bootstrap) -> Reason:
    (reason,) = network.give(network.meters[0], encode(answer)).refusals
    return reason


def test_both_ends_have_the_same_keys_after_it() -> None:
    network, answer = waiting()
    meter = network.meters[0]
    assert not network.give(meter, encode(answer)).refusals
    assert not meter.keys.is_confirmed
    network.flow()
    assert meter.keys.is_confirmed
    theirs = network.server.roll.get(meter.hid)
    assert theirs is not None and theirs.pending is None
    assert theirs.channel is not None and meter.keys.record.unicast is not None
    assert theirs.channel.key == meter.keys.record.unicast.key


def test_old_keys_stay_in_use_until_the_new_ones_are_confirmed() -> None:
    network, _ = waiting()
    theirs = network.server.roll.get(network.meters[0].hid)
    assert theirs is not None and theirs.channel is not None and theirs.pending is not None
    assert theirs.channel.key != theirs.pending.channel.key


@pytest.mark.parametrize("field", ["session", "generation", "nonce", "hid", "epoch", "sealed", "encapsulation"])
def test_every_field_is_bound(field: str) -> None:
    network, answer = waiting()
    value = getattr(answer, field)
    other = value + 1 if isinstance(value, int) else bytes([value[0], value[1] ^ 1]) + value[2:]
    expected = {
        "session": Reason.UNASKED,
        "nonce": Reason.UNASKED,
        "hid": Reason.UNASKED,
        "epoch": Reason.WRONG_KMS_EPOCH,
    }
    assert refusal(network, replace(answer, **{field: other})) is expected.get(field, Reason.BAD_SIGNATURE)


def test_a_node_cannot_plant_keys_of_its_own() -> None:
    """Sealing to a public key needs no secret; only the MDMS's signature tells who did it."""
    network, answer = waiting()
    meter = network.meters[0]
    request = BootstrapRequest(meter.hid, 1, answer.epoch, 0, answer.nonce, bytes(64))
    groups = [GroupKeys(0, 1, 0, 1, 0, b"", (NodeKey(0, bytes(16)),))]
    node = SecretKey.generate(bytes(32))
    planted = make_bootstrap(SCOPE, request, meter.kem.public_key, 5, bytes(16), b"", groups, bytes(32), node)
    assert refusal(network, planted) is Reason.BAD_SIGNATURE


def test_a_bootstrap_for_another_kem_key_does_not_open() -> None:
    network, answer = waiting()
    meter = network.meters[0]
    request = BootstrapRequest(meter.hid, 1, answer.epoch, 0, answer.nonce, bytes(64))
    other = KemSecretKey.generate(bytes(32)).public_key
    sealed = make_bootstrap(SCOPE, request, other, 5, bytes(16), b"", [], bytes(32), network.signer)
    assert refusal(network, sealed) is Reason.WRONG_KEY


def test_a_recorded_bootstrap_is_worthless_also_to_a_meter_from_a_backup() -> None:
    network = Network(2)
    meter = network.meters[0]
    backup = meter.store.snapshot()
    recorded = [data for data in network.seen_down if isinstance(DOWN_CODEC.decode(data), Bootstrap)]
    network.restart_meter(meter, backup)
    network.up.clear()
    for data in recorded:
        (reason,) = network.give(meter, data).refusals
        assert reason is Reason.UNASKED
    network.settle()
    assert meter.keys.is_confirmed


def test_a_second_copy_of_the_answer_is_refused() -> None:
    network, answer = waiting()
    network.give(network.meters[0], encode(answer))
    assert refusal(network, answer) is Reason.UNASKED


def test_a_recorded_request_does_not_disturb_the_keys_in_use() -> None:
    network = Network(2)
    meter = network.meters[0]
    request = next(data for data in network.seen_up if isinstance(UP_CODEC.decode(data), BootstrapRequest))
    assert network.receive(request).refusals == [Reason.REPLAY]
    assert not network.down
    network.send(PRICE, group=0)
    network.flow()
    assert len(meter.accepted) == 1
    assert len(network.delivered) == 2


def test_a_recorded_request_does_not_push_a_fresh_one_aside() -> None:
    network = Network(2)
    meter = network.meters[0]
    recorded = [data for data in network.seen_up if isinstance(UP_CODEC.decode(data), BootstrapRequest)]
    network.restart_meter(meter)
    network.receive(network.up.pop())
    for data in recorded:
        network.receive(data)
    network.flow()
    assert meter.keys.is_confirmed


def test_a_meter_whose_keys_the_mdms_does_not_have_asks_again() -> None:
    network = Network(2)
    meter = network.meters[0]
    network.restart_meter(meter)
    network.receive(network.up.pop())
    network.give(*network.down.pop())
    network.up.clear()
    known = network.server.roll.get(meter.hid)
    assert known is not None
    network.server.roll._by_hid[meter.hid] = replace(known, pending=None)  # as if it had never stored them
    network.settle(10)
    assert meter.keys.is_confirmed


def test_a_meter_that_is_not_answered_confirms_ever_later_and_then_asks_anew() -> None:
    network = Network(1)
    (meter,) = network.meters
    network.restart_meter(meter)
    network.receive(network.up.pop())
    network.give(*network.down.pop())
    network.up.clear()
    start_ms, sent = network.now_ms, []
    while len(sent) < 5:
        network.now_ms += 1_000
        network.by(meter, meter.keys.tick(network.now_ms, network.entropy()))
        sent += [((network.now_ms - start_ms) // 1_000, type(UP_CODEC.decode(data))) for data in network.up]
        network.up.clear()
    assert sent == [*((second, Envelope) for second in (2, 6, 14, 30)), (62, BootstrapRequest)]


def test_the_same_request_gets_the_same_answer() -> None:
    network, answer = waiting()
    request = network.seen_up[-1]
    network.receive(request)
    assert DOWN_CODEC.decode(network.down.pop()[1]) == answer


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"signature": bytes(64)}, Reason.BAD_SIGNATURE),
        ({"nonce": bytes(32)}, Reason.BAD_SIGNATURE),
        ({"hid": bytes(32)}, Reason.UNKNOWN_HID),
        ({"session": 2}, Reason.UNKNOWN_SESSION),
        ({"session": 0}, Reason.SESSION_CLOSED),
        ({"epoch": 0}, Reason.WRONG_KMS_EPOCH),
        ({"epoch": 9}, Reason.WRONG_KMS_EPOCH),
        ({"asked_ms": START_MS + 1_000_000}, Reason.TIMESTAMP_AHEAD),
        ({"asked_ms": START_MS + 2}, Reason.BAD_SIGNATURE),
    ],
)
def test_requests_that_are_not_the_meters_are_refused(change: dict[str, object], reason: Reason) -> None:
    network = Network(2)
    meter = network.meters[0]
    request = make_request(SCOPE, meter.hid, 1, 1, network.now_ms + 1, b"n" * 32, meter.key)
    assert network.receive(encode(replace(request, **change))).refusals == [reason]
    assert not network.down


def test_a_removed_meter_gets_no_keys() -> None:
    network = Network(2)
    meter = network.meters[0]
    network.remove(meter)
    network.restart_meter(meter)
    assert network.receive(network.up.pop()).refusals == [Reason.REVOKED_HID]


def test_the_epoch_never_falls_at_the_meter_nor_at_the_mdms() -> None:
    network = Network(2)
    network.open_epoch()
    network.flow()
    meter = network.meters[0]
    old = SecretKey.generate(bytes(32)).public_key
    assert meter.keys.record.epoch == 2
    for epoch in (0, 1, 2):
        step = meter.keys.epoch_opened(epoch, old, network.now_ms, network.entropy())
        assert step.refusals == [Reason.EPOCH_NOT_ABOVE]
        assert network.server.open_epoch(epoch, network.signer, network.now_ms, network.entropy()).refusals == [
            Reason.EPOCH_NOT_ABOVE
        ]
    stored = METER_KEYS.decode(dict(meter.store.rows(b"kms"))[meter.hid])
    assert stored.epoch == 2


def test_telling_the_same_epoch_again_changes_nothing() -> None:
    network = Network(2)
    before = network.meters[0].keys.record
    network.tell_epoch(network.meters[0])
    assert network.meters[0].keys.record == before


def test_a_new_session_brings_keys_under_its_own_kem_key() -> None:
    network = Network(2)
    meter = network.meters[0]
    meter.session, meter.kem = 2, KemSecretKey.generate(b"session 2".ljust(32))
    network.do(network.server.enrol([meter.identity], network.now_ms, network.entropy()))
    network.by(meter, meter.keys.session_opened(2, meter.key, meter.kem, network.now_ms, network.entropy()))
    network.flow()
    assert meter.keys.is_confirmed
    assert network.server.counts.meters == 2


def test_before_an_epoch_is_open_the_mdms_sends_nothing() -> None:
    network = Network(2)
    network.server = network._made()
    meter = network.meters[0]
    network.restart_meter(meter)
    assert network.receive(network.up.pop()).refusals == [Reason.NOT_READY]
    assert network.send(PRICE, group=0).refusals == [Reason.NOT_READY]
    assert not network.down


def test_lost_messages_are_repeated_until_the_keys_are_confirmed() -> None:
    network = Network(2)
    meter = network.meters[0]
    network.restart_meter(meter)
    for queue in (network.up, network.down, network.up, network.down):  # request, bootstrap, confirm, confirmed
        while not queue:
            if network.up:
                network.receive(network.up.pop(0))
            elif network.down:
                network.give(*network.down.pop(0))
            else:
                network.wait()
        queue.clear()
    assert not meter.keys.is_confirmed
    network.settle()
    assert meter.keys.is_confirmed


def test_a_request_without_an_answer_is_repeated_ever_later() -> None:
    network = Network(1)
    meter = network.meters[0]
    network.restart_meter(meter)
    times = [
        second for second in range(200) if meter.keys.tick(network.now_ms + 1_000 * second, network.entropy()).sends
    ]
    assert times == [2, 6, 14, 30, 62, 126, 190]
    network.restart_meter(meter)
    assert meter.keys.tick(network.now_ms + 2_000, network.entropy()).sends, "a new request begins anew"


def test_a_message_up_without_an_answer_is_repeated_ever_later() -> None:
    network = Network(1)
    meter = network.meters[0]
    network.ask(meter, JoinProject(9))
    times = [
        second for second in range(200) if meter.keys.tick(network.now_ms + 1_000 * second, network.entropy()).sends
    ]
    assert times == [2, 4, 8, 16, 32, 64, 128, 192]


def test_between_its_making_and_its_start_a_meter_sends_nothing_under_stored_keys() -> None:
    """The store may be an old backup: a counter would be used twice."""
    network = Network(1)
    (meter,) = network.meters
    meter.keys = meter._made()
    network.ask(meter, Notification(EventKind.TAMPERED, 1))
    network.by(meter, meter.keys.check_in(network.now_ms))
    network.by(meter, meter.keys.tick(network.now_ms + 10**6, network.entropy()))
    assert not network.up
    network.by(meter, meter.keys.start(network.now_ms, network.entropy()))
    network.flow()
    assert [item.payload for item in network.accepted] == [Notification(EventKind.TAMPERED, 1)]
