"""Protocol 4: what a Byzantine collector or endorser may try with batches, endorsements and certificates."""

import msgspec
import pytest

from bcami.crypto.verification import verify_batch_certificate
from bcami.endorsement.endorser import LANE_AHEAD_MAX
from bcami.endorsement.pool import hold
from bcami.model.batch import BATCH_BYTES_MAX, Batch, BatchCertificate, Endorsement, Refusal
from bcami.model.events import ViewChangeStarted
from bcami.model.genesis import Parameters
from bcami.model.reasons import Reason
from bcami.model.transaction import ARGUMENT_BYTES_MAX
from bcami.model.wire import FetchBatch
from tests.simulation.byzantine import Puppet, block_certificate, certify, sign_endorsement
from tests.simulation.scene import WAIT_MS, Scene

HONEST = [0, 1, 2]


def views(scene: Scene) -> int:
    return sum(isinstance(seen, ViewChangeStarted) for _, seen in scene.cluster.observations)


# 4.1 One digest per number.


def test_of_two_batches_under_one_number_at_most_one_executes_and_nobody_keeps_the_other() -> None:
    scene = Scene()
    liar = Puppet(scene.cluster, 3)
    first, second = liar.batch(scene.reports(1)), liar.batch(scene.reports(1))
    liar.say(first.batch, [0, 1])
    liar.say(second.batch, [2])
    certificate = liar.gather(first)
    assert certificate is not None
    liar.say(second.batch, [0, 1])
    assert liar.gather(second, 500) is None
    liar.say(certificate)
    assert scene.cluster.run(WAIT_MS, lambda: all(scene.cluster.node(i).executor.lanes[3] == 1 for i in HONEST))
    scene.settle(HONEST)
    assert scene.cluster.outcomes_of(first.ids[0]) == ["valid"]
    assert scene.cluster.outcomes_of(second.ids[0]) == []
    assert "equivocation" in scene.cluster.reasons(0, "endorsement")
    assert [scene.cluster.node(i)._pool.held_bytes for i in HONEST] == [0, 0, 0]
    assert scene.commit(0, scene.reports(2)) == ["valid"] * 2


def test_a_collector_that_splits_its_number_hurts_its_own_lane_only() -> None:
    scene = Scene()
    liar = Puppet(scene.cluster, 3)
    batches = [liar.batch(scene.reports(1)) for _ in HONEST]
    for i, held in zip(HONEST, batches, strict=True):
        liar.say(held.batch, [i])
    assert all(liar.gather(held, 500) is None for held in batches)
    later = liar.batch(scene.reports(1), number=2)
    liar.say(later.batch)
    certificate = liar.gather(later)
    assert certificate is not None
    before = views(scene)
    liar.say(certificate)
    scene.cluster.run(10_000)
    assert views(scene) == before, "nobody owes a certificate whose number is not the next one"
    assert scene.cluster.outcomes_of(later.ids[0]) == []
    assert scene.commit(1, scene.reports(3)) == ["valid"] * 3
    scene.settle(HONEST)


def test_numbers_far_ahead_are_not_kept() -> None:
    scene = Scene()
    liar = Puppet(scene.cluster, 3)
    liar.say(liar.batch(scene.reports(1), number=LANE_AHEAD_MAX + 1).batch)
    liar.say(liar.batch(scene.reports(1), number=2**63 - 1).batch)
    scene.cluster.run(1_000)
    assert "over_quota" in scene.cluster.reasons(0, "endorsement")
    assert scene.cluster.node(0)._pool.held_bytes == 0


def test_a_lane_holds_no_more_bytes_than_its_quota_and_no_batch_above_the_limit() -> None:
    scene = Scene(parameters=Parameters(lane_quota_bytes=200_000))
    liar = Puppet(scene.cluster, 3)
    big = msgspec.structs.replace(scene.reports(1)[0], argument=bytes(ARGUMENT_BYTES_MAX))
    for number in range(1, 10):
        liar.say(liar.batch([big] * 3, number).batch)
    count = BATCH_BYTES_MAX // ARGUMENT_BYTES_MAX + 1
    liar.say(liar.batch([big] * count, 10).batch)
    liar.say(liar.batch([big] * (3 * count), 10).batch)
    scene.cluster.run(1_000)
    assert {"over_quota", "oversized"} <= scene.cluster.reasons(0, "endorsement")
    assert 0 < scene.cluster.node(0)._pool.held_bytes <= 200_000
    assert scene.commit(1, scene.reports(3)) == ["valid"] * 3


