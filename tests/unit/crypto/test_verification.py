"""Certificates, receipts and blocks: what is whole passes, and each single lie is refused under its reason."""

from itertools import combinations

import pytest
from msgspec.structs import replace

from bcami.crypto import merkle, verification
from bcami.crypto.roster import Roster
from bcami.crypto.verification import (
    absent_transactions,
    executed_transactions,
    verify_batch_certificate,
    verify_block_certificate,
    verify_bundle,
    verify_receipt,
)
from bcami.model.batch import Batch, Refusal, leaf_hash
from bcami.model.block import Outcome, Receipt, header_hash, result_leaf
from bcami.model.chain import StoredBatch
from bcami.model.consensus import NULL_PROPOSAL, proposal_digest
from bcami.model.reasons import Reason
from tests.unit.crypto.chain import (
    certify_batch,
    certify_block,
    make_bundle,
    make_genesis,
    make_keys,
    make_transaction,
)

KEYS = make_keys(4)
ROSTER = Roster.from_genesis(make_genesis(KEYS))
HASH = bytes(range(32))
PREVIOUS = b"\x44" * 32
REFUSALS = {0: [Refusal(1, Reason.REPLAY), Refusal(3, Reason.BAD_SIGNATURE)], 2: [Refusal(3, Reason.BAD_SIGNATURE)]}


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """Each test starts with an empty cache."""
    monkeypatch.setattr(verification, "_VERIFIED", verification._Verified(8))


# Block certificates.


@pytest.mark.parametrize("voters", [*combinations(range(4), 3), (0, 1, 2, 3)])
def test_a_strong_quorum_certifies(voters):
    certificate = certify_block(KEYS, ROSTER, 9, HASH, voters)
    assert verify_block_certificate(certificate, ROSTER) is None
    assert verify_block_certificate(certificate, ROSTER) is None


@pytest.mark.parametrize(
    ("voters", "reason"),
    [
        ((), Reason.BAD_CERTIFICATE),
        ((0,), Reason.BAD_CERTIFICATE),
        ((0, 1), Reason.BAD_CERTIFICATE),
        ((0, 0, 0), Reason.BAD_CERTIFICATE),
        ((0, 1, 1), Reason.BAD_CERTIFICATE),
        ((0, 1, 2, 2), Reason.BAD_CERTIFICATE),
        ((2, 1, 0), Reason.BAD_CERTIFICATE),
        ((0, 2, 1, 3), Reason.BAD_CERTIFICATE),
    ],
)
def test_voters_are_distinct_sorted_and_strong(voters, reason):
    block = certify_block(KEYS, ROSTER, 9, HASH, voters)
    assert verify_block_certificate(block, ROSTER) is reason
    batch = certify_batch(KEYS, ROSTER, make_batch(), voters, {})
    assert verify_batch_certificate(batch, ROSTER) is reason


def test_a_weak_count_is_not_enough_in_any_cluster():
    for nodes in (1, 2, 3, 4, 5, 6, 7, 10):
        keys = make_keys(nodes)
        roster = Roster.from_genesis(make_genesis(keys))
        strong = roster.quorum.strong
        assert verify_block_certificate(certify_block(keys, roster, 1, HASH, range(strong)), roster) is None
        short = certify_block(keys, roster, 1, HASH, range(strong - 1))
        assert verify_block_certificate(short, roster) is Reason.BAD_CERTIFICATE


def test_a_certificate_binds_everything_in_it():
    certificate = certify_block(KEYS, ROSTER, 9, HASH, (0, 1, 2))
    first, second, third = certificate.votes
    lies = [
        (replace(certificate, epoch=4), Reason.WRONG_EPOCH),
        (replace(certificate, epoch=0), Reason.WRONG_EPOCH),
        (replace(certificate, height=10), Reason.BAD_SIGNATURE),
        (replace(certificate, header_hash=PREVIOUS), Reason.BAD_SIGNATURE),
        (replace(certificate, votes=(first, second, replace(third, replica=3))), Reason.BAD_SIGNATURE),
        (replace(certificate, votes=(first, second, replace(third, replica=4))), Reason.UNKNOWN_REPLICA),
        (replace(certificate, votes=(first, second, replace(third, replica=63))), Reason.UNKNOWN_REPLICA),
        (replace(certificate, votes=(first, second, replace(third, signature=second.signature))), Reason.BAD_SIGNATURE),
        (replace(certificate, votes=(first, second, replace(third, signature=bytes(64)))), Reason.BAD_SIGNATURE),
        (
            replace(certificate, votes=(*certificate.votes, replace(third, replica=3))),  # strong without the liar
            Reason.BAD_SIGNATURE,
        ),
    ]
    for lie, reason in lies:
        assert verify_block_certificate(lie, ROSTER) is reason
    assert verify_block_certificate(certificate, ROSTER) is None
    for lie, reason in lies:
        assert verify_block_certificate(lie, ROSTER) is reason


