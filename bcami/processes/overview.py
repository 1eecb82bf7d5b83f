"""What `bcami status` tells of a network: every node and the MDMS, running or not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from bcami.config import Network
from bcami.paths import HomePaths
from bcami.processes.amnesia import amnesia_summary, lost_votes
from bcami.processes.identity import running

_TIMEOUT_S: Final = 2.0
_NODE_FIELDS: Final = ("view", "primary", "height", "block_hash", "state_root", "peers_connected", "lag", "amnesia")
_MDMS_FIELDS: Final = ("height", "readings")


def overview(home: HomePaths, network: Network) -> dict[str, Any]:
    """Return the fields of `status --json`; what a process does not tell, or is not there to tell, is None."""
    with httpx.Client(timeout=_TIMEOUT_S, trust_env=False) as client:
        nodes = [
            {"name": node.name, **_told(client, home.node(node.name).pid, node.url, _NODE_FIELDS)}
            for node in network.nodes
        ]
        mdms = _told(client, home.mdms_pid, network.mdms.url, _MDMS_FIELDS)
    lost = lost_votes(home, network)
    for row in nodes:
        row["amnesia"] = bool(row["amnesia"]) or row["name"] in lost
    heights = [node["height"] for node in nodes if node["height"] is not None]
    for row in nodes:
        if row["height"] is not None and row["lag"] is None:
            row["lag"] = max(heights) - row["height"]
    summary = amnesia_summary([row["name"] for row in nodes if row["amnesia"]], len(nodes))
    return {"nodes": nodes, "mdms": mdms, "amnesia": summary}


def _told(client: httpx.Client, pid_file: Path, url: str, fields: Sequence[str]) -> dict[str, Any]:
    identity = running(pid_file)
    told = _ask(client, url) if identity is not None else {}
    return {"pid": identity.pid if identity else None, "url": url, **{field: told.get(field) for field in fields}}


def _ask(client: httpx.Client, url: str) -> dict[str, Any]:
    try:
        answer = client.get(f"{url}/v1/status")
        told = answer.json() if answer.status_code == httpx.codes.OK else {}
    except (httpx.HTTPError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
