"""An MDMS key is believed only by the receipt of its registration (protocol 2.5)."""

import msgspec
import pytest

from bcami.client import issuance
from bcami.client.periods import KmsEpoch, MdmsPeriod, verify_kms_epoch, verify_period
from bcami.codec import encode
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.model.api import TransactionProof
from bcami.model.genesis import operator_id
from bcami.model.reasons import Reason
from bcami.model.registration import MdmsRegisterArgument, OpenKmsArgument
from bcami.model.transaction import Transaction, argument_digest, transaction_id
from tests.chain import START_MS, entropy
from tests.unit.client.cluster import Cluster


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    built = Cluster()
    built.open_period()
    return built


def verdict(cluster: Cluster, proof: TransactionProof) -> MdmsPeriod | Reason:
    return verify_period(proof, cluster.genesis, cluster.roster)


def test_the_true_period_is_believed(cluster: Cluster) -> None:
    period = verdict(cluster, cluster.period_proof())
    assert isinstance(period, MdmsPeriod)
    assert period.number == 1
    assert period.kem_key == cluster.session_of_period[1].public_key


def test_a_concentrators_own_key_is_not(cluster: Cluster) -> None:
    """Its own key in place of the MDMS's, under the true receipt, or under none of its own."""
    proof = cluster.period_proof()
    old = msgspec.msgpack.decode(proof.transaction.argument, type=MdmsRegisterArgument)
    forged = encode(msgspec.structs.replace(old, kem_key=KemSecretKey.generate(entropy("mine")).public_key))
    kept = msgspec.structs.replace(proof.transaction, argument=forged)
    assert verdict(cluster, TransactionProof(kept, proof.receipt)) is Reason.HASH_MISMATCH
    hashed = msgspec.structs.replace(kept, argument_hash=argument_digest(forged))
    assert verdict(cluster, TransactionProof(hashed, proof.receipt)) is Reason.BAD_SIGNATURE
    mine = SecretKey.generate(entropy("mine"))
    tx_id = transaction_id(hashed, cluster.roster.chain, 0)
    signed = msgspec.structs.replace(hashed, signatures=(mine.sign(tx_id), mine.sign(tx_id)))
    assert verdict(cluster, TransactionProof(signed, proof.receipt)) is Reason.BAD_SIGNATURE


def test_without_the_block_there_is_no_period(cluster: Cluster) -> None:
    """Signed by the MDMS and never executed, or rejected."""
    proof = cluster.period_proof()
    tx = msgspec.structs.replace(proof.transaction, sequence=7, signatures=())
    tx_id = transaction_id(tx, cluster.roster.chain, 0)
    signed = msgspec.structs.replace(tx, signatures=(cluster.mdms_enrolment.sign(tx_id),))
    assert verdict(cluster, TransactionProof(signed, proof.receipt)) is Reason.BAD_PROOF
    rejected = msgspec.structs.replace(
        proof.receipt, outcome=msgspec.structs.replace(proof.receipt.outcome, reason=Reason.REPLAY)
    )
    assert verdict(cluster, TransactionProof(proof.transaction, rejected)) is Reason.BAD_PROOF
    votes = proof.receipt.certificate.votes[:2]
    uncertified = msgspec.structs.replace(
        proof.receipt, certificate=msgspec.structs.replace(proof.receipt.certificate, votes=votes)
    )
    assert isinstance(verdict(cluster, TransactionProof(proof.transaction, uncertified)), Reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"contract": "usage"}, Reason.BAD_PROOF),
        ({"function": "acknowledge"}, Reason.BAD_PROOF),
        ({"session": 1}, Reason.BAD_PROOF),
        ({"signer": bytes(32)}, Reason.NOT_AUTHORIZED),
        ({"signatures": ()}, Reason.BAD_SIGNATURE),
    ],
)
def test_another_transaction_is_no_period(cluster: Cluster, change: dict, reason: Reason) -> None:
    proof = cluster.period_proof()
    changed: Transaction = msgspec.structs.replace(proof.transaction, **change)
    assert verdict(cluster, TransactionProof(changed, proof.receipt)) is reason


def test_the_mdms_signs_with_its_enrolment_key_and_the_new_one(cluster: Cluster) -> None:
    party = cluster.mdms_party()
    draft = issuance.draw(party, 2, entropy("two"))
    request = issuance.contribution_request(party, draft)
    shares = [issuance.open_share(party, request, cluster.contribution(replica, request)) for replica in (0, 1)]
    prepared = issuance.prepare_mdms(party, draft, shares, START_MS)
    tx = msgspec.msgpack.decode(prepared.transaction, type=Transaction)
    assert cluster.runtime.check(tx, prepared.transaction_id, cluster.read, START_MS) is None


# The opening of a KMS epoch (protocol 8).


def kms_proof(**changes: object) -> tuple[Cluster, TransactionProof]:
    cluster = Cluster(label="kms")
    cluster.open_period()
    key = SecretKey.generate(entropy("kms"))
    argument = encode(OpenKmsArgument(key.public_key))
    signer = operator_id(key.public_key)
    tx = Transaction("mdms", "open_kms", signer, 0, 1, START_MS, argument_digest(argument), argument, ())
    tx_id = transaction_id(tx, cluster.roster.chain, 0)
    signed = msgspec.structs.replace(tx, signatures=(cluster.mdms_enrolment.sign(tx_id), key.sign(tx_id)))
    cluster.execute([signed])
    changed = msgspec.structs.replace(signed, **changes)
    return cluster, TransactionProof(changed, cluster.receipt(tx_id))


def test_a_kms_epoch_is_the_height_of_its_block() -> None:
    cluster, proof = kms_proof()
    key = SecretKey.generate(entropy("kms")).public_key
    epoch = verify_kms_epoch(proof, cluster.genesis, cluster.roster)
    assert epoch == KmsEpoch(proof.receipt.header.height, key)
    assert proof.receipt.header.height > 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"function": "anchor"}, Reason.BAD_PROOF),
        ({"contract": "usage"}, Reason.BAD_PROOF),
        ({"sequence": 2}, Reason.BAD_SIGNATURE),
        ({"signatures": ()}, Reason.BAD_SIGNATURE),
        ({"argument": encode(OpenKmsArgument(SecretKey.generate(entropy("me")).public_key))}, Reason.HASH_MISMATCH),
    ],
)
def test_another_transaction_opens_no_kms_epoch(changes: dict[str, object], reason: Reason) -> None:
    cluster, proof = kms_proof(**changes)
    assert verify_kms_epoch(proof, cluster.genesis, cluster.roster) is reason


def test_a_period_is_no_kms_epoch_and_the_other_way_round() -> None:
    cluster, proof = kms_proof()
    tx_id, tx = next((key, tx) for key, tx in cluster.transactions.items() if tx.function == "register")
    period = TransactionProof(tx, cluster.receipt(tx_id))
    assert verify_kms_epoch(period, cluster.genesis, cluster.roster) is Reason.BAD_PROOF
    assert verify_period(proof, cluster.genesis, cluster.roster) is Reason.BAD_PROOF
