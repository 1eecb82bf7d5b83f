"""The vertical in one process: registration, usage, view change, restart, catch-up, with real cryptography."""

import pytest

from bcami.model.batch import Batch
from bcami.model.consensus import PrePrepare
from bcami.model.events import Halted, ViewEntered
from tests.simulation.scene import WAIT_MS, Scene


@pytest.mark.parametrize("n", [1, 4, 7])
def test_usage_commits_on_every_node(n: int) -> None:
    scene = Scene(n)
    reports = [meter.report() for meter in scene.meters for _ in range(3)]
    assert scene.commit(3 % n, reports) == ["valid"] * 6
    scene.settle()


def test_a_replay_gets_the_first_receipt_and_a_copy_through_another_node_changes_nothing() -> None:
    scene = Scene()
    report = scene.meters[0].report()
    assert scene.commit(0, [report]) == ["valid"]
    first = scene.cluster.results.copy()
    assert scene.commit(1, [report]) == ["valid"]
    assert scene.commit(0, [report]) == ["valid"]
    assert scene.cluster.results == first
    scene.settle()


def test_the_same_bytes_given_to_all_nodes_at_once_execute_once() -> None:
    scene = Scene()
    report = scene.meters[0].report()
    for i in range(4):
        ids = scene.cluster.submit(i, [report])
    scene.cluster.run(WAIT_MS, lambda: ids[0] in scene.cluster.results)
    scene.settle()
    outcomes = [
        outcome.reason
        for height in range(1, scene.cluster.heights()[0] + 1)
        for outcome in scene.cluster.disks[0].ledger.block(height).outcomes
        if outcome.transaction_id == ids[0]
    ]
    assert outcomes[0] == "valid" and set(outcomes[1:]) <= {"replay"}
    assert scene.cluster.outcome(ids[0]) == "valid"
    receipt = scene.cluster.disks[2].ledger.receipt(ids[0])
    assert receipt is not None and receipt.outcome.reason == "valid"


def test_the_cluster_goes_on_without_its_primary_and_the_node_catches_up() -> None:
    scene = Scene()
    assert scene.commit(1, [scene.meters[0].report()]) == ["valid"]
    scene.cluster.crash(0)
    assert scene.commit(1, [scene.meters[0].report() for _ in range(5)]) == ["valid"] * 5
    assert any(isinstance(seen, ViewEntered) and seen.view > 0 for _, seen in scene.cluster.observations)
    scene.cluster.start(0)
    scene.settle()
    assert scene.commit(0, [scene.meters[1].report()]) == ["valid"]
    scene.settle()


def test_all_nodes_crash_and_the_chain_goes_on() -> None:
    scene = Scene()
    assert scene.commit(1, [scene.meters[0].report()]) == ["valid"]
    before = scene.cluster.heights()[0]
    for i in range(4):
        scene.cluster.crash(i)
    for i in range(4):
        scene.cluster.start(i)
    assert scene.commit(2, [scene.meters[1].report()]) == ["valid"]
    scene.settle()
    assert scene.cluster.heights()[0] > before


def test_a_batch_that_one_node_never_got_is_fetched() -> None:
    scene = Scene()
    scene.cluster.drop = lambda sender, receiver, message: (
        isinstance(message, Batch) and receiver == 3 and sender == message.collector
    )
    assert scene.commit(1, [scene.meters[0].report()]) == ["valid"]
    scene.settle()


def test_a_lost_pre_prepare_does_not_stop_a_node() -> None:
    scene = Scene()
    scene.cluster.drop = lambda sender, receiver, message: isinstance(message, PrePrepare) and receiver == 2
    assert scene.commit(1, [scene.meters[0].report() for _ in range(3)]) == ["valid"] * 3
    scene.cluster.drop = lambda sender, receiver, message: False
    scene.settle()


@pytest.mark.parametrize("seed", range(6))
def test_loss_delay_and_crashes_never_fork_and_always_finish(seed: int) -> None:
    scene = Scene(seed=seed)
    cluster = scene.cluster
    cluster.drop = lambda sender, receiver, message: cluster.random.random() < 0.15
    cluster.delay_ms = lambda: cluster.random.randint(1, 120)
    pending = []
    for turn in range(6):
        victim = cluster.random.randrange(4)
        node = (victim + 1) % 4
        pending += cluster.submit(node, [meter.report() for meter in scene.meters])
        cluster.run(cluster.random.randint(50, 1500))
        cluster.crash(victim)
        cluster.run(cluster.random.randint(50, 3000))
        cluster.start(victim)
        cluster.check_agreement()
    cluster.drop = lambda sender, receiver, message: False
    cluster.delay_ms = lambda: cluster.random.randint(1, 5)
    lost = [tx_id for tx_id in pending if tx_id not in cluster.results]
    cluster.run(30_000)
    scene.settle()
    for tx_id in pending:
        if tx_id not in lost:
            assert cluster.outcome(tx_id) == "valid"
    assert scene.commit(0, [scene.meters[0].report()]) == ["valid"]
    assert not [seen for _, seen in cluster.observations if isinstance(seen, Halted)]
