"""libsecp256k1 as coincurve ships it, called through cffi without coincurve's own objects.

coincurve's classes go through DER and parse the public key again for each check. bcami calls the library's functions
on 64-byte compact signatures and keeps parsed keys. This is the only file that knows cffi.

The library reads fixed sizes from the pointers it gets and aborts the process on a broken argument, so each function
here checks lengths first. One context serves all threads: none of these calls changes it after start.
"""

import os
from typing import Any, Final

from coincurve._libsecp256k1 import ffi, lib

from bcami.model.ids import HASH_BYTES, KEM_KEY_BYTES, PUBLIC_KEY_BYTES, SIGNATURE_BYTES

SCALAR_BYTES: Final = 32

_CONTEXT_NONE: Final = 1
_COMPRESSED: Final = 258
_UNCOMPRESSED: Final = 2
_NULL: Final[Any] = ffi.NULL

_SCALAR: Final = ffi.typeof("unsigned char[32]")
_POINT: Final = ffi.typeof("secp256k1_pubkey *")
_SIGNATURE: Final = ffi.typeof("secp256k1_ecdsa_signature *")
_COMPACT: Final = ffi.typeof("unsigned char[64]")

new_object = ffi.new
parse_compact = lib.secp256k1_ecdsa_signature_parse_compact
ecdsa_verify = lib.secp256k1_ecdsa_verify
SIGNATURE_TYPE: Final = _SIGNATURE


def _make_context() -> Any:
    """Return a context whose secret-key operations are blinded; the blinding never changes a result."""
    context = ffi.gc(lib.secp256k1_context_create(_CONTEXT_NONE), lib.secp256k1_context_destroy)
    if not lib.secp256k1_context_randomize(context, os.urandom(32)):
        raise RuntimeError("libsecp256k1 refused to blind its context")
    return context


CONTEXT: Final[Any] = _make_context()


def new_scalar(data: bytes) -> Any:
    """Return a buffer with a secret scalar in it. Raises ValueError unless 0 < scalar < n."""
    if len(data) != SCALAR_BYTES:
        raise ValueError(f"a private key has {SCALAR_BYTES} bytes")
    scalar = ffi.new(_SCALAR, data)
    if not lib.secp256k1_ec_seckey_verify(CONTEXT, scalar):
        raise ValueError("not a private key of secp256k1")
    return scalar


def scalar_bytes(scalar: Any) -> bytes:
    return bytes(ffi.buffer(scalar))


def wipe(scalar: Any) -> None:
    """Overwrite the scalar's own buffer."""
    ffi.memmove(scalar, bytes(SCALAR_BYTES), SCALAR_BYTES)


def add_scalar(scalar: Any, other: Any) -> None:
    """Add `other` to `scalar` in place, mod n, in constant time. Raises ValueError when the sum is zero."""
    if not lib.secp256k1_ec_seckey_tweak_add(CONTEXT, scalar, other):
        raise ValueError("the key shares add up to zero")


def point_of(scalar: Any) -> Any:
    """Return scalar·G."""
    point = ffi.new(_POINT)
    if not lib.secp256k1_ec_pubkey_create(CONTEXT, point, scalar):
        raise ValueError("not a private key of secp256k1")
    return point


def parse_compressed(data: bytes) -> Any | None:
    """Return the point, or None unless the bytes are its 33-byte SEC1 form."""
    return _parse(data) if len(data) == PUBLIC_KEY_BYTES else None


def parse_uncompressed(data: bytes) -> Any | None:
    """Return the point, or None unless the bytes are its 65-byte SEC1 form; the library's hybrid forms are refused."""
    return _parse(data) if len(data) == KEM_KEY_BYTES and data[0] == 4 else None


def _parse(data: bytes) -> Any | None:
    point = ffi.new(_POINT)
    return point if lib.secp256k1_ec_pubkey_parse(CONTEXT, point, data, len(data)) else None


def compressed(point: Any) -> bytes:
    return _serialize(point, PUBLIC_KEY_BYTES, _COMPRESSED)


def uncompressed(point: Any) -> bytes:
    return _serialize(point, KEM_KEY_BYTES, _UNCOMPRESSED)


def _serialize(point: Any, size: int, flag: int) -> bytes:
    output = ffi.new("unsigned char[]", size)
    length = ffi.new("size_t *", size)
    lib.secp256k1_ec_pubkey_serialize(CONTEXT, output, length, point, flag)
    return bytes(ffi.buffer(output))


def combine(points: list[Any]) -> Any | None:
    """Return the sum of one or more points, or None when it is the point at infinity."""
    total = ffi.new(_POINT)
    pointers = ffi.new("secp256k1_pubkey *[]", points)
    return total if lib.secp256k1_ec_pubkey_combine(CONTEXT, total, pointers, len(points)) else None


def times(point: Any, scalar: bytes) -> Any:
    """Return scalar·point, not in constant time. Raises ValueError unless 0 < scalar < n."""
    product = ffi.new(_POINT)
    ffi.memmove(product, point, ffi.sizeof("secp256k1_pubkey"))
    if len(scalar) != SCALAR_BYTES or not lib.secp256k1_ec_pubkey_tweak_mul(CONTEXT, product, scalar):
        raise ValueError("not a scalar of secp256k1")
    return product


def sign(scalar: Any, digest: bytes) -> bytes:
    """Return the RFC 6979, low-S signature of a 32-byte digest as r || s."""
    if len(digest) != HASH_BYTES:
        raise ValueError(f"a digest has {HASH_BYTES} bytes")
    signature = ffi.new(_SIGNATURE)
    if not lib.secp256k1_ecdsa_sign(CONTEXT, signature, digest, scalar, _NULL, _NULL):
        raise ValueError("not a private key of secp256k1")
    output = ffi.new(_COMPACT)
    lib.secp256k1_ecdsa_signature_serialize_compact(CONTEXT, output, signature)
    return bytes(ffi.buffer(output, SIGNATURE_BYTES))


def _keep_x(output: Any, x: Any, _y: Any, _data: Any) -> int:
    ffi.memmove(output, x, SCALAR_BYTES)
    return 1


_KEEP_X: Final = ffi.callback("int(unsigned char *, const unsigned char *, const unsigned char *, void *)", _keep_x)
"""libsecp256k1 hashes the shared point by default; RFC 9180 wants its x coordinate as it is."""


def shared_x(scalar: Any, point: Any) -> bytes:
    """Return the x coordinate of scalar·point (SEC1 3.3.1), in constant time."""
    output = ffi.new(_SCALAR)
    if not lib.secp256k1_ecdh(CONTEXT, output, point, scalar, _KEEP_X, _NULL):
        raise ValueError("not a private key of secp256k1")
    return bytes(ffi.buffer(output))
