"""Follows single reports through a running cluster, from the meter to the MDMS's store, and prices the gateway.

Nothing in a node is instrumented. The meters' requests go through `Gate`, which first has the node accept each report
without waiting for its outcome: that is the gateway's part, by itself. From then on two nodes and the MDMS are asked
every few milliseconds what they have reached, and the way of each report is read off afterwards.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx

from bcami.cli.own_network import RunNetwork
from bcami.codec import encode
from bcami.model.api import SUBMIT_ANSWER_CODEC, SUBMIT_CODEC
from bcami.processes.cpu import cpu_seconds
from bcami.processes.identity import running
from bcami.report.costs.live import GatewayCost, Probe
from bcami.report.measuring import quartiles

if TYPE_CHECKING:
    from bcami.cli.meters import HomeFleet
    from bcami.replay.load import Load

SUBMIT_PATH: Final = "/v1/transactions"
_STALLED_S: Final = 60.0
_RATE_LIMIT_PATIENCE_S: Final = 30.0
"""How long a gateway may refuse everything before that is an error."""
_POLL_S: Final = 0.002
_SLOW_POLL_S: Final = 0.02
"""For the release, which takes seconds, and for the MDMS behind it."""
_ASKED: Final = 2
"""Nodes that are asked for metrics: one does not count the certificates that it makes itself."""
_METRICS: Final = {
    "endorsed": re.compile(rb"^bcami_batches_certified_total (\S+)", re.MULTILINE),
    "executed": re.compile(rb"^bcami_height (\S+)", re.MULTILINE),
    "certified": re.compile(rb"^bcami_certified_height (\S+)", re.MULTILINE),
}
_CONNECTIONS_MAX: Final = 256


class Passage(NamedTuple):
    """One request with reports, as the gate saw it: `time.perf_counter` seconds."""

    left: float
    """It leaves the meters' process."""
    accepted: float
    """The node has taken it over."""
    height: int
    """Of the block that its first report is in."""


class Gate(httpx.AsyncBaseTransport):
    """Between the meters and the nodes."""

    def __init__(self) -> None:
        limits = httpx.Limits(max_connections=_CONNECTIONS_MAX, max_keepalive_connections=_CONNECTIONS_MAX)
        self._inner = httpx.AsyncHTTPTransport(limits=limits, trust_env=False)
        self.is_watched = False
        """Whether passages are noted, and each request is first accepted and then waited for."""
        self.passages: list[Passage] = []
        self.largest: tuple[httpx.Request, bytes] | None = None
        """The request with reports that has the longest body so far."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Pass a request on."""
        if request.url.path != SUBMIT_PATH:
            return await self._inner.handle_async_request(request)
        body = await request.aread()
        if self.largest is None or len(body) > len(self.largest[1]):
            self.largest = request, body
        if not self.is_watched:
            return await self._inner.handle_async_request(request)
        url = request.url.copy_set_param("wait", "accepted")
        first = httpx.Request("POST", url, headers=request.headers, content=body, extensions=request.extensions)
        left = time.perf_counter()
        await (await self._inner.handle_async_request(first)).aread()
        accepted = time.perf_counter()
        response = await self._inner.handle_async_request(request)
        answer = await response.aread()
        height = SUBMIT_ANSWER_CODEC.decode(answer).results[0].height if response.is_success else 0
        if height:
            self.passages.append(Passage(left, accepted, height))
        return response

    async def aclose(self) -> None:
        """Close the connections; a fleet does it once for each node."""
        await self._inner.aclose()


