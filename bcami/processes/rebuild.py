"""Rebuilds a node's ledger from its peers, and keeps its promises (protocol 6.3).

The damaged ledger is put aside, never deleted, before the node starts with an empty one; what it promised stays in
the promise store, so that it contradicts no vote it sent before.
"""

import datetime as dt
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bcami.config import Network
from bcami.crypto.keys import load_secret
from bcami.errors import EnvironmentFault, InputError
from bcami.ledger.audit import check_promises
from bcami.model.quorum import Quorum
from bcami.paths import HomePaths
from bcami.processes.amnesia import has_lost_votes
from bcami.processes.home import CONSENSUS_KIND
from bcami.processes.overview import overview
from bcami.processes.supervisor import Readiness, Supervisor

_POLL_S: Final = 0.2
STALLED_S: Final = 60.0
"""Longest time without a block more before the catch-up counts as stalled."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did."""

    name: str
    height: int
    put_aside: Path | None
    """Where the former ledger lies; None when there was none."""


def rebuild_node(
    home: HomePaths, network: Network, name: str, report: Callable[[Readiness], None], progress: Callable[[str], None]
) -> Rebuilt:
    """Return when the node has every block that its peers had at the start of its catch-up.

    Peers that are not running are started too. A node without its promises gets its ledger too, and goes on as a
    reader (protocol 6.3). Raises InputError for an unknown name, EnvironmentFault when the promise store is damaged, or
    when too few peers run.
    """
    network.node(name)
    supervisor = Supervisor(home, network, attached=False)
    supervisor.down([name])
    _check_promises(home, name)
    supervisor.up(report, [node.name for node in network.nodes if node.name != name])
    target = _highest(home, network, name)
    aside = _put_aside(home.node(name).ledger)
    supervisor.up(report, [name])
    return Rebuilt(name, _wait_caught_up(home, network, name, target, progress), aside)


def _check_promises(home: HomePaths, name: str) -> None:
    """Look at the promises before the ledger is touched: a node does not start on a damaged store."""
    paths = home.node(name)
    if has_lost_votes(paths):
        return
    owner = load_secret(paths.consensus_key, CONSENSUS_KIND).public_key
    check_promises(paths.promises, owner)


def _highest(home: HomePaths, network: Network, name: str) -> int:
    heights = sorted(
        (node["height"] for node in overview(home, network)["nodes"] if node["name"] != name and node["height"]),
        reverse=True,
    )
    weak = Quorum(len(network.nodes)).weak
    others = len(network.nodes) - 1
    if others < weak:
        raise InputError("a network of one node has no peers to rebuild from", do=f"keep {home.node(name).folder}")
    # The weak-highest height was reached by at least one honest peer; a single liar cannot keep us waiting.
    return heights[weak - 1] if len(heights) >= weak else 0


def _put_aside(ledger: Path) -> Path | None:
    if not ledger.exists():
        return None
    moment = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H-%M-%S-%f")
    place = ledger.with_name(f"ledger.replaced-{moment}")
    try:
        ledger.rename(place)
    except OSError as error:
        raise EnvironmentFault(f"the ledger cannot be put aside: {error.strerror}", where=str(ledger)) from None
    return place


def _wait_caught_up(home: HomePaths, network: Network, name: str, target: int, progress: Callable[[str], None]) -> int:
    height, moved = -1, time.monotonic()
    while height < target:
        told: dict[str, Any] = next(node for node in overview(home, network)["nodes"] if node["name"] == name)
        if told["pid"] is None:
            raise EnvironmentFault(f"{name} ended while it caught up", do=f"bcami logs {name}")
        now = told["height"] or 0
        if now > height:
            height, moved = now, time.monotonic()
        elif time.monotonic() - moved > STALLED_S:
            raise EnvironmentFault(
                f"{name} is at height {height} of {target} and got no block for {STALLED_S:.0f} s",
                do=f"bcami status; bcami logs {name}",
            )
        progress(f"height {height} of {target}")
        threading.Event().wait(_POLL_S)
    return height
