"""Deliveries: deadlines, repetition in portions, status for each meter, and a limit on what is kept."""

import pytest

from bcami.kms import deliveries
from bcami.kms.deliveries import DeliveryStatus, bitmap, numbers_in
from bcami.kms.messages import ControlAction, Pricing, RemoteControl
from bcami.kms.records import DELIVERIES, TAKEN
from tests.unit.kms.network import Network

PRICE = Pricing(0, 1800, (1,))
CONTROL = RemoteControl(ControlAction.LIMIT, 500, 0, 1)


def statuses(network: Network) -> dict[str, int]:
    summary = network.server.summaries(network.now_ms)[-1]
    return {status.value: count for status, count in summary.statuses.items() if count}


def test_latency_counts_against_the_deadline_of_table_1() -> None:
    network = Network(3)
    network.send(CONTROL, group=0)
    for meter, data in network.down:
        network.now_ms += 2_000
        network.give(meter, data)
    network.down.clear()
    network.flow()
    assert statuses(network) == {"delivered": 2, "late": 1}
    assert sorted((event.latency_ms, event.in_time) for event in network.delivered) == [
        (2_000, True),
        (4_000, True),
        (6_000, False),
    ]
    assert [event.in_time for meter in network.meters for event in meter.accepted] == [True, True, False]
    summary = network.server.summaries(network.now_ms)[-1]
    assert (summary.latency_ms_max, summary.deadline_ms) == (6_000, 5_000)


def test_who_did_not_hear_it_gets_it_again_by_unicast_and_once() -> None:
    network = Network(3)
    network.send(PRICE, group=0)
    deaf, *others = network.meters
    network.down = [(meter, data) for meter, data in network.down if meter is not deaf]
    network.flow()
    assert statuses(network) == {"delivered": 2, "waiting": 1}
    number = network.server.roll.numbered_by(deaf.hid)
    delivery = network.server.summaries(network.now_ms)[-1].id
    assert network.server.deliveries.status(delivery, number, network.now_ms) is DeliveryStatus.WAITING
    network.now_ms += deliveries.RETRY_MS
    step = network.do(network.server.tick(network.now_ms))
    assert len(step.sends) == 1
    network.flow()
    assert [len(meter.accepted) for meter in network.meters] == [1, 1, 1]
    assert statuses(network) == {"delivered": 3}
    assert network.server.deliveries.status(delivery, number, network.now_ms) is DeliveryStatus.DELIVERED
    assert network.server.deliveries.status(delivery, 99, network.now_ms) is None
    assert not network.do(network.server.tick(network.now_ms + 10**9)).sends


def test_repetitions_wait_longer_each_time() -> None:
    network = Network(1)
    network.send(PRICE, group=0)
    network.down.clear()
    times = []
    for second in range(70):
        if network.server.tick(network.now_ms + second * 1_000).sends:
            times.append(second)
    assert times == [2, 6, 14, 30, 62]


def test_many_repetitions_go_out_in_portions_one_tick_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "RETRIES_AT_ONCE", 4)
    network = Network(10)
    network.send(PRICE, group=0)
    network.down.clear()
    network.now_ms += deliveries.RETRY_MS
    counts = [len(network.do(network.server.tick(network.now_ms)).sends) for _ in range(4)]
    assert counts == [4, 4, 2, 0]
    assert len({meter.hid for meter, _ in network.down}) == 10
    network.flow()
    assert statuses(network) == {"delivered": 10}


def test_who_acknowledged_meanwhile_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "RETRIES_AT_ONCE", 1)
    network = Network(3)
    network.send(PRICE, group=0)
    network.now_ms += deliveries.RETRY_MS
    network.server.tick(network.now_ms)
    network.flow()
    assert not network.server.tick(network.now_ms).sends


def test_a_meter_that_was_away_gets_what_waits_when_it_has_keys_again() -> None:
    network = Network(2)
    network.send(PRICE, group=0)
    network.send(CONTROL, hid=network.meters[0].hid)
    network.down.clear()
    network.restart_meter(network.meters[0])
    network.flow()
    assert [event.payload for event in network.meters[0].accepted] == [PRICE, CONTROL]


def test_a_removed_meter_is_waited_for_no_longer() -> None:
    network = Network(2)
    network.send(PRICE, group=0)
    network.down.clear()
    network.remove(network.meters[0])
    assert statuses(network) == {"waiting": 1}


def test_what_is_kept_is_limited_and_leaves_the_store_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "KEPT_MAX", 3)
    network = Network(2)
    network.send(CONTROL, hid=network.meters[0].hid)
    network.down.clear()  # never acknowledged: finished ones go first
    for _ in range(5):
        network.send(PRICE, group=0)
        network.flow()
    kept = [summary.id.number for summary in network.server.summaries(network.now_ms)]
    assert kept == [1, 5, 6]
    assert len(network.store.rows(DELIVERIES)) == 3
    assert len(network.store.rows(TAKEN)) == 4


def test_the_number_of_statuses_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "STATUSES_MAX", 10)
    network = Network(4)
    for _ in range(9):
        network.send(PRICE, group=0)
        network.flow()
    assert len(network.server.summaries(network.now_ms)) == 2
    assert network.server.deliveries._statuses == 8


def test_an_audience_is_a_bit_for_each_meter() -> None:
    for numbers in ([], [1], [7, 8], [1, 2, 64, 1000]):
        assert list(numbers_in(bitmap(numbers))) == numbers
    assert len(bitmap([10_000])) == 1251
