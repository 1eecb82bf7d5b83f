"""The fleet of a home, in the form that the replay drives (`bcami.replay.runner.ReplayFleet`).

Beside enrolling its meters on the chain, the utility names them to the MDMS: the chain knows hashed identities only.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import httpx

from bcami.ami.fleet import Fleet
from bcami.ami.statistics import FleetStatistics
from bcami.cli.ask import http_client, post_json, running_mdms
from bcami.config import Network
from bcami.model.report import Reading
from bcami.paths import HomePaths
from bcami.processes.home import load_operator_token, load_utility, open_home

_GROUP: Final = 500
"""Meters that are enrolled, and whose sessions are opened, at a time."""


class HomeFleet:
    """Implements ReplayFleet over the meters that the home keeps in HOME/fleet."""

    def __init__(self, home: HomePaths, network: Network, fleet: Fleet) -> None:
        self._home = home
        self._network = network
        self._fleet = fleet

    @property
    def fleet(self) -> Fleet:
        """The meters themselves."""
        return self._fleet

    @property
    def statistics(self) -> FleetStatistics:
        return self._fleet.statistics

    @property
    def position(self) -> bytes | None:
        return self._fleet.position

    async def enrol(self, meter_ids: Iterable[str]) -> None:
        """Return when each meter is enrolled, known to the MDMS by name, and has a session."""
        wanted = list(meter_ids)
        for start in range(0, len(wanted), _GROUP):
            group = wanted[start : start + _GROUP]
            await asyncio.to_thread(self._name_to_mdms, group)
            await self._fleet.enrol(group)
            await self._fleet.open_sessions(group)

    async def submit(
        self, meter_id: str, readings: Sequence[Reading], intended_ms: int, *, position: bytes | None
    ) -> None:
        await self._fleet.submit(meter_id, readings, intended_ms, position=position)

    async def drain(self) -> None:
        await self._fleet.drain()

    def _name_to_mdms(self, meter_ids: list[str]) -> None:
        url = running_mdms(self._home, self._network)
        headers = {"authorization": f"Bearer {load_operator_token(self._home)}"}
        with http_client() as client:
            post_json(client, url, "/v1/directory", json={"meters": meter_ids}, headers=headers)


@asynccontextmanager
async def open_fleet(home: HomePaths, transport: httpx.AsyncBaseTransport | None = None) -> AsyncIterator[HomeFleet]:
    """Open HOME/fleet with every node of the network as a way to the chain; it goes on with what it holds.

    `transport` carries its requests; a plain one otherwise.
    """
    network, genesis = open_home(home)
    urls = [node.url for node in network.nodes]
    async with await Fleet.open(home.folder, genesis, urls, load_utility(home).network, transport=transport) as fleet:
        yield HomeFleet(home, network, fleet)
