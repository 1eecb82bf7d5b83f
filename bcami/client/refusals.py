"""Whose word a refusal is: without a member's signature under it, it is nobody's (protocol 3.4)."""

from bcami.crypto.roster import Roster
from bcami.model.api import RefusalSignature, SubmitAnswer, refusals_digest, request_refusal_digest
from bcami.model.reasons import Reason


def signer_of_refusals(answer: SubmitAnswer, roster: Roster) -> int | None:
    """Return the replica that signed the refusals of an answer; None when none did."""
    signed = answer.refusals
    if signed is None:
        return None
    digest = refusals_digest(roster.chain, roster.epoch, signed.replica, answer.results)
    return signed.replica if roster.verify_by(signed.replica, signed.signature, digest) else None


def signer_of_request_refusal(
    body: bytes, reason: Reason, signed: RefusalSignature | None, roster: Roster
) -> int | None:
    """Return the replica that signed that it turns the whole request down; None when none did."""
    if signed is None:
        return None
    digest = request_refusal_digest(roster.chain, roster.epoch, signed.replica, body, reason)
    return signed.replica if roster.verify_by(signed.replica, signed.signature, digest) else None
