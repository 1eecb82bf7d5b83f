"""LtHash [Bellare, Micciancio 1997; Lewi, Kim, Maykov, Weis 2019]: a homomorphic hash of a multiset (design D5).

Each element is stretched to 1024 lanes of 16 bits by BLAKE3; the hash of a set is the lane-wise sum mod 2^16. Adding or
removing an element is one vector addition, in any order. Finding two sets with one hash is a lattice problem with
at least 200 bits of security at this size. It is a hash of *multisets*: the world state holds each key once.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final

import numpy as np
from blake3 import blake3

from bcami.errors import MalformedError
from bcami.model.signing import prefixed, u64

LANES: Final = 1024
STATE_BYTES: Final = 2 * LANES
_CHUNK: Final = 256
"""Elements that are summed at once: 512 KiB of lanes."""

_ELEMENT_DOMAIN: Final = b"bcami/state/1"
_ROOT_DOMAIN: Final = b"bcami/state_root/1"

Lanes = np.ndarray[Any, np.dtype[np.uint16]]


def state_element(key: bytes, value: bytes, height: int) -> bytes:
    """Return the one byte string of a world-state entry: lengths first, so that no two entries share it."""
    return _ELEMENT_DOMAIN + prefixed(key) + prefixed(value) + u64(height)


class LtHash:
    """A running multiset hash; a new one is of the empty set."""

    __slots__ = ("_lanes",)

    def __init__(self, state: bytes = bytes(STATE_BYTES)) -> None:
        """Take up a stored state. Raises MalformedError unless it has 2048 bytes."""
        if len(state) != STATE_BYTES:
            raise MalformedError(f"an LtHash state has {STATE_BYTES} bytes, not {len(state)}")
        self._lanes: Lanes = np.frombuffer(state, dtype="<u2").astype(np.uint16)

    def update(self, added: Sequence[bytes], removed: Sequence[bytes]) -> None:
        """Add and remove elements. Nothing checks that a removed one was there."""
        self._lanes = self._lanes + _sum(added) - _sum(removed)

    def to_bytes(self) -> bytes:
        """Return the 2048 bytes of state, lanes little-endian."""
        return self._lanes.astype("<u2").tobytes()

    def root(self) -> bytes:
        """Return the 32-byte state root: SHA-256 of the domain and the state."""
        return sha256(_ROOT_DOMAIN + self.to_bytes()).digest()

    def copy(self) -> "LtHash":
        return LtHash(self.to_bytes())


def _sum(elements: Sequence[bytes]) -> Lanes:
    total: Lanes = np.zeros(LANES, dtype=np.uint16)
    for start in range(0, len(elements), _CHUNK):
        stretched = b"".join([blake3(item).digest(STATE_BYTES) for item in elements[start : start + _CHUNK]])
        lanes = np.frombuffer(stretched, dtype="<u2").reshape(-1, LANES)
        total = total + np.add.reduce(lanes, axis=0, dtype=np.uint16)  # wraps mod 2^16, which is the point
    return total
