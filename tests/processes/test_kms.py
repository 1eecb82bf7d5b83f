"""Symmetric keys with real processes: sent by commands, taken by meters once, over a crash of the MDMS."""

import json
import signal
from collections import Counter
from typing import Any

import httpx

from bcami.config import load_network
from tests.processes.cluster import COMMAND_S, Cluster, wait_until

METERS = 36


def sent(cluster: Cluster, *arguments: str) -> int:
    """Send a message and return how many meters took it, on a slow machine perhaps behind its deadline."""
    told = cluster.json("kms", "send", *arguments, "--wait", "120")
    assert told["waiting"] == 0, told
    return int(told["delivered"]) + int(told["late"])


def asked(cluster: Cluster, path: str) -> dict[str, Any]:
    url = load_network(cluster.home).mdms.url
    told: dict[str, Any] = httpx.get(f"{url}/v1/{path}", trust_env=False, timeout=COMMAND_S).json()
    return told


def wait_keys(cluster: Cluster, *, above: int) -> int:
    """Wait until all meters have keys of a later epoch than this one; return which."""

    def have_keys() -> bool:
        status = asked(cluster, "kms/status")
        return status["epoch"] > above and status["meters_confirmed"] == METERS

    wait_until(have_keys, f"all meters have keys of an epoch above {above}")
    return int(asked(cluster, "kms/status")["epoch"])


def wait_members(cluster: Cluster, count: int) -> None:
    wait_until(lambda: asked(cluster, "kms/projects")["projects"][0]["members"] == count, f"{count} take part")


def test_what_commands_send_is_taken_once_over_a_crash_and_a_rotation(replayed: Cluster) -> None:
    replayed.run("up", "--detach")
    one, other, outsider = [row["meter_id"] for row in asked(replayed, "meters")["meters"]][:3]
    with replayed.start("kms", "listen", "--seconds", "600", "--json") as listener:
        try:
            assert sent(replayed, "--broadcast", "--price", "0.25,0.18") == METERS
            replayed.run("kms", "dr", "publish", "1", "evening peak")
            for meter in (one, other):
                replayed.run("kms", "dr", "join", "1", meter)
            wait_members(replayed, 2)
            assert replayed.json("kms", "dr", "list")["projects"][0]["members"] == 2
            assert sent(replayed, "--group", "1", "--limit", "2000") == 2
            assert "not_a_member" in replayed.run("kms", "dr", "leave", "1", outsider, expect=2)
            assert "unknown_hid" in replayed.run("kms", "send", "--meter", "nobody", "--connect", expect=2)
            epoch = replayed.json("kms", "status")["epoch"]

            replayed.kill("mdms")
            replayed.run("up", "--detach", "mdms")
            after = wait_keys(replayed, above=epoch)
            replayed.run("kms", "dr", "leave", "1", one)
            wait_members(replayed, 1)
            assert sent(replayed, "--group", "1", "--limit", "1000") == 1

            replayed.run("kms", "rotate")
            wait_keys(replayed, above=after)
            assert sent(replayed, "--meter", one, "--connect") == 1
            told = replayed.json("kms", "audit", "--limit", "1000")
            assert told["fault"] is None
            actions = Counter(row["action"] for row in told["entries"])
            assert (actions["epoch"], actions["publish"], actions["join"], actions["leave"]) == (4, 1, 2, 1)
        finally:
            listener.send_signal(signal.SIGINT)
            out, _ = listener.communicate(timeout=COMMAND_S)
    taken = Counter(row["message"] for row in json.loads(out)["taken"])
    assert taken == {"pricing": METERS, "publish": METERS, "remote_control": 2 + 1 + 1}
