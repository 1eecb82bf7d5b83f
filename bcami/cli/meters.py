"""The fleet of a home, in the form that the replay drives (`bcami.replay.runner.ReplayFleet`)."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from bcami.ami.fleet import Fleet
from bcami.errors import ExpectationError
from bcami.model.report import Reading
from bcami.paths import HomePaths
from bcami.processes.home import load_utility, open_home
from bcami.replay.runner import FleetTally, Latency

_ENROL_GROUP: Final = 500
"""Meters whose sessions are opened at a time."""


class HomeFleet:
    """Implements ReplayFleet over the meters that the home keeps in HOME/fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    async def enrol(self, meter_ids: Sequence[str]) -> None:
        for start in range(0, len(meter_ids), _ENROL_GROUP):
            group = meter_ids[start : start + _ENROL_GROUP]
            await self.fleet.enrol(group)
            await self.fleet.open_sessions(group)

    async def submit(self, meter_id: str, readings: Sequence[Reading], intended_ms: int) -> None:
        await self.fleet.submit(meter_id, readings, intended_ms, durable=True)

    async def holds(self, meter_id: str, start_s: int) -> bool:
        return self.fleet.holds(meter_id, start_s)

    async def drain(self) -> None:
        await self.fleet.drain()

    def tally(self) -> FleetTally:
        counted = self.fleet.statistics
        latencies = counted.latencies.summary()
        return FleetTally(
            committed=counted.committed,
            rejected=dict(counted.rejected),
            latency_ms=Latency(**{name: float(value or 0) for name, value in latencies.items()}),
        )

    def check_delivered(self) -> None:
        """Raise ExpectationError when reports are left that no effort settled."""
        stopped = self.fleet.statistics.stopped
        if stopped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(stopped.items()))
            raise ExpectationError(
                f"{sum(stopped.values())} reports were not accepted ({reasons}); they stay in the fleet's store",
                do="remove the cause and run the replay again with --resume",
            )


@asynccontextmanager
async def open_fleet(home: HomePaths) -> AsyncIterator[HomeFleet]:
    """Open HOME/fleet with every node of the network as a way to the chain; it goes on with what it holds."""
    network, genesis = open_home(home)
    urls = [node.url for node in network.nodes]
    async with await Fleet.open(home.folder, genesis, urls, load_utility(home).network) as fleet:
        yield HomeFleet(fleet)
