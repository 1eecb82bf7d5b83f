"""Messages of Table 1 on their way down: who is to get each, who has it, and what is repeated (KMS D15).

A message for many goes out once under the group's key. Whoever has not acknowledged it after a while, or was away, gets
it again by unicast under its own key; the delivery's id keeps it from being taken twice. Who came late is told what
still holds: every project that was published, and the prices in force. These never leave to make room for others.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from bcami.kms.messages import TABLE_1, Delivery, DeliveryId, DownPayload, Pricing
from bcami.kms.records import (
    ADDRESSED,
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
from bcami.kms.standing import topic_of
from bcami.model.signing import u32, u64

RETRY_MS: Final = 2_000
"""First repetition; each further one waits twice as long, up to the limit."""
RETRY_LIMIT_MS: Final = 300_000
RETRIES_AT_ONCE: Final = 1_000
"""Unicasts of one tick: a broadcast that nobody heard is caught up in portions."""
KEPT_MAX: Final = 1_000
"""Deliveries whose status is kept, beside those that stand; the oldest ones leave, finished ones first."""
STATUSES_MAX: Final = 500_000
"""Statuses of these that are kept, one for each meter of each delivery: about 50 MB."""
_NEVER_MS: Final = 2**63 - 1


class DeliveryStatus(StrEnum):
    """What became of a delivery at one meter."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    LATE = "late"
    """Delivered after the deadline of Table 1."""
    EXPIRED = "expired"
    """The meter does not take it any more: its time is over, or the meter took too many newer ones.

    Of what stands (`bcami.kms.standing`), it has a newer one.
    """


