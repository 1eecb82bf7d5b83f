"""What each behaviour is about, shown where it can do most harm."""

from random import Random

import pytest

from bcami.crypto.hpke import OpenError, open_from
from bcami.crypto.keys import SecretKey
from bcami.crypto.signatures import verify
from bcami.faults.batches import forged_transaction
from bcami.faults.catalogue import BEHAVIOURS
from bcami.model.batch import Batch
from bcami.model.block import Outcome
from bcami.model.events import SnapshotInstalled
from bcami.model.reasons import Reason
from bcami.model.registration import (
    ContributionAnswer,
    ContributionRequest,
    contribution_digest,
    contribution_request_digest,
    request_hash,
    share_info,
)
from bcami.model.transaction import Transaction
from bcami.node.core import offers, snapshots
from tests.simulation.parties import SimpleMeter
from tests.unit.faults.attack import Attack


@pytest.fixture
def attack(monkeypatch: pytest.MonkeyPatch) -> Attack:
    return Attack(monkeypatch)


def outcomes(attack: Attack, i: int) -> list[Outcome]:
    ledger = attack.cluster.disks[i].ledger
    return [item for height in range(1, ledger.height + 1) for item in ledger.block(height).outcomes]


def test_a_mute_primary_is_replaced(attack: Attack) -> None:
    attack.inject(0, "mute")
    attack.load()
    attack.check()
    assert attack.views() == {1}


