"""Protocol 6.3: a node that lost its vote log follows and serves, and never says anything of its own again."""

import msgspec
import pytest

from bcami.codec import encode
from bcami.crypto.signatures import DeadSigner
from bcami.faults.simulator.oracles import Oracles, Violation
from bcami.ledger.memory import MemoryLedger
from bcami.model.batch import Batch, Endorsement
from bcami.model.chain import BlockBundle
from bcami.model.consensus import Checkpoint, Commit, NewView, Prepare, PrePrepare, ViewChange
from bcami.model.events import Amnesia
from bcami.model.reasons import Reason
from bcami.model.registration import ContributionRequest
from bcami.model.wire import FetchBlocks
from bcami.node.core import effects as out
from tests.simulation.byzantine import Puppet
from tests.simulation.cluster import Cluster
from tests.simulation.scene import Scene

VOTES = (PrePrepare, Prepare, Commit, Checkpoint, ViewChange, NewView, Endorsement)


def own_words(cluster: Cluster, i: int) -> list[object]:
    """Return, filled as time goes on, what node i sends from now on that would bind it."""
    words: list[object] = []
    before = cluster.drop

    def hear(sender: int, to: int, message: object) -> bool:
        is_own = isinstance(message, VOTES) and message.replica == i
        if sender == i and (is_own or (isinstance(message, Batch) and message.collector == i)):
            words.append(message)
        return before(sender, to, message)

    cluster.drop = hear
    return words


def amnesiac(i: int = 3, **options: object) -> tuple[Scene, list[object]]:
    """Return a scene whose node i voted, lost its vote log, and is up again."""
    scene = Scene(**options)
    scene.settle()
    words = own_words(scene.cluster, i)
    scene.cluster.lose_promises(i)
    return scene, words


@pytest.mark.parametrize("lost", [0, 3], ids=["primary", "backup"])
def test_the_others_go_on_and_it_follows_in_silence(lost: int) -> None:
    scene, words = amnesiac(lost)
    for _ in range(30):
        assert scene.commit((lost + 1) % 4, scene.reports(2)) == ["valid"] * 2
    scene.settle()
    scene.all_certified([0, 1, 2, 3])
    assert words == []
    assert list(scene.cluster.disks[lost].promises.items()) == [], "no new vote log is begun"
    assert (lost, Amnesia) in [(i, type(seen)) for i, seen in scene.cluster.observations]


def test_it_is_in_step_with_every_block_and_not_only_at_each_status() -> None:
    scene, _ = amnesiac()
    cluster = scene.cluster
    for _ in range(10):
        assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
        height = cluster.heights()[1]
        before_ms = cluster.now_ms
        assert cluster.run(1_000, lambda height=height: cluster.heights()[3] >= height)
        assert cluster.now_ms - before_ms <= 100


def test_it_joins_no_view_change_and_enters_the_new_view() -> None:
    scene, words = amnesiac()
    cluster = scene.cluster
    cluster.drop = lambda sender, to, message, before=cluster.drop: (
        before(sender, to, message) or (sender == 0 and isinstance(message, PrePrepare))
    )
    assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    scene.settle()
    assert cluster.node(1).view >= 1
    assert cluster.node(3).view == cluster.node(1).view
    assert not cluster.node(3).pbft.in_view_change
    assert words == []


def test_no_view_of_its_own_ever_begins() -> None:
    scene, words = amnesiac(1)
    cluster = scene.cluster
    cluster.drop = lambda sender, to, message, before=cluster.drop: (
        before(sender, to, message) or (sender == 0 and isinstance(message, PrePrepare))
    )
    assert scene.commit(2, scene.reports(2)) == ["valid"] * 2
    scene.settle()
    assert cluster.node(2).view >= 2, "view 1 would have been its own"
    assert words == []


def test_submissions_are_refused_and_known_outcomes_answered() -> None:
    scene, words = amnesiac()
    cluster = scene.cluster
    reports = scene.reports(2)
    assert scene.commit(1, reports) == ["valid"] * 2
    scene.settle()
    assert scene.commit(3, reports) == ["valid"] * 2, "with receipts, which the cluster has checked"
    fresh = scene.reports(1)
    scene.commit(3, fresh)
    result = cluster.results[cluster.node(3).id_of(fresh[0])]
    assert (result.status, result.reason) == ("refused", Reason.AMNESIA)
    assert "amnesia" in cluster.reasons(3, "admission")
    request = ContributionRequest(b"h" * 32, 1, b"n" * 32, b"s" * 64)
    assert cluster.node(3).contribute(request, cluster.now_ms) is Reason.AMNESIA
    assert scene.commit(2, fresh) == ["valid"], "another node takes it"
    assert words == []


