"""Sums of public keys (design D7: Pu = X_0 + ΣX_j)."""

from collections.abc import Sequence
from typing import Any

from bcami.crypto import native


def point_sum(points: Sequence[bytes]) -> bytes | None:
    """Return the compressed sum of compressed points; None when there is none, one is invalid or it is infinity."""
    parsed: list[Any] = []
    for data in points:
        point = native.parse_compressed(data)
        if point is None:
            return None
        parsed.append(point)
    total = native.combine(parsed) if parsed else None
    return None if total is None else native.compressed(total)
