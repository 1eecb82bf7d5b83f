"""The report: what a usage transaction encrypts. Fixed width, so its length tells only how many (protocol 3.2)."""

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from bcami.errors import MalformedError

READINGS_MAX: Final = 336
"""A week of half-hours."""
READING_BYTES: Final = 16
_HEAD = struct.Struct(">HH")
_READING = struct.Struct(">qq")


class Reading(NamedTuple):
    """One interval reading."""

    start_s: int
    """First second of the interval, Unix seconds, UTC; on the half-hour grid."""
    energy: int
    """Units of 10^-7 kWh over the interval; negative for net export."""


def encode_report(readings: Sequence[Reading], interval_s: int) -> bytes:
    """Return the plaintext of a report: 4 + 16·n bytes."""
    if not 1 <= len(readings) <= READINGS_MAX:
        raise ValueError(f"a report carries 1 to {READINGS_MAX} readings, not {len(readings)}")
    return _HEAD.pack(len(readings), interval_s) + b"".join(_READING.pack(*reading) for reading in readings)


def decode_report(data: bytes) -> tuple[int, list[Reading]]:
    """Return (interval_s, readings). Raises MalformedError."""
    if len(data) < _HEAD.size:
        raise MalformedError("a report is at least four bytes long")
    count, interval_s = _HEAD.unpack_from(data)
    if len(data) != _HEAD.size + count * READING_BYTES or not 1 <= count <= READINGS_MAX or interval_s == 0:
        raise MalformedError(f"a report of {count} readings cannot have {len(data)} bytes")
    pairs: Iterable[tuple[int, int]] = _READING.iter_unpack(data[_HEAD.size :])
    return interval_s, [Reading(start, energy) for start, energy in pairs]