@pytest.mark.parametrize("seed", range(5))
def test_an_equivocating_primary_leaves_evidence_and_no_fork(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    attack = Attack(monkeypatch, seed=seed)
    attack.inject(0, "equivocating_primary", seed=seed)
    attack.load()
    attack.check()
    assert attack.accused() == {0}


def test_an_equivocating_voter_leaves_evidence(attack: Attack) -> None:
    attack.inject(2, "equivocating_voter")
    attack.load()
    attack.check()
    assert attack.accused() == {2}


def test_a_checkpoint_liar_halts_nobody_and_certifies_nothing(attack: Attack) -> None:
    behaviour = attack.inject(3, "checkpoint_liar")
    attack.load()
    attack.check()
    assert behaviour.acted > 10
    for height in range(1, attack.cluster.heights()[0] + 1):
        certificate = attack.cluster.disks[0].ledger.certificate(height)
        header = attack.cluster.disks[0].ledger.header(height)
        assert certificate is not None
        assert header is not None


def test_a_primary_that_ignores_a_collector_is_replaced(attack: Attack) -> None:
    attack.inject(0, "censor_collector", for_ms=20_000, collector=2)
    attack.load(for_ms=2_000, nodes=[2])
    attack.check()
    assert max(attack.views()) >= 1
    assert attack.cluster.node(1).executor.lanes[2] > 0


def test_a_meter_is_heard_although_one_node_refuses_it(attack: Attack) -> None:
    meter = attack.scene.meters[0]
    behaviour = attack.inject(3, "censor_signer", for_ms=20_000, signer=meter.hid.hex())
    refused = attack.cluster.submit(3, [meter.report()])
    attack.submit(1, [meter.report() for _ in range(5)])
    attack.check()
    assert attack.cluster.outcome(refused[0]) == "bad_signature", "the gateway of the censor says no"
    assert behaviour.acted >= 1


def test_forged_transactions_get_no_outcome_and_their_neighbours_do(attack: Attack) -> None:
    before = sum(item.reason is Reason.VALID for item in outcomes(attack, 1))
    attack.load(for_ms=1_000)
    behaviour = attack.inject(0, "invalid_batch", transactions=10)
    honest = [attack.cluster.submit(0, attack.scene.reports(1)) for _ in range(10)]
    attack.load()
    attack.check()
    assert behaviour.acted > 100
    valid = [item.transaction_id for item in outcomes(attack, 1) if item.reason is Reason.VALID]
    assert len(valid) == len(set(valid)), "nothing executes twice"
    expected = before + len(attack.pending) + sum(ids[0] in valid for ids in honest)
    assert len(valid) == expected, "nothing but what honest parties signed is valid"
    assert all(ids[0] in valid for ids in honest)
    assert attack.cluster.node(1).executor.lanes[0] > 1, "the liar's batches were ordered"


def test_withheld_batches_are_fetched_from_endorsers(attack: Attack) -> None:
    behaviour = attack.inject(3, "withheld_batch")
    attack.load(nodes=[3])
    attack.check()
    assert behaviour.acted > 5
    assert attack.cluster.node(1).executor.lanes[3] > 3


def test_a_collector_that_equivocates_hurts_nobody_else(attack: Attack) -> None:
    behaviour = attack.inject(3, "equivocating_collector")
    for _ in range(5):
        attack.cluster.submit(3, attack.scene.reports(2))
    attack.load()
    attack.check()
    assert behaviour.acted > 0


def test_a_node_that_is_behind_finds_an_honest_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = Attack(monkeypatch, n=7)
    attack.cluster.crash(6)
    attack.load(for_ms=10_000, nodes=[0, 1, 2], every_ms=100)
    liars = [attack.inject(i, "bad_state_transfer", for_ms=30_000, seed=i) for i in (1, 2)]
    attack.cluster.start(6)
    attack.load(for_ms=2_000, nodes=[0])
    attack.check()
    assert sum(item.acted for item in liars) > 0
    assert attack.cluster.reasons(6, "sync"), "something altered was offered and refused"


def test_a_node_that_needs_a_snapshot_finds_an_honest_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault F34: a wrong part, an old snapshot, one without end, a lower height."""
    for module in (offers, snapshots):
        monkeypatch.setattr(module, "SNAPSHOT_PART_BYTES", 400)
    refused, installed = set[str](), 0
    for seed in range(4):
        attack = Attack(monkeypatch, n=7, seed=seed)
        cluster = attack.cluster
        cluster.crash(6)
        attack.load(for_ms=4_000, nodes=[0, 1, 2], every_ms=200)
        for disk in cluster.disks[:6]:
            disk.ledger.prune(disk.ledger.certified_height)
        for i in (1, 2):
            attack.inject(i, "bad_state_transfer", for_ms=60_000, seed=seed * 7 + i)
        cluster.start(6)
        late = cluster.node(6)
        late.catchup.far_blocks = 5
        for honest in (0, 3, 4, 5):
            late.catchup.failed(honest, late._elapsed.ms)  # the liars come first
        attack.load(for_ms=4_000, nodes=[0])
        attack.check()
        refused |= cluster.reasons(6, "snapshot")
        installed += sum(isinstance(seen, SnapshotInstalled) for i, seen in cluster.observations if i == 6)
    assert installed >= 4
    assert len(refused) >= 2, refused


@pytest.mark.parametrize("seed", range(4))
def test_a_forged_new_view_is_refused_and_the_next_primary_takes_over(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    attack = Attack(monkeypatch, n=7, seed=seed)
    behaviour = attack.inject(1, "forged_new_view", for_ms=20_000, seed=seed)
    attack.load(for_ms=1_000)
    attack.cluster.crash(0)
    attack.load(for_ms=4_000, nodes=[2, 3, 4, 5, 6])
    attack.cluster.start(0)
    attack.check()
    assert behaviour.acted > 0
    assert max(attack.views()) >= 2


@pytest.mark.parametrize("way", ["share", "sealing", "signature", "refusal"])
def test_a_lying_share_is_found_out(attack: Attack, way: str) -> None:
    cluster = attack.cluster
    meter = SimpleMeter(cluster, "newcomer")
    assert attack.scene.commit(1, [attack.scene.utility.enrol(meter)]) == ["valid"]
    nonce = bytes(32)
    digest = contribution_request_digest(cluster.chain, 0, meter.hid, 1, nonce)
    request = ContributionRequest(meter.hid, 1, nonce, meter.enrolment.sign(digest))
    attack.inject(2, "lying_shares", way=way)
    answer = attack.node(2).contribute(request, cluster.now_ms)
    if way == "refusal":
        assert answer is Reason.RATE_LIMITED
        return
    assert isinstance(answer, ContributionAnswer)
    given = answer.contribution
    asked = request_hash(request)
    signed = contribution_digest(cluster.chain, 0, meter.hid, 1, asked, 2, given.point)
    is_signed = verify(attack.cluster.roster.keys[2], given.signature, signed)
    info = share_info(cluster.chain, meter.hid, 1, asked, 2)
    try:
        opened = open_from(answer.encapsulation, meter.kem, info, b"", answer.sealed_share)
        is_share = SecretKey.from_scalar_bytes(opened).public_key == given.point
    except OpenError:
        is_share = False
    assert (is_signed, is_share) == {"share": (True, False), "sealing": (True, False), "signature": (False, True)}[way]


def test_a_partition_without_a_quorum_waits_and_goes_on_when_it_heals(attack: Attack) -> None:
    for i, peers in ((0, [2, 3]), (1, [2, 3]), (2, [0, 1]), (3, [0, 1])):
        attack.inject(i, "cut", for_ms=6_000, peers=peers)
    before = max(attack.cluster.heights())
    attack.load(for_ms=5_500)
    assert max(attack.cluster.heights()) <= before + 2, "no side has a quorum"
    attack.check()
    assert not attack.accused()


@pytest.mark.parametrize("n", [4, 7])
def test_links_that_lose_delay_and_double_change_no_outcome(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    attack = Attack(monkeypatch, n)
    for i in range(n):
        attack.inject(i, "loss", share=0.1, seed=i)
        attack.inject(i, "delay", ms=20, jitter_ms=60, seed=i)
        attack.inject(i, "duplicate", seed=i)
    attack.load()
    attack.check()
    assert not attack.accused()


@pytest.mark.parametrize("seed", range(8))
def test_two_of_seven_lie_at_once(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    drawn = Random(seed)
    attack = Attack(monkeypatch, n=7, seed=seed)
    byzantine = [
        name
        for name, kind in BEHAVIOURS.items()
        if kind.is_byzantine and name not in ("censor_signer", "censor_collector", "late_collector")
    ]
    for liar in drawn.sample(range(7), 2):
        for name in drawn.sample(byzantine, 2):
            attack.inject(liar, name, seed=seed)
    attack.load()
    attack.check()


def test_a_forged_transaction_is_one_that_the_runtime_refuses(attack: Attack) -> None:
    good = attack.scene.reports(1)[0]
    node = attack.cluster.node(0)
    now_ms = attack.cluster.now_ms
    assert node.runtime.check(good, node.id_of(good), node.world.read, now_ms) is None
    for seed in range(200):
        forged = forged_transaction(good, Random(seed))
        if forged != good:
            assert node.runtime.check(forged, node.id_of(forged), node.world.read, now_ms) is not None


def test_batches_of_honest_nodes_hold_no_forged_transaction(attack: Attack) -> None:
    carried: list[Transaction] = []
    inject = attack.cluster.inject

    def watch(sender: int, to: int, message: object) -> None:
        if isinstance(message, Batch) and message.collector not in attack.liars:
            carried.extend(message.transactions)
        inject(sender, to, message)

    attack.cluster.inject = watch  # type: ignore[method-assign]
    attack.inject(0, "invalid_batch")
    attack.load()
    attack.check()
    ids = {attack.node(1).id_of(tx) for tx in carried}
    assert ids <= set(attack.pending)
