"""What a meter remembers of standing messages: the newest of each topic, and a floor when there were too many."""

import pytest

from bcami.kms import standing
from bcami.kms.messages import ControlAction, Delivery, DeliveryId, DownPayload, Pricing, PublishProject, RemoteControl
from bcami.kms.records import METER_KEYS, PROJECTS_MAX, RECENT_MAX, STANDING_MAX, MeterKeysRecord
from bcami.kms.standing import take, topic_of
from bcami.model.reasons import Reason

PRICE = Pricing(0, 1800, (1,))
CONTROL = RemoteControl(ControlAction.LIMIT, 500, 0, 1)
NOW_MS = 1_000


def delivery(number: int, payload: DownPayload = CONTROL, group: int | None = 0, until_ms: int = NOW_MS) -> Delivery:
    return Delivery(DeliveryId(1, number), 0, until_ms, payload, group)


def after(record: MeterKeysRecord, *deliveries: Delivery) -> MeterKeysRecord:
    for item in deliveries:
        taken = take(record, item, NOW_MS)
        assert not isinstance(taken, Reason)
        record = taken
    return record


def test_topics() -> None:
    assert topic_of(CONTROL, 0) is None
    assert topic_of(PRICE, None) is None
    assert len({topic_of(PRICE, 0), topic_of(PRICE, 1), topic_of(PublishProject(1, "p", ()), 0)}) == 3


def test_an_old_message_is_taken_once_when_it_is_the_newest_of_its_topic() -> None:
    record = after(MeterKeysRecord(), *(delivery(number) for number in range(100, 101 + RECENT_MAX)))
    assert take(record, delivery(7), NOW_MS) is Reason.SEQUENCE_TOO_OLD
    record = after(record, delivery(7, PRICE))
    assert take(record, delivery(7, PRICE), NOW_MS) is Reason.DUPLICATE
    assert take(record, delivery(6, PRICE), NOW_MS) is Reason.SEQUENCE_TOO_OLD
    assert take(record, delivery(6, PRICE, 1, until_ms=NOW_MS - 1), NOW_MS) is Reason.EXPIRED
    record = after(record, delivery(6, PRICE, 1), delivery(5, PublishProject(1, "p", ())), delivery(8, PRICE))
    assert len(record.taken) == RECENT_MAX


def test_within_the_window_an_older_one_is_taken_too() -> None:
    record = after(MeterKeysRecord(), delivery(2, PRICE), delivery(1, PRICE))
    assert record.standing == ((0, DeliveryId(1, 2)),)


def test_too_many_topics_are_forgotten_oldest_first_and_taken_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "STANDING_MAX", 2)
    monkeypatch.setattr(standing, "RECENT_MAX", 1)
    record = after(MeterKeysRecord(), *(delivery(10 + group, PRICE, group) for group in range(4)))
    assert record.standing == ((4, DeliveryId(1, 12)), (6, DeliveryId(1, 13)))
    assert record.standing_floor == DeliveryId(1, 11)
    for group in range(4):
        assert isinstance(take(record, delivery(10 + group, PRICE, group), NOW_MS), Reason)
    assert take(record, delivery(11, PRICE, 7), NOW_MS) is Reason.SEQUENCE_TOO_OLD


def test_all_topics_of_all_projects_go_into_a_record() -> None:
    topics = tuple((topic, DeliveryId(2**40, 2**40 + topic)) for topic in range(STANDING_MAX))
    assert max(topic for topic, _ in topics) == 2 * PROJECTS_MAX + 1
    stored = METER_KEYS.encode(MeterKeysRecord(standing=topics))
    assert METER_KEYS.decode(stored).standing == topics
    assert len(stored) < 32_000
