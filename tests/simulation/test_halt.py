"""Protocol 5.4: a node whose state is wrong stops, says so, and writes nothing that a certificate contradicts."""

from bcami.contract.runtime import Execution
from bcami.model.consensus import Checkpoint, Commit
from bcami.model.events import ContractFault, Halted
from bcami.model.reasons import Reason
from tests.simulation.scene import WAIT_MS, Scene


def make_wrong(scene: Scene, node: int) -> None:
    """Let a node execute usage otherwise than it should."""
    runtime = scene.cluster.node(node).runtime
    runtime.execute = lambda *arguments: Execution(Reason.CONTRACT_FAULT, {b"usage/x": bytes([node])})


def halted(scene: Scene) -> list[int]:
    return [i for i in range(4) if scene.cluster.shells[i] is not None and scene.cluster.node(i).halted]


def test_a_node_whose_own_block_a_certificate_contradicts_halts_and_the_others_go_on() -> None:
    scene = Scene()
    cluster = scene.cluster
    make_wrong(scene, 3)
    assert scene.commit(1, scene.reports(1)) == ["valid"]
    assert cluster.run(WAIT_MS, lambda: halted(scene) == [3])
    assert sum(isinstance(seen, Halted) for _, seen in cluster.observations) == 1
    assert cluster.disks[3].ledger.certified_height < cluster.disks[3].ledger.height
    assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    said = []
    cluster.lies[3] = lambda to, message: said.append(message) or []
    assert scene.commit(3, scene.reports(1)) == ["not_ready"]
    first = next(iter(cluster.receipts))
    assert cluster.node(3).known_result(first) is not None, "what it knows for certain it still tells"
    cluster.run(5_000)
    assert {type(message).__name__ for message in said} <= {"Status", "BlockBundle"}


def test_a_wrong_block_is_not_written_when_its_certificate_is_there_first() -> None:
    """It was durable before anybody looked at the certificate, and stood in the ledger after a restart."""
    scene = Scene()
    cluster = scene.cluster
    make_wrong(scene, 3)
    before = cluster.heights()[3]
    cluster.crash(3)
    assert scene.commit(1, scene.reports(1)) == ["valid"]
    scene.settle([0, 1, 2])
    cluster.start(3)
    make_wrong(scene, 3)
    assert cluster.run(WAIT_MS, lambda: halted(scene) == [3])
    assert cluster.heights()[3] == before
    cluster.restart(3)
    assert cluster.run(WAIT_MS, lambda: cluster.certified()[3] == cluster.heights()[0])
    cluster.check_agreement()


def test_when_no_header_can_win_all_stop_and_do_not_change_view() -> None:
    scene = Scene()
    cluster = scene.cluster
    for node in range(4):
        make_wrong(scene, node)
    cluster.submit(1, scene.reports(1))
    assert cluster.run(WAIT_MS, lambda: halted(scene) == [0, 1, 2, 3])
    view = [cluster.node(i).view for i in range(4)]
    cluster.run(20_000)
    assert [cluster.node(i).view for i in range(4)] == view
    assert not cluster.receipts.keys() & {cluster.node(0).id_of(tx) for tx in scene.reports(1)}


def test_a_halted_node_does_not_keep_itself_busy() -> None:
    scene = Scene()
    cluster = scene.cluster
    cluster.drop = lambda sender, receiver, message: isinstance(message, Checkpoint)
    node = cluster.node(0)
    for _ in range(6):
        cluster.submit(0, scene.reports(1))
        cluster.run(1)
    node.chain.halt("for the test")
    cluster.run(1_000)
    pending = [event for event in cluster._events if event.at_ms > cluster.now_ms]
    cluster.run(1_000)
    assert len(cluster._events) <= len(pending) + 10
    assert not node._submissions.has_work


def test_where_a_contract_broke_reaches_the_log() -> None:
    scene = Scene()
    cluster = scene.cluster
    for node in range(4):
        runtime = cluster.node(node).runtime
        runtime.execute = lambda *arguments: Execution(Reason.CONTRACT_FAULT, {}, "height 4: usage.report broke in x")
    report = scene.reports(1)[0]
    assert scene.commit(1, [report]) == ["contract_fault"]
    faults = [seen for i, seen in cluster.observations if i == 2 and isinstance(seen, ContractFault)]
    assert [(item.transaction_id, item.fault) for item in faults] == [
        (cluster.node(1).id_of(report), "height 4: usage.report broke in x")
    ]


def test_a_certificate_that_came_before_the_decision_is_looked_at_before_the_block_is_written() -> None:
    """CHECKPOINTs overtake COMMITs: the block was written all the same, and stood in the ledger after a restart."""
    scene = Scene()
    cluster = scene.cluster
    make_wrong(scene, 3)
    before = cluster.heights()[3]
    late = []

    def hold_back(sender: int, receiver: int, message: object) -> bool:
        if receiver == 3 and isinstance(message, Commit):
            late.append((sender, message))
            return True
        return False

    cluster.drop = hold_back
    assert scene.commit(1, scene.reports(1)) == ["valid"]
    cluster.run(100)
    assert cluster.node(3).chain.certificates
    for sender, message in late:
        cluster.shells[3].receive(sender, message)
    assert halted(scene) == [3]
    cluster.run(1_000)
    assert cluster.heights()[3] == before
