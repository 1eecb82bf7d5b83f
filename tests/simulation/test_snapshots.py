"""Design D5, protocol 5.5, 7.2, faults F34, F38, F42, F43: a node takes a snapshot where blocks lead no further."""

from collections.abc import Callable

import msgspec
import pytest

from bcami.ledger.memory import MemoryLedger
from bcami.model.batch import Batch
from bcami.model.chain import StateEntry
from bcami.model.consensus import Commit, Prepare, PrePrepare
from bcami.model.events import SnapshotInstalled
from bcami.model.wire import FetchSnapshot, SnapshotPart, Status
from bcami.node.core import offers, snapshots
from bcami.node.core.catchup import CatchUp
from bcami.node.core.effects import Send
from tests.simulation.cluster import Cluster
from tests.simulation.scene import WAIT_MS, Scene
from tests.simulation.test_catchup import lacking_a_certificate


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (offers, snapshots):
        monkeypatch.setattr(module, "SNAPSHOT_PART_BYTES", 600)


def pruned(blocks: int = 12, keep: int = 2) -> Scene:
    """Return a scene whose node 3 was down, and the others have pruned what it needs, but for the newest blocks."""
    scene = Scene()
    scene.settle()
    scene.cluster.crash(3)
    for _ in range(blocks):
        assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    scene.settle([0, 1, 2])
    prune(scene.cluster, keep)
    return scene


def prune(cluster: Cluster, keep: int = 2) -> None:
    for disk in cluster.disks[:3]:
        disk.ledger.prune(disk.ledger.certified_height - keep)


def installed(cluster: Cluster, node: int = 3) -> list[SnapshotInstalled]:
    return [seen for i, seen in cluster.observations if i == node and isinstance(seen, SnapshotInstalled)]


def check_receipts(scene: Scene, node: int = 3) -> None:
    """Every outcome that another node can prove is proved by this one too (protocol 7.2)."""
    scene.all_certified([1, node])
    here, there = scene.cluster.disks[node].ledger, scene.cluster.disks[1].ledger
    for height in range(1, there.height + 1):
        for outcome in there.block(height).outcomes:
            assert here.place(outcome.transaction_id) == there.place(outcome.transaction_id)
            assert here.receipt(outcome.transaction_id) is not None
            assert here.receipt(outcome.transaction_id).header == there.header(height)


def test_a_node_whose_peers_have_all_pruned_takes_a_snapshot_and_is_a_full_member_again() -> None:
    scene = pruned()
    cluster = scene.cluster
    cluster.start(3)
    scene.settle(wait_ms=8_000)
    assert len(installed(cluster)) == 1
    assert cluster.disks[3].ledger.snapshot_height > 3
    check_receipts(scene)
    cluster.crash(0)
    for node in (3, 1, 3):
        assert scene.commit(node, scene.reports(2)) == ["valid"] * 2
    scene.settle([1, 2, 3])
    cluster.restart(3)
    scene.settle([1, 2, 3])
    assert scene.commit(3, scene.reports(1)) == ["valid"]


def test_a_node_rebuilt_from_nothing_takes_a_snapshot() -> None:
    scene = pruned()
    cluster = scene.cluster
    cluster.disks[3].ledger = MemoryLedger(cluster.identities.genesis)
    cluster.start(3)
    scene.settle(wait_ms=8_000)
    assert installed(cluster)
    check_receipts(scene)
    cluster.crash(0)
    assert scene.commit(3, scene.reports(1)) == ["valid"]


def test_a_node_that_is_far_behind_takes_a_snapshot_although_nothing_is_pruned() -> None:
    scene = Scene()
    scene.cluster.crash(3)
    for _ in range(12):
        scene.commit(1, scene.reports(2))
    scene.cluster.start(3)
    scene.cluster.node(3).catchup.far_blocks = 8
    scene.settle(wait_ms=8_000)
    ledger = scene.cluster.disks[3].ledger
    assert installed(scene.cluster)
    assert ledger.pruned_to == 0, "payloads that are still held come with the blocks"
    check_receipts(scene)


def test_what_one_peer_still_has_is_executed_and_no_snapshot_taken() -> None:
    scene = Scene()
    cluster = scene.cluster
    cluster.crash(3)
    for _ in range(8):
        scene.commit(1, scene.reports(2))
    for disk in cluster.disks[1:2]:
        disk.ledger.prune(disk.ledger.certified_height)
    cluster.start(3)
    scene.settle(wait_ms=8_000)
    assert not installed(cluster)


