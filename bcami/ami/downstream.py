"""The way down: a fleet's meters hear the MDMS, and answer (protocol 8; bcami.kms has the rules).

    stream ─▶ a group of events ─▶ MeterKeys.receive ─▶ store: keys, counters and inbox, one durable transaction
           ─▶ application ─▶ store: what the application keeps, and the inbox without it, one durable transaction
           ─▶ the way up

One stream serves all meters. An epoch is believed only with the receipt of its transaction. Messages may be lost,
doubled or reordered on the way: what counts is repeated by the two ends. After a lost stream it is resumed where it
ended, and after a gap each meter checks in.

What was accepted before a crash and not handed over is handed over at the next start. An application is given a message
again only when it crashed before the mark was durable, and then nothing is left of its first try: what it returns is
written with the mark. So what it keeps in the meter's store it keeps exactly once; one that acts elsewhere must compare
`Accepted.id` there. Commands are states, so that obeying one twice is obeying it once.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self

from bcami.ami.fleet import Fleet
from bcami.ami.meter import Meter
from bcami.ami.outbox import KMS, KMS_INBOX, Write
from bcami.client.head_end import HeadEndClient, HeadEndUnavailable, StreamEvent
from bcami.client.periods import KmsEpoch, verify_kms_epoch
from bcami.client.retry import Backoff
from bcami.codec import encode
from bcami.crypto.roster import Roster
from bcami.errors import InputError, MalformedError
from bcami.kms import Accepted, HardenedProfile, MeterKeys, Profile, Refused, Scope, Step, ToMdms, make_profile
from bcami.kms.messages import UpPayload
from bcami.kms.records import METER_KEYS, RECEIVED, accepted
from bcami.kms.subscription import Subscription, subscriber
from bcami.kms.wire import UP_BYTES_MAX, UP_MESSAGES_MAX, DownItem
from bcami.model.api import TransactionProof
from bcami.model.reasons import Reason

TICK_S: Final = 1.0
EVENTS_AT_ONCE: Final = 256
RESUBSCRIBE_MS: Final = 2_000
"""After so long, and then ever longer, a stream that leaves meters out is given up for one with them."""
UP_WAITING_MAX: Final = 20_000
"""Messages that wait for the head-end; what comes on top is dropped, and repeated later by the meter."""

_BATCH_BYTES: Final = 5
"""Bytes before a list or a byte string, at most."""

Take = Callable[[Accepted], Iterable[Write]]
"""A meter's application: takes a message and returns what is to be kept of it, in the table APPLICATION."""


