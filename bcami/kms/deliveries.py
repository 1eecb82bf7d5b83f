"""Messages of Table 1 on their way down: who is to get each, who has it, and what is repeated (KMS D15).

A message for many goes out once under the group's key. Whoever has not acknowledged it after a while, was away, or came
late gets it again by unicast under its own key; the delivery's id keeps it from being taken twice.
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from bcami.kms.messages import TABLE_1, Delivery, DeliveryId, DownPayload
from bcami.kms.records import (
    DELIVERIES,
    DELIVERY,
    TAKEN,
    TAKEN_CODEC,
    Delivered,
    DeliveryRecord,
    Step,
    Taken,
    Write,
)
from bcami.kms.roll import Roll
from bcami.model.signing import u32, u64

RETRY_MS: Final = 2_000
"""First repetition; each further one waits twice as long, up to the limit."""
RETRY_LIMIT_MS: Final = 300_000
RETRIES_AT_ONCE: Final = 1_000
"""Unicasts of one tick: a broadcast that nobody heard is caught up in portions."""
KEPT_MAX: Final = 1_000
"""Deliveries whose status is kept; the oldest ones leave, finished ones first."""
STATUSES_MAX: Final = 500_000
"""Statuses that are kept, one for each meter of each delivery: about 50 MB."""


class DeliveryStatus(StrEnum):
    """What became of a delivery at one meter."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    LATE = "late"
    """Delivered after the deadline of Table 1."""
    EXPIRED = "expired"


class _Open:
    """A delivery with what happened to it."""

    __slots__ = ("attempts", "due", "next_ms", "record", "taken", "waiting")

    def __init__(self, record: DeliveryRecord) -> None:
        self.record = record
        self.waiting: dict[int, None] = dict.fromkeys(numbers_in(record.audience))
        self.taken: dict[int, int] = {}
        self.due: list[int] = []
        """What is left of the round of repetitions that is under way."""
        self.attempts = 0
        self.next_ms = record.sent_ms + RETRY_MS


class Summary(NamedTuple):
    """One delivery as an operator sees it."""

    id: DeliveryId
    payload: DownPayload
    group: int | None
    sent_ms: int
    statuses: dict[DeliveryStatus, int]
    latency_ms_max: int
    deadline_ms: int


