"""Masks and the keys they come from (protocol 1.3, 9; Bonawitz et al., CCS 2017, section 4).

Two members share DH(their registered KEM keys), which never leaves them. From it HKDF [RFC 5869] makes, for each round
and with both names in it, a mask seed, which may be revealed and tells nothing about any other round, and two keys that
seal shares, one for each direction. A seed becomes a mask by SHAKE-256: 64 bits for each interval, added mod 2^64, and
384 bits mod the group's order for the commitment's blinding.
"""

from collections.abc import Iterable
from hashlib import sha256, sha512, shake_256
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bcami.aggregation.shamir import SHARE_BYTES
from bcami.crypto import hkdf, native
from bcami.crypto.commitments import ORDER
from bcami.crypto.hpke import KemSecretKey
from bcami.model.signing import u64

SEED_BYTES: Final = 16
"""Of a pairwise seed as of a self mask's: 126 bits and more."""
VALUE_BYTES: Final = 8
MODULUS: Final = 2**64
"""Sums of up to 10,000 readings of up to 2^40 units stay far below half of it."""
BLINDING_BYTES: Final = 32
SEALED_BYTES: Final = SHARE_BYTES + 16
_BLINDING_STREAM_BYTES: Final = 48
_NONCE: Final = bytes(12)
_SHA512_BLOCK_BYTES: Final = 128
_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))

Values = npt.NDArray[np.uint64]


class PairKey:
    """What two members share: refuses to be shown."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, secret: KemSecretKey, other: bytes, chain: bytes) -> None:
        """Agree with the holder of `other`. Raises ValueError when that is no KEM key."""
        point = native.parse_uncompressed(other)
        if point is None:
            raise ValueError("not an uncompressed point of secp256k1")
        low, high = sorted((secret.public_key, other))
        key = hkdf.extract(b"bcami/aggregation/pair/1" + chain, secret.shared_x(point) + low + high)
        padded = key.ljust(_SHA512_BLOCK_BYTES, b"\0")
        self._inner, self._outer = padded.translate(_INNER), padded.translate(_OUTER)

    def __repr__(self) -> str:
        return "PairKey(secret)"

    def round_keys(self, context: bytes) -> "RoundKeys":
        """Return the pair's keys for the round that `context` names: one block of HKDF-Expand with SHA-512."""
        # HMAC [RFC 2104] from its two keys: half the time of a general one, and it is the most frequent step.
        block = sha512(self._outer + sha512(self._inner + context + b"\x01").digest()).digest()
        return RoundKeys(block[:16], block[16:32], block[32:48])


class RoundKeys:
    """A pair's keys in one round. The seed may be revealed; the other two tell nothing of it, nor it of them."""

    __slots__ = ("_down", "_up", "mask_seed")

    def __init__(self, mask_seed: bytes, up: bytes, down: bytes) -> None:
        self.mask_seed = mask_seed
        self._up = up
        self._down = down

    def __repr__(self) -> str:
        return "RoundKeys(secret)"

    def seal_share(self, share: bytes, *, is_up: bool) -> bytes:
        """Return the share, sealed; `is_up`: from the lower member to the higher. Once each, so the nonce is zero."""
        return AESGCM(self._up if is_up else self._down).encrypt(_NONCE, share, None)

    def open_share(self, sealed: bytes, *, is_up: bool) -> bytes | None:
        """Return the share, or None when it was not sealed so."""
        try:
            data: bytes = AESGCM(self._up if is_up else self._down).decrypt(_NONCE, sealed, None)
        except (InvalidTag, ValueError):
            return None
        return data if len(data) == SHARE_BYTES else None


def round_context(chain: bytes, epoch: int, round_number: int, roster_digest: bytes) -> bytes:
    """Return what binds a round's secrets to it."""
    return sha256(b"bcami/aggregation/round/1" + chain + u64(epoch) + u64(round_number) + roster_digest).digest()


def self_commitment(context: bytes, member: int, seed: bytes) -> bytes:
    """Return the hash by which a recombined self-mask seed is known to be the right one."""
    return sha256(b"bcami/aggregation/self/1" + context + u64(member) + seed).digest()


class MaskSum:
    """A running sum of masks: values mod 2^64, blinding mod the group's order."""

    __slots__ = ("_size", "_slots", "_streams", "blinding", "values")

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._size = VALUE_BYTES * slots
        self._streams: dict[bool, list[bytes]] = {True: [], False: []}
        self.values: Values = np.zeros(slots, dtype=np.uint64)
        self.blinding = 0

    def add(self, seed: bytes, *, is_added: bool) -> None:
        """Add the mask of a seed, or take it off."""
        self.add_all((seed,), is_added=is_added)

    def add_all(self, seeds: Iterable[bytes], *, is_added: bool) -> None:
        """Add the masks of several seeds, or take them off."""
        size, width = self._size, self._size + _BLINDING_STREAM_BYTES
        streams = [shake_256(b"bcami/aggregation/stream/1" + seed).digest(width) for seed in seeds]
        self._streams[is_added] += [stream[:size] for stream in streams]
        blinding = sum([int.from_bytes(stream[size:], "big") for stream in streams])
        self.blinding += blinding if is_added else -blinding

    def add_values(self, values: Values, blinding: int) -> None:
        self.values = self.values + values
        self.blinding += blinding

    def total(self) -> tuple[Values, int]:
        """Return the sum of all that was added."""
        for is_added, streams in self._streams.items():
            if streams:
                stacked = np.frombuffer(b"".join(streams), dtype="<u8").reshape(len(streams), self._slots)
                summed = stacked.sum(axis=0, dtype=np.uint64)
                self.values = self.values + summed if is_added else self.values - summed
                streams.clear()
        self.blinding %= ORDER
        return self.values, self.blinding


def values_of(numbers: list[int]) -> Values:
    """Return numbers mod 2^64; negative ones (noise) wrap."""
    return np.array([number % MODULUS for number in numbers], dtype=np.uint64)


def values_to_bytes(values: Values) -> bytes:
    return values.astype("<u8").tobytes()


def values_from_bytes(data: bytes) -> Values:
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


def signed(values: Values) -> tuple[int, ...]:
    """Return sums as integers: above half the modulus stands for a negative one."""
    return tuple(value - MODULUS if value >= MODULUS // 2 else value for value in values.tolist())
