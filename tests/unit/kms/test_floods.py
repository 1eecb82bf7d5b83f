"""A meter with good keys that asks for too much: what it gets is bounded, and the others are as before."""

import pytest

from bcami.kms import KeyServer, inbox
from bcami.kms.allowances import (
    BOOTSTRAP_EVERY_S,
    BOOTSTRAPS_BURST,
    CATCH_UPS_MAX,
    CHANGE_EVERY_S,
    CHANGES_BURST,
    CONFIRMATION_EVERY_S,
    CONFIRMATIONS_BURST,
    REQUEST_EVERY_S,
    REQUESTS_BURST,
)
from bcami.kms.messages import (
    IDS_MAX,
    ControlAction,
    EventKind,
    JoinProject,
    LeaveProject,
    MeterData,
    Notification,
    RemoteControl,
    UpPayload,
)
from bcami.kms.records import INBOX
from bcami.model.reasons import Reason
from tests.unit.kms.network import MeterHost, Network

CONNECT = RemoteControl(ControlAction.CONNECT, 0, 0, 1)


def answer_to(network: Network, meter: MeterHost, payload: UpPayload) -> Reason:
    identity = network.ask(meter, payload)
    network.flow()
    return meter.keys.answers[identity]


def confirm(network: Network, meter: MeterHost) -> int:
    """Have a meter confirm its keys; return how many unicasts it is sent for that."""
    before = len(network.seen_down)
    network.by(meter, meter.keys.check_in(network.now_ms))
    network.receive(network.up.pop())
    return len(network.seen_down) - before


def test_confirmations_are_answered_so_often_and_a_meter_that_waits_asks_again() -> None:
    network = Network(2)
    meter, other = network.meters
    network.now_ms += 60_000
    network.send(CONNECT, hid=meter.hid)
    answers = [confirm(network, meter) for _ in range(CONFIRMATIONS_BURST + 20)]
    assert answers == [1] * CONFIRMATIONS_BURST + [0] * 20
    assert network.refused == [Reason.RATE_LIMITED] * 20
    assert confirm(network, other) == 1
    network.down.clear()
    assert not meter.keys.is_confirmed
    network.wait(round(CONFIRMATION_EVERY_S * 1000))
    network.flow()
    assert meter.keys.is_confirmed
    assert len(meter.accepted) == 1
    assert len(network.refused) == 20


def test_one_confirmation_is_answered_with_so_much_and_the_rest_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(1)
    (meter,) = network.meters
    network.now_ms += 60_000
    network.send(CONNECT, hid=meter.hid)
    lacked = network.server.deliveries.waiting(1, network.now_ms) * (IDS_MAX * (CATCH_UPS_MAX + 2))
    monkeypatch.setattr(network.server.deliveries, "waiting", lambda *_: lacked)
    assert confirm(network, meter) == CATCH_UPS_MAX


def test_new_keys_are_drawn_so_often_and_a_repeated_request_costs_none() -> None:
    network = Network(2)
    meter, other = network.meters
    network.now_ms += 1_000_000
    generation = meter.keys.record.generation
    for _ in range(BOOTSTRAPS_BURST + 5):
        network.restart_meter(meter)
        network.receive(network.up.pop())
    assert network.refused == [Reason.RATE_LIMITED] * 5
    assert network.server.roll.numbered(1).generation == generation + BOOTSTRAPS_BURST
    network.restart_meter(other)
    network.flow()
    assert other.keys.is_confirmed
    for _ in range(5):
        network.wait(round(BOOTSTRAP_EVERY_S * 1000))
        network.flow()
    assert meter.keys.is_confirmed
    network.restart_meter(other)
    request = network.up.pop()
    for _ in range(3 * BOOTSTRAPS_BURST):
        network.receive(request)
    network.flow()
    assert other.keys.is_confirmed
    assert network.refused == [Reason.RATE_LIMITED] * 5


def test_a_meter_tells_so_much_at_a_time_and_what_waited_is_taken_later() -> None:
    network = Network(2)
    meter, other = network.meters
    for number in range(REQUESTS_BURST):
        answer_to(network, meter, Notification(EventKind.TAMPERED, number))
    network.ask(meter, Notification(EventKind.TAMPERED, REQUESTS_BURST))
    network.flow()
    assert network.refused == [Reason.RATE_LIMITED]
    assert answer_to(network, other, Notification(EventKind.TAMPERED, 0)) is Reason.VALID
    network.settle(1)
    assert [item.payload.at_s for item in network.accepted if item.hid == meter.hid] == [*range(REQUESTS_BURST + 1)]
    assert not meter.keys.record.outbox


def test_a_meter_joins_and_leaves_so_often_and_the_audit_log_stays_short() -> None:
    network = Network(2)
    network.publish(1)
    meter, other = network.meters
    before = network.server.counts.audit_length
    answers = []
    for turn in range(CHANGES_BURST + 9):
        answers.append(answer_to(network, meter, LeaveProject(1) if turn % 2 else JoinProject(1)))
        network.now_ms += round(REQUEST_EVERY_S * 1000)
    assert answers == [Reason.VALID] * CHANGES_BURST + [Reason.CHANGES_SPENT] * 9
    assert network.refused == [Reason.CHANGES_SPENT] * 9, "which is what the metrics count"
    assert network.server.counts.audit_length == before + CHANGES_BURST
    assert answer_to(network, other, JoinProject(1)) is Reason.VALID
    by_operator = network.server.change(meter.hid, 1, network.now_ms, network.entropy(), join=True)
    assert not network.do(by_operator).refusals
    network.flow()
    network.now_ms += round(CHANGE_EVERY_S * 1000)
    assert answer_to(network, meter, LeaveProject(1)) is Reason.VALID
    assert answer_to(network, meter, JoinProject(1)) is Reason.CHANGES_SPENT


def heard(server: KeyServer) -> list[tuple[bytes, int]]:
    return [(item.hid, item.payload.at_s if isinstance(item.payload, Notification) else -1) for item in server.inbox]


def test_what_one_meter_tells_pushes_out_its_own_and_meter_data_push_out_no_notifications(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbox, "INBOX_OF_METER_MAX", 3)
    monkeypatch.setattr(inbox, "INBOX_MAX", 4)
    network = Network(3)
    first, second, third = network.meters
    answer_to(network, first, Notification(EventKind.TAMPERED, 1))
    for number in range(10):
        answer_to(network, second, Notification(EventKind.POWER_LOST, number))
        answer_to(network, third, MeterData(b"data"))
    expected = [(first.hid, 1)]
    for number in (7, 8, 9):
        expected += [(second.hid, number), (third.hid, -1)]
    assert heard(network.server) == expected
    answer_to(network, third, Notification(EventKind.TAMPERED, 2))
    expected = [*expected[1:], (third.hid, 2)]  # all meters together have a limit too
    assert heard(network.server) == expected
    network.restart_server()
    assert heard(network.server) == expected
    assert len(network.store.rows(INBOX)) == len(expected)
