"""Where the MDMS's messages wait for those who carry them to meters.

A ring of the newest messages. Each stream has a list of the places that it is to hear, and reads them at its own pace:
a slow or a lost reader holds nothing and nobody up, and a message for one meter is no work for the streams of others.
A stream that fell behind, or comes from another run of the MDMS, is told that there is a gap. Nothing is lost by that:
the delivery book (`bcami.kms.deliveries`) is durable, and a meter that checks in gets by unicast what waits for it.

A meter has good keys whatever it wants, so its share is bounded: of its streams the newest `STREAMS_OF_METER_MAX` hear
what is for it, and a stream that hears for no meter any more is ended (a carrier that comes back before its lost stream
was noticed needs two). Of the ring a meter has so many messages and bytes; beyond, its own oldest ones leave.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from typing import Final, NamedTuple

from bcami.kms.wire import DownItem
from bcami.units import MIB

RING_MESSAGES_MAX: Final = 20_000
RING_BYTES_MAX: Final = 16 * MIB
RING_OF_METER_MESSAGES_MAX: Final = 256
RING_OF_METER_BYTES_MAX: Final = MIB
LISTENERS_MAX: Final = 1_024
STREAMS_OF_METER_MAX: Final = 2
PENDING_MAX: Final = 2_048
PENDING_OF_METER_MAX: Final = 8
"""Messages that a stream may be behind: so many for its groups, and for each of its meters."""
SUBSCRIBED_MAX: Final = 400_000
"""Meters of all streams together: about 40 MB."""
_PLACE_DIGITS_MAX: Final = 18
QUIET_S: Final = 10.0
"""A stream on which nothing happens says so this often."""


class Epoch(NamedTuple):
    """An epoch is open."""

    proof: bytes


class Gap(NamedTuple):
    """Messages may be missing here."""


class Message(NamedTuple):
    """One message, and the place to go on after."""

    name: str
    item: DownItem


Heard = Epoch | Gap | Message


class Listener:
    """A stream's place: the meters that it is for, and what it has not heard yet."""

    __slots__ = ("admitted", "has_gap", "hears_for", "hids", "is_over", "on_end", "pending", "wanted")

    def __init__(self, hids: Iterable[bytes]) -> None:
        self.hids = set(hids)
        self.admitted = self.hears_for = len(self.hids)
        """Meters that it was opened for, and those of them that have no newer streams instead."""
        self.is_over = False
        self.on_end: Callable[[], object] = lambda: None
        """Called when the head-end ends it."""
        self.pending: deque[int] = deque()
        """Places in the ring, ascending."""
        self.has_gap = False
        self.wanted = asyncio.Event()

    def add(self, place: int) -> None:
        if len(self.pending) >= PENDING_MAX + PENDING_OF_METER_MAX * self.admitted:
            self.lose()
        self.pending.append(place)
        self.wanted.set()

    def lose(self) -> None:
        """It fell behind: it is told that there is a gap."""
        self.pending.clear()
        self.has_gap = True


class _Share:
    """What the ring holds for one meter."""

    __slots__ = ("bytes", "places")

    def __init__(self) -> None:
        self.places: deque[int] = deque()
        self.bytes = 0


