"""Rules of protocol 4, at the machines that keep them."""

import msgspec
import pytest

from bcami.crypto.keys import SecretKey
from bcami.crypto.roster import Roster
from bcami.crypto.verification import absent_transactions, verify_batch_certificate
from bcami.endorsement.collector import BATCH_TRANSACTIONS_MAX, GATHER_MS, IN_FLIGHT_MAX, QUEUE_BYTES_MAX, Collector
from bcami.endorsement.endorser import LANE_AHEAD_MAX, Endorser
from bcami.endorsement.pool import BatchPool, HeldBatch, hold
from bcami.model.batch import BATCH_BYTES_MAX, Batch, BatchCertificate, Endorsement, Refusal
from bcami.model.block import BlockCertificate, CheckpointVote, checkpoint_digest
from bcami.model.genesis import Genesis, Member, Parameters, chain_id
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction, argument_digest, transaction_id

KEYS = [SecretKey.generate(b"%032d" % i) for i in range(4)]
GENESIS = Genesis(
    "test",
    0,
    0,
    tuple(Member(f"node{i}", key.public_key, bytes(32)) for i, key in enumerate(KEYS)),
    KEYS[0].public_key,
    bytes(32),
    KEYS[0].public_key,
    bytes([4]) * 65,
    bytes(32),
    1,
    Parameters(),
    False,
)
ROSTER = Roster.from_genesis(GENESIS)
CHAIN = chain_id(GENESIS)
QUOTA_BYTES = 4000
SMALL = msgspec.structs.replace(GENESIS, parameters=Parameters(lane_quota_bytes=QUOTA_BYTES))


def transaction(number: int, size: int = 10) -> Transaction:
    argument = bytes(size)
    return Transaction("usage", "report", bytes(32), 1, number, 0, argument_digest(argument), argument, ())


def batch(
    number: int, count: int = 2, collector: int = 0, anchor: BlockCertificate | None = None, first: int = 0
) -> HeldBatch:
    items = tuple(transaction(first + i) for i in range(count))
    return hold(Batch(0, collector, number, anchor, items), CHAIN)


def certificate(height: int, signers: list[int]) -> BlockCertificate:
    digest = checkpoint_digest(CHAIN, 0, height, bytes(32))
    return BlockCertificate(0, height, bytes(32), tuple(CheckpointVote(i, KEYS[i].sign(digest)) for i in signers))


def endorsers() -> list[Endorser]:
    return [Endorser(ROSTER, i, KEYS[i], (0, 0, 0, 0)) for i in range(4)]


def filled(count: int) -> Collector:
    collector = Collector(ROSTER, 0, KEYS[0], 0)
    for i in range(count):
        tx = transaction(i)
        assert collector.admit(tx, transaction_id(tx, CHAIN, 0), 400, 0) is None
    return collector


def test_an_idle_collector_cuts_at_once_and_a_busy_one_gathers() -> None:
    collector = filled(3)
    first = collector.cut(None, CHAIN, 0)
    assert first is not None and len(first.ids) == 3 and first.batch.number == 1
    collector.admit(transaction(9), bytes(32), 400, 10)
    assert collector.cut(None, CHAIN, 10) is None
    second = collector.cut(None, CHAIN, 10 + GATHER_MS)
    assert second is not None and second.batch.number == 2


def test_a_lane_has_a_bounded_number_of_batches_on_the_way() -> None:
    collector = filled(0)
    for i in range(IN_FLIGHT_MAX):
        collector.admit(transaction(i), bytes([i]) * 32, 400, 0)
        assert collector.cut(None, CHAIN, 1000 * i + 1000) is not None
    collector.admit(transaction(99), bytes([99]) * 32, 400, 0)
    assert collector.cut(None, CHAIN, 10**6) is None
    assert [own.held.batch.number for own in collector.executed(1)] == [1]
    assert collector.cut(None, CHAIN, 10**6) is not None


def test_the_queue_is_bounded_in_bytes() -> None:
    collector = filled(0)
    assert collector.admit(transaction(1), bytes(32), QUEUE_BYTES_MAX, 0) is None
    assert collector.admit(transaction(2), bytes(32), 1, 0) is Reason.QUEUE_FULL


def test_a_batch_has_a_bounded_number_of_transactions() -> None:
    collector = filled(BATCH_TRANSACTIONS_MAX + 5)
    held = collector.cut(None, CHAIN, 0)
    assert held is not None and len(held.ids) == BATCH_TRANSACTIONS_MAX and collector.queued == 5