class Watch:
    """When two nodes and the MDMS were first seen at each height."""

    def __init__(self, place: RunNetwork) -> None:
        self._nodes = [node.url for node in place.network.nodes[:_ASKED]]
        self._mdms = place.network.mdms.url
        self._client = httpx.AsyncClient(timeout=10.0, trust_env=False)
        self._changed = asyncio.Event()
        self.readings = 0
        """In the MDMS's store."""
        names = (*_METRICS, "height", "released", "stored")
        self.seen: dict[str, list[tuple[int, float]]] = {name: [] for name in names}

    async def look(self) -> None:
        """Ask for what takes long."""
        node, mdms = await asyncio.gather(self._status(self._nodes[0]), self._status(self._mdms))
        self._note("height", int(node.get("height") or 0))
        self._note("released", int(node.get("released_height") or 0))
        self.readings = int(mdms.get("readings") or 0)
        self._note("stored", int(mdms.get("height") or 0))

    async def look_close(self) -> None:
        """Ask for what takes milliseconds."""
        pages = await asyncio.gather(*(self._client.get(f"{url}/metrics") for url in self._nodes))
        for name, pattern in _METRICS.items():
            values = [int(float(found[1])) for page in pages if (found := pattern.search(page.content))]
            self._note(name, sum(values) if name == "endorsed" else max(values, default=0))

    async def _status(self, url: str) -> dict[str, Any]:
        told = (await self._client.get(f"{url}/v1/status")).json()
        return told if isinstance(told, dict) else {}

    def _note(self, name: str, value: int) -> None:
        seen = self.seen[name]
        if not seen or value > seen[-1][0]:
            seen.append((value, time.perf_counter()))
            self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return when it holds of what was seen. Raises TimeoutError."""
        async with asyncio.timeout(_STALLED_S):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    def top(self, name: str) -> int:
        """Return the highest that was seen so far."""
        return self.seen[name][-1][0] if self.seen[name] else 0

    def when(self, name: str, height: int) -> float:
        """Return when this height was first seen reached. Raises StopIteration."""
        return next(at for reached, at in self.seen[name] if reached >= height)

    def next_after(self, name: str, moment: float) -> float:
        """Return when this first grew after a moment. Raises StopIteration."""
        return next(at for _, at in self.seen[name] if at > moment)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


@asynccontextmanager
async def watching(place: RunNetwork, pace_s: float = _SLOW_POLL_S, *, is_close: bool = False) -> AsyncIterator[Watch]:
    """Watch a network meanwhile; `is_close`: also what takes only milliseconds."""
    watch = Watch(place)
    await watch.look()
    tasks = [asyncio.create_task(_keep(watch.look, pace_s))]
    if is_close:
        tasks.append(asyncio.create_task(_keep(watch.look_close, _POLL_S)))
    try:
        yield watch
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await watch.close()


async def _keep(look: Callable[[], Any], pace_s: float) -> None:
    while True:
        await look()
        await asyncio.sleep(pace_s)


async def follow_reports(place: RunNetwork, fleet: "HomeFleet", load: "Load", gate: Gate, count: int) -> list[Probe]:
    """Send single reports through the idle cluster and return the way of each."""
    made: list[tuple[float, float]] = []
    async with watching(place, is_close=True) as watch:
        await watch.until(lambda: watch.top("stored") >= watch.top("height"))
        await watch.until(lambda: bool(watch.seen["certified"]))
        gate.passages.clear()
        gate.is_watched = True
        for _ in range(count):
            start = time.perf_counter()
            await load.one()
            await fleet.drain()
            made.append((start, time.perf_counter()))
        gate.is_watched = False
        await watch.until(lambda: watch.top("stored") >= max(passage.height for passage in gate.passages))
    return [
        probe
        for start, receipt in made
        for passage in gate.passages
        if start <= passage.left <= receipt and (probe := _probe(watch, start, passage, receipt))
    ]


def _probe(watch: Watch, start: float, passage: Passage, receipt: float) -> Probe:
    moments = {
        "left": passage.left,
        "accepted": passage.accepted,
        "endorsed": watch.next_after("endorsed", passage.left),
        "executed": watch.when("executed", passage.height),
        "certified": watch.when("certified", passage.height),
        "receipt": receipt,
        "released": watch.when("released", passage.height),
        "stored": watch.when("stored", passage.height),
    }
    return Probe(**{name: (moment - start) * 1000 for name, moment in moments.items()})


async def price_gateway(place: RunNetwork, gate: Gate, seconds: float) -> list[GatewayCost]:
    """Send a request whose outcomes are known again and again, and return what its node took: of one report, of many.

    So nothing but the gateway works: HTTP, decoding, looking each id up, encoding of the answer. What the node takes
    by itself meanwhile is measured before and left out. Nothing is returned when no report was sent before.
    """
    if gate.largest is None:
        return []
    request, body = gate.largest
    transactions = SUBMIT_CODEC.decode(body)
    node = next(node for node in place.network.nodes if httpx.URL(node.url).port == request.url.port)
    identity = running(place.home.node(node.name).pid)
    if identity is None:
        return []
    idle = await _cpu_s(identity.pid, asyncio.sleep(seconds / 2)) / (seconds / 2)
    headers = {name: value for name, value in request.headers.items() if name != "content-length"}
    found = []
    async with httpx.AsyncClient(timeout=30.0, trust_env=False, headers=headers) as client:
        for sent in dict.fromkeys((1, len(transactions))):
            took: list[float] = []
            part = encode(transactions[:sent])
            begin = time.perf_counter()
            spent = await _cpu_s(identity.pid, _again(client, request.url, part, seconds, took))
            spent -= idle * (time.perf_counter() - begin)
            found.append(GatewayCost(sent, len(part), 1e6 * max(0.0, spent) / (sent * len(took)), quartiles(took)))
    return found


async def _again(client: httpx.AsyncClient, url: httpx.URL, body: bytes, seconds: float, took: list[float]) -> None:
    """Send until the time is over, once at least; a fast machine comes to the gateway's rate limit, and waits."""
    begin = time.perf_counter()
    while (start := time.perf_counter()) - begin < seconds or not took:
        answer = await client.post(url, content=body)
        is_patient = took or start - begin < seconds + _RATE_LIMIT_PATIENCE_S
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS and is_patient:
            await asyncio.sleep(int(answer.headers.get("retry-after", 1)))
            continue
        answer.raise_for_status()
        took.append((time.perf_counter() - start) * 1000)


async def _cpu_s(pid: int, meanwhile: Awaitable[None]) -> float:
    before = cpu_seconds(pid)
    await meanwhile
    return cpu_seconds(pid) - before
