"""The part of the cost report that needs a running network: makes one, loads it, watches it, and takes it down."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bcami.cli.bench import Usage, first_unused_start
from bcami.cli.interrupt import run_command
from bcami.cli.meters import open_fleet
from bcami.cli.own_network import RunNetwork, is_up, network_for_run
from bcami.cli.report_way import Gate, follow_reports, price_gateway, watching
from bcami.paths import HomePaths
from bcami.processes.cpu import cpu_seconds
from bcami.processes.home import open_home
from bcami.processes.identity import running
from bcami.report.costs.live import GatewayCost, LiveFound, LiveRun, Probe
from bcami.report.costs.phases import BASE, READINGS
from bcami.report.measuring import Effort

if TYPE_CHECKING:
    from bcami.replay.load import Window

_SLOW_POLL_S: Final = 0.1
"""Where CPU time is counted, and answering would be some of it."""


@dataclass(frozen=True, slots=True)
class LiveEffort:
    """How long and on what."""

    meters: int
    warm_up_s: float
    saturated_s: float
    half_s: float
    probes: int
    gateway_s: float
    nodes: tuple[int, ...]
    readings: tuple[int, ...]

    @classmethod
    def of(cls, effort: Effort) -> "LiveEffort":
        if effort.quick:
            return cls(40, 0.7, 1.8, 1.5, 5, 0.6, (BASE,), (1, 48))
        return cls(200, 3.0, 12.0, 10.0, 30, 5.0, (BASE, 7, 10, 13), READINGS)

    def of_base_only(self) -> "LiveEffort":
        """Return the same for a cluster of the usual size alone, with every number of readings."""
        return replace(self, nodes=(BASE,), readings=READINGS)


def measure_live(home: HomePaths, folder: Path, effort: LiveEffort, show: Callable[[str], None]) -> LiveFound:
    """Return what live clusters took. The user's network is used when it is up and of the usual size; the others are
    made in `folder`.
    """
    found = []
    own = HomePaths(folder / "networks")
    for nodes in effort.nodes:
        place = home if nodes == BASE and _is_usable(home) else own
        show(f"a network of {nodes} nodes")
        with network_for_run(place, "report-network", lambda _: None, nodes=nodes) as network:
            found.append(run_command(_measure(network, effort, is_base=nodes == BASE, show=show)))
    shutil.rmtree(own.folder, ignore_errors=True)  # logs; after an error they stay, with the network
    return LiveFound(
        tuple(run for item in found for run in item.runs),
        tuple(probe for item in found for probe in item.probes),
        tuple(cost for item in found for cost in item.gateway),
    )


def _is_usable(home: HomePaths) -> bool:
    """Tell whether the user's network is up, and as large as the one that most figures are about."""
    return is_up(home) and len(open_home(home)[0].nodes) == BASE


async def _measure(place: RunNetwork, effort: LiveEffort, *, is_base: bool, show: Callable[[str], None]) -> LiveFound:
    from bcami.replay.load import Load

    usage = Usage(place.home, place.network)
    ids = [f"REPORT{i:05d}" for i in range(effort.meters)]
    nodes = len(place.network.nodes)
    runs: list[LiveRun] = []
    probes: list[Probe] = []
    gateway: list[GatewayCost] = []
    gate = Gate()
    async with open_fleet(place.home, gate if is_base else None) as fleet:
        show(f"{nodes} nodes: registering {effort.meters} meters")
        await fleet.enrol(ids)
        for readings in effort.readings if is_base else (1,):
            load = Load(fleet, ids, first_unused_start(place.home), readings=readings)
            if is_base and readings == 1:
                show(f"{nodes} nodes: single reports")
                await load.steady(20.0, 0.5, lambda _: None)
                probes = await follow_reports(place, fleet, load, gate, effort.probes)
            show(f"{nodes} nodes, {readings} readings to a report: saturated")
            before = await _stored(place)
            full = await load.saturate(effort.warm_up_s, effort.saturated_s, usage.mark, lambda _: None)
            await fleet.drain()
            after = await _stored(place)
            half: Window | None = None
            if readings == 1:
                show(f"{nodes} nodes: half load")
                half = await load.steady(full.per_second / 2, effort.half_s, lambda _: None)
            if is_base and readings == 1:
                show(f"{nodes} nodes: the gateway alone")
                gateway = await price_gateway(place, gate, effort.gateway_s)
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
    return LiveFound(tuple(runs), tuple(probes), tuple(gateway))


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
    async with watching(place, _SLOW_POLL_S) as watch:
        height = watch.top("height")
        await watch.until(lambda: watch.top("stored") >= height)
        readings = watch.readings
    identity = running(place.home.mdms_pid)
    return _Stored(
        readings,
        sum(file.stat().st_size for file in place.home.mdms.glob("store.duckdb*")),
        cpu_seconds(identity.pid) if identity is not None else 0.0,
    )
