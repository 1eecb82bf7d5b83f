"""Hashed identities: a keyed hash, because a plain one of `MAC000002` is found by trying all ids (design D7)."""

import hmac
from typing import Final

from bcami.model.signing import prefixed

NETWORK_KEY_BYTES_MIN: Final = 32


def hid(network_key: bytes, meter_id: str) -> bytes:
    """Return the 32-byte HID of a meter. Raises ValueError on a short key or an empty id."""
    if len(network_key) < NETWORK_KEY_BYTES_MIN:
        raise ValueError(f"the network key has at least {NETWORK_KEY_BYTES_MIN} bytes")
    if not meter_id:
        raise ValueError("a meter id is not empty")
    return hmac.digest(network_key, b"bcami/hid/1" + prefixed(meter_id.encode()), "sha256")
