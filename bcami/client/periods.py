"""Believes an MDMS period key, and an epoch of its symmetric keys, only by a receipt (protocol 2.5, 8).

A concentrator's word is not enough: it would hand out its own key and read everything.
"""

from typing import NamedTuple

from bcami.codec import Codec
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import verify
from bcami.crypto.verification import verify_receipt
from bcami.errors import MalformedError
from bcami.model.api import TransactionProof
from bcami.model.genesis import Genesis
from bcami.model.reasons import Reason
from bcami.model.registration import MdmsRegisterArgument, OpenKmsArgument, period_key_id
from bcami.model.transaction import ARGUMENT_BYTES_MAX, argument_digest, transaction_id

_ARGUMENT: Codec[MdmsRegisterArgument] = Codec(MdmsRegisterArgument, ARGUMENT_BYTES_MAX)
_OPEN_KMS: Codec[OpenKmsArgument] = Codec(OpenKmsArgument, ARGUMENT_BYTES_MAX)


class MdmsPeriod(NamedTuple):
    """A period whose key is proven to be the MDMS's."""

    number: int
    kem_key: bytes
    key_id: bytes
    height: int
    """Block of its registration."""


class KmsEpoch(NamedTuple):
    """An epoch of the MDMS's symmetric keys that the chain has."""

    height: int
    """Of its block: the number of the epoch."""
    kms_key: bytes


def verify_kms_epoch(proof: TransactionProof, genesis: Genesis, roster: Roster) -> KmsEpoch | Reason:
    """Return the epoch that the proof opens, or why it opens none. That it is the newest, no proof can tell."""
    if (proof.transaction.contract, proof.transaction.function) != ("mdms", "open_kms"):
        return Reason.BAD_PROOF
    refused = _check(proof, genesis, roster)
    if refused is not None:
        return refused
    try:
        argument = _OPEN_KMS.decode(proof.transaction.argument)
    except MalformedError:
        return Reason.BAD_ARGUMENT
    return KmsEpoch(proof.receipt.header.height, argument.kms_key)


def verify_period(proof: TransactionProof, genesis: Genesis, roster: Roster) -> MdmsPeriod | Reason:
    """Return the period that the proof registers, or why it proves none."""
    tx = proof.transaction
    if (tx.contract, tx.function, tx.session) != ("mdms", "register", 0):
        return Reason.BAD_PROOF
    if tx.signer != genesis.mdms_hid:
        return Reason.NOT_AUTHORIZED
    refused = _check(proof, genesis, roster)
    if refused is not None:
        return refused
    try:
        argument = _ARGUMENT.decode(tx.argument)
    except MalformedError:
        return Reason.BAD_ARGUMENT
    return MdmsPeriod(tx.sequence, argument.kem_key, period_key_id(argument.kem_key), proof.receipt.header.height)


def _check(proof: TransactionProof, genesis: Genesis, roster: Roster) -> Reason | None:
    """Check that the MDMS of genesis signed it first, and that a block has it as valid."""
    tx, receipt = proof.transaction, proof.receipt
    if argument_digest(tx.argument) != tx.argument_hash:
        return Reason.HASH_MISMATCH
    tx_id = transaction_id(tx, roster.chain, roster.epoch)
    if not tx.signatures or not verify(genesis.mdms_enrolment_key, tx.signatures[0], tx_id):
        return Reason.BAD_SIGNATURE
    if receipt.outcome.transaction_id != tx_id or receipt.outcome.reason is not Reason.VALID:
        return Reason.BAD_PROOF
    return verify_receipt(receipt, roster)