def test_with_one_more_node_down_nothing_is_ordered_until_it_is_back() -> None:
    """It counts towards f: its word makes no quorum complete."""
    scene, words = amnesiac()
    cluster = scene.cluster
    cluster.crash(2)
    reports = scene.reports(1)
    before = max(cluster.heights()[:2])
    cluster.submit(1, reports)
    cluster.run(20_000)
    assert max(cluster.heights()[:2]) == before
    timers = cluster.shells[3]._timers
    assert not {"pbft/view", "pbft/certify", "gather"} & timers.keys(), "it holds nobody to account"
    cluster.start(2)
    assert scene.commit(1, reports) == ["valid"]
    scene.settle()
    assert words == []


def test_it_restarts_into_the_same_silence_and_catches_up_from_nothing() -> None:
    scene, words = amnesiac()
    cluster = scene.cluster
    for _ in range(20):
        assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    cluster.crash(3)
    cluster.disks[3].ledger = MemoryLedger(cluster.identities.genesis)
    cluster.start(3)
    scene.settle()
    scene.all_certified([0, 1, 2, 3])
    assert words == []


def test_it_gives_certified_blocks_to_others_and_vouches_for_none() -> None:
    scene, words = amnesiac()
    cluster = scene.cluster
    assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    scene.settle()
    scene.all_certified([3])
    node, height = cluster.node(3), cluster.heights()[3]
    cluster.disks[3].ledger._certificates.pop(height - 1)
    answer = node.receive(0, FetchBlocks(height - 1, height), cluster.now_ms)
    sent = [item.message for item in answer if isinstance(item, out.Send)]
    blocks = [item.block.header.height for item in sent if isinstance(item, BlockBundle)]
    assert blocks == [height - 1, height], "the later certificate proves the block before it too"
    assert not [item for item in sent if isinstance(item, VOTES)]
    assert words == []


def test_a_missing_certificate_is_completed_from_others_alone() -> None:
    scene, words = amnesiac()
    cluster = scene.cluster
    assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    scene.settle()
    height = cluster.heights()[3] - 1
    cluster.crash(3)
    for disk in cluster.disks:
        disk.ledger._certificates.pop(height, None)
    cluster.start(3)
    for i in (0, 1, 2):
        cluster.restart(i)
    scene.all_certified([3])
    certificate = cluster.disks[3].ledger.certificate(height)
    assert 3 not in [vote.replica for vote in certificate.votes]
    assert words == []


def test_a_dead_key_signs_nothing_whoever_asks() -> None:
    with pytest.raises(RuntimeError, match="never signs again"):
        DeadSigner(b"k" * 33).sign(b"d" * 32)


def test_the_oracle_tells_an_own_word_from_what_is_passed_on() -> None:
    scene = Scene()
    oracles = Oracles(scene.cluster.roster)
    oracles.silenced.add(3)
    vote = Checkpoint(0, 9, b"h" * 32, 2, b"s" * 64)
    oracles.leaves(3, scene.cluster.disks[3], vote)
    with pytest.raises(Violation, match="amnesia"):
        oracles.leaves(3, scene.cluster.disks[3], msgspec.structs.replace(vote, replica=3))
    with pytest.raises(Violation, match="amnesia"):
        oracles.persisted(3, scene.cluster.disks[3], [(b"vote/floor", b"\0" * 8)], [])
    with pytest.raises(Violation, match="amnesia"):
        oracles.contributed(3)


def test_the_oracle_wants_the_promise_of_an_own_batch_until_it_has_executed() -> None:
    """A batch that was said before and leaves again rests on what is on disk, like the first time."""
    scene = Scene()
    oracles, disk = Oracles(scene.cluster.roster), scene.cluster.disks[1]
    batch = Batch(0, 1, 1_000, None, ())
    oracles._said[1, "batch", 1, 1_000] = encode(batch.transactions)
    with pytest.raises(Violation, match="I9"):
        oracles.leaves(1, disk, batch)
    oracles._executed[1] = 1_000
    oracles.leaves(1, disk, batch)


def test_a_liar_moves_it_no_further_than_others_certify() -> None:
    """It decides by strong commits of others; one liar's words are one."""
    scene, words = amnesiac()
    liar = Puppet(scene.cluster, 0)
    liar.say(liar.status(2**40), [3])
    for _ in range(5):
        scene.cluster.run(2_000)
    assert scene.cluster.node(3).catchup.best_certified < 1_000
    assert words == []
