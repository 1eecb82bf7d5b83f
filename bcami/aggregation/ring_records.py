"""What is said in ring mode [Alves, Fonseca, sections III to V; Mármol et al., IJIS 12(2), 2013].

ES is the supplier, LC the local concentrator, SM a meter. The secure channel of the paper is the driver's.
"""

from typing import Annotated, Final

import msgspec

from bcami.codec import Codec
from bcami.model.aggregation import MEMBERS_MAX
from bcami.model.ids import U63, Hash, Signature
from bcami.units import MIB

Address = Hash
"""Of a meter: its HID. The supplier has the address SUPPLIER."""
SUPPLIER: Final = bytes(32)
RingNumber = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
"""A number modulo M, big-endian: msgpack has no integers above 64 bits."""
Token = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class EnablingRequest(msgspec.Struct, frozen=True, array_like=True, tag="enabling_request"):
    """SM → ES: asks for a licence."""

    session: U63
    signature: Signature


class Licence(msgspec.Struct, frozen=True, array_like=True, tag="licence"):
    """ES → SM: it may take part; whom it can reach, and what is summed."""

    group: Annotated[tuple[Address, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    reading_max: U63


class WhoIsConcentrator(msgspec.Struct, frozen=True, array_like=True, tag="who_is"):
    """SM → all: the broadcast to the LC."""


class ConcentratorIs(msgspec.Struct, frozen=True, array_like=True, tag="i_am"):
    """New LC → all, ES too: nobody answered, or the role was handed over. All register anew."""

    generation: U63


class TokenGrant(msgspec.Struct, frozen=True, array_like=True, tag="token"):
    """LC → SM: T_i."""

    generation: U63
    token: Token


class TokenNotice(msgspec.Struct, frozen=True, array_like=True, tag="token_notice"):
    """LC → ES: T_i was given to somebody."""

    token: Token


class FirstKey(msgspec.Struct, frozen=True, array_like=True, tag="first_key"):
    """SM → LC: k_i1."""

    generation: U63
    token: Token
    key: RingNumber


class Successor(msgspec.Struct, frozen=True, array_like=True, tag="successor"):
    """LC → SM: Sc_i."""

    generation: U63
    address: Address


class KeySum(msgspec.Struct, frozen=True, array_like=True, tag="key_sum"):
    """LC → ES: K, n and the tokens of the ring."""

    generation: U63
    key_sum: RingNumber
    tokens: Annotated[tuple[Token, ...], msgspec.Meta(max_length=MEMBERS_MAX)]


class ReadingRequest(msgspec.Struct, frozen=True, array_like=True, tag="reading_request"):
    """ES → LC: the reading of instant consumption begins."""

    period: U63
    first_s: U63


class Delta(msgspec.Struct, frozen=True, array_like=True, tag="delta"):
    """SM → its successor: δ_ij."""

    generation: U63
    period: U63
    first_s: U63
    value: RingNumber


class Ciphertext(msgspec.Struct, frozen=True, array_like=True, tag="ciphertext"):
    """SM → ES: T_i and E_kij(e_ij)."""

    period: U63
    token: Token
    value: RingNumber


class Handover(msgspec.Struct, frozen=True, array_like=True, tag="handover"):
    """LC → SM: you are the LC now."""

    generation: U63


class ConcentratorLost(msgspec.Struct, frozen=True, array_like=True, tag="lost"):
    """ES → all: the LC did not answer; look for one (our addition: the paper has ES wait)."""


RingMessage = (
    EnablingRequest
    | Licence
    | WhoIsConcentrator
    | ConcentratorIs
    | TokenGrant
    | TokenNotice
    | FirstKey
    | Successor
    | KeySum
    | ReadingRequest
    | Delta
    | Ciphertext
    | Handover
    | ConcentratorLost
)
RING_CODEC: Final[Codec[RingMessage]] = Codec(RingMessage, MIB)


def modulus(members: int, reading_max: int) -> int:
    """Return M: a power of two above n·e_max, with 32 bits to spare, so that a wrong K shows.

    CMT takes 2^⌈log2(n·e_max)⌉ [section 4]; there a wrong K gives a sum that looks like any other.
    """
    return 1 << (members * reading_max).bit_length() + 32


def ring_number(value: int) -> bytes:
    return value.to_bytes(16, "big")


def ring_value(data: bytes) -> int:
    return int.from_bytes(data, "big")