def test_a_collector_keeps_its_batches_inside_the_quota_of_its_endorsers() -> None:
    scene = Scene(parameters=Parameters(lane_quota_bytes=20_000))
    assert scene.commit(1, scene.reports(150)) == ["valid"] * 150
    sizes = [
        sum(len(msgspec.msgpack.encode(tx)) for tx in stored.batch.transactions)
        for height in range(1, scene.cluster.heights()[0] + 1)
        for stored in scene.cluster.disks[0].ledger.batches(height)
    ]
    assert max(sizes) <= 20_000 and len(sizes) > 3
    scene.settle()


# 4.2 Anchors, lanes, data.


def test_an_anchor_from_the_future_is_refused_and_a_forged_one_too() -> None:
    scene = Scene()
    liar = Puppet(scene.cluster, 3)
    height = scene.cluster.heights()[0]
    far = block_certificate(scene.cluster, height + 1000, bytes(32), [0, 1, 2])
    weak = block_certificate(scene.cluster, height + 1, bytes(32), [3])
    repeated = msgspec.structs.replace(weak, votes=weak.votes * 3)
    for number, anchor in enumerate((far, weak, repeated), 1):
        liar.say(liar.batch(scene.reports(1), number, anchor).batch)
    scene.cluster.run(2_000)
    assert {"outside_watermarks", "bad_certificate"} <= scene.cluster.reasons(0, "endorsement")
    assert all(scene.cluster.node(i).catchup.target < height + 1000 for i in HONEST)
    assert scene.commit(0, scene.reports(1)) == ["valid"]


def test_an_endorser_behind_the_anchor_catches_up_first_and_then_endorses() -> None:
    scene = Scene()
    cluster = scene.cluster
    cluster.crash(3)
    assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    cluster.crash(0)
    cluster.start(3)
    assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    assert cluster.heights()[3] == cluster.heights()[1]


def test_a_batch_that_was_withheld_is_fetched_once_from_its_endorsers() -> None:
    scene = Scene()
    requests: list[int] = []

    def drop(sender: int, receiver: int, message: object) -> bool:
        if isinstance(message, FetchBatch):
            requests.append(receiver)
        return isinstance(message, Batch) and receiver == 3 and sender == message.collector == 1

    scene.cluster.drop = drop
    assert scene.commit(1, scene.reports(3)) == ["valid"] * 3
    scene.settle()
    assert requests and len(requests) <= 4


@pytest.mark.parametrize("n", [4, 7])
def test_endorsers_that_never_answer_a_fetch_delay_it_and_no_more(n: int) -> None:
    scene = Scene(n)
    faulty = set(range(n - 1 - scene.cluster.roster.quorum.f, n - 1))
    scene.cluster.drop = lambda sender, receiver, message: (
        (isinstance(message, Batch) and receiver == n - 1 and message.collector == 0 and sender == 0)
        or (isinstance(message, FetchBatch) and receiver in faulty)
    )
    assert scene.commit(0, scene.reports(2)) == ["valid"] * 2
    scene.settle()


def test_a_wrong_batch_in_answer_to_a_fetch_is_not_taken() -> None:
    scene = Scene()
    liar = Puppet(scene.cluster, 3)
    held = liar.batch(scene.reports(2))
    liar.say(held.batch, [0, 1])
    certificate = liar.gather(held)
    assert certificate is not None
    wrong = msgspec.structs.replace(held.batch, transactions=held.batch.transactions[::-1])
    liar.on_message = lambda sender, message: liar.say(wrong, [sender]) if isinstance(message, FetchBatch) else None
    liar.say(certificate)
    assert scene.cluster.run(WAIT_MS, lambda: all(scene.cluster.node(i).executor.lanes[3] == 1 for i in HONEST))
    scene.settle(HONEST)
    assert scene.cluster.outcomes_of(held.ids[0], 2) == ["valid"]


# 4.3 Refusals.


def test_bad_argument_bytes_under_the_right_id_are_absent_and_the_true_ones_execute() -> None:
    scene = Scene()
    true = scene.reports(1)[0]
    forged = msgspec.structs.replace(true, argument=true.argument[:-1] + bytes([true.argument[-1] ^ 1]))
    liar = Puppet(scene.cluster, 3)
    other = scene.reports(1)[0]
    held = liar.batch([forged, other])
    assert held.ids[0] == scene.cluster.node(0).id_of(true)
    liar.say(held.batch)
    certificate = liar.gather(held)
    assert certificate is not None
    liar.say(certificate)
    assert scene.cluster.run(WAIT_MS, lambda: scene.cluster.node(0).executor.lanes[3] == 1)
    scene.settle(HONEST)
    assert scene.cluster.outcomes_of(held.ids[0]) == []
    assert scene.cluster.outcomes_of(held.ids[1]) == ["valid"]
    assert scene.commit(0, [true]) == ["valid"]
    scene.settle(HONEST)