def test_a_certificate_of_another_chain_is_refused_even_when_known():
    other = Roster.from_genesis(replace(make_genesis(KEYS), network="other"))
    certificate = certify_block(KEYS, ROSTER, 9, HASH, (0, 1, 2))
    assert verify_block_certificate(certificate, ROSTER) is None
    assert verify_block_certificate(certificate, other) is Reason.BAD_SIGNATURE


def test_what_is_known_is_not_checked_again_and_the_cache_stays_small(monkeypatch):
    certificates = [certify_block(KEYS, ROSTER, height, HASH, (0, 1, 2)) for height in range(1, 21)]
    for certificate in certificates:
        assert verify_block_certificate(certificate, ROSTER) is None
    assert len(verification._VERIFIED) == 8
    monkeypatch.setattr(Roster, "verify_by", lambda *_: False)
    assert verify_block_certificate(certificates[-1], ROSTER) is None
    assert verify_block_certificate(certificates[0], ROSTER) is Reason.BAD_SIGNATURE


# Batch certificates.


def make_batch(number: int = 7) -> Batch:
    return Batch(ROSTER.epoch, 1, number, None, tuple(make_transaction(ROSTER, place) for place in range(4)))


def test_endorsements_with_refusals_certify():
    certificate = certify_batch(KEYS, ROSTER, make_batch(), (0, 2, 3), REFUSALS)
    assert verify_batch_certificate(certificate, ROSTER) is None
    assert verify_batch_certificate(certificate, ROSTER) is None
    assert absent_transactions(certificate, ROSTER.quorum) == {3}


@pytest.mark.parametrize(
    "refusals",
    [
        [Refusal(4, Reason.REPLAY)],
        [Refusal(2, Reason.REPLAY), Refusal(1, Reason.REPLAY)],
        [Refusal(2, Reason.REPLAY), Refusal(2, Reason.REPLAY)],
        [Refusal(2, Reason.REPLAY), Refusal(2, Reason.BAD_SIGNATURE)],
        [Refusal(2, Reason.VALID)],
    ],
    ids=["index", "order", "twice", "two_reasons", "valid"],
)
def test_refusal_sets_are_well_formed(refusals):
    certificate = certify_batch(KEYS, ROSTER, make_batch(), (0, 2, 3), {3: refusals})
    assert verify_batch_certificate(certificate, ROSTER) is Reason.BAD_CERTIFICATE


def test_a_batch_certificate_binds_everything_in_it():
    certificate = certify_batch(KEYS, ROSTER, make_batch(), (0, 2, 3), REFUSALS)
    first, *rest = certificate.votes
    lies = [
        (replace(certificate, epoch=4), Reason.WRONG_EPOCH),
        (replace(certificate, collector=2), Reason.BAD_SIGNATURE),
        (replace(certificate, collector=4), Reason.UNKNOWN_REPLICA),
        (replace(certificate, number=8), Reason.BAD_SIGNATURE),
        (replace(certificate, number=0), Reason.BAD_CERTIFICATE),
        (replace(certificate, count=5), Reason.BAD_SIGNATURE),
        (replace(certificate, count=0), Reason.BAD_CERTIFICATE),
        (replace(certificate, count=2001), Reason.BAD_CERTIFICATE),
        (replace(certificate, batch_digest=HASH), Reason.BAD_SIGNATURE),
        (replace(certificate, votes=(replace(first, refusals=()), *rest)), Reason.BAD_SIGNATURE),
        (replace(certificate, votes=(replace(first, refusals=first.refusals[:1]), *rest)), Reason.BAD_SIGNATURE),
        (
            replace(certificate, votes=(replace(first, refusals=(Refusal(1, Reason.STALE), first.refusals[1])), *rest)),
            Reason.BAD_SIGNATURE,
        ),
        (replace(certificate, votes=(replace(first, replica=1), *rest)), Reason.BAD_SIGNATURE),
        (replace(certificate, votes=tuple(rest)), Reason.BAD_CERTIFICATE),
    ]
    for lie, reason in lies:
        assert verify_batch_certificate(lie, ROSTER) is reason
    assert verify_batch_certificate(certificate, ROSTER) is None


