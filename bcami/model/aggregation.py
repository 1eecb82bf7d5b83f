"""Records and statements of private aggregation: what the contract takes and keeps (design D18, protocol 9).

A *roster* is a group's members at one time: HID, session, session key and KEM key of each, in the order of their HIDs.
A *round* sums one or several intervals over the members of a roster. A set of members is a bitmap: bit i of its
little-endian number stands for member i.
"""

from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Final, Literal

import msgspec

from bcami.model.ids import U32, U63, Hash, KemKey, Name, PublicKey, Signature
from bcami.model.reasons import Reason
from bcami.model.signing import digest, prefixed, u64

MEMBERS_PER_PART: Final = 100
"""Members that one transaction enlists or counts: its tally stays below the 16 KiB of an argument."""
MEMBERS_MAX: Final = 10_000
SLOTS_MAX: Final = 48
"""Intervals of one round: a day of half-hours."""
GROUP_MIN: Final = 8
"""Least number of contributors of a round; what the contract accepts. Meters enforce it again, or more."""
REVEALED: Final = (Reason.TOO_FEW_SHARES, Reason.SUM_MISMATCH, Reason.ALREADY_REVEALED)
"""Why a round is void whose contributors were settled as final: its sum may be known all the same."""
BITMAP_BYTES_MAX: Final = MEMBERS_MAX // 8

MASKED: Final = "masked"
RING: Final = "ring"
Mode = Literal["masked", "ring"]
Bitmap = Annotated[bytes, msgspec.Meta(min_length=1, max_length=BITMAP_BYTES_MAX)]
Sum = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
"""Energy units; negative only by noise."""
Slots = Annotated[int, msgspec.Meta(ge=1, le=SLOTS_MAX)]


class MemberName(msgspec.Struct, frozen=True, array_like=True):
    """Who is to be enlisted, and in which session: the contract takes the keys from its own state."""

    hid: Hash
    session: U63


class RosterMember(msgspec.Struct, frozen=True, array_like=True):
    """A member as the chain knows it."""

    hid: Hash
    session: U63
    public_key: PublicKey
    """Verifies its contributions."""
    kem_key: KemKey
    """For pairwise masks and sealed shares (protocol 1.3)."""


class Noise(msgspec.Struct, frozen=True, array_like=True):
    """Discrete Laplace noise of scale `sensitivity / ε` on each sum, in steps of `step` energy units."""

    epsilon_millionths: U63
    """ε in millionths; 0 means no noise."""
    sensitivity: U63
    """Readings are cut to 0 … sensitivity before they are summed."""
    step: Annotated[int, msgspec.Meta(ge=1, le=2**40)]


NO_NOISE: Final = Noise(0, 0, 1)


# What transactions of the utility carry, in the order in which they come.


class EnlistArgument(msgspec.Struct, frozen=True, array_like=True):
    """aggregation.enlist: the next part of a roster; HIDs rise over all parts, so nobody is in it twice."""

    roster: U63
    part: U32
    members: Annotated[tuple[MemberName, ...], msgspec.Meta(min_length=1, max_length=MEMBERS_PER_PART)]


class FixRosterArgument(msgspec.Struct, frozen=True, array_like=True):
    """aggregation.fix_roster: nothing is added from now on. Its receipt proves the digest to a meter."""

    roster: U63
    group: Name
    count: U32
    digest: Hash


class StartArgument(msgspec.Struct, frozen=True, array_like=True):
    """aggregation.start: opens a round; numbers rise over all groups."""

    round: U63
    roster: U63
    roster_digest: Hash
    mode: Mode
    first_s: U63
    """Start of the first interval, Unix seconds."""
    slots: Slots
    reading_max: U63
    """Largest reading of one interval, energy units."""
    noise: Noise


class SettleArgument(msgspec.Struct, frozen=True, array_like=True):
    """aggregation.settle: who contributed. Sets only shrink; after the final one none follows."""

    round: U63
    wave: U32
    contributors: Bitmap
    is_final: bool


class TallyEntry(msgspec.Struct, frozen=True, array_like=True):
    """What proves that one member took part."""

    body_hash: Hash
    commitment: PublicKey
    signature: Signature


class TallyArgument(msgspec.Struct, frozen=True, array_like=True):
    """aggregation.tally: the contributors of one part of the roster, all of them, in order."""

    round: U63
    part: U32
    entries: Annotated[tuple[TallyEntry, ...], msgspec.Meta(max_length=MEMBERS_PER_PART)]


class FinishArgument(msgspec.Struct, frozen=True, array_like=True):
    """aggregation.finish: the sums, and the sum of the blindings, which opens the sum of the commitments."""

    round: U63
    sums: Annotated[tuple[Sum, ...], msgspec.Meta(min_length=1, max_length=SLOTS_MAX)]
    blinding: Hash


