"""Believes an MDMS period key only by the receipt of its registration (protocol 2.5).

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
from bcami.model.registration import MdmsRegisterArgument, period_key_id
from bcami.model.transaction import ARGUMENT_BYTES_MAX, argument_digest, transaction_id

_ARGUMENT: Codec[MdmsRegisterArgument] = Codec(MdmsRegisterArgument, ARGUMENT_BYTES_MAX)


class MdmsPeriod(NamedTuple):
    """A period whose key is proven to be the MDMS's."""

    number: int
    kem_key: bytes
    key_id: bytes
    height: int
    """Block of its registration."""


def verify_period(proof: TransactionProof, genesis: Genesis, roster: Roster) -> MdmsPeriod | Reason:
    """Return the period that the proof registers, or why it proves none."""
    tx, receipt = proof.transaction, proof.receipt
    if (tx.contract, tx.function, tx.session) != ("mdms", "register", 0):
        return Reason.BAD_PROOF
    if tx.signer != genesis.mdms_hid:
        return Reason.NOT_AUTHORIZED
    if argument_digest(tx.argument) != tx.argument_hash:
        return Reason.HASH_MISMATCH
    tx_id = transaction_id(tx, roster.chain, roster.epoch)
    if not tx.signatures or not verify(genesis.mdms_enrolment_key, tx.signatures[0], tx_id):
        return Reason.BAD_SIGNATURE
    if receipt.outcome.transaction_id != tx_id or receipt.outcome.reason is not Reason.VALID:
        return Reason.BAD_PROOF
    reason = verify_receipt(receipt, roster)
    if reason is not None:
        return reason
    try:
        argument = _ARGUMENT.decode(tx.argument)
    except MalformedError:
        return Reason.BAD_ARGUMENT
    return MdmsPeriod(tx.sequence, argument.kem_key, period_key_id(argument.kem_key), receipt.header.height)
