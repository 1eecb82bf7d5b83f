"""Protocol 4.2, 5.4, 6.1 and design D10: catching up while peers lie about what they have, or send something else."""

import msgspec
import pytest

from bcami.codec import encode
from bcami.crypto.verification import verify_bundle
from bcami.errors import MalformedError
from bcami.model.chain import BlockBundle, StoredBatch
from bcami.model.consensus import Checkpoint, Commit, Prepare, PrePrepare
from bcami.model.genesis import Parameters
from bcami.model.wire import PEER_CODEC, FetchBatch, FetchBlocks, Status
from bcami.node.core import early
from bcami.node.core.serving import CREDIT_BYTES_MAX, REQUEST_BYTES
from tests.simulation.byzantine import Puppet
from tests.simulation.mutations import altered
from tests.simulation.scene import WAIT_MS, Scene


def left_behind(blocks: int, seed: int = 1) -> Scene:
    """Return a scene whose node 3 was down while the others went on; node 0 is about to be a liar."""
    scene = Scene(seed=seed)
    scene.settle()
    scene.cluster.crash(3)
    for _ in range(blocks):
        assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    scene.settle([0, 1, 2])
    return scene


def test_a_node_far_behind_gets_there_and_has_the_same_headers() -> None:
    """Live execution and catch-up are one function: `settle` compares headers and state hashes."""
    scene = left_behind(45)
    scene.cluster.start(3)
    scene.settle(wait_ms=4_000)


def test_blocks_that_come_in_the_reverse_order_are_all_of_use() -> None:
    """A network may reorder what answers one request (seed 240: one block of each answer counted, and none got near)."""
    scene = left_behind(20)
    cluster, asked = scene.cluster, list[tuple[int, FetchBlocks]]()

    def drop(sender: int, receiver: int, message: object) -> bool:
        if isinstance(message, FetchBlocks) and sender == 3:
            asked.append((receiver, message))
        return isinstance(message, BlockBundle)

    cluster.drop = drop
    cluster.start(3)
    cluster.run(1_000)
    peer, request = asked[-1]
    node, ledger = cluster.node(3), cluster.disks[peer].ledger
    for height in range(request.last, request.first - 1, -1):
        assert node.executor.height == request.first - 1
        node.receive(peer, ledger.bundle(height), cluster.now_ms)
    assert node.executor.height == request.last > request.first + 10


def test_blocks_that_come_early_take_no_more_room_than_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = left_behind(20).cluster.disks[0].ledger
    blocks = [bundle for height in range(1, 20) if (bundle := ledger.bundle(height)) is not None]
    monkeypatch.setattr(early, "BUNDLES_BYTES_MAX", sum(len(encode(bundle)) for bundle in blocks[5:8]))
    held = early.EarlyBlocks()
    for bundle in blocks[5:] + blocks[5:8]:
        held.keep(1, bundle, 2)
    assert len(held) == 3
    held.keep(1, blocks[-1], blocks[-1].block.header.height)
    assert len(held) == 0, "what is below is forgotten, and the next one is not early"


def test_a_liar_that_claims_great_heights_and_sends_nothing_costs_little() -> None:
    scene = left_behind(40)
    liar = Puppet(scene.cluster, 0)
    scene.cluster.start(3)

    def claim() -> None:
        liar.say(liar.status(2**62), [3])
        scene.cluster.at(200, claim)

    claim()
    scene.settle([1, 2, 3], wait_ms=6_000)
    node = scene.cluster.node(3)
    assert node.catchup.best_certified < 1_000, "one claim alone is not believed"
    before = len([message for _, message in liar.heard if isinstance(message, FetchBlocks)])
    scene.cluster.run(120_000)
    after = len([message for _, message in liar.heard if isinstance(message, FetchBlocks)])
    assert after - before < 15, "and is asked for less and less often"
    assert scene.commit(3, scene.reports(1)) == ["valid"]


