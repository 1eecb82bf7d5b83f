"""Protocol 5.2, 6.1, 6.3, 2.3: crashes between any two effects, lost writes, lost power, a lost ledger."""

import pytest

from bcami.ledger.memory import MemoryLedger
from bcami.model.batch import Batch, BatchCertificate
from bcami.model.consensus import Checkpoint, Commit, Prepare, PrePrepare
from tests.simulation.scene import WAIT_MS, Scene


def only_once(scene: Scene, ids: list[bytes]) -> None:
    for tx_id in ids:
        outcomes = scene.cluster.outcomes_of(tx_id, 1)
        assert outcomes[:1] == ["valid"] and set(outcomes[1:]) <= {"replay"}, outcomes


@pytest.mark.parametrize(("victim", "collector"), [(0, 0), (1, 0), (1, 1)], ids=["both", "backup", "collector"])
def test_a_crash_after_any_effect_loses_and_repeats_nothing(victim: int, collector: int) -> None:
    """One crash after the 1st, 2nd, 3rd … effect of ordering a transaction; the client asks another node again."""
    scene = Scene()
    cluster = scene.cluster
    ids = []
    for fuse in range(1, 36):
        report = scene.reports(1)
        cluster.fuses[victim] = fuse
        ids += cluster.submit(collector, report) if cluster.shells[collector] else []
        cluster.run(60)
        cluster.fuses.clear()
        if cluster.shells[victim] is None:
            cluster.start(victim)
        assert scene.commit(2, report) == ["valid"], fuse
        cluster.check_agreement()
    scene.settle()
    only_once(scene, ids)
    assert scene.commit(victim, scene.reports(2)) == ["valid"] * 2


@pytest.mark.parametrize("slow", ["promises", "blocks", "both"])
def test_a_crash_after_any_effect_on_a_slow_disk(slow: str) -> None:
    scene = Scene(seed=7)
    cluster = scene.cluster
    if slow != "blocks":
        cluster.promise_ms = lambda: cluster.random.randint(5, 60)
    if slow != "promises":
        cluster.block_ms = lambda: cluster.random.randint(5, 60)
    ids = []
    for turn in range(24):
        victim = turn % 4
        report = scene.reports(1)
        cluster.fuses[victim] = cluster.random.randint(1, 40)
        ids += cluster.submit(victim, report)
        cluster.run(cluster.random.randint(1, 250))
        cluster.fuses.clear()
        cluster.restart(victim)
        assert scene.commit((victim + 1) % 4, report) == ["valid"]
        cluster.check_agreement()
    scene.settle()
    only_once(scene, ids)


@pytest.mark.parametrize("seed", range(8))
def test_power_is_lost_everywhere_and_every_receipt_that_was_given_stays_true(seed: int) -> None:
    """I15. `check_agreement` compares each receipt that a client holds with every ledger."""
    scene = Scene(seed=seed)
    cluster = scene.cluster
    cluster.promise_ms = lambda: cluster.random.randint(1, 25)
    cluster.block_ms = lambda: cluster.random.randint(1, 25)
    reports = []
    for _ in range(8):
        batch = scene.reports(2)
        reports += batch
        for node in (seed % 4, (seed + 1) % 4):
            cluster.submit(node, batch)
        cluster.run(cluster.random.randint(1, 150))
        for node in range(4):
            cluster.crash(node)
        for node in range(4):
            cluster.start(node)
        cluster.check_agreement()
    assert scene.commit(3, reports) == ["valid"] * len(reports)
    scene.settle()
    only_once(scene, list(cluster.receipts))


def test_a_crash_of_all_between_the_block_and_its_checkpoint() -> None:
    scene = Scene()
    cluster = scene.cluster
    cluster.promise_ms = lambda: 30
    report = scene.reports(1)
    before = min(cluster.heights())
    tx_id = cluster.submit(0, report)[0]
    assert cluster.run(WAIT_MS, lambda: min(cluster.heights()) > before)
    assert max(cluster.certified()) == before
    for node in range(4):
        cluster.crash(node)
    for node in range(4):
        cluster.start(node)
    assert cluster.run(WAIT_MS, lambda: min(cluster.certified()) > before)
    assert scene.commit(0, report) == ["valid"]
    only_once(scene, [tx_id])


def test_nothing_leaves_before_what_it_rests_on_is_on_disk() -> None:
    """A disk that never comes to an end: the node says nothing that it would have to keep."""
    scene = Scene()
    cluster = scene.cluster
    said: list[object] = []
    cluster.lies[0] = lambda to, message: [said.append(message) or message]
    cluster.promise_ms = lambda: 10**9
    cluster.submit(0, scene.reports(1))
    cluster.run(5_000)
    assert not [item for item in said if isinstance(item, Batch | BatchCertificate | Prepare | Commit | Checkpoint)]


def test_a_collector_restarts_with_transactions_on_their_way() -> None:
    scene = Scene()
    cluster = scene.cluster
    reports = scene.reports(6)
    cluster.drop = lambda sender, receiver, message: isinstance(message, Batch) and sender == 1
    ids = cluster.submit(1, reports)
    cluster.run(100)
    number = cluster.node(1)._lanes._collector._next
    cluster.restart(1)
    assert cluster.node(1)._lanes._collector._next == number, "numbers go on"
    cluster.drop = lambda sender, receiver, message: False
    assert scene.commit(1, reports) == ["valid"] * 6
    assert cluster.run(WAIT_MS, lambda: cluster.node(1).tickets.pending == 0)
    scene.settle()
    only_once(scene, ids)


