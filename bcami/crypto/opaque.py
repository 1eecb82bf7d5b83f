"""A private scalar that cannot leak by accident, and the token that lets it out on purpose.

Python cannot hide memory from code that means to look. What it can do is make sure that no log line, traceback,
f-string, pickle, copy or comparison carries a key. Whoever needs the bytes imports `SECRET_ACCESS` by name, and a test
lists who does.
"""

from typing import Any, ClassVar, Final, NoReturn, Self, final

from bcami.crypto import hkdf, native

ENTROPY_BYTES_MIN: Final = 32


@final
class SecretAccess:
    """The type of the one token."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "SECRET_ACCESS"


SECRET_ACCESS: Final = SecretAccess()


def require_access(token: SecretAccess) -> None:
    """Raise TypeError unless the caller holds the token."""
    if token is not SECRET_ACCESS:
        raise TypeError("a secret is handed out against SECRET_ACCESS only")


class Opaque:
    """Base of everything secret: refuses to be shown, compared, copied or pickled."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(secret)"

    def __str__(self) -> str:
        return repr(self)

    def __format__(self, spec: str, /) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        raise TypeError("secrets are not compared; compare public keys")

    __hash__ = None  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any, /) -> NoReturn:
        raise TypeError("a secret is neither pickled nor copied; export it with SECRET_ACCESS")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a secret is neither pickled nor copied; export it with SECRET_ACCESS")


class Scalar(Opaque):
    """A private key of secp256k1, kept in a buffer that `destroy` overwrites."""

    __slots__ = ("_public", "_scalar")

    _scalar: Any
    _public: bytes
    _label: ClassVar[bytes]
    """Domain of `generate`, so that no two kinds of key come from the same entropy."""

    def __init__(self) -> None:
        raise TypeError(f"a {type(self).__name__} comes from generate() or from_scalar_bytes()")

    @classmethod
    def _adopt(cls, scalar: Any) -> Self:
        key = object.__new__(cls)
        key._scalar = scalar
        key._public = cls._encode(native.point_of(scalar))
        return key

    @staticmethod
    def _encode(point: Any) -> bytes:
        return native.compressed(point)

    @classmethod
    def from_scalar_bytes(cls, data: bytes) -> Self:
        """Return the key of a 32-byte big-endian scalar. Raises ValueError unless 0 < scalar < n."""
        return cls._adopt(native.new_scalar(data))

    @classmethod
    def generate(cls, entropy: bytes) -> Self:
        """Return a key derived by HKDF from all of `entropy`: OS randomness, with stored secrets behind it to hedge.

        The same entropy gives the same key (protocol 2.4). Raises ValueError below 32 bytes.
        """
        return cls._adopt(_derive_scalar(entropy, cls._label))

    @property
    def public_key(self) -> bytes:
        return self._public

    def destroy(self) -> None:
        """Overwrite the key; every later use raises ValueError."""
        native.wipe(self._scalar)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(public {self._public[:8].hex()}…)"


def _derive_scalar(entropy: bytes, label: bytes) -> Any:
    if len(entropy) < ENTROPY_BYTES_MIN:
        raise ValueError(f"a key needs at least {ENTROPY_BYTES_MIN} bytes of entropy")
    root = hkdf.extract(label, entropy)
    for attempt in range(256):  # 2^-128 of all 32-byte strings are no scalar
        try:
            return native.new_scalar(hkdf.expand(root, bytes((attempt,)), native.SCALAR_BYTES))
        except ValueError:
            continue
    raise ValueError("no scalar in 256 attempts")