def test_under_load_a_snapshot_is_followed_by_blocks() -> None:
    """F43: the state is that of one block, whatever is committed while it comes."""
    scene = pruned(20)
    cluster = scene.cluster
    cluster.block_ms = lambda: 8

    def go_on() -> None:
        cluster.submit(1, scene.reports(1), wait=False)
        cluster.at(20, go_on)

    go_on()
    cluster.start(3)
    assert cluster.run(8_000, lambda: bool(installed(cluster)))
    assert cluster.run(4_000, lambda: max(cluster.heights()) - cluster.heights()[3] <= 1)
    cluster.check_agreement()


@pytest.mark.parametrize("effects", range(4, 60, 4))
def test_a_crash_at_any_moment_costs_the_transfer_and_nothing_else(effects: int) -> None:
    """F43: before, while and after the parts are written and installed."""
    scene = pruned()
    cluster = scene.cluster
    cluster.fuses[3] = effects
    cluster.start(3)
    cluster.run(1_500)
    if cluster.shells[3] is None:
        cluster.start(3)
    scene.settle(wait_ms=10_000)
    check_receipts(scene)


def test_a_newer_snapshot_in_the_middle_of_a_transfer_is_begun_anew() -> None:
    scene = pruned()
    cluster = scene.cluster
    heights: list[int] = []

    def drop(sender: int, receiver: int, message: object) -> bool:
        if isinstance(message, SnapshotPart):
            heights.append(message.header.height)
            if len(heights) == 2:  # what the peer held for us is gone, and its chain has gone on
                cluster.node(sender)._serving._offers._close(3)
                cluster.submit(1, scene.reports(1), wait=False)
            return len(heights) < 6 and len(heights) % 3 == 2
        return False

    cluster.drop = drop
    cluster.start(3)
    scene.settle(wait_ms=12_000)
    assert len(set(heights)) > 1
    assert installed(cluster)


def liar(scene: Scene, change: Callable[[SnapshotPart], SnapshotPart | None]) -> list[SnapshotPart]:
    """Let node 0 answer with what is made of its parts; it claims the greatest height, so that it is asked first."""
    cluster, told = scene.cluster, []

    def lie(to: int, message: object) -> list[object]:
        if isinstance(message, SnapshotPart):
            told.append(message)
            changed = change(message)
            return [] if changed is None else [changed]
        return [message]

    cluster.lies[0] = lie
    for other in (1, 2):
        cluster.lies[other] = lambda to, message: (
            [] if isinstance(message, SnapshotPart) and not told else [message]
        )  # nobody else answers before the liar has
    return told


def other_value(part: SnapshotPart) -> SnapshotPart:
    if not part.rows:
        return part
    (key, entry), *rest = part.rows
    return msgspec.structs.replace(part, rows=((key, StateEntry(entry.value[::-1] + b"x", entry.height)), *rest))


def other_height(part: SnapshotPart) -> SnapshotPart:
    if not part.rows:
        return part
    (key, entry), *rest = part.rows
    return msgspec.structs.replace(part, rows=((key, StateEntry(entry.value, entry.height + 1)), *rest))


def endless(part: SnapshotPart) -> SnapshotPart:
    last = part.rows[-1][0] if part.rows else part.after
    more = tuple((last + bytes([i]), StateEntry(b"x" * 100, 1)) for i in range(100))
    return msgspec.structs.replace(part, rows=(*part.rows, *more), is_last=False)