def test_a_node_that_is_alone_orders_what_it_had_promised_before_a_crash() -> None:
    """Its own endorsement is the whole certificate, which nobody made again after the restart: a dead lane."""
    scene = Scene(1)
    cluster = scene.cluster
    cluster.promise_ms = lambda: 1
    for fuse in range(1, 30):
        report = scene.reports(1)
        cluster.fuses[0] = fuse
        cluster.submit(0, report)
        cluster.run(200)
        cluster.fuses.clear()
        cluster.restart(0)
        assert scene.commit(0, report) == ["valid"], fuse


def test_a_lost_ledger_is_rebuilt_and_the_old_promises_hold() -> None:
    """The rebuilt node began its lane at 1 again: its clients' transactions went into numbers that were over."""
    scene = Scene()
    cluster = scene.cluster
    assert scene.commit(1, scene.reports(4)) == ["valid"] * 4
    for _ in range(4):
        assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    scene.settle()
    number = cluster.node(1)._lanes._collector._next
    cluster.crash(1)
    cluster.disks[1].ledger = MemoryLedger(cluster.identities.genesis)
    cluster.start(1)
    assert cluster.node(1)._lanes._collector._next == number
    report = scene.reports(1)
    cluster.submit(1, report)
    scene.settle()
    assert scene.commit(1, report) == ["valid"]
    scene.settle()
    assert cluster.run(WAIT_MS, lambda: cluster.node(1).tickets.pending == 0)


def test_all_ledgers_but_a_strong_quorum_are_lost_in_turn() -> None:
    scene = Scene()
    cluster = scene.cluster
    for node in range(4):
        assert scene.commit(node, scene.reports(2)) == ["valid"] * 2
        scene.settle()
        cluster.crash(node)
        cluster.disks[node].ledger = MemoryLedger(cluster.identities.genesis)
        cluster.start(node)
        scene.settle()
    assert scene.commit(0, scene.reports(2)) == ["valid"] * 2


def test_a_node_whose_disk_fails_says_nothing_more_and_the_others_go_on() -> None:
    scene = Scene()
    cluster = scene.cluster
    cluster.disks[2].is_broken = True
    assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    assert cluster.shells[2] is None
    cluster.disks[2].is_broken = False
    cluster.start(2)
    scene.settle()
    assert scene.commit(2, scene.reports(1)) == ["valid"]


def test_more_than_f_stop_and_come_back() -> None:
    scene = Scene()
    cluster = scene.cluster
    report = scene.reports(1)
    for node in (2, 3):
        cluster.crash(node)
    assert scene.commit(0, report, 20_000) == [None]
    for node in (2, 3):
        cluster.start(node)
    assert scene.commit(0, report) == ["valid"]
    scene.settle()


@pytest.mark.parametrize("jump_ms", [-3_600_000, 3_600_000], ids=["back", "ahead"])
@pytest.mark.parametrize("node", [0, 2])
def test_a_clock_that_is_set_back_or_ahead_stops_nothing(jump_ms: int, node: int) -> None:
    """After a step back, requests, resends and patience waited until the clock was where it had been."""
    scene = Scene()
    cluster = scene.cluster
    cluster.drop = lambda sender, receiver, message: isinstance(message, Batch) and sender == node
    early = scene.reports(1)
    cluster.submit(node, early)
    cluster.run(300)
    cluster.clock_ms[node] = jump_ms
    cluster.drop = lambda sender, receiver, message: False
    assert scene.commit((node + 1) % 4, scene.reports(2), 30_000) == ["valid"] * 2
    assert scene.commit(node, early, 30_000) == ["valid"]
    cluster.clock_ms[node] = 0
    cluster.run(200)
    cluster.crash((node + 2) % 4)
    assert scene.commit((node + 1) % 4, scene.reports(2), 60_000) == ["valid"] * 2
    cluster.start((node + 2) % 4)
    scene.settle()


@pytest.mark.parametrize("rate", [-1.0, -0.2, 0.2], ids=["stands_still", "slow", "fast"])
@pytest.mark.parametrize("node", [0, 2], ids=["primary", "backup"])
def test_a_clock_that_drifts_or_stands_still_stops_nothing(rate: float, node: int) -> None:
    """F10: only timers may suffer; the time of blocks never goes back."""
    scene = Scene()
    cluster = scene.cluster

    def drift() -> None:
        cluster.clock_ms[node] += int(20 * rate)
        cluster.at(20, drift)

    drift()
    for _ in range(4):
        cluster.run(5_000)
        assert scene.commit((node + 1) % 4, scene.reports(2), 30_000) == ["valid"] * 2
        own = scene.commit(node, scene.reports(1), 30_000)
        assert own == (["valid"] if rate > -1 else ["timestamp_ahead"]), "a meter goes to another collector then"
    scene.settle()
    ledger = cluster.disks[1].ledger
    times = [ledger.header(height).time_ms for height in range(1, ledger.height + 1)]
    assert times == sorted(times)


def test_clocks_that_were_ahead_of_the_time_stop_nothing_once_they_are_right() -> None:
    """A primary that had proposed a later time kept to it: refused by all, as long as its clock had been ahead."""
    scene = Scene()
    cluster = scene.cluster
    cluster.clock_ms = [86_400_000] * 4
    for primary in range(3):
        assert scene.commit(3, scene.reports(1), 30_000) == ["valid"]
        assert cluster.node(3).view == primary
        cluster.drop = lambda sender, receiver, message, silent=primary: (
            isinstance(message, PrePrepare) and sender <= silent
        )
    assert scene.commit(3, scene.reports(1), 30_000) == ["valid"]
    cluster.drop = lambda sender, receiver, message: False
    cluster.clock_ms = [0] * 4
    cluster.crash(3)
    assert scene.commit(0, scene.reports(1), 30_000) == ["valid"]
    cluster.start(3)
    scene.settle()