@pytest.mark.parametrize(("refusing", "absent"), [((), False), ((0,), False), ((0, 2), True), ((0, 2, 3), True)])
def test_weak_refusals_make_a_transaction_absent(refusing, absent):
    """Protocol 4.3: f liars cannot censor, f+1 honest refusals keep a bad one out."""
    refusals = {replica: [Refusal(2, Reason.BAD_SIGNATURE)] for replica in refusing}
    certificate = certify_batch(KEYS, ROSTER, make_batch(), (0, 2, 3), refusals)
    assert absent_transactions(certificate, ROSTER.quorum) == ({2} if absent else set())


# Receipts.


@pytest.fixture
def bundle():
    return make_bundle(KEYS, ROSTER, PREVIOUS, REFUSALS)


def receipt_of(bundle, index: int) -> Receipt:
    outcomes = bundle.block.outcomes
    path = merkle.path([result_leaf(outcome, place) for place, outcome in enumerate(outcomes)], index)
    return Receipt(outcomes[index], index, path, bundle.block.header, bundle.certificate)


def test_receipts_prove_each_outcome(bundle):
    assert len(bundle.block.outcomes) == 7
    for index in range(7):
        assert verify_receipt(receipt_of(bundle, index), ROSTER) is None


def test_a_receipt_proves_nothing_else(bundle):
    receipt = receipt_of(bundle, 1)
    other = receipt_of(bundle, 2)
    header, certificate = receipt.header, receipt.certificate
    raised = replace(header, transaction_count=header.transaction_count + 1)
    lies = [
        (replace(receipt, outcome=Outcome(receipt.outcome.transaction_id, Reason.VALID)), Reason.BAD_PROOF),
        (replace(receipt, outcome=other.outcome), Reason.BAD_PROOF),
        (replace(receipt, index=2), Reason.BAD_PROOF),
        (replace(receipt, index=7), Reason.BAD_PROOF),
        (replace(receipt, path=other.path), Reason.BAD_PROOF),
        (replace(receipt, path=receipt.path[:-1]), Reason.BAD_PROOF),
        (replace(receipt, path=(*receipt.path, HASH)), Reason.BAD_PROOF),
        (replace(receipt, path=()), Reason.BAD_PROOF),
        (replace(receipt, header=raised), Reason.BAD_CERTIFICATE),
        (replace(receipt, header=replace(header, results_root=header.transactions_root)), Reason.BAD_CERTIFICATE),
        (replace(receipt, header=replace(header, time_ms=1)), Reason.BAD_CERTIFICATE),
        (replace(receipt, header=replace(header, chain=HASH)), Reason.WRONG_CHAIN),
        (replace(receipt, header=replace(header, epoch=9)), Reason.WRONG_EPOCH),
        (replace(receipt, header=replace(header, members_hash=HASH)), Reason.WRONG_EPOCH),
        (replace(receipt, certificate=replace(certificate, epoch=9)), Reason.WRONG_EPOCH),
        (replace(receipt, certificate=replace(certificate, height=5)), Reason.BAD_CERTIFICATE),
        (replace(receipt, certificate=replace(certificate, votes=certificate.votes[:2])), Reason.BAD_CERTIFICATE),
    ]
    for lie, reason in lies:
        assert verify_receipt(lie, ROSTER) is reason


def test_a_transactions_root_path_is_no_receipt(bundle):
    """Protocol 5.3: inclusion among the transactions proves nothing about the outcome."""
    block = bundle.block
    leaves = [
        tx_id + b"".join(tx.signatures)
        for tx_id, (_, _, tx) in zip(
            [outcome.transaction_id for outcome in block.outcomes],
            executed_transactions(block, bundle.batches, ROSTER.quorum),
            strict=True,
        )
    ]
    assert merkle.root(leaves) == block.header.transactions_root
    lie = replace(receipt_of(bundle, 0), path=merkle.path(leaves, 0))
    assert verify_receipt(lie, ROSTER) is Reason.BAD_PROOF