def given(endorser: Endorser, held: HeldBatch, refusals: list[Refusal] | None = None) -> Endorsement:
    endorser.take(held)
    endorsement = endorser.endorse(held, refusals or [])
    assert endorsement is not None
    return endorsement


def certify(collector: Collector, held: HeldBatch, refusing: dict[int, Reason | None]) -> BatchCertificate:
    result = None
    for i, endorser in enumerate(endorsers()):
        if i not in refusing:
            continue
        bad = refusing[i]
        endorsement = given(endorser, held, [] if bad is None else [Refusal(0, bad)])
        result = collector.vote(endorsement)
        if result is not None:
            break
    assert isinstance(result, BatchCertificate)
    assert verify_batch_certificate(result, ROSTER) is None
    return result


def test_a_strong_quorum_of_endorsements_is_a_certificate_that_everybody_can_check() -> None:
    collector = filled(2)
    held = collector.cut(None, CHAIN, 0)
    assert held is not None
    made = certify(collector, held, {0: None, 1: None, 2: None})
    assert [vote.replica for vote in made.votes] == [0, 1, 2]
    assert absent_transactions(made, ROSTER.quorum) == frozenset()


def test_one_liar_cannot_make_a_transaction_absent_and_weak_refusals_do() -> None:
    held = filled(2).cut(None, CHAIN, 0)
    assert held is not None
    collector = filled(2)
    collector.cut(None, CHAIN, 0)
    one = certify(collector, held, {0: None, 1: Reason.BAD_SIGNATURE, 2: None})
    assert absent_transactions(one, ROSTER.quorum) == frozenset()
    collector = filled(2)
    collector.cut(None, CHAIN, 0)
    two = certify(collector, held, {0: None, 1: Reason.BAD_SIGNATURE, 2: Reason.BAD_SIGNATURE})
    assert absent_transactions(two, ROSTER.quorum) == frozenset({0})


def test_a_refusal_set_cannot_be_changed_after_signing() -> None:
    collector = filled(2)
    held = collector.cut(None, CHAIN, 0)
    assert held is not None
    honest = given(endorsers()[1], held)
    refusing = given(endorsers()[1], held, [Refusal(0, Reason.REPLAY)])
    forged = Endorsement(0, 0, 1, held.digest, 2, 1, refusing.refusals, honest.signature)
    assert collector.vote(forged) is Reason.BAD_SIGNATURE


def test_a_vote_of_another_batch_or_a_repeated_one_does_not_count() -> None:
    collector = filled(2)
    held = collector.cut(None, CHAIN, 0)
    assert held is not None
    other = given(endorsers()[1], batch(1, 2, first=50))
    assert collector.vote(other) is Reason.BAD_DIGEST
    vote = given(endorsers()[1], held)
    for _ in range(5):
        assert collector.vote(vote) is None
    assert collector.own[1].certificate is None


def test_a_node_endorses_one_digest_per_collector_and_number() -> None:
    endorser = endorsers()[1]
    first = batch(1)
    assert endorser.gate(first, 0) is None
    given(endorser, first)
    assert endorser.gate(first, 0) is Reason.DUPLICATE
    assert endorser.gate(batch(1, first=7), 0) is Reason.EQUIVOCATION


def test_numbers_far_ahead_and_executed_ones_are_refused() -> None:
    endorser = endorsers()[1]
    assert endorser.gate(batch(LANE_AHEAD_MAX + 1), 0) is Reason.OVER_QUOTA
    endorser.executed((3, 0, 0, 0))
    assert endorser.gate(batch(3), 0) is Reason.STALE
    assert endorser.gate(batch(4), 0) is None


def test_a_stuck_lane_fills_its_own_quota_only() -> None:
    endorser = Endorser(Roster.from_genesis(SMALL), 1, KEYS[1], (0, 0, 0, 0))
    number = 1
    while (reason := endorser.gate(batch(number, 10), 0)) is None:
        given(endorser, batch(number, 10))
        number += 1
    assert reason is Reason.OVER_QUOTA and number > 1
    assert endorser.lane_bytes(0) <= QUOTA_BYTES
    assert endorser.gate(batch(1, 10, collector=2), 0) is None
    finished = endorser.executed((number, 0, 0, 0))
    assert [(item.collector, item.number) for item in finished] == [(0, i) for i in range(1, number)]
    assert all(item.is_endorsed for item in finished)
    assert endorser.lane_bytes(0) == 0


