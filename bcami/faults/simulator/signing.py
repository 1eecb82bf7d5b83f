"""The two signature schemes of a simulation: the real one, and a fast stand-in for most seeds.

ECDSA is nearly all of a simulation's time and none of what it looks for, so most seeds sign with a keyed hash: the
signature of a digest under a public key is BLAKE2b(digest, key = public key), 64 bytes. Whoever knows the public key
could forge it; nobody in a simulation does, because behaviours sign through their own node's signer only, as with the
real scheme. A flipped bit, another digest or another key is refused, as with the real scheme. Keys are real points of
the curve, so that issuance and the contracts see nothing else.

`bcami.crypto.signatures.verify` asks the stand-in only inside `in_force`, which only this package enters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

from bcami.crypto import signatures
from bcami.crypto.keys import SecretKey
from bcami.crypto.signatures import Signer


@dataclass(frozen=True, slots=True)
class FastSigner:
    """Signs with the stand-in."""

    public_key: bytes

    def sign(self, digest: bytes) -> bytes:
        return blake2b(digest, key=self.public_key).digest()


def _verify(public_key: bytes, signature: bytes, digest: bytes) -> bool:
    if len(public_key) != 33 or len(digest) != 32:
        return False
    return blake2b(digest, key=public_key).digest() == signature


def signer_of(key: SecretKey, *, real: bool) -> Signer:
    """Return what signs as this key in the scheme of a run."""
    return key if real else FastSigner(key.public_key)


@contextmanager
def in_force(*, real: bool) -> Iterator[None]:
    """Let signatures be checked by the scheme of a run."""
    if real:
        yield
        return
    with signatures.stand_in(_verify):
        yield
