"""The node's side of `contribute`: one share of a key that nobody deals (design D7; protocol 2.1, 2.4).

The contract decides who gets an answer; what it is comes from here. The share x_j and the HPKE ephemeral are derived
from the node's contribution secret and the hash of the request, which covers the enrolment signature. So the same
request gets the same answer, after a restart too, and nothing is stored. Two requests share nothing.

What is not handled: whoever learns a node's contribution secret later can compute the shares that it gave; the key
then rests on the other shares and the holder's own. The rate limit per HID is the node's, because this is a pure
function.
"""

from dataclasses import dataclass, field
from typing import Final

from bcami.codec import Codec, encode
from bcami.contract.context import Read
from bcami.contract.runtime import Runtime
from bcami.crypto import hkdf
from bcami.crypto.hpke import setup_sender
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.model.reasons import Reason
from bcami.model.registration import (
    Contribution,
    ContributionAnswer,
    ContributionRequest,
    contribution_digest,
    request_hash,
    share_info,
)
from bcami.model.signing import u64

NODE_SECRET_BYTES_MIN: Final = 32
_ANSWER_CODEC: Final = Codec[ContributionAnswer](ContributionAnswer, 1024)


@dataclass(frozen=True, slots=True)
class NodeContributor:
    """Makes one node's contributions; the `Services` that its queries get."""

    roster: Roster
    replica: int
    signer: Signer
    """The node's consensus key."""
    secret: bytes = field(repr=False)
    """The node's contribution secret: at least 32 bytes, for nothing else."""

    def __post_init__(self) -> None:
        if len(self.secret) < NODE_SECRET_BYTES_MIN:
            raise ValueError(f"a contribution secret has at least {NODE_SECRET_BYTES_MIN} bytes")

    def contribute(self, request: ContributionRequest, kem_key: bytes) -> ContributionAnswer:
        """Return the share for a request that the contract accepted: X_j, signed, and x_j sealed to `kem_key`."""
        roster, replica = self.roster, self.replica
        asked = request_hash(request)
        root = hkdf.extract(b"bcami/contribution_secret/1", self.secret)
        bound = roster.chain + u64(roster.epoch) + u64(replica) + asked
        share = SecretKey.generate(hkdf.expand(root, b"share" + bound, 32))
        ephemeral = hkdf.expand(root, b"ephemeral" + bound, 32)
        info = share_info(roster.chain, request.hid, request.session, asked, replica)
        encapsulation, context = setup_sender(kem_key, info, ephemeral)
        sealed = context.seal(0, b"", export_secret(share, SECRET_ACCESS))
        point = share.public_key
        share.destroy()
        statement = contribution_digest(roster.chain, roster.epoch, request.hid, request.session, asked, replica, point)
        return ContributionAnswer(Contribution(replica, point, self.signer.sign(statement)), encapsulation, sealed)


def answer_contribution(
    request: ContributionRequest,
    runtime: Runtime,
    read: Read,
    roster: Roster,
    replica: int,
    signer: Signer,
    node_secret: bytes,
) -> ContributionAnswer | Reason:
    """Return this node's share for the holder of the enrolment key, or why there is none. Changes no state."""
    contributor = NodeContributor(roster, replica, signer, node_secret)
    answer = runtime.query("registration", "contribute", encode(request), read, services=contributor)
    return answer if isinstance(answer, Reason) else _ANSWER_CODEC.decode(answer)
