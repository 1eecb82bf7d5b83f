"""Symmetric keys with real processes: sent by commands, taken by meters once, over a crash of the MDMS."""

import json
import signal
from collections import Counter
from typing import Any

import httpx

from bcami.config import load_network
from tests.processes.cluster import Cluster, wait_until

METERS = 36


def sent(cluster: Cluster, *arguments: str) -> dict[str, Any]:
    told = cluster.json("kms", "send", *arguments, "--wait", "30")
    assert told["waiting"] == 0, told
    return told


def meter_ids(cluster: Cluster) -> list[str]:
    url = load_network(cluster.home).mdms.url
    return [row["meter_id"] for row in httpx.get(f"{url}/v1/meters", trust_env=False).json()["meters"]]


def test_what_commands_send_is_taken_once_over_a_crash_and_a_rotation(replayed: Cluster) -> None:
    replayed.run("up", "--detach")
    one, other, outsider = meter_ids(replayed)[:3]
    with replayed.start("kms", "listen", "--seconds", "600", "--json") as listener:
        try:
            everybody = sent(replayed, "--broadcast", "--price", "0.25,0.18")
            assert (everybody["delivered"], everybody["late"]) == (METERS, 0)
            replayed.run("kms", "dr", "publish", "1", "evening peak")
            for meter in (one, other):
                replayed.run("kms", "dr", "join", "1", meter)
            wait_until(
                lambda: replayed.json("kms", "dr", "list")["projects"][0]["members"] == 2, "two meters take part"
            )
            assert sent(replayed, "--group", "1", "--limit", "2000")["delivered"] == 2
            assert "not_a_member" in replayed.run("kms", "dr", "leave", "1", outsider, expect=2)
            assert "unknown_hid" in replayed.run("kms", "send", "--meter", "nobody", "--connect", expect=2)
            epoch = replayed.json("kms", "status")["epoch"]

            replayed.kill("mdms")
            replayed.run("up", "--detach", "mdms")
            wait_until(lambda: replayed.json("kms", "status")["meters_confirmed"] == METERS, "new keys for all")
            after = replayed.json("kms", "status")
            assert after["epoch"] > epoch
            replayed.run("kms", "dr", "leave", "1", one)
            wait_until(
                lambda: replayed.json("kms", "dr", "list")["projects"][0]["members"] == 1, "one meter takes part"
            )
            assert sent(replayed, "--group", "1", "--limit", "1000")["delivered"] == 1

            replayed.run("kms", "rotate")
            wait_until(lambda: replayed.json("kms", "status")["epoch"] > after["epoch"], "another epoch")
            assert sent(replayed, "--meter", one, "--connect")["delivered"] == 1
            told = replayed.json("kms", "audit", "--limit", "1000")
            assert told["fault"] is None
            actions = Counter(row["action"] for row in told["entries"])
            assert (actions["epoch"], actions["publish"], actions["join"], actions["leave"]) == (4, 1, 2, 1)
        finally:
            listener.send_signal(signal.SIGINT)
            out, _ = listener.communicate(timeout=60)
    taken = Counter(row["message"] for row in json.loads(out)["taken"])
    assert taken == {"pricing": METERS, "publish": METERS, "remote_control": 2 + 1 + 1}
