"""Protocol 3.5, 5.3: who asks with the same bytes always gets the first outcome, and nothing but a receipt is one."""

import pytest

from bcami.endorsement.collector import QUEUE_BYTES_MAX
from bcami.model.batch import Batch, BatchCertificate
from bcami.model.chain import BlockBundle
from bcami.model.consensus import Checkpoint
from bcami.node.core.submissions import RETRY_AFTER_MS
from tests.simulation.scene import WAIT_MS, Scene


def answers_of(scene: Scene, node: int, tx, wait: bool = True):
    """Ask once and return the answer if it comes at once."""
    cluster = scene.cluster
    tx_id = cluster.node(node).id_of(tx)
    cluster.results.pop(tx_id, None)
    cluster.submit(node, [tx], wait)
    cluster.run(1)
    return cluster.results.get(tx_id)


def test_unknown_then_the_same_bytes_lead_to_the_first_outcome() -> None:
    scene = Scene()
    cluster = scene.cluster
    tx = scene.reports(1)[0]
    cluster.drop = lambda sender, receiver, message: isinstance(message, Batch | BatchCertificate)
    tx_id = cluster.submit(0, [tx])[0]
    cluster.run(500)
    cluster.give_up(0)
    assert cluster.results[tx_id].status == "unknown"
    for _ in range(5):
        assert answers_of(scene, 0, tx, wait=False).status == "unknown"
    cluster.drop = lambda sender, receiver, message: False
    assert scene.commit(0, [tx]) == ["valid"]
    assert scene.commit(0, [tx]) == ["valid"]
    assert cluster.outcomes_of(tx_id) == ["valid"]
    scene.settle()


def test_two_nodes_take_the_same_transaction_and_both_answer_with_the_first_outcome() -> None:
    scene = Scene()
    cluster = scene.cluster
    tx = scene.reports(1)[0]
    for node in (0, 1, 2, 3):
        tx_id = cluster.submit(node, [tx])[0]
    assert cluster.run(WAIT_MS, lambda: not cluster._tickets)
    scene.settle()
    cluster.run(5_000)
    assert cluster.outcome(tx_id) == "valid"
    assert cluster.outcomes_of(tx_id)[0] == "valid"
    for node in range(4):
        assert scene.commit(node, [tx]) == ["valid"]
        tickets = cluster.node(node).tickets
        assert (tickets.pending, tickets.awaited, tickets.open_tickets) == (0, 0, 0)


def test_replay_outcomes_of_later_copies_never_answer_for_the_first() -> None:
    """A copy on its way in another lane was refused as a replay, and this told the client no."""
    scene = Scene()
    cluster = scene.cluster
    tx = scene.reports(1)[0]
    held = []

    def keep_back(sender: int, receiver: int, message: object) -> bool:
        if isinstance(message, Batch) and message.collector == 1:
            held.append((sender, receiver, message))
            return True
        return isinstance(message, Checkpoint)

    cluster.drop = keep_back
    tx_id = cluster.submit(1, [tx])[0]
    cluster.submit(0, [tx])
    cluster.run(300)
    assert max(cluster.heights()) > min(cluster.certified()), "executed, not certified"
    for sender, receiver, message in held:
        cluster.at(1, lambda s=sender, r=receiver, m=message: cluster.shells[r].receive(s, m))
    cluster.run(300)
    assert tx_id not in cluster.results
    cluster.drop = lambda sender, receiver, message: False
    assert cluster.run(WAIT_MS, lambda: not cluster._tickets)
    assert cluster.outcome(tx_id) == "valid"
    scene.settle()
    assert cluster.outcomes_of(tx_id)[0] == "valid"


def test_what_executed_and_is_not_certified_is_waited_for_after_a_restart_too() -> None:
    """A restarted node refused it as a replay, and the meter gave the number up."""
    scene = Scene()
    cluster = scene.cluster
    tx = scene.reports(1)[0]
    cluster.drop = lambda sender, receiver, message: isinstance(message, Checkpoint)
    tx_id = cluster.submit(0, [tx])[0]
    assert cluster.run(WAIT_MS, lambda: all(disk.ledger.place(tx_id) for disk in cluster.disks))
    for node in range(4):
        cluster.restart(node)
    for node in range(4):
        cluster.submit(node, [tx])
    cluster.run(1_000)
    assert tx_id not in cluster.results
    cluster.drop = lambda sender, receiver, message: False
    assert cluster.run(WAIT_MS, lambda: not cluster._tickets)
    assert cluster.outcome(tx_id) == "valid"
    assert cluster.outcomes_of(tx_id) == ["valid"]


