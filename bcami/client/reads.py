"""Reads that a lying node cannot fake (protocol 5.6): f+1 equal answers, each from a height that is high enough."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from bcami.client.nodes import NodeClient, NodeUnavailable
from bcami.errors import InconclusiveError
from bcami.model.api import QueryAnswer

Ask = Callable[[NodeClient], Awaitable[QueryAnswer]]


class Agreed(NamedTuple):
    """What weak different nodes hold, so at least one honest one."""

    value: bytes | None
    written: int
    """Height that last wrote it; 0 when absent."""


class Tally:
    """Collects answers of different nodes until weak of them agree. Pure."""

    def __init__(self, weak: int, at_least: int) -> None:
        self._weak = weak
        self._at_least = at_least
        self._votes: dict[Agreed, set[int]] = {}
        self.too_low = 0
        """Answers that came from below `at_least` and did not count."""

    def add(self, node: int, answer: QueryAnswer) -> Agreed | None:
        """Return the value as soon as it is agreed. A node counts once for one value, however often it answers."""
        if answer.height < self._at_least:
            self.too_low += 1
            return None
        choice = Agreed(answer.value, answer.written)
        voters = self._votes.setdefault(choice, set())
        voters.add(node)
        return choice if len(voters) >= self._weak else None


async def weak_read(nodes: Sequence[NodeClient], ask: Ask, *, weak: int, at_least: int = 0, rounds: int = 5) -> Agreed:
    """Return what weak nodes agree on.

    Asks all nodes at once and again, up to `rounds` times, since a value may change while they answer.
    Raises InconclusiveError when they do not agree.
    """
    failures: list[str] = []
    for attempt in range(rounds):
        tally = Tally(weak, at_least)
        asked = [asyncio.ensure_future(_ask_one(place, node, ask)) for place, node in enumerate(nodes)]
        try:
            for next_answer in asyncio.as_completed(asked):
                place, answer = await next_answer
                if isinstance(answer, NodeUnavailable):
                    failures.append(str(answer))
                    continue
                agreed = tally.add(place, answer)
                if agreed is not None:
                    return agreed
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.sleep(0.1 * (attempt + 1))
    raise InconclusiveError(
        f"fewer than {weak} of {len(nodes)} nodes agree on what they hold",
        likely=failures[-1] if failures else f"they are below height {at_least}, or one of them lies",
        do="see which nodes answer with `bcami status`",
    )


async def _ask_one(place: int, node: NodeClient, ask: Ask) -> tuple[int, QueryAnswer | NodeUnavailable]:
    try:
        return place, await ask(node)
    except NodeUnavailable as error:
        return place, error