class DeliveryBook:
    """All deliveries of one MDMS."""

    def __init__(self, roll: Roll) -> None:
        self._roll = roll
        self._kept: dict[DeliveryId, _Open] = {}
        self._statuses = 0

    def restore(self, records: Iterable[DeliveryRecord], taken: Iterable[tuple[DeliveryId, int, Taken]]) -> None:
        for record in records:
            self._keep(record)
        for delivery, number, row in taken:
            kept = self._kept.get(delivery)
            if kept is not None and kept.waiting.pop(number, 0) is None:
                kept.taken[number] = row.received_ms

    def add(self, step: Step, record: DeliveryRecord) -> Delivery:
        """Note a new delivery; it is the caller's to send it."""
        step.put(DELIVERIES, _key(record.id), DELIVERY, record)
        self._keep(record)
        while len(self._kept) > 1 and (len(self._kept) > KEPT_MAX or self._statuses > STATUSES_MAX):
            self._drop_oldest(step)
        return delivery_of(record)

    def _keep(self, record: DeliveryRecord) -> None:
        kept = self._kept[record.id] = _Open(record)
        self._statuses += len(kept.waiting)

    def taken(self, step: Step, hid: bytes, number: int, delivery: DeliveryId, received_ms: int) -> None:
        """Note a meter's acknowledgement; repeated ones change nothing."""
        kept = self._kept.get(delivery)
        if kept is None or kept.waiting.pop(number, 0) is not None:
            return
        kept.taken[number] = received_ms
        step.put(TAKEN, _key(delivery) + u32(number), TAKEN_CODEC, Taken(received_ms))
        latency = received_ms - kept.record.sent_ms
        step.events.append(Delivered(hid, delivery, latency, latency <= deadline_ms(kept.record.payload)))

    def send_waiting(self, step: Step, number: int, now_ms: int) -> None:
        """Send a meter everything that waits for it: it has keys again."""
        hid = self._roll.numbered(number).hid
        for kept in self._kept.values():
            if number in kept.waiting and now_ms <= kept.record.until_ms:
                self._roll.send(step, hid, delivery_of(kept.record))

    def tick(self, step: Step, now_ms: int) -> None:
        """Repeat what is due, by unicast."""
        budget = RETRIES_AT_ONCE
        for kept in self._kept.values():
            if not kept.waiting or now_ms > kept.record.until_ms:
                continue
            if not kept.due and now_ms >= kept.next_ms:
                kept.due = list(reversed(kept.waiting))
                kept.attempts += 1
                kept.next_ms = now_ms + min(RETRY_LIMIT_MS, RETRY_MS << min(kept.attempts, 16))
            while kept.due and budget:
                number = kept.due.pop()
                if number in kept.waiting:
                    budget -= self._roll.send(step, self._roll.numbered(number).hid, delivery_of(kept.record))

    def forget_meter(self, number: int) -> None:
        """Wait no longer for a meter that was removed."""
        for kept in self._kept.values():
            if kept.waiting.pop(number, 0) is None:
                self._statuses -= 1

    def status(self, delivery: DeliveryId, number: int, now_ms: int) -> DeliveryStatus | None:
        """Return what became of a delivery at one meter, None when it was not for it."""
        kept = self._kept.get(delivery)
        if kept is None:
            return None
        if number in kept.taken:
            return _status_of(kept.record, kept.taken[number])
        if number not in kept.waiting:
            return None
        return DeliveryStatus.EXPIRED if now_ms > kept.record.until_ms else DeliveryStatus.WAITING

    def summaries(self, now_ms: int) -> Iterator[Summary]:
        """Yield all deliveries that are kept, oldest first."""
        for kept in self._kept.values():
            record = kept.record
            statuses = dict.fromkeys(DeliveryStatus, 0)
            for received_ms in kept.taken.values():
                statuses[_status_of(record, received_ms)] += 1
            rest = DeliveryStatus.EXPIRED if now_ms > record.until_ms else DeliveryStatus.WAITING
            statuses[rest] += len(kept.waiting)
            latency = max((received_ms - record.sent_ms for received_ms in kept.taken.values()), default=0)
            yield Summary(
                record.id, record.payload, record.group, record.sent_ms, statuses, latency, deadline_ms(record.payload)
            )

    def _drop_oldest(self, step: Step) -> None:
        others = list(self._kept.values())[:-1]
        oldest = next((kept for kept in others if not kept.waiting), others[0])
        key = _key(oldest.record.id)
        step.writes.append(Write(DELIVERIES, key, None))
        step.writes += [Write(TAKEN, key + u32(number), None) for number in oldest.taken]
        self._statuses -= len(oldest.waiting) + len(oldest.taken)
        del self._kept[oldest.record.id]


def delivery_of(record: DeliveryRecord) -> Delivery:
    return Delivery(record.id, record.sent_ms, record.until_ms, record.payload)


def deadline_ms(payload: DownPayload) -> int:
    """Return the time that Table 1 gives a message."""
    return TABLE_1[type(payload)].deadline_ms


def _status_of(record: DeliveryRecord, received_ms: int) -> DeliveryStatus:
    in_time = received_ms - record.sent_ms <= deadline_ms(record.payload)
    return DeliveryStatus.DELIVERED if in_time else DeliveryStatus.LATE


def _key(delivery: DeliveryId) -> bytes:
    return u64(delivery.epoch) + u64(delivery.number)


def bitmap(numbers: Iterable[int]) -> bytes:
    """Return bytes in which bit i stands for number i."""
    whole = list(numbers)
    bits = bytearray(max(whole, default=0) // 8 + 1)
    for number in whole:
        bits[number >> 3] |= 1 << (number & 7)
    return bytes(bits)


def numbers_in(bits: bytes) -> Iterator[int]:
    for place, byte in enumerate(bits):
        for bit in range(8):
            if byte >> bit & 1:
                yield 8 * place + bit
