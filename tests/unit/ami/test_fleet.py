"""A fleet over several nodes: nothing lost, nothing doubled, whatever the nodes do."""

import asyncio
from pathlib import Path

import pytest

from bcami.ami.fleet import Fleet
from bcami.model.report import Reading
from tests.chain import NETWORK_KEY
from tests.unit.client.cluster import Cluster

METERS = ["MAC000002", "MAC000003", "MAC000004"]


@pytest.fixture
def cluster() -> Cluster:
    built = Cluster()
    built.open_period()
    return built


async def open_fleet(cluster: Cluster, home: Path) -> Fleet:
    return await Fleet.open(home, cluster.genesis, cluster.urls, NETWORK_KEY, transport=cluster.transport, seed=b"seed")


def run(work) -> None:
    async def within_time() -> None:
        async with asyncio.timeout(20):
            await work

    asyncio.run(within_time())


def expected(readings: dict[str, list[Reading]], cluster: Cluster) -> None:
    from bcami.crypto.hid import hid

    stored = cluster.stored_readings()
    for meter_id, listed in readings.items():
        assert sorted(stored.get(hid(NETWORK_KEY, meter_id), {}).elements()) == sorted(listed)


def test_reports_are_enrolled_sealed_committed_and_forgotten(cluster: Cluster, tmp_path: Path) -> None:
    home = cluster.make_home(tmp_path)
    sent: dict[str, list[Reading]] = {meter_id: [] for meter_id in METERS}

    async def work() -> None:
        async with await open_fleet(cluster, home) as fleet:
            await fleet.enrol(METERS)
            await fleet.open_sessions(METERS)
            for slot in range(100):
                for meter_id in METERS:
                    reading = Reading(slot * 1800, slot)
                    sent[meter_id].append(reading)
                    await fleet.submit(meter_id, [reading], 1_700_000_000_000)
            await fleet.drain()
            assert fleet.statistics.committed == 300
            assert fleet.pending == 0
            assert not fleet.statistics.rejected
        async with await open_fleet(cluster, home) as fleet:
            assert fleet.pending == 0
            await fleet.open_sessions(METERS)
            assert fleet.statistics.sessions_opened == 0

    run(work())
    expected(sent, cluster)