LIES: dict[str, Callable[[SnapshotPart], SnapshotPart | None]] = {
    "value": other_value,
    "height of a value": other_height,
    "row left out": lambda part: msgspec.structs.replace(part, rows=part.rows[1:]),
    "rows in another order": lambda part: msgspec.structs.replace(part, rows=part.rows[::-1]),
    "nothing": lambda part: msgspec.structs.replace(part, rows=()),
    "too early the last": lambda part: msgspec.structs.replace(part, is_last=True),
    "endless": endless,
    "header": lambda part: msgspec.structs.replace(part, header=msgspec.structs.replace(part.header, state_bytes=9)),
    "certificate": lambda part: msgspec.structs.replace(
        part, certificate=msgspec.structs.replace(part.certificate, votes=part.certificate.votes[:2])
    ),
    "silence": lambda part: None,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_peer_whose_snapshot_does_not_fit_is_left_for_another(lie: str) -> None:
    """F34: wrong chunk, endless snapshot, no answer."""
    scene = pruned()
    cluster = scene.cluster
    told = liar(scene, LIES[lie])
    cluster.start(3)
    scene.settle(wait_ms=20_000)
    assert told, "the liar was asked"
    assert installed(cluster)[-1].peer != 0
    assert lie == "silence" or cluster.reasons(3, "snapshot")
    check_receipts(scene)


def test_an_old_snapshot_is_refused() -> None:
    """F34: a peer that claims a height gives no state from below it (bug shape B25)."""
    scene = pruned()
    cluster = scene.cluster
    old = cluster.disks[0].ledger.open_snapshot()
    for _ in range(4):
        scene.commit(1, scene.reports(1))
    ledger = cluster.disks[0].ledger
    header, certificate = ledger.header(old.height), ledger.certificate(old.height)
    scene.settle([0, 1, 2])
    prune(cluster)
    rows, _ = old.part(b"", 1 << 20)
    told = liar(scene, lambda part: SnapshotPart(header, certificate, b"", tuple(rows), is_last=True))
    cluster.start(3)
    scene.settle(wait_ms=20_000)
    assert told
    assert "stale" in cluster.reasons(3, "snapshot")
    assert installed(cluster)[-1].peer != 0


def test_a_snapshot_is_of_a_certified_state_even_where_newer_blocks_have_none() -> None:
    """Peers stand above the newest certificate and cannot certify without this node: it gets the certified state."""
    scene, gap = lacking_a_certificate()
    cluster = scene.cluster
    tx_ids = [tx_id for tx_id in cluster.submit(1, scene.reports(2))]
    cluster.run(1_000)
    for disk in cluster.disks[1:3]:
        disk.ledger.prune(disk.ledger.certified_height)
    cluster.start(3)
    scene.settle([1, 2, 3], wait_ms=12_000)
    assert installed(cluster)
    assert cluster.run(WAIT_MS, lambda: all(cluster.outcome(tx_id) == "valid" for tx_id in tx_ids))
    scene.all_certified([1, 2, 3], wait_ms=8_000)
    assert gap < cluster.heights()[3]


def test_a_snapshot_that_nobody_asks_for_any_more_is_let_go() -> None:
    scene = pruned()
    cluster = scene.cluster
    node = cluster.node(1)
    assert node.receive(3, FetchSnapshot(0, b""), cluster.now_ms)
    assert node._serving._offers._open
    cluster.run(offers.IDLE_MS + 1_000)
    assert not node._serving._offers._open


def test_a_part_that_nobody_asked_for_changes_nothing() -> None:
    scene = Scene()
    scene.settle()
    cluster = scene.cluster
    (effect,) = cluster.node(1).receive(0, FetchSnapshot(0, b""), cluster.now_ms)
    assert isinstance(effect.message, SnapshotPart)
    assert not cluster.node(0).receive(1, effect.message, cluster.now_ms)


def test_a_far_claim_of_one_peer_starts_no_snapshot() -> None:
    scene = Scene()
    scene.settle()
    cluster = scene.cluster
    node = cluster.node(3)
    for _ in range(3):
        node.receive(0, Status(0, 0, 0, False, 2**40, 2**40, ()), cluster.now_ms)
        cluster.run(600)
    assert not node._sync.snapshots.is_active


def test_what_peers_had_pruned_below_a_snapshot_counts_no_more_above_it() -> None:
    """Seed 119751: a liar's claim and old words about a block below began a second snapshot that nobody could give."""
    catchup = CatchUp(weak=2)
    for replica, certified in ((0, 18), (1, 18), (2, 2**40)):
        catchup.heard(Status(0, replica, 0, False, certified, certified, ()))
    catchup.far_blocks = 2**50
    assert catchup.ask(16, 0)
    for replica in (0, 1):
        catchup.pruned(replica, 0)
    assert catchup.needs_snapshot(16, 10)
    assert not catchup.needs_snapshot(18, 20)


def test_a_snapshot_that_nobody_gives_is_left_when_the_next_block_can_be_executed() -> None:
    """The others may need this node's vote to get further: it may not wait for a state that they do not have yet."""
    scene = Scene()
    scene.settle()
    cluster = scene.cluster
    node = cluster.node(3)
    node.receive(0, Status(0, 0, 0, False, 2**40, 2**40, ()), cluster.now_ms)
    node.catchup.ask(cluster.heights()[3], node._elapsed.ms)
    for replica in (0, 1):
        node.catchup.pruned(replica, node._elapsed.ms)
    node.receive(0, Status(0, 0, 0, False, 2**40, 2**40, ()), cluster.now_ms)
    assert node._sync.snapshots.is_active
    cluster.crash(0)
    assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    scene.all_certified([1, 2, 3])
    assert not installed(cluster)


def test_a_node_that_needs_a_snapshot_no_more_executes_again() -> None:
    """Blocks on their way to disk are waited for first; the only peer with newer blocks may go away meanwhile."""
    scene = Scene()
    scene.settle()
    cluster = scene.cluster
    node = cluster.node(3)
    node.chain.suspend(True)
    cluster.crash(0)
    assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    scene.all_certified([1, 2, 3])


@pytest.mark.parametrize(("blocks", "run_ms"), [(24, 500), (10, 20_000)], ids=["beyond_a_window", "within_a_window"])
def test_a_liar_that_kept_old_votes_and_batches_does_not_keep_a_node_back(blocks: int, run_ms: int) -> None:
    """Each time that a state is coming it lets one block be executed, which made that transfer needless.

    Beyond a window the state comes all the same; within one the blocks that the liar gives are not many.
    """
    scene = Scene()
    scene.settle()
    cluster, kept = scene.cluster, list[Batch | PrePrepare | Prepare | Commit]()
    cluster.crash(3)

    def keep(sender: int, receiver: int, message: object) -> bool:
        if isinstance(message, Batch | PrePrepare | Prepare | Commit):
            kept.append(message)
        return False

    cluster.drop = keep
    for _ in range(blocks):
        assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    scene.settle([0, 1, 2])
    prune(cluster)
    cluster.drop = lambda sender, receiver, message: False
    cluster.start(3)
    node = cluster.node(3)
    for _ in range(run_ms // 5):
        cluster.run(5)
        if cluster.heights()[3] == max(cluster.heights()):
            break
        if node._sync.snapshots.target:
            for message in kept:
                if isinstance(message, Batch) or message.height == node.executor.height + 1:
                    cluster.inject(0, 3, message)
    assert cluster.heights()[3] == max(cluster.heights())
    assert installed(cluster) or blocks < 16


def test_a_part_that_is_not_full_and_not_the_last_bars_its_peer() -> None:
    """A row a second would hold a node back for days, and nobody else would be asked."""
    scene = pruned()
    cluster = scene.cluster

    def drip(to: int, message: object) -> list[object]:
        is_part = isinstance(message, SnapshotPart)
        return [msgspec.structs.replace(message, rows=message.rows[:1], is_last=False) if is_part else message]

    for liar in (0, 1, 2):
        cluster.lies[liar] = drip
    cluster.start(3)
    cluster.run(2_000)
    assert "bad_proof" in cluster.reasons(3, "snapshot")
    cluster.lies.clear()
    scene.settle(wait_ms=20_000)
    assert installed(cluster)


def test_parts_that_come_faster_than_the_disk_takes_them_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that sends everything at once would fill the memory of a node with a slow disk."""
    monkeypatch.setattr(snapshots, "UNWRITTEN_MAX", 2)
    for module in (offers, snapshots):
        monkeypatch.setattr(module, "SNAPSHOT_PART_BYTES", 200)
    scene = pruned()
    cluster, pushed = scene.cluster, []

    def push(to: int, message: object) -> list[object]:
        if not isinstance(message, SnapshotPart):
            return [message]
        parts = [message]
        while not parts[-1].is_last:
            asked = FetchSnapshot(message.header.height, parts[-1].rows[-1][0])
            effects = cluster.node(0).receive(to, asked, cluster.now_ms)
            more = [item.message for item in effects if isinstance(item, Send)]
            if not more:  # it has given what it gives in a while
                break
            parts += more
        pushed.append(len(parts))
        return parts

    cluster.lies[0] = push
    for other in (1, 2):
        cluster.lies[other] = lambda to, message: [] if isinstance(message, SnapshotPart) else [message]
    cluster.start(3)
    cluster.block_ms = lambda: 400
    sync, most = cluster.node(3)._sync.snapshots, 0

    def is_installed() -> bool:
        nonlocal most
        if sync.phase is snapshots.Phase.STATE:
            most = max(most, sync._unwritten)
        return bool(installed(cluster))

    assert cluster.run(60_000, is_installed)
    assert max(pushed) > 6, "the whole state was there at once"
    assert most <= 3, "one more than the limit, which is asked for when nothing waits"
    assert not cluster.reasons(3, "snapshot"), "the peer is slow to be written, and no liar"


def test_the_word_of_one_peer_that_a_block_is_pruned_counts_only_after_a_while() -> None:
    """Not at once because no block was there for long: others are asked first, or a quiet network is a liar's."""
    catchup = CatchUp(weak=2)
    for replica in (0, 1):
        catchup.heard(Status(0, replica, 0, False, 8, 8, ()))
    assert not catchup.needs_snapshot(7, 0)
    catchup.pruned(0, 60_000)
    assert not catchup.needs_snapshot(7, 60_000)
    assert catchup.needs_snapshot(7, 65_000)
