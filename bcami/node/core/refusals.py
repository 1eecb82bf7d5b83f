"""A node's signed word that it refuses a transaction: weak of them let a meter abandon a number (protocol 3.4)."""

from collections.abc import Sequence

from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.model.api import REFUSED, RefusalSignature, SubmitResult, refusals_digest, request_refusal_digest
from bcami.model.reasons import BUSY_REASONS, Reason


class Refusals:
    """Signs refusals with the consensus key of one node. They promise nothing: the node may change its mind."""

    def __init__(self, roster: Roster, replica: int, signer: Signer | None) -> None:
        """Without a signer (protocol 6.3) what is refused stays nobody's word, and counts for nothing."""
        self._roster = roster
        self._replica = replica
        self._signer = signer

    def sign(self, results: Sequence[SubmitResult]) -> RefusalSignature | None:
        """Sign what is refused for good among the results of one answer, all at once; None when nothing is."""
        if all(result.status != REFUSED or result.reason in BUSY_REASONS for result in results):
            return None
        return self._signed(refusals_digest(self._roster.chain, self._roster.epoch, self._replica, results))

    def sign_request(self, body: bytes, reason: Reason) -> RefusalSignature | None:
        """Sign that the request with this body is turned down as a whole."""
        roster = self._roster
        return self._signed(request_refusal_digest(roster.chain, roster.epoch, self._replica, body, reason))

    def _signed(self, digest: bytes) -> RefusalSignature | None:
        return None if self._signer is None else RefusalSignature(self._replica, self._signer.sign(digest))
