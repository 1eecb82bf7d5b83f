"""The part of the security report that needs a running network: one of its own, never the user's."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bcami.cli.bench import first_unused_start
from bcami.cli.interrupt import run_command
from bcami.cli.meters import open_fleet
from bcami.cli.own_network import RunNetwork, network_for_run
from bcami.client.nodes import NodeClient
from bcami.paths import HomePaths
from bcami.processes.newest import BLOCKS_MAX
from bcami.report.security.attack import Account, Attack
from bcami.report.security.live import tampered_node

METERS: Final = 5
REPORTS_PER_SECOND: Final = 10.0
SECONDS: Final = 1.5


def live_attacks(folder: Path, show: Callable[[str], None]) -> tuple[Attack, ...]:
    """Return attacks on a network of processes, made in the report's folder and removed afterwards."""

    def run(_seed: int) -> Account:
        account = Account()
        own = HomePaths(folder / "networks")
        show("a network of 4 nodes")
        with network_for_run(own, "report-network", lambda _: None) as place:
            run_command(_load(place))
            show("tampering with one of its ledgers")
            tampered_node(account, place.home, place.network, place.genesis)
        shutil.rmtree(own.folder, ignore_errors=True)  # logs; after an error they stay, with the network
        return account

    title = "A node of a running network is tampered with"
    return (Attack("LEDGER.3", title, "a node's machine; the format, checksums included", run, slow=True),)


async def _load(place: RunNetwork) -> None:
    from bcami.replay.load import Load

    ids = [f"ATTACK{number:05d}" for number in range(METERS)]
    async with open_fleet(place.home) as fleet:
        await fleet.enrol(ids)
        load = Load(fleet, ids, first_unused_start(place.home), readings=1)
        await load.steady(REPORTS_PER_SECOND, SECONDS, lambda _: None)
        async with NodeClient(place.network.nodes[0].url) as node:
            while (await node.status())["height"] <= BLOCKS_MAX + 1:
                await load.one()
                await fleet.drain()
