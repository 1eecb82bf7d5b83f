"""Signing keys: ECDSA over secp256k1, one key for one use (design D8, protocol 1.3)."""

from pathlib import Path
from typing import ClassVar, final

from bcami.crypto import keyfile, native
from bcami.crypto.keyfile import write_private
from bcami.crypto.opaque import SECRET_ACCESS, Scalar, SecretAccess, require_access

__all__ = [
    "SECRET_ACCESS",
    "SecretAccess",
    "SecretKey",
    "export_secret",
    "load_secret",
    "load_secret_bytes",
    "save_secret",
    "save_secret_bytes",
    "write_private",
]


@final
class SecretKey(Scalar):
    """Signs. `public_key` is the 33-byte compressed point."""

    __slots__ = ()

    _label: ClassVar[bytes] = b"bcami/signing_key/1"

    def sign(self, digest: bytes) -> bytes:
        """Return the 64-byte compact signature of a 32-byte digest: deterministic [RFC 6979 3.2], s ≤ n/2."""
        return native.sign(self._scalar, digest)

    def plus(self, *shares: "SecretKey") -> "SecretKey":
        """Return the key whose scalar is the sum mod n, and whose point therefore is the sum of points (D7 step 3).

        Raises ValueError when the sum is zero.
        """
        total = native.new_scalar(native.scalar_bytes(self._scalar))
        for share in shares:
            native.add_scalar(total, share._scalar)  # noqa: SLF001  the same class
        return SecretKey._adopt(total)


def export_secret(key: Scalar, token: SecretAccess) -> bytes:
    """Return the 32-byte scalar to a caller who holds SECRET_ACCESS."""
    require_access(token)
    return native.scalar_bytes(key._scalar)  # noqa: SLF001  the one way out


def save_secret(path: Path, key: Scalar, kind: str, *, replace: bool = False) -> None:
    """Store a private key of any class under its kind; see `keyfile.write_secret` for what holds afterwards."""
    keyfile.write_secret(path, kind, export_secret(key, SECRET_ACCESS), replace=replace)


def load_secret(path: Path, kind: str) -> SecretKey:
    """Return the signing key. Raises InputError or EnvironmentFault that names the file, never its contents."""
    try:
        return SecretKey.from_scalar_bytes(keyfile.read_secret(path, kind))
    except ValueError:
        raise keyfile.damaged_key(path) from None


def save_secret_bytes(path: Path, secret: bytes, kind: str, *, replace: bool = False) -> None:
    """Store a symmetric secret, such as the HID network key."""
    keyfile.write_secret(path, kind, secret, replace=replace)


def load_secret_bytes(path: Path, kind: str) -> bytes:
    """Return a symmetric secret. Raises InputError or EnvironmentFault that names the file, never its contents."""
    return keyfile.read_secret(path, kind)
