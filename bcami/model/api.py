"""What a gateway answers to machines, as msgpack (the JSON forms are in bcami/gateway)."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Annotated, Final

import msgspec

from bcami.codec import Codec
from bcami.model.block import PROOF_HASHES_MAX, BlockCertificate, Header, Receipt
from bcami.model.chain import BlockBundle
from bcami.model.ids import U32, U63, Hash, ReplicaId, Signature
from bcami.model.reasons import Reason
from bcami.model.signing import digest, prefixed, u64
from bcami.model.transaction import Transaction
from bcami.units import KIB, MIB

SUBMIT_TRANSACTIONS_MAX: Final = 2000
SUBMIT_BYTES_MAX: Final = 4 * MIB
CHAIN_HEADER: Final = "x-bcami-chain"
"""Header in which a client may say, in hex, which chain it means: a node of another one answers `wrong_chain`."""

COMMITTED: Final = "committed"
"""A receipt is there; the reason tells `valid` or why it was rejected."""
REFUSED: Final = "refused"
"""Refused before ordering: no outcome, may be asked again (protocol 3.5)."""
UNKNOWN: Final = "unknown"
"""Accepted, no receipt within the time: ask again with the same bytes."""


class SubmitResult(msgspec.Struct, frozen=True, array_like=True):
    """The answer to one submitted transaction."""

    transaction_id: Hash
    status: str
    reason: Reason | None
    height: U63
    """Block of the outcome; 0 without a receipt."""
    index: U32
    path: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=PROOF_HASHES_MAX)]
    retry_after_ms: U63 = 0


class CertifiedHeader(msgspec.Struct, frozen=True, array_like=True):
    header: Header
    certificate: BlockCertificate


class RefusalSignature(msgspec.Struct, frozen=True, array_like=True):
    """A node's signature under what it refuses: with weak of them a meter abandons a number (protocol 3.4)."""

    replica: ReplicaId
    signature: Signature


class SubmitAnswer(msgspec.Struct, frozen=True, array_like=True):
    """Results in the order of the request; `blocks` holds each header that a receipt needs, once."""

    results: tuple[SubmitResult, ...]
    blocks: tuple[CertifiedHeader, ...]
    refusals: RefusalSignature | None = None
    """Under `refusals_digest` of the results; None when nothing is refused for good."""


class ReleaseAnswer(msgspec.Struct, frozen=True, array_like=True):
    """Certified, released blocks after the height asked for (design D11)."""

    released_height: U63
    """Highest height that is released at this node."""
    certified_height: U63
    bundles: tuple[BlockBundle, ...]


class QueryAnswer(msgspec.Struct, frozen=True, array_like=True):
    """One node's read: a hint labelled with its height (protocol 5.6)."""

    height: U63
    """Height of the state that was read."""
    value: bytes | None
    written: U63
    """Height that last wrote it; 0 when absent."""


class TransactionProof(msgspec.Struct, frozen=True, array_like=True):
    """A transaction with its receipt: what a meter needs to believe an MDMS period key (protocol 2.5).

    `GET /v1/period` answers with the newest valid mdms.register, 404 before the first.
    """

    transaction: Transaction
    receipt: Receipt


SUBMIT_CODEC: Final[Codec[tuple[Transaction, ...]]] = Codec(tuple[Transaction, ...], SUBMIT_BYTES_MAX)
SUBMIT_ANSWER_CODEC: Final[Codec[SubmitAnswer]] = Codec(SubmitAnswer, 64 * MIB)
RELEASE_CODEC: Final[Codec[ReleaseAnswer]] = Codec(ReleaseAnswer, 256 * MIB)
QUERY_CODEC: Final[Codec[QueryAnswer]] = Codec(QueryAnswer, 16 * MIB)
PROOF_CODEC: Final[Codec[TransactionProof]] = Codec(TransactionProof, 256 * KIB)


def refusals_digest(chain: bytes, epoch: int, replica: int, results: Iterable[SubmitResult]) -> bytes:
    """Return what a node signs under the refusals among its results: each transaction id with the reason."""
    said = [
        result.transaction_id + prefixed(result.reason.value.encode())
        for result in results
        if result.status == REFUSED and result.reason is not None
    ]
    return digest(b"bcami/refusals/1", chain, epoch, u64(replica), u64(len(said)), *said)


def request_refusal_digest(chain: bytes, epoch: int, replica: int, body: bytes, reason: Reason) -> bytes:
    """Return what a node signs when it turns down a whole request: SHA-256 of its body with the reason."""
    said = prefixed(reason.value.encode())
    return digest(b"bcami/request_refusal/1", chain, epoch, u64(replica), sha256(body).digest(), said)
