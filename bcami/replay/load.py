"""Drives a running network with made-up readings: to saturation, or at a steady rate (design section 4, `bench`).

Saturation is a closed loop: the fleet's own backpressure sets the pace, and its backlog is what latency shows. At a
steady rate the loop is open: each report has a time at which it is to be sent, latency counts from there, and a
cluster that stalls is not spared the reports it should have taken meanwhile.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from bcami.ami.statistics import FleetStatistics, Latencies
from bcami.model.report import Reading
from bcami.units import HALF_HOUR_S

FIRST_START_S: Final = 1_356_998_400
"""Made-up readings begin on 2013-01-01, and every report is a later half-hour of its meter."""
_PACE_S: Final = 0.005
_SAMPLE_S: Final = 0.1


class LoadFleet(Protocol):
    """What a load needs of a fleet."""

    @property
    def statistics(self) -> FleetStatistics: ...

    async def submit(
        self, meter_id: str, readings: Sequence[Reading], intended_ms: int, *, position: bytes | None
    ) -> None: ...

    async def drain(self) -> None: ...


class Window(msgspec.Struct, frozen=True):
    """What one measured stretch of load came to."""

    seconds: float
    committed: int
    offered: int
    latencies: Latencies

    @property
    def per_second(self) -> float:
        return self.committed / self.seconds if self.seconds else 0.0


class Load:
    """Makes reports for registered meters, each half-hour of each meter once, so many of them to a report."""

    def __init__(
        self, fleet: LoadFleet, meter_ids: Sequence[str], first_start_s: int = FIRST_START_S, *, readings: int = 1
    ) -> None:
        self._readings = readings
        self._fleet = fleet
        self._meter_ids = meter_ids
        self._start_s = first_start_s
        self._next = 0

    async def saturate(
        self, warm_up_s: float, seconds: float, on_window: Callable[[bool], None], on_progress: Callable[[int], None]
    ) -> Window:
        """Submit as fast as the fleet takes it. `on_window` is called as the measured stretch begins and ends."""
        statistics = self._fleet.statistics
        begin = time.perf_counter()
        while time.perf_counter() - begin < warm_up_s:
            await self._one(_now_ms())
        committed, offered, start = statistics.committed, self._next, time.perf_counter()
        statistics.latencies = Latencies()
        on_window(True)
        shown = start
        while (now := time.perf_counter()) - start < seconds:
            await self._one(_now_ms())
            if now - shown > _SAMPLE_S:
                shown = now
                on_progress(statistics.committed - committed)
        on_window(False)
        taken = time.perf_counter() - start
        return Window(taken, statistics.committed - committed, self._next - offered, statistics.latencies)

    async def steady(self, per_second: float, seconds: float, on_progress: Callable[[int], None]) -> Window:
        """Submit on a schedule, however late the cluster is; returns when everything is settled."""
        statistics = self._fleet.statistics
        await self._fleet.drain()
        statistics.latencies = Latencies()
        committed, start, start_ms = statistics.committed, time.perf_counter(), _now_ms()
        total = round(per_second * seconds)
        sent = 0
        while sent < total:
            due = min(total, int((time.perf_counter() - start) * per_second) + 1)
            for number in range(sent, due):
                await self._one(start_ms + round(1000 * number / per_second))
            sent = due
            on_progress(statistics.committed - committed)
            await asyncio.sleep(_PACE_S)
        await self._fleet.drain()
        return Window(time.perf_counter() - start, statistics.committed - committed, total, statistics.latencies)

    async def one(self) -> None:
        """Submit one report, due now."""
        await self._one(_now_ms())

    async def _one(self, intended_ms: int) -> None:
        round_, place = divmod(self._next, len(self._meter_ids))
        self._next += 1
        first = round_ * self._readings
        report = [
            Reading(self._start_s + HALF_HOUR_S * (first + i), 1_000 * (place + 1)) for i in range(self._readings)
        ]
        await self._fleet.submit(self._meter_ids[place], report, intended_ms, position=None)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