class HeadEnd:
    """The ring, and the proof of the open epoch. Used within one event loop."""

    def __init__(self, run: str, *, messages_max: int = RING_MESSAGES_MAX, bytes_max: int = RING_BYTES_MAX) -> None:
        """`run` is different in each run of the MDMS: places of another run mean nothing here."""
        self._run = run
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._ring: dict[int, DownItem] = {}
        self._next = 1
        self._bytes = 0
        self._of_meter: dict[bytes, _Share] = {}
        self._lost: dict[bytes, int] = {}
        """Place of the newest message that left because its meter had too many, while older ones of others stayed."""
        self._epoch: bytes | None = None
        self._listeners: set[Listener] = set()
        self._by_hid: dict[bytes, list[Listener]] = {}
        self._subscribed = 0
        self.is_stopping = False

    def put(self, item: DownItem) -> None:
        """Add a message; the oldest ones leave when there are too many."""
        place = self._next
        self._ring[place] = item
        self._next += 1
        self._bytes += len(item.message)
        if item.hid:
            share = self._of_meter.setdefault(item.hid, _Share())
            share.places.append(place)
            share.bytes += len(item.message)
            while len(share.places) > RING_OF_METER_MESSAGES_MAX or share.bytes > RING_OF_METER_BYTES_MAX:
                self._drop(share.places[0])
        while len(self._ring) > self._messages_max or self._bytes > self._bytes_max:
            self._drop(next(iter(self._ring)))
        for listener in self._hearing(item.hid) if item.hid else self._listeners:
            listener.add(place)

    def _drop(self, place: int) -> None:
        """Take a message out of the ring: the oldest of all, or of its meter."""
        if place != next(iter(self._ring)):
            self._lost[self._ring[place].hid] = place
        item = self._ring.pop(place)
        self._bytes -= len(item.message)
        share = self._of_meter.get(item.hid)
        if share is not None:
            share.places.popleft()
            share.bytes -= len(item.message)
            if not share.places:
                del self._of_meter[item.hid]

    def open_epoch(self, proof: bytes) -> None:
        """Tell all streams of an epoch. What was sent before it is of no use any more."""
        self._epoch = proof
        self._ring.clear()
        self._of_meter.clear()
        self._lost.clear()
        self._bytes = 0
        for listener in self._listeners:
            listener.pending.clear()
            listener.has_gap = False
            listener.wanted.set()

    def stop(self) -> None:
        """End all streams."""
        self.is_stopping = True
        for listener in self._listeners:
            listener.wanted.set()

    @property
    def listeners(self) -> int:
        """How many streams are open."""
        return len(self._listeners)

    @property
    def there(self) -> set[bytes]:
        """HIDs of the meters that somebody carries now."""
        return set().union(*(listener.hids for listener in self._listeners))

    def carries(self, hid: bytes) -> bool:
        """Tell whether somebody carries this meter now. May be asked from another thread."""
        return hid in self._by_hid

    def admit(self, hids: Collection[bytes]) -> Listener | None:
        """Take a stream for these meters up, unless there are too many; its end is told by `leave`."""
        if self.listeners >= LISTENERS_MAX or self._subscribed + len(hids) > SUBSCRIBED_MAX:
            return None
        listener = Listener(hids)
        self._listeners.add(listener)
        self._subscribed += listener.admitted
        for hid in listener.hids:
            streams = self._by_hid.setdefault(hid, [])
            streams.append(listener)
            if len(streams) > STREAMS_OF_METER_MAX:
                self._silence(streams[-1 - STREAMS_OF_METER_MAX])
        return listener

    def _hearing(self, hid: bytes) -> Collection[Listener]:
        """Return the streams that hear what is for a meter."""
        return self._by_hid.get(hid, ())[-STREAMS_OF_METER_MAX:]

    def _silence(self, listener: Listener) -> None:
        """Let a stream hear for one meter less; it ends with the last one."""
        listener.hears_for -= 1
        if not listener.hears_for:
            listener.is_over = True
            listener.wanted.set()
            self.leave(listener)
            listener.on_end()

    def leave(self, listener: Listener) -> None:
        """Give a stream's place up; said again it changes nothing. Older streams of its meters hear for these again."""
        if listener not in self._listeners:
            return
        self._listeners.discard(listener)
        self._subscribed -= listener.admitted
        for hid in listener.hids:
            streams = self._by_hid[hid]
            heard = listener in self._hearing(hid)
            streams.remove(listener)
            if heard and len(streams) >= STREAMS_OF_METER_MAX:
                streams[-STREAMS_OF_METER_MAX].hears_for += 1
            if not streams:
                del self._by_hid[hid]

    def shut_out(self, hid: bytes) -> None:
        """Send a meter nothing more on any stream: it was revoked."""
        hearing = self._hearing(hid)
        for listener in self._by_hid.pop(hid, ()):
            listener.hids.discard(hid)
        for listener in hearing:
            self._silence(listener)

    async def listen(self, listener: Listener, after: str | None) -> AsyncIterator[Heard | None]:
        """Yield what is for a stream's meters or for groups: since it was admitted, or after where another ended.

        None is yielded when nothing happens for a while.
        """
        if after is not None:
            self._resume(listener, self._place_of(after))
        epoch: bytes | None = None
        while not self.is_stopping and not listener.is_over:
            if self._epoch is not None and self._epoch != epoch:
                epoch = self._epoch
                yield Epoch(epoch)
            elif listener.has_gap:
                listener.has_gap = False
                yield Gap()
            elif listener.pending:
                place = listener.pending.popleft()
                item = self._ring.get(place)
                if item is None:
                    self._lose_what_the_ring_lost(listener)
                elif not item.hid or item.hid in listener.hids:
                    yield Message(f"{self._run}-{place}", item)
            else:
                listener.wanted.clear()
                try:
                    async with asyncio.timeout(QUIET_S):
                        await listener.wanted.wait()
                except TimeoutError:
                    yield None

    def _resume(self, listener: Listener, place: int | None) -> None:
        """Go on after a place; from the oldest message on, with a gap, when that place is not known any more."""
        before = next(iter(self._ring), self._next) - 1
        listener.has_gap = place is None or place < before or self._lost_after(place, listener)
        listener.pending.clear()
        listener.pending.extend(
            number
            for number, item in self._ring.items()
            if number > (place or 0) and (not item.hid or item.hid in listener.hids)
        )

    def _lost_after(self, place: int, listener: Listener) -> bool:
        return any(lost > place and hid in listener.hids for hid, lost in self._lost.items())

    def _lose_what_the_ring_lost(self, listener: Listener) -> None:
        while listener.pending and listener.pending[0] not in self._ring:
            listener.pending.popleft()
        listener.has_gap = True

    def _place_of(self, name: str) -> int | None:
        """Return the place that `Message.name` named, None when it is of another run."""
        run, _, place = name.rpartition("-")
        known = run == self._run and place.isdecimal() and len(place) < _PLACE_DIGITS_MAX
        return int(place) if known and int(place) < self._next else None
