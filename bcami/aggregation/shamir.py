"""Shares of a secret number, any `threshold` of which give it back and fewer of which tell nothing [Shamir, CACM 1979].

Over the integers mod the prime 2^127 − 1: the secret is a mask seed of at most 126 bits. The places are 1, 2, 3 … in
the order of those who get a share, so that all dealers of a group use the same powers.

Numbers are taken apart into limbs of 16 bits, and all shares come from one product of matrices of doubles: every sum in
it is an integer far below 2^53 and therefore exact.
"""

from collections.abc import Mapping
from functools import lru_cache
from math import factorial, prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bcami.aggregation.dice import Dice

PRIME: Final = 2**127 - 1
SECRET_BITS: Final = 126
SHARE_BYTES: Final = 16
PLACES_MAX: Final = 512
"""Sums of products stay below 2^46, and what is carried below 2^32."""
_PLACES_STEP: Final = 64
"""Powers are made for a multiple of so many places: members of one graph have different numbers of neighbours."""
_LIMBS: Final = 8
_LIMB_BITS: Final = 16


def split(secret: int, threshold: int, count: int, dice: Dice) -> list[bytes]:
    """Return the shares of the places 1 … count, 16 bytes each, big-endian.

    Raises ValueError for a secret that is too large or a threshold that the places cannot reach.
    """
    if not 0 <= secret < 1 << SECRET_BITS or not 1 <= threshold <= count <= PLACES_MAX:
        raise ValueError("a secret of at most 126 bits, and at least as many shares as the threshold")
    data = secret.to_bytes(SHARE_BYTES, "little") + _coefficients(threshold - 1, dice)
    limbs = np.frombuffer(data, dtype="<u2").reshape(threshold, _LIMBS).astype(np.float64)
    products = np.zeros((count, _LIMBS, 2 * _LIMBS))
    powers = _powers(-count // _PLACES_STEP * -_PLACES_STEP, threshold)[: count * _LIMBS]
    products[:, :, :_LIMBS] = (powers @ limbs).reshape(count, _LIMBS, _LIMBS)
    # Rows read one short stand one limb further each: their columns are the limbs of the sum of products.
    skewed = products.reshape(count, -1)[:, : _LIMBS * (2 * _LIMBS - 1)].reshape(count, _LIMBS, 2 * _LIMBS - 1)
    sums = skewed.sum(axis=1).astype(np.int64)
    low = sums[:, :_LIMBS].copy()
    low[:, : _LIMBS - 1] += 2 * sums[:, _LIMBS:]  # 2^128 is 2 mod p
    carried = low >> _LIMB_BITS
    low &= (1 << _LIMB_BITS) - 1
    low[:, 1:] += carried[:, :-1]
    low[:, 0] += 2 * carried[:, -1]
    even, odd = (low[:, first::2].astype("<u4").tobytes() for first in (0, 1))
    shares = []
    for begin in range(0, SHARE_BYTES * count, SHARE_BYTES):
        end = begin + SHARE_BYTES
        value = int.from_bytes(even[begin:end], "little") + (int.from_bytes(odd[begin:end], "little") << _LIMB_BITS)
        shares.append((value % PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares


def _coefficients(count: int, dice: Dice) -> bytes:
    """Return so many uniform numbers mod p, 16 bytes each, little-endian."""
    while True:
        drawn = np.frombuffer(dice.bits(8 * SHARE_BYTES * count).to_bytes(SHARE_BYTES * count, "little"), np.uint8)
        rows = drawn.reshape(count, SHARE_BYTES).copy()
        rows[:, -1] &= 0x7F
        data = rows.tobytes()
        # 2^127 − 1 is no number mod p; it comes once in 2^127 draws.
        if PRIME.to_bytes(SHARE_BYTES, "little") not in data:
            return data


def combine(shares: Mapping[int, int]) -> int:
    """Return the secret from exactly as many shares as the threshold, by place."""
    places = tuple(shares)
    return sum([shares[place] * weight for place, weight in zip(places, _weights(places), strict=True)]) % PRIME


@lru_cache(maxsize=4)
def _powers(count: int, threshold: int) -> npt.NDArray[np.float64]:
    """Return place^power mod p for each place, limb and power: (count·limbs) × threshold."""
    powers = []
    for place in range(1, count + 1):
        value = 1
        for _ in range(threshold):
            powers.append(value.to_bytes(SHARE_BYTES, "little"))
            value = value * place % PRIME
    data = b"".join(powers)
    limbs: npt.NDArray[Any] = np.frombuffer(data, dtype="<u2").reshape(count, threshold, _LIMBS)
    return np.ascontiguousarray(limbs.transpose(0, 2, 1).reshape(count * _LIMBS, threshold), dtype=np.float64)


@lru_cache(maxsize=4096)
def _weights(places: tuple[int, ...]) -> tuple[int, ...]:
    """Return Lagrange's weights at 0, mod p: Π x_j / (x_j − x_i) over all other places."""
    highest = max(places)
    known = set(places)
    missing = [place for place in range(1, min(highest, PLACES_MAX) + 1) if place not in known]
    product = prod(places)
    below = []
    for place in places:
        if len(missing) < len(places) <= highest <= PLACES_MAX:
            # Of all places up to the highest, without those that are missing: exact, and few factors.
            whole = _factorial(place - 1) * _factorial(highest - place) * (-1 if place % 2 == 0 else 1)
            value = whole // prod([other - place for other in missing])
        else:
            value = prod([other - place for other in places if other != place])
        below.append(value * place % PRIME)
    running = [1]
    for value in below:
        running.append(running[-1] * value % PRIME)
    inverse = pow(running[-1], -1, PRIME)
    weights = []
    for position in range(len(places) - 1, -1, -1):
        weights.append(product * running[position] * inverse % PRIME)
        inverse = inverse * below[position] % PRIME
    return tuple(reversed(weights))


_factorial = lru_cache(maxsize=1024)(factorial)
