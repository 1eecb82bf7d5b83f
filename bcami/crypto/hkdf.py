"""HKDF-SHA-256 [RFC 5869], over the C function `hmac.digest`."""

import hmac
from typing import Final

HASH_BYTES: Final = 32
OUTPUT_BYTES_MAX: Final = 255 * HASH_BYTES


def extract(salt: bytes, input_key: bytes) -> bytes:
    """Return the pseudorandom key [RFC 5869 2.2]; an empty salt stands for 32 zero bytes."""
    return hmac.digest(salt or bytes(HASH_BYTES), input_key, "sha256")


def expand(key: bytes, info: bytes, length: int) -> bytes:
    """Return `length` bytes bound to `info` [RFC 5869 2.3]. Raises ValueError above 255 blocks."""
    if not 0 <= length <= OUTPUT_BYTES_MAX:
        raise ValueError(f"HKDF yields at most {OUTPUT_BYTES_MAX} bytes")
    output = block = b""
    counter = 0
    while len(output) < length:
        counter += 1
        block = hmac.digest(key, block + info + bytes((counter,)), "sha256")
        output += block
    return output[:length]


def derive(input_key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """Return extract and expand in one [RFC 5869 2]."""
    return expand(extract(salt, input_key), info, length)
