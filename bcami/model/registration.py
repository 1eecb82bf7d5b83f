"""Records of enrolment, dealerless key issuance and sessions (design D7, protocol 2)."""

from hashlib import sha256
from typing import Annotated

import msgspec

from bcami.model.ids import REPLICAS_MAX, U63, Hash, KemKey, PublicKey, ReplicaId, Signature
from bcami.model.signing import digest, u64


class EnrolArgument(msgspec.Struct, frozen=True, array_like=True):
    """registration.enrol, signed by the utility: who is a customer."""

    hid: Hash
    enrolment_key: PublicKey
    enrolment_kem_key: KemKey


class RevokeArgument(msgspec.Struct, frozen=True, array_like=True):
    """registration.revoke, signed by the utility."""

    hid: Hash


class ContributionRequest(msgspec.Struct, frozen=True, array_like=True):
    """Asks a node for a share; signed by the enrolment key."""

    hid: Hash
    session: U63
    """The number of the session that is to be opened."""
    nonce: Hash
    signature: Signature


class Contribution(msgspec.Struct, frozen=True, array_like=True):
    """The public part of one node's share, as `register` carries it."""

    replica: ReplicaId
    point: PublicKey
    """X_j = x_j·G."""
    signature: Signature
    """By the node's consensus key, over `contribution_digest`."""


class ContributionAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What a node answers; the sealed share never goes on the chain."""

    contribution: Contribution
    encapsulation: KemKey
    sealed_share: Annotated[bytes, msgspec.Meta(min_length=48, max_length=48)]
    """x_j (32 bytes) sealed by HPKE to the enrolment KEM key, 16-byte tag included."""


class RegisterArgument(msgspec.Struct, frozen=True, array_like=True):
    """registration.register: opens session `Transaction.sequence`; signed by the enrolment key and by Pr."""

    public_key: PublicKey
    """Pu = X_0 + ΣX_j."""
    own_point: PublicKey
    """X_0, the meter's own share."""
    request_hash: Hash
    contributions: Annotated[tuple[Contribution, ...], msgspec.Meta(min_length=1, max_length=REPLICAS_MAX)]
    """At least f+1 of different nodes, sorted by replica."""
    kem_key: KemKey
    """The session's own KEM key (protocol 1.3)."""
    encapsulation: KemKey
    """HPKE enc to the MDMS period key: one for the whole session."""
    period: U63
    """MDMS period that the encapsulation is for."""
    period_key_id: Hash


class MdmsRegisterArgument(msgspec.Struct, frozen=True, array_like=True):
    """mdms.register: opens MDMS period `Transaction.sequence`; signed by the MDMS enrolment key and by Pr."""

    public_key: PublicKey
    own_point: PublicKey
    request_hash: Hash
    contributions: Annotated[tuple[Contribution, ...], msgspec.Meta(min_length=1, max_length=REPLICAS_MAX)]
    kem_key: KemKey
    """The period key to which meters encapsulate."""


class AcknowledgeArgument(msgspec.Struct, frozen=True, array_like=True):
    """mdms.acknowledge: everything up to `height` is stored (protocol 7.1)."""

    height: U63
    block_hash: Hash


class OpenKmsArgument(msgspec.Struct, frozen=True, array_like=True):
    """mdms.open_kms: opens the KMS epoch whose number is the height of the block that holds it (protocol 8)."""

    kms_key: PublicKey
    """Signs what the MDMS sends in this epoch; the transaction's signer is its operator id."""


class AnchorArgument(msgspec.Struct, frozen=True, array_like=True):
    """mdms.anchor: where the MDMS's audit log of symmetric keys ends."""

    length: U63
    head: Hash


class Enrolment(msgspec.Struct, frozen=True, array_like=True):
    """World state: one enrolled identity."""

    enrolment_key: PublicKey
    enrolment_kem_key: KemKey
    revoked: bool


class Session(msgspec.Struct, frozen=True, array_like=True):
    """World state: the session record of (hid, number); never changes once written."""

    number: U63
    public_key: PublicKey
    kem_key: KemKey
    encapsulation: KemKey
    period: U63
    time_ms: U63


class MeterState(msgspec.Struct, frozen=True, array_like=True):
    """What registration.meter answers about one HID."""

    enrolment: Enrolment
    session: Session | None
    """The current one."""


class Period(msgspec.Struct, frozen=True, array_like=True):
    """World state: one MDMS period."""

    number: U63
    public_key: PublicKey
    kem_key: KemKey
    key_id: Hash
    time_ms: U63
    superseded_ms: U63
    """Block time of its successor's registration; 0 while current."""


class KmsState(msgspec.Struct, frozen=True, array_like=True):
    """World state: the open KMS epoch, and the last anchor of the audit log."""

    signer: Hash
    kms_key: PublicKey
    length: U63
    """0 before the first anchor."""
    head: Hash


class Acknowledgement(msgspec.Struct, frozen=True, array_like=True):
    """World state: how far the MDMS has stored."""

    height: U63
    block_hash: Hash


def request_hash(request: ContributionRequest) -> bytes:
    return sha256(b"bcami/request/1" + request.hid + u64(request.session) + request.nonce + request.signature).digest()


def contribution_request_digest(chain: bytes, epoch: int, hid: bytes, session: int, nonce: bytes) -> bytes:
    return digest(b"bcami/contribute/1", chain, epoch, hid, u64(session), nonce)


def contribution_digest(
    chain: bytes, epoch: int, hid: bytes, session: int, request: bytes, replica: int, point: bytes
) -> bytes:
    return digest(b"bcami/contribution/1", chain, epoch, hid, u64(session), request, u64(replica), point)


def share_info(chain: bytes, hid: bytes, session: int, request: bytes, replica: int) -> bytes:
    """Return the HPKE info under which a share is sealed."""
    return b"bcami/share/1" + chain + hid + u64(session) + request + u64(replica)


def period_key_id(kem_key: bytes) -> bytes:
    return sha256(b"bcami/period_key/1" + kem_key).digest()


def usage_info(chain: bytes, hid: bytes, session: int, key_id: bytes) -> bytes:
    """Return the HPKE info of a session's usage encryption (protocol 3.1)."""
    return b"bcami/usage_info/1" + chain + hid + u64(session) + key_id


def usage_aad(chain: bytes, hid: bytes, session: int, sequence: int, timestamp_ms: int) -> bytes:
    """Return the associated data of one sealed report (design D8)."""
    return b"bcami/usage/1" + chain + hid + u64(session) + u64(sequence) + u64(timestamp_ms)