def test_between_the_certificate_and_its_place_on_disk_a_transaction_is_known() -> None:
    """Asked in that moment it was refused as a replay: gone from memory, not yet in the ledger."""
    scene = Scene()
    cluster = scene.cluster
    tx = scene.reports(1)[0]
    tx_id = cluster.submit(0, [tx])[0]
    assert cluster.run(WAIT_MS, lambda: tx_id in cluster.results)
    ledger = cluster.disks[0].ledger
    assert ledger.receipt(tx_id) is None, "the certificate is on its way to disk"
    assert answers_of(scene, 0, tx).reason == "valid"
    assert cluster.run(WAIT_MS, lambda: ledger.receipt(tx_id) is not None)
    assert answers_of(scene, 0, tx).reason == "valid"


def test_an_own_batch_that_comes_second_answers_with_the_first_outcome() -> None:
    """After a restart, whoever asked for what was both executed and in an own batch waited for ever."""
    scene = Scene()
    cluster = scene.cluster
    tx = scene.reports(1)[0]
    cluster.drop = lambda sender, receiver, message: isinstance(message, Batch) and sender == 0
    cluster.submit(0, [tx])
    cluster.run(100)
    cluster.crash(0)
    assert scene.commit(1, [tx]) == ["valid"]
    cluster.start(0)
    tx_id = cluster.submit(0, [tx])[0]
    cluster.results.pop(tx_id)
    cluster.drop = lambda sender, receiver, message: False
    assert cluster.run(WAIT_MS, lambda: tx_id in cluster.results)
    assert cluster.outcome(tx_id) == "valid"
    scene.settle()
    cluster.run(5_000)
    assert cluster.node(0).tickets.pending == 0


def test_a_client_that_comes_back_again_and_again_leaves_nothing_behind() -> None:
    scene = Scene()
    cluster = scene.cluster
    tx = scene.reports(1)[0]
    cluster.drop = lambda sender, receiver, message: isinstance(message, Batch)
    for _ in range(50):
        cluster.submit(0, [tx, tx])
        cluster.run(20)
        cluster.give_up(0)
    tickets = cluster.node(0).tickets
    assert (tickets.pending, tickets.awaited, tickets.open_tickets) == (1, 0, 0)
    cluster.drop = lambda sender, receiver, message: False
    assert scene.commit(0, [tx]) == ["valid"]
    assert (tickets.pending, tickets.awaited, tickets.open_tickets) == (0, 0, 0)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    scene = Scene()
    cluster = scene.cluster
    cluster.drop = lambda sender, receiver, message: isinstance(message, Batch)
    refused = None
    tx = scene.reports(1)[0]
    node = cluster.node(0)
    while refused is None:
        ticket, ids, _ = node.submit([tx] * 1000, True)
        result = node.tickets.close(ticket, ids)[0][0]
        refused = result if result.status == "refused" else None
    assert (refused.reason, refused.retry_after_ms) == ("queue_full", RETRY_AFTER_MS)
    assert node._submissions._bytes <= 2 * QUEUE_BYTES_MAX


def test_a_node_far_behind_judges_nothing_by_its_old_state() -> None:
    """A node that had lost its ledger refused known meters as unknown while it caught up."""
    scene = Scene()
    cluster = scene.cluster
    window = cluster.roster.genesis.parameters.window
    while max(cluster.heights()) < window + 5:
        scene.commit(1, scene.reports(1))
    tx = scene.reports(1)[0]
    cluster.crash(3)
    cluster.disks[3].ledger = type(cluster.disks[3].ledger)(cluster.identities.genesis)
    cluster.drop = lambda sender, receiver, message: isinstance(message, BlockBundle)
    cluster.start(3)
    cluster.run(1_000)
    answer = answers_of(scene, 3, tx)
    assert (answer.status, answer.reason) == ("refused", "not_ready")
    cluster.drop = lambda sender, receiver, message: False
    scene.settle()
    assert scene.commit(3, [tx]) == ["valid"]


@pytest.mark.parametrize("seed", range(2))
def test_nobody_waits_for_ever_for_a_certificate_that_was_passed_over(seed: int) -> None:
    """All CHECKPOINTs of one height are lost while higher ones come through: watermarks pass it, nobody sends again."""
    scene = Scene(seed=seed)
    cluster = scene.cluster
    lost = max(cluster.heights()) + 1
    cluster.drop = lambda sender, receiver, message: isinstance(message, Checkpoint) and message.height == lost
    tx = scene.reports(1)[0]
    tx_id = cluster.submit(0, [tx])[0]
    assert cluster.run(WAIT_MS, lambda: min(cluster.heights()) >= lost)
    scene.commit(1, scene.reports(1))
    window = cluster.roster.genesis.parameters.window
    while min(cluster.certified()) <= lost + window:
        scene.commit(1, scene.reports(1))
    assert all(disk.ledger.certificate(lost) is None for disk in cluster.disks)
    assert tx_id not in cluster.results
    cluster.drop = lambda sender, receiver, message: False
    scene.all_certified([0, 1, 2, 3])
    assert cluster.outcome(tx_id) == "valid"
    scene.commit(1, scene.reports(2))
    scene.settle()
    assert len(cluster.node(0)._answers._placed) <= 2, "what the newest block placed, until the next one comes"
