"""kill -9 while a replay runs: nothing acknowledged is lost, the chain goes on, all ledgers agree."""

import json

import pytest

from tests.processes.cluster import COMMAND_S, DAY, PACED, SINGLY, Cluster

SLOWLY = (*SINGLY, *DAY, "--speed", "100")
"""A quarter of an hour: it is not over when it is killed."""
QUICKLY = (*SINGLY, *DAY, "--speed", "1000000")
"""Also by the time of the data, so that it can take up the one before."""


@pytest.mark.parametrize("role", ["primary", "backup"])
def test_a_node_is_killed_while_a_replay_runs(fresh: Cluster, role: str) -> None:
    fresh.run("up", "--detach")
    primary = fresh.primary()
    victim = primary if role == "primary" else next(name for name in fresh.status() if name != primary)
    with fresh.start("replay", "sample", *PACED, "--json") as replay:
        fresh.wait_under_way(replay)
        fresh.kill(victim)
        out, err = replay.communicate(timeout=COMMAND_S)
    assert replay.returncode == 0, f"{out}\n{err}\n{fresh.logs()}"
    told = json.loads(out)
    assert told["transactions_committed"] == told["readings_sent"]
    if role == "primary":
        # The kill may have come when all was ordered. Of these nothing was, and the dead primary orders nothing.
        more = fresh.json("replay", "sample", *SINGLY, *DAY, "--meters", "3")
        assert more["transactions_committed"] == more["readings_sent"] > 0
        others = [node for name, node in fresh.status().items() if name != victim]
        assert all(node["view"] >= 1 for node in others), "there was a view change"

    fresh.run("up", "--detach")
    fresh.wait_level()
    compared = fresh.json("reconcile", "sample", *DAY)
    assert (compared["missing"], compared["extra"], compared["different"]) == (0, 0, 0)
    assert fresh.json("verify")["ok"], "every ledger is sound, and they agree"


def test_all_nodes_are_killed_and_the_chain_goes_on(replayed: Cluster) -> None:
    replayed.run("up", "--detach")
    replayed.wait_level()
    before = next(iter(replayed.status().values()))
    replayed.kill("node1", "node2", "node3", "node4")
    replayed.run("up", "--detach")
    replayed.wait_level()
    told = replayed.json("replay", "sample", *SINGLY, "--meters", "3")
    assert told["transactions_committed"] == told["readings_sent"] > 0
    replayed.wait_level()
    after = next(iter(replayed.status().values()))
    assert after["height"] > before["height"]
    header = replayed.json("show", "block", str(before["height"]))
    assert header["hash"] == before["block_hash"], "the block from before the crash stands"
    assert replayed.json("verify")["ok"]
    evidence = replayed.json("show", "evidence")
    assert evidence["recorded"] == evidence["unrecorded"] == [], "no node contradicted a vote that it had sent"
    compared = replayed.json("reconcile", "sample")
    assert (compared["missing"], compared["extra"], compared["different"]) == (0, 0, 0)


def test_an_interrupted_replay_is_taken_up_again(fresh: Cluster) -> None:
    fresh.run("up", "--detach")
    with fresh.start("replay", "sample", *SLOWLY) as replay:
        fresh.wait_under_way(replay)
        replay.kill()
        replay.communicate(timeout=COMMAND_S)
    told = fresh.json("replay", "sample", *QUICKLY, "--resume")
    assert told["readings_resumed"] > 0
    assert told["readings_sent"] > 0
    assert (
        told["readings_resumed"] + told["readings_sent"] + sum(told["readings_skipped"].values())
        == told["readings_read"]
    )
    compared = fresh.json("reconcile", "sample", *DAY)
    assert (compared["missing"], compared["extra"], compared["different"]) == (0, 0, 0)
