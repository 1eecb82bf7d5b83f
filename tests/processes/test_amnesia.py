"""A node loses its vote log: it follows and serves, never votes again, and the network goes on (protocol 6.3)."""

import json
import shutil
from typing import Any

import httpx

from bcami.codec import encode
from bcami.config import load_network
from bcami.crypto.keys import SecretKey
from bcami.ledger.lmdb_promises import LmdbPromises
from bcami.model.transaction import Transaction
from bcami.processes.amnesia import mark_path
from bcami.processes.home import load_genesis
from tests.processes.cluster import COMMAND_S, PACED, SINGLY, Cluster

LOST = "node2"


def signers(client: httpx.Client, height: int) -> set[int]:
    """Return who vouches for a certified block or collected what is in it."""
    block: dict[str, Any] = client.get(f"/v1/blocks/{height}", headers={"accept": "application/json"}).json()
    votes = [vote["replica"] for vote in block["certificate"]["votes"]]
    return {*votes, *(batch["collector"] for batch in block["batches"])}


def test_a_node_without_its_vote_log_follows_and_never_votes_again(fresh: Cluster) -> None:
    fresh.run("up", "--detach")
    fresh.run("down", LOST)
    shutil.rmtree(fresh.home.node(LOST).promises)
    told = fresh.run("up", "--detach")
    assert f"{LOST} has lost its vote log" in told
    fresh.wait_level()
    since = fresh.status()["node1"]["height"]

    replayed = fresh.json("replay", "sample", *SINGLY, "--meters", "4")
    assert replayed["transactions_committed"] == replayed["readings_sent"] > 0
    assert replayed["transactions_refused"] == {}, "no number is given up for its sake"
    fresh.wait_level()
    replica = [node.name for node in load_network(fresh.home).nodes].index(LOST)
    last = fresh.status()["node1"]["height"]
    assert last > since
    with httpx.Client(base_url=load_network(fresh.home).node("node1").url, trust_env=False) as client:
        assert not any(replica in signers(client, height) for height in range(since + 1, last + 1))

    serves_reads_and_refuses_submissions(fresh, last)
    status = fresh.json("status")
    assert status["amnesia"] == {"nodes": [LOST], "tolerated": 1, "can_order": True}
    assert f"{LOST} has lost its vote log" in fresh.run("status")

    stays_dead(fresh)
    compared = fresh.json("reconcile", "sample", "--meters", "4")
    assert (compared["missing"], compared["extra"], compared["different"]) == (0, 0, 0)
    assert fresh.json("verify")["ok"]


def serves_reads_and_refuses_submissions(cluster: Cluster, height: int) -> None:
    url = load_network(cluster.home).node(LOST).url
    block = httpx.get(f"{url}/v1/blocks/{height}", headers={"accept": "application/json"}).json()
    receipt = httpx.get(f"{url}/v1/transactions/{block['outcomes'][0]['transaction_id']}")
    assert receipt.status_code == 200
    key = SecretKey.generate(b"k" * 32)
    tx = Transaction("usage", "report", b"h" * 32, 1, 1, 1, b"a" * 32, b"a", (key.sign(b"d" * 32),))
    answer = httpx.post(f"{url}/v1/transaction", content=encode(tx), headers={"content-type": "application/msgpack"})
    assert (answer.status_code, answer.json()["reason"]) == (503, "amnesia")
    assert load_network(cluster.home).node("node1").url in answer.json()["detail"]
    assert "bcami_amnesia 1.0" in httpx.get(f"{url}/metrics").text


def stays_dead(cluster: Cluster) -> None:
    """An empty store in place of the lost one changes nothing, and a rebuild makes none."""
    node = cluster.home.node(LOST)
    cluster.run("down", LOST)
    place = [item.name for item in load_network(cluster.home).nodes].index(LOST)
    LmdbPromises.create(node.promises, load_genesis(cluster.home).members[place].consensus_key)
    cluster.run("rebuild", LOST)
    assert cluster.status()[LOST]["amnesia"] is True
    assert mark_path(node).exists()
    cluster.wait_level()


def test_the_log_is_lost_in_a_crash_while_a_replay_runs(fresh: Cluster) -> None:
    fresh.run("up", "--detach")
    with fresh.start("replay", "sample", *PACED, "--json") as replay:
        fresh.wait_under_way(replay)
        victim = fresh.primary()
        fresh.kill(victim)
        shutil.rmtree(fresh.home.node(victim).promises)
        fresh.run("up", victim, "--detach")
        out, err = replay.communicate(timeout=COMMAND_S)
    assert replay.returncode == 0, f"{out}\n{err}\n{fresh.logs()}"
    told = json.loads(out)
    assert told["transactions_committed"] == told["readings_sent"]
    fresh.wait_level()
    assert fresh.json("verify")["ok"]
    assert fresh.status()[victim]["amnesia"] is True