def test_a_liar_that_answers_with_garbage_is_left_at_once() -> None:
    scene = left_behind(40)
    bundle = scene.cluster.disks[1].ledger.bundle(5)
    assert bundle is not None
    liar = Puppet(scene.cluster, 0)
    top = max(scene.cluster.heights())

    def answer(sender: int, message: object) -> None:
        if isinstance(message, FetchBlocks):
            header = msgspec.structs.replace(bundle.block.header, height=message.first)
            liar.say(
                msgspec.structs.replace(bundle, block=msgspec.structs.replace(bundle.block, header=header)), [sender]
            )
        elif isinstance(message, Status):
            liar.say(liar.status(top + 9), [sender])

    liar.on_message = answer
    scene.cluster.start(3)
    scene.settle([1, 2, 3], wait_ms=4_000)


def test_of_an_altered_bundle_no_field_gets_through() -> None:
    """What the certificate does not cover is named here: it changes nothing that is signed, executed or answered."""
    scene = Scene()
    before = max(scene.cluster.heights())
    assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    scene.settle()
    ledger = scene.cluster.disks[0].ledger
    bundle = ledger.bundle(before + 1)
    assert bundle is not None and bundle.batches[0].batch.anchor is not None
    roster, previous = scene.cluster.roster, bundle.block.header.previous
    assert verify_bundle(bundle, roster, previous) is None
    accepted, refused = set(), 0
    for path, bad in altered(bundle):
        try:
            decoded = PEER_CODEC.decode(encode(bad))
        except MalformedError:
            continue
        if verify_bundle(decoded, roster, previous) is None:
            accepted.add(path)
        else:
            refused += 1
    assert refused > 150
    loose = ".batches[0].batch.anchor"
    assert all(path.startswith(loose) and not path.endswith(".height") for path in accepted), accepted


def test_an_altered_bundle_does_not_move_a_node() -> None:
    scene = left_behind(3)
    cluster = scene.cluster
    cluster.drop = lambda sender, receiver, message: isinstance(message, BlockBundle | FetchBlocks)
    cluster.start(3)
    node = cluster.node(3)
    height = node.executor.height + 1
    bundle = cluster.disks[1].ledger.bundle(height)
    assert bundle is not None
    cluster.run(1_500)
    batches = bundle.batches
    forged = {
        "no batches": msgspec.structs.replace(bundle, batches=()),
        "pruned": msgspec.structs.replace(bundle, batches=(StoredBatch(batches[0].batch, (bytes(32),)), *batches[1:])),
        "outcomes": next(bad for path, bad in altered(bundle) if ".outcomes" in path),
        "state root": next(bad for path, bad in altered(bundle) if ".state_root" in path),
        "votes": next(bad for path, bad in altered(bundle) if path.endswith("certificate.votes[-]")),
    }
    for name, bad in forged.items():
        for peer in (0, 1, 2):
            node.catchup._peers[peer].first, node.catchup._peers[peer].last = height, height
            node.receive(peer, bad, cluster.now_ms)
        assert node.executor.height == height - 1, name
        assert node.halted is None
    cluster.drop = lambda sender, receiver, message: False
    scene.settle()


def test_a_bundle_that_nobody_asked_for_is_not_looked_at() -> None:
    scene = left_behind(3)
    cluster = scene.cluster
    cluster.drop = lambda sender, receiver, message: isinstance(message, BlockBundle | FetchBlocks)
    cluster.start(3)
    node = cluster.node(3)
    bundle = cluster.disks[1].ledger.bundle(node.executor.height + 1)
    assert bundle is not None
    node.catchup.refused(2, 0)
    node.receive(2, bundle, cluster.now_ms)
    assert node.executor.height == bundle.block.header.height - 1


@pytest.mark.parametrize("message", [FetchBlocks(1, 2**62), FetchBlocks(5, 1), FetchBlocks(2**63 - 1, 2**63 - 1)])
def test_a_flood_of_requests_for_blocks_is_answered_within_a_credit(message: FetchBlocks) -> None:
    scene = Scene()
    scene.commit(1, scene.reports(4))
    liar = Puppet(scene.cluster, 3)
    requests = 3 * CREDIT_BYTES_MAX // REQUEST_BYTES
    node = scene.cluster.node(0)
    answers = sum(len(node.receive(3, message, scene.cluster.now_ms)) > 0 for _ in range(requests))
    assert answers <= requests
    assert node.receive(3, message, scene.cluster.now_ms)[0].observation.reason == "rate_limited"
    honest = node.receive(2, FetchBlocks(1, 1), scene.cluster.now_ms)
    assert isinstance(honest[0].message, BlockBundle), "others have a credit of their own"
    assert node.receive(3, FetchBlocks(1, 1), scene.cluster.now_ms + 1_000)[0].message is not None
    assert liar.core is not None


