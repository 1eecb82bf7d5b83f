"""Where the MDMS's messages wait for those who carry them to meters.

A ring of the newest messages. Each stream reads it at its own pace from its own place, so a slow or a lost reader holds
nothing and nobody up; one that fell behind the ring, or comes from another run of the MDMS, is told that there is a
gap. Nothing is lost by that: the delivery book (`bcami.kms.deliveries`) is durable, and a meter that checks in gets by
unicast what waits for it.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Container, Iterable
from typing import Final, NamedTuple

from bcami.kms.wire import DownItem
from bcami.units import MIB

RING_MESSAGES_MAX: Final = 20_000
RING_BYTES_MAX: Final = 16 * MIB
LISTENERS_MAX: Final = 1_024
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
    """A stream's place: the meters that it is for."""

    __slots__ = ("admitted", "hids")

    def __init__(self, hids: Iterable[bytes]) -> None:
        self.hids = set(hids)
        self.admitted = len(self.hids)


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
        self._epoch: bytes | None = None
        self._changed = asyncio.Event()
        self._listeners: set[Listener] = set()
        self._subscribed = 0
        self.is_stopping = False

    def put(self, item: DownItem) -> None:
        """Add a message; the oldest ones leave when there are too many."""
        self._ring[self._next] = item
        self._next += 1
        self._bytes += len(item.message)
        while len(self._ring) > self._messages_max or self._bytes > self._bytes_max:
            oldest = next(iter(self._ring))
            self._bytes -= len(self._ring.pop(oldest).message)
        self._wake()

    def open_epoch(self, proof: bytes) -> None:
        """Tell all streams of an epoch. What was sent before it is of no use any more."""
        self._epoch = proof
        self._ring.clear()
        self._bytes = 0
        self._wake()

    def stop(self) -> None:
        """End all streams."""
        self.is_stopping = True
        self._wake()

    @property
    def listeners(self) -> int:
        """How many streams are open."""
        return len(self._listeners)

    @property
    def there(self) -> set[bytes]:
        """HIDs of the meters that somebody carries now."""
        return set().union(*(listener.hids for listener in self._listeners))

    def admit(self, hids: Collection[bytes]) -> Listener | None:
        """Take a stream for these meters up, unless there are too many; its end is told by `leave`."""
        if self.listeners >= LISTENERS_MAX or self._subscribed + len(hids) > SUBSCRIBED_MAX:
            return None
        listener = Listener(hids)
        self._listeners.add(listener)
        self._subscribed += listener.admitted
        return listener

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)
        self._subscribed -= listener.admitted

    def shut_out(self, hid: bytes) -> None:
        """Send a meter nothing more on any stream: it was revoked."""
        for listener in self._listeners:
            listener.hids.discard(hid)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def listen(self, hids: Container[bytes], after: str | None) -> AsyncIterator[Heard | None]:
        """Yield what is for these meters or for groups: from now on, or after the place where a stream ended.

        None is yielded when nothing happens for a while.
        """
        place = self._next - 1 if after is None else self._place_of(after)
        epoch: bytes | None = None
        while not self.is_stopping:
            changed = self._changed
            before = next(iter(self._ring), self._next) - 1
            if self._epoch is not None and self._epoch != epoch:
                if epoch is not None:
                    place = max(before, place or 0)  # what the ring lost was under keys that are gone
                epoch = self._epoch
                yield Epoch(epoch)
            elif place is None or place < before:
                place = before
                yield Gap()
            elif place < self._next - 1:
                place += 1
                item = self._ring[place]
                if not item.hid or item.hid in hids:
                    yield Message(f"{self._run}-{place}", item)
            else:
                try:
                    async with asyncio.timeout(QUIET_S):
                        await changed.wait()
                except TimeoutError:
                    yield None

    def _place_of(self, name: str) -> int | None:
        """Return the place that `Message.name` named, None when it is of another run."""
        run, _, place = name.rpartition("-")
        known = run == self._run and place.isdecimal() and len(place) < _PLACE_DIGITS_MAX
        return int(place) if known and int(place) < self._next else None