def test_a_forged_copy_in_a_liars_batch_does_not_answer_for_the_true_one_on_its_way() -> None:
    """The client of the true one was told `hash_mismatch`, while its transaction went on to execute."""
    scene = Scene()
    true = scene.reports(1)[0]
    forged = msgspec.structs.replace(true, argument=true.argument[:-1] + bytes([true.argument[-1] ^ 1]))
    liar = Puppet(scene.cluster, 3)
    scene.cluster.drop = lambda sender, receiver, message: isinstance(message, Batch) and message.collector == 0
    ids = scene.cluster.submit(0, [true])
    held = liar.batch([forged])
    liar.say(held.batch)
    certificate = liar.gather(held)
    assert certificate is not None
    liar.say(certificate)
    assert scene.cluster.run(WAIT_MS, lambda: scene.cluster.node(0).executor.lanes[3] == 1)
    assert ids[0] not in scene.cluster.results
    scene.cluster.drop = lambda sender, receiver, message: False
    assert scene.cluster.run(WAIT_MS, lambda: ids[0] in scene.cluster.results)
    assert scene.cluster.outcome(ids[0]) == "valid"


def test_duplicate_ids_in_one_batch_execute_once() -> None:
    scene = Scene()
    tx = scene.reports(1)[0]
    liar = Puppet(scene.cluster, 3)
    held = liar.batch([tx, tx, tx])
    liar.say(held.batch)
    certificate = liar.gather(held)
    assert certificate is not None
    liar.say(certificate)
    assert scene.cluster.run(WAIT_MS, lambda: scene.cluster.node(0).executor.lanes[3] == 1)
    scene.settle(HONEST)
    assert scene.cluster.outcomes_of(held.ids[0]) == ["valid", "replay", "replay"]
    assert scene.commit(0, [tx]) == ["valid"]
    scene.settle(HONEST)


@pytest.mark.parametrize("n", [4, 7])
def test_endorsers_up_to_f_that_refuse_everything_censor_nothing(n: int) -> None:
    scene = Scene(n)
    liars = [Puppet(scene.cluster, i) for i in range(n - scene.cluster.roster.quorum.f, n)]

    def refuse(liar: Puppet, message: object) -> None:
        if isinstance(message, Batch):
            held = hold(message, scene.cluster.chain)
            liar.say(
                liar_endorsement(scene, held, liar.i, range(len(held.ids))),
                [message.collector],
            )

    for liar in liars:
        liar.on_message = lambda sender, message, liar=liar: refuse(liar, message)
    assert scene.commit(0, scene.reports(4)) == ["valid"] * 4
    assert scene.commit(1, scene.reports(4)) == ["valid"] * 4
    scene.settle(list(range(n - len(liars))))


def liar_endorsement(scene: Scene, held, i: int, indices) -> Endorsement:
    return sign_endorsement(scene.cluster, held, i, [Refusal(index, Reason.UNKNOWN_HID) for index in indices])


def test_what_weak_endorsers_refused_is_answered_as_refused_and_may_be_asked_again() -> None:
    scene = Scene()
    cluster = scene.cluster
    tx = scene.reports(1)[0]
    honest = [cluster.node(i).runtime.check for i in range(4)]

    def refuse(*_: object) -> Reason:
        return Reason.TIMESTAMP_AHEAD

    for i in (1, 2, 3):
        cluster.node(i).runtime.check = refuse
    assert scene.commit(0, [tx]) == ["timestamp_ahead"]
    assert cluster.results[cluster.node(0).id_of(tx)].status == "refused"
    assert cluster.outcomes_of(cluster.node(0).id_of(tx)) == []
    for i in (1, 2, 3):
        cluster.node(i).runtime.check = honest[i]
    assert scene.commit(0, [tx]) == ["valid"]
    scene.settle()


POISON = {
    "another epoch": lambda cluster, held, i: sign_endorsement(cluster, held, i, epoch=1),
    "a refusal that is none": lambda cluster, held, i: sign_endorsement(cluster, held, i, [Refusal(0, Reason.VALID)]),
    "an index beyond the batch": lambda cluster, held, i: sign_endorsement(
        cluster, held, i, [Refusal(len(held.ids), Reason.REPLAY)]
    ),
    "an index twice": lambda cluster, held, i: sign_endorsement(
        cluster, held, i, [Refusal(0, Reason.REPLAY), Refusal(0, Reason.REPLAY)]
    ),
    "somebody else's name": lambda cluster, held, i: msgspec.structs.replace(
        sign_endorsement(cluster, held, i), replica=(i + 1) % 4
    ),
    "a replica that is none": lambda cluster, held, i: msgspec.structs.replace(
        sign_endorsement(cluster, held, i), replica=63
    ),
    "another count": lambda cluster, held, i: msgspec.structs.replace(sign_endorsement(cluster, held, i), count=1999),
}