def test_a_flood_of_statuses_and_fetches_of_batches_is_answered_within_limits() -> None:
    scene = Scene()
    cluster = scene.cluster
    cluster.drop = lambda sender, receiver, message: isinstance(message, Checkpoint)
    cluster.submit(0, scene.reports(2))
    cluster.run(200)
    node = cluster.node(0)
    digest = next(iter(node._pool._held or node._pool._executed))
    answers = sum(
        len(node.receive(3, Status(0, 3, 0, False, 0, 0, ()), cluster.now_ms + 1_000 + i // 100)) for i in range(1_000)
    )
    assert answers < 200
    sent = sum(
        any(hasattr(effect, "to") for effect in node.receive(3, FetchBatch(0, 1, digest), cluster.now_ms + 2_000))
        for _ in range(2_000)
    )
    assert 0 < sent < 600


def test_a_batch_whose_block_is_not_certified_can_still_be_fetched() -> None:
    """Executed here, it left the pool; the block was in no bundle yet: whoever lacked it waited for ever."""
    scene = Scene()
    cluster = scene.cluster
    cluster.drop = lambda sender, receiver, message: isinstance(message, Checkpoint)
    tx_id = cluster.submit(1, scene.reports(1))[0]
    assert cluster.run(WAIT_MS, lambda: cluster.disks[0].ledger.place(tx_id) is not None)
    node = cluster.node(0)
    cluster.run(100)
    digests = list(node._pool._executed)
    node._pool._executed.clear()
    (effect,) = node.receive(3, FetchBatch(1, 1, digests[-1]), cluster.now_ms)
    assert node.id_of(effect.message.transactions[0]) == tx_id
    cluster.restart(0)
    (effect,) = cluster.node(0).receive(3, FetchBatch(1, 1, digests[-1]), cluster.now_ms)
    assert node.id_of(effect.message.transactions[0]) == tx_id


def test_a_slow_disk_does_not_make_catch_up_pile_blocks_in_memory() -> None:
    scene = left_behind(90)
    cluster = scene.cluster
    cluster.start(3)
    cluster.block_ms = lambda: 40
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, len(cluster.node(3).chain.writing))
        return cluster.heights()[3] == cluster.heights()[0]

    assert cluster.run(WAIT_MS, look)
    assert most <= 70
    scene.settle()


def lacking_a_certificate() -> tuple[Scene, int]:
    """Return a scene whose nodes 1 and 2 have a block that only a later certificate proves, and a height below it.

    Node 0 signed for the later one and is gone: its vote for the block itself will never come. Node 3 was down.
    """
    scene = left_behind(2)
    cluster = scene.cluster
    gap = max(cluster.heights()) + 1
    cluster.drop = lambda sender, receiver, message: isinstance(message, Checkpoint) and message.height == gap
    scene.cluster.submit(1, scene.reports(1))
    assert cluster.run(WAIT_MS, lambda: min(cluster.heights()[:3]) == gap)
    assert scene.commit(1, scene.reports(1)) == ["valid"]
    assert cluster.run(WAIT_MS, lambda: min(cluster.certified()[1:3]) == gap + 1)
    cluster.crash(0)
    cluster.drop = lambda sender, receiver, message: False
    assert [cluster.disks[i].ledger.certificate(gap) for i in range(3)] == [None] * 3
    return scene, gap


def test_a_block_is_passed_on_with_the_certificate_of_a_later_one() -> None:
    """Seeds 1244 and 2062 once: who had the block were too few to certify it, and who was behind could not have it.

    Certificates of later blocks prove it through the hash chain. With it the late node votes, and the gap closes too.
    """
    scene, gap = lacking_a_certificate()
    scene.cluster.start(3)
    scene.settle([1, 2, 3], wait_ms=4_000)
    scene.all_certified([1, 2, 3], wait_ms=4_000)
    assert scene.cluster.heights()[3] > gap
    assert scene.commit(3, scene.reports(1)) == ["valid"]


def test_of_a_block_with_a_later_certificate_no_field_gets_through() -> None:
    scene, gap = lacking_a_certificate()
    bundle = scene.cluster.disks[1].ledger.bundle(gap)
    assert bundle is not None and bundle.certificate.height == gap + 1 and len(bundle.headers) == 1
    roster, previous = scene.cluster.roster, bundle.block.header.previous
    assert verify_bundle(bundle, roster, previous) is None
    for path, bad in altered(bundle):
        try:
            decoded = PEER_CODEC.decode(encode(bad))
        except MalformedError:
            continue
        if verify_bundle(decoded, roster, previous) is None:
            assert path.startswith(".batches[0].batch.anchor") and not path.endswith(".height"), path


def under_load(scene: Scene, every_ms: int) -> None:
    """Let node 1 be sent one report after another."""

    def go_on() -> None:
        scene.cluster.submit(1, scene.reports(1), wait=False)
        scene.cluster.at(every_ms, go_on)

    scene.cluster.block_ms = lambda: 8
    go_on()
    scene.cluster.run(1_000)


@pytest.mark.parametrize("down_for", [3, 100])
@pytest.mark.parametrize("every_ms", [10, 100])
def test_a_restarted_node_is_in_step_soon_although_the_others_go_on(down_for: int, every_ms: int) -> None:
    """Each block of catch-up took two durable writes, one for itself and one for its certificate: as slow as the rest."""
    scene = left_behind(down_for)
    cluster = scene.cluster
    under_load(scene, every_ms)
    cluster.start(3)
    began_ms = cluster.now_ms
    in_step_since = None
    while in_step_since is None or cluster.now_ms - in_step_since < 2_000:
        cluster.run(10)
        is_in_step = max(cluster.heights()) - cluster.heights()[3] <= 1
        in_step_since = (in_step_since or cluster.now_ms) if is_in_step else None
        assert cluster.now_ms - began_ms < 10_000
    assert in_step_since - began_ms < 1_400


def test_a_node_that_no_votes_reach_follows_by_blocks_alone() -> None:
    """Seed 2518 once: a node alone in a later view got four blocks, and waited; the others made more meanwhile."""
    scene = left_behind(20)
    cluster = scene.cluster
    cluster.drop = lambda sender, receiver, message: (
        receiver == 3 and isinstance(message, PrePrepare | Prepare | Commit)
    )
    under_load(scene, 20)
    cluster.start(3)
    cluster.run(2_000)
    lags = []
    for _ in range(200):
        cluster.run(10)
        lags.append(max(cluster.heights()) - cluster.heights()[3])
    assert max(lags) <= 3
    assert cluster.heights()[0] > 60, "and it does not slow the others"


def test_nodes_in_step_ask_each_other_for_no_blocks() -> None:
    scene = Scene()
    asked = []
    scene.cluster.drop = lambda sender, receiver, message: (
        isinstance(message, FetchBlocks) and asked.append(message) is None
    )
    under_load(scene, 20)
    scene.cluster.run(2_000)
    assert min(scene.cluster.heights()) > 40
    assert not asked


def test_a_certificate_that_came_far_too_early_is_kept_for_a_block_that_brings_none() -> None:
    """Seed 195203: ordering tells of each certificate once, and the newest block is decided by votes."""
    scene = Scene(parameters=Parameters(window=2))
    scene.settle()
    cluster = scene.cluster
    newest, is_late_cut_off = cluster.heights()[0] + 6, True

    def drop(_: int, receiver: int, message: object) -> bool:
        is_vote = isinstance(message, Checkpoint) and message.height == newest
        return is_late_cut_off and not is_vote if receiver == 3 else is_vote

    cluster.drop = drop
    for _ in range(5):
        assert scene.commit(1, scene.reports(1)) == ["valid"]
    cluster.submit(1, scene.reports(1))
    late = cluster.node(3)
    assert cluster.run(WAIT_MS, lambda: late.pbft._checkpoints.certified == newest)
    assert (late.height, cluster.certified()[0]) == (newest - 6, newest - 1)
    is_late_cut_off = False
    assert cluster.run(WAIT_MS, lambda: cluster.heights()[3] == newest)
    scene.all_certified([3])
    cluster.drop = lambda *_: False
    scene.settle()
