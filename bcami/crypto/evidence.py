"""Whether two signed statements convict a replica: decided by whoever knows genesis (bcami.model.evidence).

Sound: it convicts only who signed two different contents for one place, which honest replicas never do. Canonical: the
same two statements in any order, under whatever valid signatures, have one evidence id.
"""

from collections.abc import Sequence

from bcami.crypto.roster import Roster
from bcami.crypto.signatures import verify
from bcami.errors import MalformedError
from bcami.model.evidence import STATEMENT_CODEC, Evidence, is_well_formed, signed_digest, statement_of
from bcami.model.reasons import Reason


def verify_evidence(first: bytes, second: bytes, roster: Roster) -> Evidence | Reason:
    """Return what two encoded messages of one replica prove against it, or why they prove nothing.

    Only what their signatures cover is looked at: whether a proposal inside is a good one does not matter.
    """
    try:
        place, one = statement_of(STATEMENT_CODEC.decode(first), roster.chain)
        other_place, other = statement_of(STATEMENT_CODEC.decode(second), roster.chain)
    except MalformedError:
        return Reason.MALFORMED
    if place != other_place:
        return Reason.NO_EQUIVOCATION
    evidence = Evidence(place, *sorted((one, other), key=lambda said: said.content))
    return check_evidence(evidence, roster.chain, roster.epoch, roster.keys) or evidence


def check_evidence(evidence: Evidence, chain: bytes, epoch: int, member_keys: Sequence[bytes]) -> Reason | None:
    """Return why the evidence does not hold, or None when it convicts its replica. Cheap parts come first."""
    place, first, second = evidence.place, evidence.first, evidence.second
    if place.epoch != epoch:
        return Reason.WRONG_EPOCH
    if place.replica >= len(member_keys):
        return Reason.UNKNOWN_REPLICA
    if first.content == second.content:
        return Reason.NO_EQUIVOCATION
    if first.content > second.content:
        return Reason.MALFORMED
    for said in (first, second):
        if not is_well_formed(place, said):
            return Reason.MALFORMED
        if not verify(member_keys[place.replica], said.signature, signed_digest(chain, place, said)):
            return Reason.BAD_SIGNATURE
    return None
