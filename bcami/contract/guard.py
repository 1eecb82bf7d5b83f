"""The guard: an anti-replay window for each signer and kind of session (protocol 1.4, 3.4), as IPsec has it [RFC 4303].

A signer has two guards: "e" for what an enrolment key or an operator signs (session 0), "s" for its sessions. A record
holds the session, the highest number accepted in it and a bitmap of W bits, bit i standing for number highest − i. It
has a fixed width, so the size of the world state tells nothing about use. A higher session starts a new window; a lower
one is closed for good. A number that was consumed stays consumed whatever the contract said, so a rejected
transaction's id can never be accepted later.
"""

import struct
from typing import Final

from bcami.model.reasons import Reason

PREFIX: Final = b"guard/"
_ENROLMENT: Final = b"/e"
_SESSION: Final = b"/s"
_HEAD: Final = struct.Struct(">QQ")


def guard_key(signer: bytes, session: int) -> bytes:
    """Return the state key of the guard that a transaction passes."""
    return PREFIX + signer + (_SESSION if session else _ENROLMENT)


def highest(record: bytes | None) -> int:
    """Return the highest number that was consumed in the guard's session; 0 for none."""
    number: int = 0 if record is None else _HEAD.unpack_from(record)[1]
    return number


def refusal(record: bytes | None, session: int, sequence: int, window: int) -> Reason | None:
    """Return why the number cannot be consumed, or None when it is free."""
    if record is None:
        return None
    known, last = _HEAD.unpack_from(record)
    if session != known:
        return Reason.SESSION_CLOSED if session < known else None
    behind: int = last - sequence
    if behind < 0:
        return None
    if behind >= window:
        return Reason.SEQUENCE_TOO_OLD
    return Reason.REPLAY if record[-1 - (behind >> 3)] >> (behind & 7) & 1 else None


def consume(record: bytes | None, session: int, sequence: int, window: int) -> bytes:
    """Return the record after a number for which `refusal` is None was consumed."""
    width = window >> 3
    if record is not None:
        known, last = _HEAD.unpack_from(record)
        if known == session:
            bitmap = int.from_bytes(record[_HEAD.size :], "big")
            ahead: int = sequence - last
            if ahead <= 0:
                bitmap |= 1 << -ahead
                return record[: _HEAD.size] + bitmap.to_bytes(width, "big")
            if ahead < window:
                bitmap = (bitmap << ahead & (1 << window) - 1) | 1
                return _HEAD.pack(session, sequence) + bitmap.to_bytes(width, "big")
    return _HEAD.pack(session, sequence) + (1).to_bytes(width, "big")