class ClaimArgument(msgspec.Struct, frozen=True, array_like=True):
    """aggregation.claim: the sum of a ring round, which nothing proves."""

    round: U63
    sums: Annotated[tuple[Sum, ...], msgspec.Meta(min_length=1, max_length=SLOTS_MAX)]
    count: U32
    tokens_hash: Hash
    """SHA-256 over the sorted tokens of the round."""


class VoidArgument(msgspec.Struct, frozen=True, array_like=True):
    """aggregation.void: ends a round without a result; the reason is one of REVEALED if it was settled as final."""

    round: U63
    reason: Reason


# World state.


class AggregationHeads(msgspec.Struct, frozen=True, array_like=True):
    """The highest numbers that were used."""

    roster: U63
    round: U63


class RosterHead(msgspec.Struct, frozen=True, array_like=True):
    """How far a roster got."""

    group: str
    """Empty until it is fixed."""
    parts: U32
    count: U32
    digest: Hash
    last_hid: Hash


class RosterPart(msgspec.Struct, frozen=True, array_like=True):
    members: tuple[RosterMember, ...]


class Settlement(msgspec.Struct, frozen=True, array_like=True):
    """The last set of contributors."""

    wave: U32
    contributors: Bitmap
    is_final: bool


class Tally(msgspec.Struct, frozen=True, array_like=True):
    """The contributors of one part of a roster, and the sum of their commitments."""

    count: U32
    total: bytes
    """A compressed point; empty when nobody of the part contributed."""


class RoundResult(msgspec.Struct, frozen=True, array_like=True):
    """How a round ended: sums, or why there are none."""

    reason: Reason
    sums: tuple[Sum, ...]
    count: U32
    is_proven: bool
    """True when the contract saw every contributor's signature and the sums open their commitments."""
    time_ms: U63


class RoundView(msgspec.Struct, frozen=True, array_like=True):
    """What the query `round` answers."""

    start: StartArgument
    group: str
    settlement: Settlement | None
    result: RoundResult | None


# Statements.


def empty_roster_digest(chain: bytes, roster: int) -> bytes:
    """Return the digest of a roster before its first part."""
    return sha256(b"bcami/aggregation/roster/1" + chain + u64(roster)).digest()


def roster_digest(before: bytes, members: tuple[RosterMember, ...]) -> bytes:
    """Return the digest after one more part."""
    listed = [member.hid + u64(member.session) + member.public_key + member.kem_key for member in members]
    head = b"bcami/aggregation/roster_part/1" + before + u64(len(members))
    return sha256(head + b"".join(listed)).digest()


def whole_roster_digest(chain: bytes, roster: int, members: tuple[RosterMember, ...]) -> bytes:
    """Return the digest of all members, in parts as the contract has them."""
    value = empty_roster_digest(chain, roster)
    for start in range(0, len(members), MEMBERS_PER_PART):
        value = roster_digest(value, members[start : start + MEMBERS_PER_PART])
    return value


def contribution_digest(
    chain: bytes, epoch: int, round_number: int, roster: bytes, hid: bytes, body_hash: bytes, commitment: bytes
) -> bytes:
    """Return what a member signs of its contribution; `roster` is the roster's digest."""
    return digest(
        b"bcami/aggregation/contribution/1", chain, epoch, u64(round_number), roster, hid, body_hash, commitment
    )


def body_hash(masked: bytes, blinding: bytes, self_commitment: bytes, shares: tuple[bytes, ...]) -> bytes:
    """Return the hash of a contribution's body: masked values, masked blinding, sealed shares of the self mask.

    The shares are of one width, so that their number and their bytes tell them apart.
    """
    head = b"bcami/aggregation/body/1" + prefixed(masked) + blinding + self_commitment + u64(len(shares))
    return sha256(head + prefixed(b"".join(shares))).digest()


def reveal_digest(
    chain: bytes, epoch: int, round_number: int, wave: int, hid: bytes, revealed: tuple[tuple[int, bytes], ...]
) -> bytes:
    """Return what a member signs of a reveal: (member, secret) of each."""
    listed = b"".join(
        [index.to_bytes(8, "big") + len(secret).to_bytes(4, "big") + secret for index, secret in revealed]
    )
    return digest(
        b"bcami/aggregation/reveal/1", chain, epoch, u64(round_number), u64(wave), hid, u64(len(revealed)), listed
    )


# Sets of members.


def bitmap(members: frozenset[int] | set[int] | range, count: int) -> bytes:
    """Return the bitmap of a set of member numbers below `count`."""
    value = 0
    for member in members:
        value |= 1 << member
    return value.to_bytes((count + 7) // 8, "little")


@lru_cache(maxsize=64)
def members_of(data: bytes) -> frozenset[int]:
    """Return the member numbers of a bitmap."""
    return frozenset(place * 8 + bit for place, byte in enumerate(data) for bit in range(8) if byte >> bit & 1)