# Whole blocks.


def test_a_whole_block_passes(bundle):
    assert verify_bundle(bundle, ROSTER, PREVIOUS) is None
    assert verify_bundle(make_bundle(KEYS, ROSTER, PREVIOUS, {}), ROSTER, PREVIOUS) is None


def test_a_null_block_passes(bundle):
    header = replace(
        bundle.block.header,
        proposal_digest=proposal_digest(ROSTER.chain, ROSTER.epoch, NULL_PROPOSAL),
        transaction_count=0,
        transactions_root=merkle.EMPTY_ROOT,
        results_root=merkle.EMPTY_ROOT,
    )
    block = replace(bundle.block, header=header, proposal=NULL_PROPOSAL, executed=(), outcomes=())
    certificate = certify_block(KEYS, ROSTER, header.height, header_hash(header), (0, 1, 2))
    assert verify_bundle(replace(bundle, block=block, batches=(), certificate=certificate), ROSTER, PREVIOUS) is None


def with_header(bundle, **changes):
    """The bundle with another header, certified by the same lying quorum."""
    header = replace(bundle.block.header, **changes)
    certificate = certify_block(KEYS, ROSTER, header.height, header_hash(header), (0, 1, 2))
    return replace(bundle, block=replace(bundle.block, header=header), certificate=certificate)


def with_block(bundle, **changes):
    return replace(bundle, block=replace(bundle.block, **changes))


def test_lies_about_a_block_are_found(bundle):
    block = bundle.block
    first, second = bundle.batches
    outcomes = block.outcomes
    turned = replace(block.proposal, certificates=block.proposal.certificates[::-1])
    stale = replace(first, batch=replace(first.batch, number=8))
    shorter = replace(first, batch=replace(first.batch, transactions=first.batch.transactions[:-1]))
    anchored = replace(first, batch=replace(first.batch, anchor=bundle.certificate))
    lies = [
        (replace(bundle, certificate=replace(bundle.certificate, height=5)), Reason.BAD_CERTIFICATE),
        (with_block(bundle, header=replace(block.header, state_root=HASH)), Reason.BAD_CERTIFICATE),
        (with_header(bundle, previous=HASH), Reason.BAD_PROOF),
        (with_header(bundle, proposal_digest=HASH), Reason.BAD_DIGEST),
        (with_block(bundle, proposal=turned), Reason.BAD_DIGEST),
        (with_block(bundle, proposal=replace(block.proposal, time_ms=4999)), Reason.BAD_DIGEST),
        (with_header(bundle, time_ms=4999), Reason.BAD_TIME),
        (with_header(bundle, transactions_root=HASH), Reason.BAD_PROOF),
        (with_header(bundle, results_root=HASH), Reason.BAD_PROOF),
        (with_header(bundle, transaction_count=6), Reason.BAD_PROOF),
        (with_header(bundle, height=0), Reason.BAD_CERTIFICATE),
        (replace(bundle, batches=()), Reason.BAD_PROOF),
        (replace(bundle, batches=(first,)), Reason.BAD_PROOF),
        (replace(bundle, batches=(first, second, second)), Reason.BAD_PROOF),
        (replace(bundle, batches=(second, first)), Reason.BAD_DIGEST),
        (replace(bundle, batches=(stale, second)), Reason.BAD_DIGEST),
        (replace(bundle, batches=(shorter, second)), Reason.BAD_DIGEST),
        (replace(bundle, batches=(anchored, second)), Reason.BAD_DIGEST),
        (with_block(bundle, executed=(2, 0)), Reason.BAD_PROOF),
        (with_block(bundle, executed=(0, 0)), Reason.BAD_PROOF),
        (with_block(bundle, executed=(0, 3)), Reason.BAD_PROOF),
        (with_block(bundle, executed=(0, 1)), Reason.BAD_PROOF),  # number 9 cannot follow number 7 of its lane
        (with_block(bundle, executed=(1, 2)), Reason.BAD_DIGEST),
        (replace(with_block(bundle, executed=(0,)), batches=(first,)), Reason.BAD_PROOF),
        (with_block(bundle, outcomes=outcomes[:-1]), Reason.BAD_PROOF),
        (with_block(bundle, outcomes=(*outcomes, outcomes[0])), Reason.BAD_PROOF),
        (with_block(bundle, outcomes=(outcomes[1], outcomes[0], *outcomes[2:])), Reason.BAD_PROOF),
        (
            with_block(bundle, outcomes=(replace(outcomes[0], reason=Reason.REPLAY), *outcomes[1:])),
            Reason.BAD_PROOF,
        ),
    ]
    for number, (lie, reason) in enumerate(lies):
        assert verify_bundle(lie, ROSTER, PREVIOUS) is reason, number
    assert verify_bundle(bundle, ROSTER, HASH) is Reason.BAD_PROOF


