"""The part of the cost report that needs a running network: makes one, loads it, watches it, and takes it down."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx

from bcami.cli.bench import Usage, first_unused_start
from bcami.cli.meters import HomeFleet, open_fleet
from bcami.cli.own_network import RunNetwork, is_up, network_for_run
from bcami.paths import HomePaths
from bcami.processes.cpu import cpu_seconds
from bcami.processes.identity import running
from bcami.report.costs.live import LiveRun, Probe
from bcami.report.costs.phases import BASE, READINGS
from bcami.report.measuring import Effort

if TYPE_CHECKING:
    from bcami.replay.load import Load, Window

_POLL_S: Final = 0.003
_SLOW_POLL_S: Final = 0.1
"""Where CPU time is counted, and answering would be some of it."""
_STALLED_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class LiveEffort:
    """How long and on what."""

    meters: int
    warm_up_s: float
    saturated_s: float
    half_s: float
    probes: int
    nodes: tuple[int, ...]
    readings: tuple[int, ...]

    @classmethod
    def of(cls, effort: Effort) -> "LiveEffort":
        if effort.quick:
            return cls(40, 1.0, 2.5, 2.5, 3, (BASE,), (1, 48))
        return cls(200, 3.0, 12.0, 10.0, 20, (BASE, 7, 10, 13), READINGS)

    def of_base_only(self) -> "LiveEffort":
        """Return the same for a cluster of the usual size alone, with every number of readings."""
        return replace(self, nodes=(BASE,), readings=READINGS)


def measure_live(
    home: HomePaths, folder: Path, effort: LiveEffort, show: Callable[[str], None]
) -> tuple[list[LiveRun], list[Probe]]:
    """Return what live clusters took. The user's network is used when it is up; the others are made in `folder`."""
    runs: list[LiveRun] = []
    probes: list[Probe] = []
    own = HomePaths(folder / "networks")
    for nodes in effort.nodes:
        place = home if nodes == BASE and is_up(home) else own
        show(f"a network of {nodes} nodes")
        with network_for_run(place, "report-network", lambda _: None, nodes=nodes) as network:
            found, seen = asyncio.run(_measure(network, effort, is_base=nodes == BASE, show=show))
        runs += found
        probes += seen
    shutil.rmtree(own.folder, ignore_errors=True)  # logs; after an error they stay, with the network
    return runs, probes


async def _measure(
    place: RunNetwork, effort: LiveEffort, *, is_base: bool, show: Callable[[str], None]
) -> tuple[list[LiveRun], list[Probe]]:
    from bcami.replay.load import Load

    usage = Usage(place.home, place.network)
    ids = [f"REPORT{i:05d}" for i in range(effort.meters)]
    nodes = len(place.network.nodes)
    runs: list[LiveRun] = []
    probes: list[Probe] = []
    async with open_fleet(place.home) as fleet:
        show(f"{nodes} nodes: registering {effort.meters} meters")
        await fleet.enrol(ids)
        for readings in effort.readings if is_base else (1,):
            load = Load(fleet, ids, first_unused_start(place.home), readings=readings)
            if is_base and readings == 1:
                show(f"{nodes} nodes: single reports")
                await load.steady(20.0, 0.5, lambda _: None)
                probes = await _probe(place, fleet, load, effort.probes)
            show(f"{nodes} nodes, {readings} readings to a report: saturated")
            before = await _stored(place)
            full = await load.saturate(effort.warm_up_s, effort.saturated_s, usage.mark, lambda _: None)
            await fleet.drain()
            after = await _stored(place)
            half: Window | None = None
            if readings == 1:
                show(f"{nodes} nodes: half load")
                half = await load.steady(full.per_second / 2, effort.half_s, lambda _: None)
            runs.append(
                LiveRun(
                    nodes=nodes,
                    readings=readings,
                    meters=effort.meters,
                    seconds=full.seconds,
                    committed=full.committed,
                    full=full.latencies,
                    half_per_second=full.per_second / 2,
                    half=half.latencies if half else None,
                    cpu_us={**usage.per_transaction_us(full.committed), "mdms": _mdms_us(before, after, readings)},
                    mdms_bytes=(after.store_bytes - before.store_bytes) / max(1, after.readings - before.readings),
                )
            )
    return runs, probes


