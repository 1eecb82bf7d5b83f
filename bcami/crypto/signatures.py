"""ECDSA checks: 64-byte compact form only, low-S only, each public key parsed once (design D8).

libsecp256k1 accepts a signature only when 1 ≤ r < n and 1 ≤ s ≤ n/2, so nobody can turn a valid signature into
another one; tests/unit/crypto proves it on the published vectors.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, NoReturn, Protocol

from bcami.crypto.native import CONTEXT, SIGNATURE_TYPE, ecdsa_verify, new_object, parse_compact, parse_compressed

PARSED_KEYS_MAX: Final = 16_384
"""About 6 MB: the keys of all members and of every meter that one node serves."""

_parsed = lru_cache(maxsize=PARSED_KEYS_MAX)(parse_compressed)


class Signer(Protocol):
    """Who can sign; `bcami.crypto.keys.SecretKey` is one."""

    @property
    def public_key(self) -> bytes: ...

    def sign(self, digest: bytes) -> bytes: ...


class DeadSigner:
    """Stands for a key that must never sign again: its vote log is lost (protocol 6.3)."""

    def __init__(self, public_key: bytes) -> None:
        self.public_key = public_key

    def sign(self, digest: bytes) -> NoReturn:
        """Raise: what asks for a signature here would break a promise that nobody remembers."""
        raise RuntimeError(f"this key lost its vote log and never signs again; asked to sign {digest.hex()}")


def verify(public_key: bytes, signature: bytes, digest: bytes) -> bool:
    """Tell whether the 64-byte signature of the 32-byte digest is by this 33-byte key; no bytes make it raise."""
    if _stand_in is not None:
        return _stand_in(public_key, signature, digest)
    key: Any = _parsed(public_key)
    if key is None or len(signature) != 64 or len(digest) != 32:
        return False
    parsed = new_object(SIGNATURE_TYPE)
    valid: bool = parse_compact(CONTEXT, parsed, signature) == 1 and ecdsa_verify(CONTEXT, parsed, digest, key) == 1
    return valid


_stand_in: Callable[[bytes, bytes, bytes], bool] | None = None


@contextmanager
def stand_in(check: Callable[[bytes, bytes, bytes], bool]) -> Iterator[None]:
    """Let another scheme check signatures, in the whole process, while the block runs.

    For `bcami.faults.simulator` and nobody else; tests/simulation/swarm sees to that.
    """
    global _stand_in  # noqa: PLW0603  the one seam of the simulator
    if _stand_in is not None:
        raise RuntimeError("a stand-in is already in force")
    _stand_in = check
    try:
        yield
    finally:
        _stand_in = None


def is_valid_public_key(data: bytes) -> bool:
    """Tell whether the bytes are the 33-byte compressed form of a point of secp256k1 other than infinity."""
    return parse_compressed(data) is not None
