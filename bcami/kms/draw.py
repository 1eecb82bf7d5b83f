"""Many keys from the entropy of one step: the rules of the KMS draw nothing themselves."""

import hmac
from typing import Final

from bcami.kms.messages import KEY_BYTES

ENTROPY_BYTES_MIN: Final = 32
_BLOCK_BYTES: Final = 32


class KeyStream:
    """HKDF-Expand [RFC 5869 2.3] over a step's fresh entropy, without its limit of 255 blocks.

    The same entropy gives the same keys: a driver passes 32 fresh bytes to each step.
    """

    __slots__ = ("_counter", "_root")

    def __init__(self, entropy: bytes) -> None:
        """Raises ValueError below 32 bytes."""
        if len(entropy) < ENTROPY_BYTES_MIN:
            raise ValueError(f"keys need at least {ENTROPY_BYTES_MIN} bytes of entropy")
        self._root = hmac.digest(b"bcami/kms_draw/1", entropy, "sha256")
        self._counter = 0

    def block(self) -> bytes:
        """Return 32 bytes that nobody else gets."""
        self._counter += 1
        return hmac.digest(self._root, self._counter.to_bytes(8, "big"), "sha256")

    def key(self) -> bytes:
        """Return Kgen(1^b), or Random(b) [KMS Abbreviations]."""
        return self.block()[:KEY_BYTES]
