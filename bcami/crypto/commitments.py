"""Commitments to readings that hide them for ever and add up [Pedersen, CRYPTO '91, section 3].

C = Σ e_s·G_s + r·H over secp256k1, H being the group's base point and each G_s a point whose discrete logarithm nobody
knows: the first valid x coordinate of SHA-256(label, s, counter). A sum of commitments opens to the sums of readings
and the sum of blindings, and to no other values unless a discrete logarithm is found.
"""

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from typing import Any, Final

from bcami.crypto import native

ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Order of the group, n."""


@cache
def generator(slot: int) -> bytes:
    """Return G_slot, compressed."""
    for counter in range(256):
        x = sha256(b"bcami/commitment/1" + slot.to_bytes(4, "big") + bytes((counter,))).digest()
        if native.parse_compressed(b"\x02" + x) is not None:
            return b"\x02" + x
    raise ValueError("no point in 256 attempts")


def commit(values: Sequence[int], blinding: int) -> bytes | None:
    """Return the compressed commitment; None when it is the point at infinity (all values and the blinding zero)."""
    points: list[Any] = []
    for slot, value in enumerate(values):
        if value % ORDER:
            point = native.parse_compressed(generator(slot))
            points.append(native.times(point, (value % ORDER).to_bytes(native.SCALAR_BYTES, "big")))
    if blinding % ORDER:
        points.append(native.point_of(native.new_scalar((blinding % ORDER).to_bytes(native.SCALAR_BYTES, "big"))))
    total = native.combine(points) if points else None
    return None if total is None else native.compressed(total)


def opens(commitment: bytes, values: Sequence[int], blinding: int) -> bool:
    """Tell whether the commitment is to these values with this blinding."""
    return commit(values, blinding) == commitment