def _mdms_us(before: "_Stored", after: "_Stored", readings: int) -> float:
    """Return the MDMS's CPU time for a report; over all that it stored, since it lags behind the load's own window."""
    reports = max(1, (after.readings - before.readings) / readings)
    return round((after.cpu_s - before.cpu_s) * 1e6 / reports, 1)


class _Stored(NamedTuple):
    """What the MDMS has done so far."""

    readings: int
    store_bytes: int
    cpu_s: float


async def _stored(place: RunNetwork) -> _Stored:
    """Return what the MDMS has done, once it has everything that is certified now: it runs behind the nodes."""
    async with _watching(place, _SLOW_POLL_S) as watch:
        height = watch.top("height")
        await watch.until(lambda: watch.top("stored") >= height)
        readings = watch.readings
    identity = running(place.home.mdms_pid)
    return _Stored(
        readings,
        sum(file.stat().st_size for file in place.home.mdms.glob("store.duckdb*")),
        cpu_seconds(identity.pid) if identity is not None else 0.0,
    )


class _Watch:
    """When a node and the MDMS were first seen at each height."""

    def __init__(self, node_url: str, mdms_url: str) -> None:
        self._urls = {"height": node_url, "released_height": node_url, "stored": mdms_url}
        self._client = httpx.AsyncClient(timeout=10.0, trust_env=False)
        self._changed = asyncio.Event()
        self.readings = 0
        """In the MDMS's store."""
        self.seen: dict[str, list[tuple[int, float]]] = {name: [] for name in self._urls}

    async def run(self, pace_s: float) -> None:
        while True:
            await self.look()
            await asyncio.sleep(pace_s)

    async def look(self) -> None:
        node = await self._ask(self._urls["height"])
        self._note("height", node)
        self._note("released_height", node)
        mdms = await self._ask(self._urls["stored"])
        self.readings = int(mdms.get("readings") or 0)
        self._note("stored", {"stored": mdms.get("height")})

    async def _ask(self, url: str) -> dict[str, Any]:
        told = (await self._client.get(f"{url}/v1/status")).json()
        return told if isinstance(told, dict) else {}

    def _note(self, name: str, told: dict[str, Any]) -> None:
        height, seen = int(told.get(name) or 0), self.seen[name]
        if not seen or height > seen[-1][0]:
            seen.append((height, time.perf_counter()))
            self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return when it holds of what was seen. Raises TimeoutError."""
        async with asyncio.timeout(_STALLED_S):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    def top(self, name: str) -> int:
        return self.seen[name][-1][0] if self.seen[name] else 0

    def when(self, name: str, height: int) -> float:
        """Return when this height was first seen reached. Raises StopIteration."""
        return next(at for reached, at in self.seen[name] if reached >= height)

    async def close(self) -> None:
        await self._client.aclose()


@asynccontextmanager
async def _watching(place: RunNetwork, pace_s: float = _POLL_S) -> AsyncIterator[_Watch]:
    watch = _Watch(place.network.nodes[0].url, place.network.mdms.url)
    await watch.look()
    task = asyncio.create_task(watch.run(pace_s))
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await watch.close()


async def _probe(place: RunNetwork, fleet: HomeFleet, load: "Load", count: int) -> list[Probe]:
    """Send single reports through the idle cluster and see when each height is executed, released and stored."""
    made: list[tuple[float, float, int]] = []
    async with _watching(place) as watch:
        await watch.until(lambda: watch.top("stored") >= watch.top("height"))
        for _ in range(count):
            before, start = watch.top("height"), time.perf_counter()
            await load.one()
            await fleet.drain()
            receipt = time.perf_counter()
            await watch.until(lambda: watch.top("height") > before)  # noqa: B023
            made.append((start, receipt, before + 1))
        await watch.until(lambda: watch.top("stored") >= made[-1][2])
    return [
        Probe(
            executed=(watch.when("height", height) - start) * 1000,
            receipt=(receipt - start) * 1000,
            released=(watch.when("released_height", height) - start) * 1000,
            stored=(watch.when("stored", height) - start) * 1000,
        )
        for start, receipt, height in made
    ]
