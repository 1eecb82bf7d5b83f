"""Domain-separated canonical bytes: what is hashed and signed is built here by hand and is never the wire form.

Every statement starts with its purpose, the chain and the epoch (protocol 1.4). Integers are 8 bytes big-endian,
variable byte strings carry their length in 4 bytes, so that no two statements share their bytes.
"""

from collections.abc import Iterable
from hashlib import sha256


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def prefixed(data: bytes) -> bytes:
    """Return the bytes behind their length."""
    return len(data).to_bytes(4, "big") + data


def digest(purpose: bytes, chain: bytes, epoch: int, *parts: bytes) -> bytes:
    """Return SHA-256 over purpose, chain, epoch and the parts, each part fixed-width or prefixed by its caller."""
    return sha256(b"".join((prefixed(purpose), chain, epoch.to_bytes(8, "big"), *parts))).digest()


def digest_of_list(purpose: bytes, chain: bytes, epoch: int, items: Iterable[bytes]) -> bytes:
    """Return the digest of a list of 32-byte hashes, bound to its length."""
    listed = list(items)
    return digest(purpose, chain, epoch, u64(len(listed)), *listed)
