"""Sizes and bounded types that all records share."""

from typing import Annotated, Final

import msgspec

HASH_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
"""ECDSA compact: r || s, big-endian, s in the lower half."""
PUBLIC_KEY_BYTES: Final = 33
"""SEC1 compressed point."""
KEM_KEY_BYTES: Final = 65
"""SEC1 uncompressed point, as HPKE KEM 0x0016 has it."""
REPLICAS_MAX: Final = 64

U63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Hash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
PublicKey = Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
KemKey = Annotated[bytes, msgspec.Meta(min_length=KEM_KEY_BYTES, max_length=KEM_KEY_BYTES)]
ReplicaId = Annotated[int, msgspec.Meta(ge=0, le=REPLICAS_MAX - 1)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=32, pattern="^[a-z][a-z0-9_-]*$")]

NO_HASH: Final = bytes(HASH_BYTES)
