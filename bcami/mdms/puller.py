"""Pulls released blocks from any node, over and over; goes to another node when one fails, lies or has nothing.

The order in which nodes are asked never matters for what is stored: see follower.py. A node that is refused is left
alone for a while like one that does not answer. An answer without new blocks moves on to the next node, so that one
node that lags, or pretends to, does not hold the MDMS back.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import httpx

from bcami.client.retry import Backoff, NodePool
from bcami.errors import MalformedError
from bcami.mdms.follower import Followed, Follower
from bcami.mdms.metrics import MdmsMetrics
from bcami.mdms.store import MdmsStore
from bcami.model.api import RELEASE_CODEC, ReleaseAnswer
from bcami.model.chain import BUNDLE_BYTES_MAX
from bcami.units import MIB

ANSWER_BYTES_MAX: Final = BUNDLE_BYTES_MAX + 24 * MIB
"""A node puts blocks into an answer until about 8 MiB, so the last one may stand above that."""
BLOCKS_PER_ANSWER: Final = 64


class SourceUnavailableError(Exception):
    """A node gave no usable answer."""


class ReleaseSource(Protocol):
    """One node that released blocks can be asked of."""

    @property
    def name(self) -> str: ...

    async def released(self, after: int, limit: int) -> bytes:
        """Return an encoded ReleaseAnswer, unchecked. Raises SourceUnavailableError."""

    async def close(self) -> None: ...


class HttpSource:
    """A node's gateway. The answer is read up to a limit, uncompressed, so that no node can fill the memory."""

    def __init__(self, name: str, url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`transport` replaces the network in tests."""
        self.name = name
        timeout = httpx.Timeout(30.0, connect=3.0)
        headers = {"accept": "application/msgpack", "accept-encoding": "identity"}
        self._http = httpx.AsyncClient(
            base_url=url, transport=transport, headers=headers, timeout=timeout, trust_env=False
        )

    async def released(self, after: int, limit: int) -> bytes:
        received = bytearray()
        try:
            async with self._http.stream("GET", "/v1/released", params={"after": after, "limit": limit}) as response:
                if response.status_code != httpx.codes.OK:
                    raise SourceUnavailableError(f"HTTP {response.status_code}")
                async for part in response.aiter_raw():
                    received += part
                    if len(received) > ANSWER_BYTES_MAX:
                        raise SourceUnavailableError(f"an answer above {ANSWER_BYTES_MAX} bytes")
        except httpx.HTTPError as error:
            raise SourceUnavailableError(type(error).__name__) from None
        return bytes(received)

    async def close(self) -> None:
        await self._http.aclose()


@dataclass(frozen=True, slots=True)
class PullPolicy:
    """How fast nodes are asked."""

    poll_s: float = 0.25
    """Pause after an answer without new blocks."""
    backoff: Backoff = field(default_factory=lambda: Backoff(first_ms=200, cap_ms=10_000))
    """For a node that failed or was refused."""


class Puller:
    """Keeps one store up with the chain until it is told to stop."""

    def __init__(
        self,
        sources: Sequence[ReleaseSource],
        follower: Follower,
        store: MdmsStore,
        metrics: MdmsMetrics,
        log: Any,
        *,
        strong: int,
        policy: PullPolicy | None = None,
        after_stored: Callable[[], None] | None = None,
    ) -> None:
        """`strong` nodes must say that a payload is pruned before its report is given up.

        `after_stored` is called whenever the cursor has moved, in the thread that moved it.
        """
        self._sources = list(sources)
        self._follower = follower
        self._store = store
        self._metrics = metrics
        self._log = log
        self._strong = strong
        self._policy = policy or PullPolicy()
        self._after_stored = after_stored
        self._pool = NodePool(len(self._sources), b"mdms", self._policy.backoff)
        self._preferred = 0
        self._pruned: tuple[int, set[int]] = (0, set())
        self.released_height = 0
        """Highest released height that a node claimed: a hint."""

    async def run(self, stop: asyncio.Event) -> None:
        """Pull until `stop` is set; what is under way is finished first. Errors of the store end it."""
        while not stop.is_set():
            pause_s = await self.step()
            if pause_s > 0:
                await _pause(stop, pause_s)

    async def step(self) -> float:
        """Ask one node once; return how many seconds to wait before the next time."""
        now_ms = _now_ms()
        chosen = self._pool.choose(self._preferred, now_ms)
        if chosen.at_ms > now_ms:
            return (chosen.at_ms - now_ms) / 1000
        source = self._sources[chosen.node]
        try:
            data = await source.released(self._store.cursor.height, BLOCKS_PER_ANSWER)
            answer, followed = await asyncio.to_thread(self._follow, data)
        except SourceUnavailableError as error:
            self._metrics.unavailable(source.name)
            self._log.warning("node unavailable", node=source.name, what=str(error))
            self._leave(chosen.node)
            return 0.0
        except MalformedError as error:
            self._metrics.unavailable(source.name)
            self._log.warning("answer does not decode", node=source.name, what=error.what)
            self._leave(chosen.node)
            return 0.0
        return self._after(chosen.node, answer, followed)

    def _follow(self, data: bytes) -> tuple[ReleaseAnswer, Followed]:
        answer = RELEASE_CODEC.decode(data)
        height, nodes = self._pruned
        accepted = height if len(nodes) >= self._strong else 0
        followed = self._follower.follow(answer.bundles, accept_pruned=accepted)
        if followed.blocks and self._after_stored is not None:
            self._after_stored()
        return answer, followed

    def _after(self, node: int, answer: ReleaseAnswer, followed: Followed) -> float:
        self._metrics.followed(followed.blocks, followed.stored, followed.unreadable)
        for row in followed.unreadable:
            self._log.warning("unreadable report", height=row.height, place=row.place, fault=row.fault.value)
        if followed.refused is not None:
            self._refuse(node, followed)
            return 0.0
        self._pool.succeeded(node)
        self.released_height = max(self.released_height, answer.released_height)
        self._metrics.released(self.released_height)
        if followed.blocks:
            self._preferred = node
            return 0.0
        self._preferred = node + 1
        return self._policy.poll_s

    def _refuse(self, node: int, followed: Followed) -> None:
        refused = followed.refused
        assert refused is not None
        name = self._sources[node].name
        self._metrics.refused(name, refused.reason)
        self._log.warning(
            "blocks refused", node=name, height=refused.height, reason=refused.reason.value, what=refused.what
        )
        if refused.pruned:
            nodes = self._pruned[1] if self._pruned[0] == refused.height else set()
            self._pruned = (refused.height, nodes | {node})
        self._leave(node)

    def _leave(self, node: int) -> None:
        self._pool.failed(node, _now_ms())
        self._preferred = node + 1

    async def close(self) -> None:
        await asyncio.gather(*(source.close() for source in self._sources))


def _now_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