def test_an_anchor_must_be_certified_reached_and_near() -> None:
    endorser = endorsers()[1]
    good = certificate(3, [0, 1, 2])
    assert endorser.gate(batch(1, anchor=good), 3) is None
    assert endorser.gate(batch(1, anchor=good), 2) is Reason.BEHIND
    assert endorser.gate(batch(1, anchor=certificate(3, [0, 1])), 3) is Reason.BAD_CERTIFICATE
    far = certificate(GENESIS.parameters.window + 1, [0, 1, 2])
    assert endorser.gate(batch(1, anchor=far), 0) is Reason.OUTSIDE_WATERMARKS


def test_the_pool_keeps_the_newest_executed_batches_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchPool, "EXECUTED_KEPT_BYTES", 2_000)
    pool = BatchPool()
    held = [batch(i, 4, first=10 * i) for i in range(1, 8)]
    for item in held:
        pool.add(item)
        pool.executed(item.digest)
    assert pool.get(held[-1].digest) is held[-1]
    assert pool.get(held[0].digest) is None
    assert pool.held_bytes == 0


@pytest.mark.parametrize("n", [1, 2, 4, 5, 7, 10])
def test_turns_give_each_batch_a_strong_quorum_at_once_and_rotate(n: int) -> None:
    keys = [SecretKey.generate(b"%032d" % i) for i in range(n)]
    members = tuple(Member(f"node{i}", key.public_key, bytes([i]) * 32) for i, key in enumerate(keys))
    roster = Roster.from_genesis(msgspec.structs.replace(GENESIS, members=members))
    machines = [Endorser(roster, i, keys[i], (0,) * n) for i in range(n)]
    spared: set[int] = set()
    for collector in range(n):
        for number in range(1, 3 * n):
            turns = {i for i in range(n) if machines[i].is_turn(collector, number)}
            assert collector in turns and len(turns) == roster.quorum.strong
            spared |= set(range(n)) - turns
    assert spared == (set() if roster.quorum.strong == n else set(range(n)))


def test_what_verifiers_refuse_is_not_counted() -> None:
    """One spoiled vote in a certificate would leave the lane stuck for ever."""
    collector = filled(2)
    held = collector.cut(None, CHAIN, 0)
    assert held is not None
    vote = given(endorsers()[1], held)
    assert collector.vote(msgspec.structs.replace(vote, epoch=1)) is Reason.WRONG_EPOCH
    for refusals in ([Refusal(0, Reason.VALID)], [Refusal(2, Reason.REPLAY)], [Refusal(0, Reason.REPLAY)] * 2):
        assert collector.vote(given(endorsers()[1], held, refusals)) is Reason.MALFORMED
    assert not collector.own[1].votes


def test_a_batch_above_the_limit_is_refused_whatever_the_quota() -> None:
    big = hold(Batch(0, 0, 1, None, tuple(transaction(i, 16_000) for i in range(70))), CHAIN)
    assert big.size_bytes > BATCH_BYTES_MAX
    assert endorsers()[1].gate(big, 0) is Reason.OVERSIZED


def test_a_number_that_was_used_is_not_given_again_when_the_ledger_is_lost() -> None:
    collector = filled(1)
    collector.number_used(50)
    held = collector.cut(None, CHAIN, 0)
    assert held is not None and held.batch.number == 51


def test_the_batches_on_the_way_stay_inside_the_quota_of_the_endorsers() -> None:
    collector = Collector(Roster.from_genesis(SMALL), 0, KEYS[0], 0)
    for i in range(6):
        collector.admit(transaction(i), bytes([i]) * 32, 400, 0)
    first = collector.cut(None, CHAIN, 0)
    assert first is not None and first.size_bytes <= QUOTA_BYTES
    assert collector.cut(None, CHAIN, 10**6) is None, "there is no room for another one"
    collector.executed(1)
    assert collector.cut(None, CHAIN, 10**6) is not None


def test_when_a_number_is_over_the_endorser_tells_which_batch_it_had_taken() -> None:
    endorser = endorsers()[1]
    other = batch(1, first=7)
    endorser.take(other)
    (finished,) = endorser.executed((1, 0, 0, 0))
    assert finished.digest == other.digest and not finished.is_endorsed
