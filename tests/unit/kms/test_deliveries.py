"""Deliveries: deadlines, repetition in portions, status for each meter, and a limit on what is kept."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bcami.kms import HardenedProfile, Step, deliveries, groups
from bcami.kms.deliveries import DeliveryStatus, bitmap, numbers_in
from bcami.kms.groups import PROJECTS_OF_METER_MAX
from bcami.kms.hardened import header_of
from bcami.kms.messages import (
    DOWN_CODEC,
    DOWN_CONTENTS,
    UP_CODEC,
    BootstrapRequest,
    CatchUp,
    ControlAction,
    DeliveryId,
    Envelope,
    JoinProject,
    Pricing,
    PublishProject,
    RemoteControl,
)
from bcami.kms.records import CHANGES, DELIVERIES, RECENT_MAX, TAKEN
from bcami.model.reasons import Reason
from tests.unit.kms.network import SCOPE, MeterHost, Network

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
    delivery = network.server.summaries(network.now_ms)[-1].id
    assert list(network.server.deliveries.meters(delivery, network.now_ms)) == [
        (meter.hid, status, latency)
        for meter, status, latency in zip(
            network.meters, ["delivered", "delivered", "late"], [2_000, 4_000, 6_000], strict=True
        )
    ]
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


def contents_for(network: Network, meter: MeterHost, since: int) -> list[object]:
    """Return what the MDMS sent to a meter by unicast, as its meter opens it."""
    opened = []
    channel = meter.keys.record.unicast
    assert channel is not None
    for data in network.seen_down[since:]:
        message = DOWN_CODEC.decode(data)
        if isinstance(message, Envelope) and message.party == meter.hid:
            header = header_of(message)
            key, nonce = HardenedProfile(SCOPE).session(channel.key, header)
            opened.append(DOWN_CONTENTS.decode(AESGCM(key).decrypt(nonce, message.body, header)))
    return opened


def test_a_meter_that_comes_late_learns_of_projects_and_prices_by_one_unicast() -> None:
    network = Network(2)
    network.publish(1)
    network.publish(2, excludes=(1,))
    past = Pricing(0, 1800, (1,))
    old, new = (Pricing(network.now_ms // 1000, 1800, (price,)) for price in (1, 2))
    for payload in (past, old, new):
        network.send(payload, group=0)
        network.send(payload, group=1)
    network.send(CONTROL, group=0)
    network.flow()
    late = network.add_meter()
    sent = len(network.seen_down)
    network.now_ms += 60_000
    network.do(network.server.enrol([late.identity], network.now_ms, network.entropy()))
    network.tell_epoch(late)
    network.flow()
    told = [PublishProject(1, "project 1", ()), PublishProject(2, "project 2", (1,)), new]
    assert [event.payload for event in late.accepted] == told
    (catch_up,) = contents_for(network, late, sent)
    assert isinstance(catch_up, CatchUp)
    assert [delivery.payload for delivery in catch_up.deliveries] == told
    ups = [UP_CODEC.decode(data) for data in network.seen_up if data]
    assert sum(isinstance(message, BootstrapRequest) and message.hid == late.hid for message in ups) == 1
    assert sum(isinstance(message, Envelope) and message.party == late.hid for message in ups) == 2, (
        "a confirmation, and one acknowledgement of everything"
    )
    for summary in network.server.summaries(network.now_ms):
        assert summary.statuses["waiting"] == 0
        assert summary.latency_ms_max == 0, "counted from when the meter came"
    network.wait()
    assert not network.down


def test_a_meter_that_was_offline_learns_everything_that_waits_by_one_unicast() -> None:
    network = Network(2)
    away = network.meters[0]
    network.publish(1)
    for _ in range(3):
        network.send(PRICE, group=0)
        network.send(CONTROL, hid=away.hid)
    network.down.clear()
    network.restart_server()
    sent = len(network.seen_down)
    network.flow()
    (catch_up,) = contents_for(network, away, sent)
    assert isinstance(catch_up, CatchUp)
    assert len(catch_up.deliveries) == 6
    assert len(away.accepted) == 7


def test_more_than_one_unicast_holds_goes_into_several() -> None:
    network = Network(1)
    away = network.meters[0]
    for _ in range(150):
        network.send(CONTROL, hid=away.hid)
    network.down.clear()
    network.restart_meter(away)
    sent = len(network.seen_down)
    network.flow()
    told = contents_for(network, away, sent)
    assert [len(item.deliveries) for item in told if isinstance(item, CatchUp)] == [64, 64, 22]
    assert len(away.accepted) == 150


def test_who_joins_a_project_learns_of_its_prices_in_force() -> None:
    network = Network(2)
    network.publish(1)
    meter = network.meters[0]
    current = Pricing(network.now_ms // 1000, 1800, (7,))
    network.send(current, group=1)
    network.ask(meter, JoinProject(1))
    network.flow()
    assert [event.payload for event in meter.accepted] == [PublishProject(1, "project 1", ()), current]
    network.restart_server()
    network.flow()
    assert statuses(network) == {"delivered": 1}, "also what was addressed later is durable"


def test_what_newcomers_are_told_stays_when_others_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "KEPT_MAX", 3)
    network = Network(1)
    network.publish(1)
    for _ in range(5):
        network.send(CONTROL, group=0)
        network.flow()
    late = network.add_meter()
    network.do(network.server.enrol([late.identity], network.now_ms, network.entropy()))
    network.tell_epoch(late)
    network.flow()
    assert [event.payload for event in late.accepted] == [PublishProject(1, "project 1", ())]


def test_what_newcomers_are_told_takes_no_room_from_what_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "KEPT_MAX", 2)
    monkeypatch.setattr(deliveries, "STATUSES_MAX", 3)
    network = Network(2)
    for project in (1, 2, 3):
        network.publish(project)
    for _ in range(3):
        network.send(CONTROL, hid=network.meters[0].hid)
    kept = [summary.id.number for summary in network.server.summaries(network.now_ms)]
    assert kept == [1, 2, 3, 5, 6]


def test_only_so_many_projects_are_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "PROJECTS_MAX", 2)
    network = Network(1)
    for project in (1, 2, 3):
        network.publish(project)
    assert network.refused == [Reason.OVER_QUOTA]


def test_a_join_that_was_promised_survives_a_crash_before_the_period_ends() -> None:
    network = Network(2, changes_wait=True)
    network.publish(1)
    joins, stays = network.meters
    network.do(network.server.change(stays.hid, 1, network.now_ms, network.entropy(), join=True))
    network.do(network.server.end_period(network.now_ms, network.entropy()))
    network.ask(joins, JoinProject(1))
    network.do(network.server.change(stays.hid, 1, network.now_ms, network.entropy(), join=False))
    network.flow()
    assert network.store.rows(CHANGES)
    network.restart_server()
    network.flow()
    assert (set(joins.keys.groups), set(stays.keys.groups)) == ({0, 1}, {0})
    assert not network.store.rows(CHANGES)


def test_a_meter_that_was_removed_before_an_epoch_opens_is_in_no_group_after_it() -> None:
    network = Network(2)
    network.send(CONTROL, group=0)
    network.down.clear()
    network.server = network._made()
    network.remove(network.meters[0])
    network.restart_server()
    network.flow()
    assert network.server.groups.audience(0) == [network.meters[1].hid]
    assert statuses(network) == {"delivered": 1}, "and nothing waits for it"


def flood(network: Network, meter: MeterHost) -> None:
    """Have a meter take so many messages that it forgets every id that it knew before."""
    for _ in range(RECENT_MAX + 1):
        network.send(CONTROL, hid=meter.hid)
        network.flow()


def test_who_joins_after_more_messages_than_it_remembers_learns_the_prices_in_force() -> None:
    network = Network(2)
    network.publish(1)
    early, late = network.meters
    network.ask(early, JoinProject(1))
    network.flow()
    prices = Pricing(network.now_ms // 1000, 1_800, (1,) * 48)
    network.send(prices, group=1)
    network.flow()
    identity = network.server.summaries(network.now_ms)[-1].id
    flood(network, late)
    network.ask(late, JoinProject(1))
    network.flow()
    assert late.refused == []
    assert [event.payload for event in late.accepted].count(prices) == 1
    summary = network.server.deliveries.summary(identity, network.now_ms)
    assert summary is not None
    assert (summary.statuses["delivered"], summary.statuses["expired"]) == (2, 0)
    assert not network.do(network.server.tick(network.now_ms + 10**9)).sends


def test_who_did_not_hear_what_stands_takes_it_however_old_it_is_unless_it_has_a_newer_one() -> None:
    network = Network(1)
    (meter,) = network.meters
    prices = [Pricing(network.now_ms // 1000, 1_800, (number,)) for number in range(3)]
    network.send(prices[0], group=0)
    network.send(prices[1], group=0)
    network.down.clear()
    flood(network, meter)
    older, newer = [item.id for item in network.server.summaries(network.now_ms)[:2]]
    network.send(prices[2], group=0)
    network.down.clear()
    number = network.server.roll.numbered_by(meter.hid)
    give = {item.id: item for item in network.server.deliveries.waiting(number, network.now_ms)}
    for identity, answer in ((newer, "delivered"), (older, "expired"), (newer, "delivered")):
        step = Step()
        network.server.roll.send(step, meter.hid, give[identity])
        network.do(step)
        network.flow()
        assert network.server.deliveries.status(identity, number, network.now_ms) == answer
    assert [item.payload for item in meter.accepted if isinstance(item.payload, Pricing)] == [prices[1]]


def test_what_is_too_old_for_a_meter_is_said_so_and_not_repeated_for_ever() -> None:
    network = Network(2)
    deaf, other = network.meters
    network.send(CONTROL, group=0)
    network.down = [(meter, data) for meter, data in network.down if meter is other]
    network.flow()
    control = network.server.summaries(network.now_ms)[-1].id
    flood(network, deaf)
    network.wait()
    network.flow()
    assert deaf.refused == [Reason.SEQUENCE_TOO_OLD]
    number = network.server.roll.numbered_by(deaf.hid)
    assert network.server.deliveries.status(control, number, network.now_ms) is DeliveryStatus.EXPIRED
    found = next(item for item in network.server.summaries(network.now_ms) if item.id == control)
    assert found == network.server.deliveries.summary(control, network.now_ms)
    assert network.server.deliveries.summary(DeliveryId(9, 9), network.now_ms) is None
    (newest,) = network.server.deliveries.summaries(network.now_ms, 1)
    assert newest.payload == CONTROL
    assert (found.statuses["delivered"], found.statuses["waiting"], found.statuses["expired"]) == (1, 0, 1)
    told = list(network.server.deliveries.meters(control, network.now_ms))
    assert (deaf.hid, DeliveryStatus.EXPIRED, None) in told
    assert not network.do(network.server.tick(network.now_ms + 10**9)).sends


def test_who_is_away_takes_no_portion_from_those_who_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "RETRIES_AT_ONCE", 2)
    network = Network(4)
    *away, there = network.meters
    network.send(CONTROL, group=0)
    network.send(PRICE, group=0)
    network.down.clear()
    network.now_ms += deliveries.RETRY_MS
    network.do(network.server.tick(network.now_ms, lambda hid: hid == there.hid))
    assert [meter for meter, _ in network.down] == [there, there]
    network.flow()
    assert [item.payload for item in there.accepted] == [CONTROL, PRICE]
    assert not any(meter.accepted for meter in away)


def test_a_meter_takes_part_in_so_many_projects_that_its_keys_go_into_one_bootstrap() -> None:
    network = Network(1)
    (meter,) = network.meters
    for project in range(1, PROJECTS_OF_METER_MAX + 2):
        network.publish(project)
        network.ask(meter, JoinProject(project))
        network.flow()
    assert len(meter.keys.groups) == 1 + PROJECTS_OF_METER_MAX
    assert network.refused == [Reason.OVER_QUOTA]
    network.restart_meter(meter)
    network.settle()
    assert meter.keys.is_confirmed
    assert len(meter.keys.groups) == 1 + PROJECTS_OF_METER_MAX