class Downstream:
    """The meters' end of the symmetric keys. Made and closed within one event loop, while its fleet is open."""

    def __init__(
        self,
        fleet: Fleet,
        roster: Roster,
        meters: Sequence[Meter],
        head_end: HeadEndClient,
        *,
        take: Take,
        now_ms: Callable[[], int],
        entropy: Callable[[], bytes] = lambda: os.urandom(32),
        profile: str = HardenedProfile.name,
    ) -> None:
        """`take` is the application of all these meters, `profile` the network's. Every meter has an open session."""
        scope = Scope(roster.chain, roster.epoch, roster.genesis.mdms_hid)
        rules = make_profile(profile, scope)
        self._fleet = fleet
        self._scope = scope
        self._roster = roster
        self._head_end = head_end
        self._take = take
        self._now_ms = now_ms
        self._entropy = entropy
        self._meters = {meter.party.hid: meter for meter in meters}
        self._keys = {meter.party.hid: self._made(scope, rules, meter) for meter in meters}
        self._sessions = {hid: _session_of(meter) for hid, meter in self._meters.items()}
        self._epoch: KmsEpoch | None = None
        self._started = False
        self._up: list[bytes] = []
        self._up_wanted = asyncio.Event()
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self.refused: Counter[Reason] = Counter()
        """What the meters refused."""
        self.refused_above: Counter[Reason] = Counter()
        """What the MDMS refused."""
        self.dropped = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: Exception | None = None

    def _made(self, scope: Scope, profile: Profile, meter: Meter) -> MeterKeys:
        hid, session = meter.party.hid, meter.session
        if session is None:
            raise ValueError("a meter has symmetric keys only with an open session")
        stored = self._fleet.kept(KMS, hid).get(hid)
        try:
            record = None if stored is None else METER_KEYS.decode(stored)
        except MalformedError:
            raise InputError(
                f"the symmetric keys of {meter.meter_id} were stored in another form",
                likely="this home's fleet was made by an earlier version",
                do="make another network (bcami init)",
            ) from None
        kept_as = None if record is None or record.unicast is None else record.unicast.__struct_config__.tag
        if kept_as not in (None, profile.name):
            raise InputError(
                f"a meter's symmetric keys were made as {kept_as}, and the network says {profile.name}",
                where="network.toml, [kms]",
                likely="it was changed: it is fixed when the network is made",
                do="change it back, or make another network (bcami init)",
            )
        return MeterKeys(scope, profile, hid, session.number, session.key, session.kem, record)

    async def __aenter__(self) -> Self:
        """Hand over what an earlier run accepted and did not hand over, then go on."""
        left = [row for hid in self._keys for row in self._fleet.kept(KMS_INBOX, hid).values()]
        await self._hand_over([accepted(RECEIVED.decode(row)) for row in left])
        self._tasks = [asyncio.create_task(self._watched(work)) for work in (self._listen, self._tick, self._send_up)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._head_end.close()

    @property
    def confirmed(self) -> int:
        """Meters whose keys the MDMS uses."""
        return sum(keys.is_confirmed for keys in self._keys.values())

    def groups(self, hid: bytes) -> dict[int, int]:
        """Return the groups that a meter is in, with the version of each one's keys."""
        return self._keys[hid].groups

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds; it is asked after each change. Raises what ended the way down."""
        while not condition():
            if self._failure is not None:
                raise self._failure
            await self._changed.wait()

    async def request(self, meter: Meter, payload: UpPayload) -> bytes | Reason:
        """Send a message of Table 1 to the MDMS until it is answered; return its id, or why it is not taken."""
        hid = meter.party.hid
        async with self._turn:
            identity, step = self._keys[hid].request(payload, self._now_ms(), self._entropy())
            await self._carry([step])
        return step.refusals[0] if step.refusals else identity

    def answer(self, meter: Meter, request: bytes) -> Reason | None:
        """Return the MDMS's answer to a request, None while there is none."""
        return self._keys[meter.party.hid].answers.get(request)

    # Steps.

    async def _carry(self, steps: Iterable[Step]) -> None:
        """Make all writes durable, then hand over and send."""
        done = list(steps)
        writes = [Write(*write) for step in done for write in step.writes]
        if writes:
            await self._fleet.keep(writes)
        await self._hand_over([event for step in done for event in step.events if isinstance(event, Accepted)])
        for step in done:
            for event in step.events:
                if isinstance(event, Refused):
                    self.refused[event.reason] += 1
            for send in step.sends:
                if isinstance(send, ToMdms):
                    self._enqueue(encode(send.message))
        self._wake()

    async def _hand_over(self, items: Sequence[Accepted]) -> None:
        """Give messages to the application; durable afterwards, at once: what it keeps, and that it was given them."""
        writes = []
        for item in items:
            writes += [*self._take(item), Write(KMS_INBOX, item.hid + item.id, None)]
        if writes:
            await self._fleet.keep(writes)

    def _enqueue(self, data: bytes) -> None:
        if len(self._up) >= UP_WAITING_MAX:
            self.dropped += 1
            return
        self._up.append(data)
        self._up_wanted.set()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _watched(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:
            self._failure = error
            self._wake()

    # Down.

    async def _listen(self) -> None:
        place, attempt, asked = "", 0, 0
        backoff = Backoff(first_ms=100, cap_ms=5_000)
        later = Backoff(first_ms=RESUBSCRIBE_MS, cap_ms=30 * RESUBSCRIBE_MS)
        while True:
            until = _Until()
            try:
                async with contextlib.aclosing(
                    _grouped(self._head_end.listen(self._subscription, place), until)
                ) as groups:
                    async for events in groups:
                        attempt = 0
                        place = next((event.place for event in reversed(events) if event.place), place)
                        async with self._turn:
                            await self._hear(events)
                        if any(event.left_out for event in events):  # the MDMS learns of meters with the next blocks
                            asked += 1
                            delay_s = later.delay_ms(asked, b"left-out") / 1000
                            until.time = asyncio.get_running_loop().time() + delay_s
            except HeadEndUnavailable:
                attempt += 1
                await asyncio.sleep(backoff.delay_ms(attempt, b"head-end") / 1000)

    def _subscription(self, challenge: bytes) -> Subscription:
        """Have every meter prove that the stream is for it."""
        sessions = {hid: meter.session for hid, meter in self._meters.items()}
        return Subscription(
            challenge,
            tuple(
                subscriber(self._scope, hid, session.number, challenge, session.key)
                for hid, session in sessions.items()
                if session is not None
            ),
        )

    async def _hear(self, events: Sequence[StreamEvent]) -> None:
        now_ms = self._now_ms()
        steps: list[Step] = []
        for event in events:
            if event.proof is not None:
                steps += self._epoch_opened(event.proof, now_ms)
            elif event.left_out:
                self.refused_above.update(reason for _, reason in event.left_out)
            elif event.item is not None:
                steps += [keys.receive(event.item.message, now_ms) for keys in self._hearers(event.item)]
            else:
                steps += [keys.check_in(now_ms) for keys in self._keys.values()]
        await self._carry(steps)

    def _hearers(self, item: DownItem) -> list[MeterKeys]:
        if item.hid:
            keys = self._keys.get(item.hid)
            return [] if keys is None else [keys]
        return [keys for keys in self._keys.values() if item.group in keys.groups]

    def _epoch_opened(self, proof: TransactionProof, now_ms: int) -> list[Step]:
        epoch = verify_kms_epoch(proof, self._roster.genesis, self._roster)
        if isinstance(epoch, Reason):
            self.refused[epoch] += 1
            return []
        steps: list[Step] = []
        for keys in self._keys.values():
            if not self._started and keys.record.epoch == epoch.height:
                steps.append(keys.start(now_ms, self._entropy()))
            else:
                steps.append(keys.epoch_opened(epoch.height, epoch.kms_key, now_ms, self._entropy()))
        self._started, self._epoch = True, epoch
        return steps

    # What comes round.

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            async with self._turn:
                now_ms = self._now_ms()
                steps = [keys.tick(now_ms, self._entropy()) for keys in self._keys.values()] if self._started else []
                await self._carry([*self._new_sessions(now_ms), *steps])

    def _new_sessions(self, now_ms: int) -> list[Step]:
        """Follow meters to new sessions: the keys of the old one are destroyed."""
        steps = []
        for hid, meter in self._meters.items():
            session = meter.session
            if session is not None and session.number != self._sessions[hid]:
                self._sessions[hid] = session.number
                keys = self._keys[hid]
                steps.append(keys.session_opened(session.number, session.key, session.kem, now_ms, self._entropy()))
        return steps

    async def _send_up(self) -> None:
        while True:
            await self._up_wanted.wait()
            self._up_wanted.clear()
            while self._up:
                count = _first_batch(self._up)
                batch, self._up = self._up[:count], self._up[count:]
                try:
                    self.refused_above.update(await self._head_end.send(batch))
                except HeadEndUnavailable:
                    self.dropped += len(batch)  # the meters repeat what counts
                    await asyncio.sleep(TICK_S)


def _first_batch(messages: Sequence[bytes]) -> int:
    """Return how many of the first messages one request holds: it is refused as a whole above either limit."""
    size = _BATCH_BYTES
    for count, data in enumerate(messages[:UP_MESSAGES_MAX]):
        size += len(data) + _BATCH_BYTES
        if size > UP_BYTES_MAX:
            return count
    return min(len(messages), UP_MESSAGES_MAX)


def _session_of(meter: Meter) -> int:
    return 0 if meter.session is None else meter.session.number


class _Until:
    """When a stream is given up to ask for a larger one, by the loop's clock; None: never."""

    time: float | None = None


async def _grouped(events: AsyncIterator[StreamEvent], until: _Until) -> AsyncGenerator[list[StreamEvent], None]:
    """Yield events as they come, several at a time when they come fast, so that one write serves them all."""
    queue: asyncio.Queue[StreamEvent | Exception] = asyncio.Queue(EVENTS_AT_ONCE)

    async def fill() -> None:
        try:
            async for event in events:
                await queue.put(event)
        except Exception as error:  # whatever it is, who reads the queue must not wait for more
            await queue.put(error)

    filling = asyncio.create_task(fill())
    try:
        while True:
            group: list[StreamEvent] = []
            try:
                async with asyncio.timeout_at(until.time):
                    first: StreamEvent | Exception = await queue.get()
            except TimeoutError:
                return
            while isinstance(first, StreamEvent):
                group.append(first)
                if queue.empty() or len(group) >= EVENTS_AT_ONCE:
                    break
                first = queue.get_nowait()
            if group:
                yield group
            if isinstance(first, Exception):
                raise first
    finally:
        filling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await filling