@pytest.mark.parametrize("kind", POISON)
def test_no_endorsement_can_spoil_the_certificate_that_it_goes_into(kind: str) -> None:
    """A vote that the collector counts and verifiers refuse left the collector's lane stuck for ever."""
    scene = Scene()
    liar = Puppet(scene.cluster, 3)
    liar.on_message = lambda sender, message: (
        liar.say_at_once(POISON[kind](scene.cluster, hold(message, scene.cluster.chain), 3), sender)
        if isinstance(message, Batch)
        else None
    )
    for i in HONEST:
        assert scene.commit(i, scene.reports(1), 20_000) == ["valid"]
    scene.settle(HONEST)


# 4.2, 4.4 Certificates.


def forgeries(scene: Scene, held, good: BatchCertificate) -> dict[str, BatchCertificate]:
    replace = msgspec.structs.replace
    one, two, three = good.votes[:3]
    return {
        "too few": replace(good, votes=(one, two)),
        "repeated": replace(good, votes=(one, one, one)),
        "repeated under another name": replace(good, votes=(one, two, replace(two, replica=three.replica))),
        "not sorted": replace(good, votes=(two, one, three)),
        "count": replace(good, count=good.count + 1),
        "number": replace(good, number=good.number + 1),
        "collector": replace(good, collector=1),
        "no collector": replace(good, collector=9),
        "epoch": replace(good, epoch=1),
        "digest": replace(good, batch_digest=bytes(32)),
        "refusals": replace(good, votes=(one, two, replace(three, refusals=(Refusal(0, Reason.REPLAY),)))),
    }


def test_forged_certificates_are_refused_and_move_nothing() -> None:
    scene = Scene()
    liar = Puppet(scene.cluster, 3)
    held = liar.batch(scene.reports(2))
    liar.say(held.batch)
    good = liar.gather(held)
    assert good is not None
    before = scene.cluster.heights()
    for name, bad in forgeries(scene, held, good).items():
        assert verify_batch_certificate(bad, scene.cluster.roster) is not None, name
        liar.say(bad)
    scene.cluster.run(3_000)
    assert scene.cluster.heights() == before
    assert scene.cluster.reasons(0, "certificate") >= {
        "bad_certificate",
        "bad_signature",
        "unknown_replica",
        "wrong_epoch",
    }
    liar.say(good)
    assert scene.cluster.run(WAIT_MS, lambda: scene.cluster.node(0).executor.lanes[3] == 1)
    scene.settle(HONEST)


def test_a_certificate_of_a_far_number_is_refused_by_ordering() -> None:
    scene = Scene()
    liar = Puppet(scene.cluster, 3)
    far = liar.batch(scene.reports(1), number=2**40)
    liar.say(certify([sign_endorsement(scene.cluster, far, i) for i in (0, 1, 2)]))
    scene.cluster.run(6_000)
    assert "over_quota" in scene.cluster.reasons(0, "consensus")
    assert not scene.cluster.node(0)._lanes._owed
    assert scene.commit(0, scene.reports(1)) == ["valid"]


@pytest.mark.parametrize("told", [1, 2])
def test_a_certificate_that_only_one_backup_was_told_of_is_passed_on(told: int) -> None:
    """The backup waited for a primary that knew of nothing, and left the view alone: its vote was missing then."""
    scene = Scene()
    before = views(scene)
    liar = Puppet(scene.cluster, 3)
    held = liar.batch(scene.reports(1))
    liar.say(held.batch)
    certificate = liar.gather(held)
    assert certificate is not None
    liar.say(certificate, [told])
    assert scene.cluster.run(5_000, lambda: scene.cluster.node(0).executor.lanes[3] == 1)
    scene.cluster.run(10_000)
    assert views(scene) == before
    scene.settle(HONEST)


def test_patience_ends_under_a_constant_stream_of_batches() -> None:
    """Each batch put off the timer of those before, so that the last endorsers never looked at any."""
    scene = Scene()
    cluster = scene.cluster
    cluster.drop = lambda sender, receiver, message: isinstance(message, Endorsement) and sender == 3
    ids = []
    for _ in range(30):
        ids += cluster.submit(1, scene.reports(1))
        cluster.run(90)
    assert sum(tx_id in cluster.results for tx_id in ids) > 20
    cluster.run(WAIT_MS, lambda: all(tx_id in cluster.results for tx_id in ids))
    assert {cluster.outcome(tx_id) for tx_id in ids} == {"valid"}
