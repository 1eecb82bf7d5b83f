"""Exact draws from a seed: SHAKE-256 as the source, rejection instead of rounding, so that nothing is biased."""

from hashlib import shake_256
from typing import Final

_CHUNK_BYTES: Final = 256


class Dice:
    """A stream of uniform numbers; the same seed gives the same stream. What it draws is as secret as its seed."""

    __slots__ = ("_bits", "_block", "_left", "_seed")

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._block = 0
        self._bits = 0
        self._left = 0

    def __repr__(self) -> str:
        return "Dice()"

    def bits(self, count: int) -> int:
        """Return a uniform number of `count` bits."""
        while self._left < count:
            data = shake_256(b"bcami/dice/1" + self._block.to_bytes(8, "big") + self._seed).digest(_CHUNK_BYTES)
            self._block += 1
            self._bits = self._bits << 8 * _CHUNK_BYTES | int.from_bytes(data, "big")
            self._left += 8 * _CHUNK_BYTES
        self._left -= count
        value = self._bits >> self._left
        self._bits &= (1 << self._left) - 1
        return value

    def below(self, limit: int) -> int:
        """Return a uniform number from 0 to `limit` − 1."""
        width = (limit - 1).bit_length()
        while True:
            value = self.bits(width) if width else 0
            if value < limit:
                return value

    def chance(self, numerator: int, denominator: int) -> bool:
        """Return True with probability numerator / denominator exactly."""
        return self.below(denominator) < numerator