def test_an_absent_transaction_has_no_outcome(bundle):
    """Index 3 of the first batch has two refusals: an outcome for it would be a lie."""
    absent = bundle.batches[0].batch.transactions[3]
    executed = [tx for _, _, tx in executed_transactions(bundle.block, bundle.batches, ROSTER.quorum)]
    assert absent not in executed
    assert len(executed) == 7
    places = [(batch, index) for batch, index, _ in executed_transactions(bundle.block, bundle.batches, ROSTER.quorum)]
    assert places == [(0, 0), (0, 1), (0, 2), (0, 4), (1, 0), (1, 1), (1, 2)]


def change_transaction(bundle, index: int, leaves=(), **changes):
    first, second = bundle.batches
    transactions = list(first.batch.transactions)
    transactions[index] = replace(transactions[index], **changes)
    batch = replace(first.batch, transactions=tuple(transactions))
    return replace(bundle, batches=(StoredBatch(batch, leaves), second))


@pytest.mark.parametrize(
    "changes",
    [{"argument": b"other"}, {"sequence": 99}, {"timestamp_ms": 1}, {"signatures": ()}, {"argument_hash": HASH}],
    ids=lambda changes: next(iter(changes)),
)
def test_an_altered_transaction_is_found(bundle, changes):
    assert verify_bundle(change_transaction(bundle, 0, **changes), ROSTER, PREVIOUS) is Reason.BAD_DIGEST


def pruned(bundle):
    stored = []
    for item in bundle.batches:
        leaves = tuple(leaf_hash(tx) for tx in item.batch.transactions)
        emptied = tuple(replace(tx, argument=b"") for tx in item.batch.transactions)
        stored.append(StoredBatch(replace(item.batch, transactions=emptied), leaves))
    return replace(bundle, batches=tuple(stored))


def test_a_pruned_block_passes_and_its_remains_are_still_bound(bundle):
    """Protocol 7.2: payloads go, leaves and receipts stay."""
    bare = pruned(bundle)
    assert verify_bundle(bare, ROSTER, PREVIOUS) is None
    leaves = bare.batches[0].leaves
    for changes in ({"sequence": 99}, {"signatures": ()}, {"signer": HASH}):
        assert verify_bundle(change_transaction(bare, 0, leaves, **changes), ROSTER, PREVIOUS) is Reason.BAD_PROOF
    assert verify_bundle(change_transaction(bare, 0, leaves, argument=b"x"), ROSTER, PREVIOUS) is Reason.BAD_DIGEST
    swapped = (leaves[1], leaves[0], *leaves[2:])
    for bad in (swapped, leaves[:-1], (*leaves, HASH), ()):
        lie = change_transaction(bare, 0, bad)
        assert verify_bundle(lie, ROSTER, PREVIOUS) is Reason.BAD_DIGEST


def test_a_partly_pruned_batch_checks_what_is_whole(bundle):
    whole = bundle.batches[0]
    leaves = tuple(leaf_hash(tx) for tx in whole.batch.transactions)
    partly = change_transaction(bundle, 2, leaves, argument=b"")
    assert verify_bundle(partly, ROSTER, PREVIOUS) is None
    lie = change_transaction(bundle, 2, leaves, argument=b"other")
    assert verify_bundle(lie, ROSTER, PREVIOUS) is Reason.BAD_DIGEST
