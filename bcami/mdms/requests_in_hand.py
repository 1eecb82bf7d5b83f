"""Requests with bodies that are in hand: so many, so long, so large; whoever is slow makes room for the next."""

import asyncio
from collections.abc import AsyncIterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from starlette.requests import ClientDisconnect

REQUESTS_MAX: Final = 32
"""Requests with bodies that are in hand at a time: each holds a few megabytes at most."""
BODY_S: Final = 10.0


class TooLarge(Exception):
    """The body has more bytes than it may."""


class TooLate(Exception):
    """The body did not come whole in its time."""


class NoRoom(Exception):
    """So many requests are in hand that this one, or the next, finds no place."""


@dataclass(eq=False, slots=True)
class Place:
    """One request's."""

    limit: asyncio.Timeout | None = None
    """Set while its body is coming."""
    is_over: bool = False

    async def body(self, parts: AsyncIterable[bytes], bytes_max: int) -> bytes:
        """Return the whole body. Raises TooLarge, TooLate, and NoRoom when a later request needed the place."""
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S) as self.limit:
                async for part in parts:
                    body += part
                    if len(body) > bytes_max:
                        raise TooLarge
        except (TimeoutError, ClientDisconnect):
            raise (NoRoom if self.is_over else TooLate) from None
        finally:
            self.limit = None
        return bytes(body)


class RequestsInHand:
    """Strangers may send bodies too: a slow one costs a place until another request comes, and no longer."""

    def __init__(self) -> None:
        self._places: dict[Place, None] = {}

    @property
    def count(self) -> int:
        return len(self._places)

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Take a place, if need be of the request whose body has been coming longest. Raises NoRoom."""
        if self.count >= REQUESTS_MAX:
            self._end_slowest()
        mine = Place()
        self._places[mine] = None
        try:
            yield mine
        finally:
            self._places.pop(mine, None)

    def _end_slowest(self) -> None:
        slowest = next((place for place in self._places if place.limit is not None), None)
        if slowest is None:
            raise NoRoom
        assert slowest.limit is not None
        del self._places[slowest]
        slowest.is_over = True
        slowest.limit.reschedule(asyncio.get_running_loop().time())
