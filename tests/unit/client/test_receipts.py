"""Receipts are believed with genesis alone, and nothing else is (protocol 5.3)."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcami.client.receipts import ReceiptVerifier, verify_certified_header
from bcami.crypto import merkle
from bcami.crypto.verification import verify_receipt
from bcami.model.api import COMMITTED, CertifiedHeader, SubmitResult
from bcami.model.block import Outcome, result_leaf
from bcami.model.reasons import Reason
from tests.chain import entropy
from tests.unit.client.cluster import Cluster

CLUSTER = Cluster()


def block_of(size: int) -> tuple[CertifiedHeader, list[SubmitResult]]:
    """Append a block with outcomes of `size` ids; every third is rejected."""
    reasons = [Reason.REPLAY if index % 3 == 2 else Reason.VALID for index in range(size)]
    outcomes = tuple(Outcome(entropy(f"tx {size} {index}"), reason) for index, reason in enumerate(reasons))
    CLUSTER._append(outcomes, 1)
    certified, _, tree = CLUSTER.blocks[-1]
    height = certified.header.height
    results = [
        SubmitResult(outcome.transaction_id, COMMITTED, outcome.reason, height, index, tree.path(index))
        for index, outcome in enumerate(outcomes)
    ]
    return certified, results


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 33])
def test_every_outcome_of_a_block_is_proven_in_any_order(size: int) -> None:
    certified, results = block_of(size)
    for order in (results, results[::-1], results[1::2] + results[::2]):
        verifier = ReceiptVerifier(CLUSTER.roster)
        assert verifier.learn(certified) is None
        for result in order:
            assert verifier.outcome(result, result.transaction_id) is result.reason


def test_an_assembled_receipt_proves_itself() -> None:
    certified, results = block_of(6)
    verifier = ReceiptVerifier(CLUSTER.roster)
    verifier.learn(certified)
    receipt = verifier.receipt(results[4], results[4].transaction_id)
    assert receipt is not None
    assert verify_receipt(receipt, CLUSTER.roster) is None


@pytest.mark.parametrize(
    "change",
    [
        {"reason": Reason.REPLAY},
        {"reason": None},
        {"index": 4},
        {"index": 2**31},
        {"transaction_id": entropy("other")},
        {"path": ()},
        {"height": 10**9},
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_a_lie_about_an_outcome_is_not_proven(change: dict, warm: bool) -> None:
    certified, results = block_of(7)
    verifier = ReceiptVerifier(CLUSTER.roster)
    verifier.learn(certified)
    if warm:
        for result in results[:3] + results[4:]:
            verifier.outcome(result, result.transaction_id)
    lie = msgspec.structs.replace(results[3], **change)
    proven = verifier.outcome(lie, results[3].transaction_id)
    if change == {"path": ()} and warm:
        assert proven is results[3].reason  # its sibling's path proved it already: the claim is true
    else:
        assert proven is None


def test_a_wrong_path_teaches_nothing() -> None:
    certified, results = block_of(8)
    verifier = ReceiptVerifier(CLUSTER.roster)
    verifier.learn(certified)
    forged = SubmitResult(entropy("mine"), COMMITTED, Reason.VALID, results[0].height, 0, results[0].path)
    assert verifier.outcome(forged, entropy("mine")) is None
    assert verifier.outcome(forged, entropy("mine")) is None
    swapped = msgspec.structs.replace(results[0], path=(bytes(32), *results[0].path[1:]))
    assert verifier.outcome(swapped, results[0].transaction_id) is None
    assert verifier.outcome(results[0], results[0].transaction_id) is Reason.VALID


def test_headers_need_a_strong_quorum_of_this_chain() -> None:
    certified, _ = block_of(2)
    header, certificate = certified.header, certified.certificate
    weak = msgspec.structs.replace(certificate, votes=certificate.votes[:2])
    assert verify_certified_header(CertifiedHeader(header, weak), CLUSTER.roster) is Reason.BAD_CERTIFICATE
    other = msgspec.structs.replace(header, results_root=bytes(32))
    assert verify_certified_header(CertifiedHeader(other, certificate), CLUSTER.roster) is Reason.BAD_CERTIFICATE
    foreign = msgspec.structs.replace(header, chain=bytes(32))
    assert (
        verify_certified_header(CertifiedHeader(foreign, CLUSTER.certify(foreign)), CLUSTER.roster)
        is Reason.WRONG_CHAIN
    )
    later = msgspec.structs.replace(header, epoch=1)
    assert verify_certified_header(CertifiedHeader(later, certificate), CLUSTER.roster) is Reason.WRONG_EPOCH


def test_two_certified_headers_of_one_height_are_an_alarm() -> None:
    certified, results = block_of(2)
    verifier = ReceiptVerifier(CLUSTER.roster)
    assert verifier.learn(certified) is None
    forked = msgspec.structs.replace(certified.header, results_root=bytes(32))
    second = CertifiedHeader(forked, CLUSTER.certify(forked))
    assert verifier.learn(second) is Reason.EQUIVOCATION
    assert verifier.conflict == (certified, second)
    assert verifier.outcome(results[0], results[0].transaction_id) is Reason.VALID


@settings(max_examples=60)
@given(st.data())
def test_agrees_with_the_plain_check(data: st.DataObject) -> None:
    """Whatever the order, the index and the path: what is proven here is what the whole path proves."""
    size = data.draw(st.integers(1, 20))
    certified, results = block_of(size)
    verifier = ReceiptVerifier(CLUSTER.roster)
    verifier.learn(certified)
    for _ in range(12):
        true = results[data.draw(st.integers(0, size - 1))]
        index = data.draw(st.sampled_from([true.index, data.draw(st.integers(0, size))]))
        path = list(true.path)
        if path and data.draw(st.booleans()):
            path[data.draw(st.integers(0, len(path) - 1))] = bytes(32)
        claim = msgspec.structs.replace(true, index=index, path=tuple(path))
        leaf = result_leaf(Outcome(true.transaction_id, true.reason), index)
        plain = merkle.root_from_path(leaf, index, size, path) == certified.header.results_root
        proven = verifier.outcome(claim, true.transaction_id) is not None
        assert proven or not plain
        assert not proven or index == true.index, "a proven claim is a true one"
