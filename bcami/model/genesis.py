"""Genesis: what everybody has to know, and all that a verifier has to trust (protocol 1.1)."""

from hashlib import sha256
from typing import Annotated, Final

import msgspec

from bcami.codec import encode
from bcami.model.ids import REPLICAS_MAX, U63, Hash, KemKey, Name, PublicKey

GENESIS_BYTES_MAX: Final = 256 * 1024


class Member(msgspec.Struct, frozen=True, array_like=True):
    """One node of the consortium; its replica id is its place in `Genesis.members`."""

    name: Name
    consensus_key: PublicKey
    tls_fingerprint: Hash
    """SHA-256 of the DER of the node's TLS certificate."""


class Parameters(msgspec.Struct, frozen=True, array_like=True):
    """What decides outcomes and is therefore the same on every node."""

    replay_window: Annotated[int, msgspec.Meta(ge=64, le=65536, multiple_of=8)] = 1024
    """W: sequence numbers of a session that are remembered (protocol 3.4)."""
    clock_skew_ms: U63 = 5_000
    """δ: how far ahead of the checker's clock a timestamp may be (protocol 3.3)."""
    period_grace_ms: U63 = 3_600_000
    """How long an MDMS period stays usable after its successor registered (protocol 2.5)."""
    session_gap_ms: U63 = 1_000
    """Least block time between two sessions of one meter; shorter than the grace."""
    window: Annotated[int, msgspec.Meta(ge=1, le=64)] = 16
    """Heights between the low and the high watermark [CL02 4.2]."""
    fairness_ms: U63 = 4_000
    """A collector's next certificate executes within this time of reaching the primary, or the view changes."""
    view_timer_ms: U63 = 1_000
    """First view-change timer; doubles up to the cap."""
    view_timer_cap_ms: U63 = 8_000
    """The stated bound on network delay under which liveness holds (protocol 6.2)."""
    lane_quota_bytes: U63 = 4 * 1024 * 1024
    """Bytes of unordered batches that an endorser keeps for each collector (protocol 4.1)."""
    contribution_rate_per_minute: U63 = 60
    """Different contribution requests answered for one HID (protocol 2.1)."""
    contract_steps_max: U63 = 1_000


class Genesis(msgspec.Struct, frozen=True, array_like=True):
    """The first block. Its hash is the chain id."""

    network: Name
    created_ms: U63
    epoch: U63
    members: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=REPLICAS_MAX)]
    utility_key: PublicKey
    mdms_hid: Hash
    mdms_enrolment_key: PublicKey
    mdms_enrolment_kem_key: KemKey
    chaincode_package: Hash
    execution_version: U63
    parameters: Parameters
    faults_allowed: bool
    """True only for networks made with --allow-faults (design D14)."""


def chain_id(genesis: Genesis) -> bytes:
    """Return SHA-256 over the domain and the canonical genesis bytes; it is also the header hash at height 0."""
    return sha256(b"bcami/genesis/1" + encode(genesis)).digest()


def members_hash(members: tuple[Member, ...]) -> bytes:
    return sha256(b"bcami/members/1" + encode(members)).digest()


def operator_id(public_key: bytes) -> bytes:
    """Return the signer id of a party that is known by its key alone (the utility)."""
    return sha256(b"bcami/operator/1" + public_key).digest()