class _Open:
    """A delivery with what happened to it."""

    __slots__ = ("attempts", "due", "next_ms", "passed", "record", "since", "taken", "waiting")

    def __init__(self, record: DeliveryRecord) -> None:
        self.record = record
        self.waiting: dict[int, None] = dict.fromkeys(numbers_in(record.audience))
        self.taken: dict[int, int] = {}
        self.passed: set[int] = set()
        """Meters that cannot tell any more whether they took it; not stored: they say so again."""
        self.since: dict[int, int] = {}
        """When it was addressed to meters that came later."""
        self.due: list[int] = []
        """What is left of the round of repetitions that is under way."""
        self.attempts = 0
        self.next_ms = record.sent_ms + RETRY_MS

    @property
    def statuses(self) -> int:
        return len(self.waiting) + len(self.taken) + len(self.passed)

    def latency_ms(self, number: int, received_ms: int) -> int:
        """Return the time from when it was for this meter to its receipt."""
        return received_ms - self.since.get(number, self.record.sent_ms)

    def status_of(self, number: int, received_ms: int) -> DeliveryStatus:
        in_time = self.latency_ms(number, received_ms) <= deadline_ms(self.record.payload)
        return DeliveryStatus.DELIVERED if in_time else DeliveryStatus.LATE


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

    def restore(
        self,
        records: Iterable[DeliveryRecord],
        taken: Iterable[tuple[DeliveryId, int, Taken]],
        addressed: Iterable[tuple[DeliveryId, int, int]],
    ) -> None:
        for record in records:
            self._keep(record)
        for delivery, number, since_ms in addressed:
            kept = self._kept.get(delivery)
            if kept is not None:
                self._address(kept, number, since_ms)
        for delivery, number, row in taken:
            kept = self._kept.get(delivery)
            if kept is not None and kept.waiting.pop(number, 0) is None:
                kept.taken[number] = row.received_ms
        for meter in self._roll:
            if meter.removed:
                self.forget_meter(meter.number)

    def add(self, step: Step, record: DeliveryRecord) -> Delivery:
        """Note a new delivery; it is the caller's to send it."""
        step.put(DELIVERIES, _key(record.id), DELIVERY, record)
        self._keep(record)
        if len(self._kept) > KEPT_MAX or self._statuses > STATUSES_MAX:
            self._make_room(step, record)
        return delivery_of(record)

    def _keep(self, record: DeliveryRecord) -> None:
        kept = self._kept[record.id] = _Open(record)
        self._statuses += len(kept.waiting)

    def address(self, step: Step, group: int, numbers: Iterable[int], now_ms: int) -> list[Delivery]:
        """Have newcomers of a group told what still holds of what was sent to it; return that, oldest first."""
        newcomers = list(numbers)
        standing = [kept for kept in self._standing(now_ms) if kept.record.group == group]
        for kept in standing:
            for number in newcomers:
                if not (number in kept.waiting or number in kept.taken or number in kept.passed):
                    self._address(kept, number, now_ms)
                    step.writes.append(Write(ADDRESSED, _key(kept.record.id) + u32(number), u64(now_ms)))
        return [delivery_of(kept.record) for kept in standing]

    def _address(self, kept: _Open, number: int, since_ms: int) -> None:
        kept.waiting[number] = None
        kept.since[number] = since_ms
        self._statuses += 1

    def _standing(self, now_ms: int) -> list[_Open]:
        """Return what a newcomer must know: projects, and the newest prices of each group until they end."""
        topics = set()
        found = []
        for kept in reversed(self._kept.values()):
            record = kept.record
            topic = topic_of(record.payload, record.group)
            if topic is None or topic in topics:
                continue
            topics.add(topic)
            if now_ms <= min(record.until_ms, _ends_ms(record.payload)):
                found.append(kept)
        return found[::-1]

    def taken(self, step: Step, hid: bytes, number: int, delivery: DeliveryId, received_ms: int) -> None:
        """Note a meter's acknowledgement; repeated ones change nothing."""
        kept = self._kept.get(delivery)
        if kept is None or kept.waiting.pop(number, 0) is not None:
            return
        kept.taken[number] = received_ms
        step.put(TAKEN, _key(delivery) + u32(number), TAKEN_CODEC, Taken(received_ms))
        latency = kept.latency_ms(number, received_ms)
        step.events.append(Delivered(hid, delivery, latency, latency <= deadline_ms(kept.record.payload)))

    def passed(self, number: int, delivery: DeliveryId) -> None:
        """Wait no longer for a meter to which a delivery is too old; it may have taken it."""
        kept = self._kept.get(delivery)
        if kept is not None and kept.waiting.pop(number, 0) is None:
            kept.passed.add(number)

    def waiting(self, number: int, now_ms: int) -> list[Delivery]:
        """Return everything that waits for a meter, oldest first."""
        return [
            delivery_of(kept.record)
            for kept in self._kept.values()
            if number in kept.waiting and now_ms <= kept.record.until_ms
        ]

    def tick(self, step: Step, now_ms: int, is_there: Callable[[bytes], bool] | None) -> None:
        """Repeat what is due, by unicast: not to who is away, or those would use up every portion."""
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
                hid = self._roll.numbered(number).hid
                if number in kept.waiting and (is_there is None or is_there(hid)):
                    budget -= self._roll.send(step, hid, delivery_of(kept.record))

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
            return kept.status_of(number, kept.taken[number])
        if number in kept.passed:
            return DeliveryStatus.EXPIRED
        if number not in kept.waiting:
            return None
        return DeliveryStatus.EXPIRED if now_ms > kept.record.until_ms else DeliveryStatus.WAITING

    def meters(self, delivery: DeliveryId, now_ms: int) -> Iterator[tuple[bytes, DeliveryStatus, int | None]]:
        """Yield HID, status and latency (ms, once delivered) of each meter that a delivery is for; who waits first."""
        kept = self._kept.get(delivery)
        if kept is None:
            return
        rest = DeliveryStatus.EXPIRED if now_ms > kept.record.until_ms else DeliveryStatus.WAITING
        for number in kept.waiting:
            yield self._roll.numbered(number).hid, rest, None
        for number in kept.passed:
            yield self._roll.numbered(number).hid, DeliveryStatus.EXPIRED, None
        for number, received_ms in kept.taken.items():
            latency = kept.latency_ms(number, received_ms)
            yield self._roll.numbered(number).hid, kept.status_of(number, received_ms), latency

    def summary(self, delivery: DeliveryId, now_ms: int) -> Summary | None:
        """Return one delivery, None when it is not kept."""
        kept = self._kept.get(delivery)
        return None if kept is None else _summary_of(kept, now_ms)

    def summaries(self, now_ms: int, newest: int = KEPT_MAX) -> Iterator[Summary]:
        """Yield so many of the deliveries that are kept, oldest first. Each costs as much as it has meters."""
        for kept in list(self._kept.values())[-newest:]:
            yield _summary_of(kept, now_ms)

    def _make_room(self, step: Step, newest: DeliveryRecord) -> None:
        """Drop finished deliveries, else those that wait; never one that newcomers are told."""
        standing = {kept.record.id for kept in self._standing(newest.sent_ms)}
        passing = [kept for kept in self._kept.values() if kept.record.id not in standing]
        count, statuses = len(passing), sum(kept.statuses for kept in passing)
        for kept in sorted(passing, key=lambda kept: bool(kept.waiting)):
            if count <= KEPT_MAX and statuses <= STATUSES_MAX:
                return
            if kept.record is not newest:
                count -= 1
                statuses -= kept.statuses
                self._drop(step, kept)

    def _drop(self, step: Step, kept: _Open) -> None:
        key = _key(kept.record.id)
        step.writes.append(Write(DELIVERIES, key, None))
        step.writes += [Write(TAKEN, key + u32(number), None) for number in kept.taken]
        step.writes += [Write(ADDRESSED, key + u32(number), None) for number in kept.since]
        self._statuses -= kept.statuses
        del self._kept[kept.record.id]


def _summary_of(kept: _Open, now_ms: int) -> Summary:
    record = kept.record
    statuses = dict.fromkeys(DeliveryStatus, 0)
    for number, received_ms in kept.taken.items():
        statuses[kept.status_of(number, received_ms)] += 1
    rest = DeliveryStatus.EXPIRED if now_ms > record.until_ms else DeliveryStatus.WAITING
    statuses[rest] += len(kept.waiting)
    statuses[DeliveryStatus.EXPIRED] += len(kept.passed)
    latency = max((kept.latency_ms(*taken) for taken in kept.taken.items()), default=0)
    return Summary(
        record.id, record.payload, record.group, record.sent_ms, statuses, latency, deadline_ms(record.payload)
    )


def delivery_of(record: DeliveryRecord) -> Delivery:
    return Delivery(record.id, record.sent_ms, record.until_ms, record.payload, record.group)


def _ends_ms(payload: DownPayload) -> int:
    """Return the last millisecond in which a standing message holds."""
    if isinstance(payload, Pricing):
        return 1000 * (payload.starts_s + payload.interval_s * len(payload.prices)) - 1
    return _NEVER_MS


def deadline_ms(payload: DownPayload) -> int:
    """Return the time that Table 1 gives a message."""
    return TABLE_1[type(payload)].deadline_ms


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
