"""Which nodes have lost their vote log, and the mark that makes it final (protocol 6.3).

A consensus key is made together with its promise store, so a key whose store is missing has forgotten what it signed,
and is dead. The node starts all the same: it follows the chain, serves reads and receipts, and says nothing that binds.
Before it does so for the first time, a mark is durable beside the key. From then on nothing brings the key back to
life: not a store that somebody makes anew, not one from a backup, which would be older than the votes.

A store that is there and does not read well is another matter. It may still be read when its disk is mended, and the
mark is for ever; so the node does not start, forgets nothing, and its operator decides (`docs/operations.md`).
"""

import time
from pathlib import Path
from typing import Any, Final

import msgspec

from bcami.config import Network
from bcami.crypto.keyfile import write_private
from bcami.ledger.environment import DATA_FILE
from bcami.model.quorum import Quorum
from bcami.paths import HomePaths, NodePaths

RETURNS: Final = "it returns only under a new key, by a change of members"


class AmnesiaMark(msgspec.Struct, frozen=True):
    """What the mark says; that it is there is what counts."""

    key: str
    """The dead public key, in hex."""
    since_ms: int
    why: str


def mark_path(paths: NodePaths) -> Path:
    return paths.folder / "amnesia.json"


def has_lost_votes(paths: NodePaths) -> bool:
    """Tell whether the node's key is dead, or will be found dead at its next start."""
    return mark_path(paths).exists() or not (paths.promises / DATA_FILE).is_file()


def settle_amnesia(paths: NodePaths, owner: bytes) -> AmnesiaMark | None:
    """Return None when the node may vote; else its mark, which is on disk by then.

    `owner` is the node's public consensus key. Raises EnvironmentFault when the mark cannot be written.
    """
    if not has_lost_votes(paths):
        return None
    if not mark_path(paths).exists():
        why = f"the promise store was missing from {paths.promises}"
        mark = AmnesiaMark(owner.hex(), time.time_ns() // 1_000_000, why)
        write_private(mark_path(paths), msgspec.json.format(msgspec.json.encode(mark)) + b"\n", replace=True)
    try:
        return msgspec.json.decode(mark_path(paths).read_bytes(), type=AmnesiaMark)
    except msgspec.MsgspecError:
        return AmnesiaMark(owner.hex(), 0, f"the mark {mark_path(paths)} is there, but is damaged")


def lost_votes(home: HomePaths, network: Network) -> list[str]:
    """Return the names of the nodes whose vote log is gone, as their folders here tell."""
    return [node.name for node in network.nodes if _is_here(home, node.name) and has_lost_votes(home.node(node.name))]


def _is_here(home: HomePaths, name: str) -> bool:
    """Tell whether the node lives on this machine: a network may stretch over several."""
    return home.node(name).consensus_key.exists()


def amnesia_summary(lost: list[str], nodes: int) -> dict[str, Any]:
    """Return what losses mean for the network: how many are tolerated, and whether it can still order."""
    quorum = Quorum(nodes)
    return {"nodes": lost, "tolerated": quorum.f, "can_order": nodes - len(lost) >= quorum.strong}


def amnesia_lines(summary: dict[str, Any]) -> list[str]:
    """Return what an operator has to know, one sentence a line; none when every node has its votes."""
    lost, tolerated = summary["nodes"], summary["tolerated"]
    lines = [
        f"{name} has lost its vote log: it follows, serves reads and receipts, and never votes again; {RETURNS}"
        for name in lost
    ]
    if lost and summary["can_order"]:
        spare = tolerated - len(lost)
        lines.append(f"{len(lost)} of {tolerated} faulty nodes that this network stands are used up; {spare} left")
    elif lost:
        lines.append(
            f"{len(lost)} nodes have lost their vote logs, {tolerated} may: this network cannot order any more"
        )
    return lines
