"""HPKE base mode [RFC 9180] with KEM 0x0016 DHKEM(secp256k1, HKDF-SHA256), HKDF-SHA256 and AES-128-GCM (design D8).

The KEM is the IANA registry's [draft-wahby-cfrg-hpke-kem-secp256k1-01]: 65-byte uncompressed points, a DH output of 32
bytes (the x coordinate), DeriveKeyPair with bitmask 0xff. Two things differ from the RFC's interface, not its bytes:

- The sequence number is an argument, because reports arrive in any order and a meter's number outlives the process
  (protocol 3.1). A sealing context refuses a number at or below the last one it sealed; across restarts the meter's
  durable reservation is what prevents a second use.
- The ephemeral key is derived from the caller's `ephemeral_ikm` (hedged, protocol 2.4), so nothing here is random.
"""

from pathlib import Path
from typing import Any, ClassVar, Final, Self, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bcami.crypto import hkdf, keyfile, native
from bcami.crypto.opaque import ENTROPY_BYTES_MIN, Opaque, Scalar, SecretAccess, require_access
from bcami.errors import MalformedError

KEM_ID: Final = 0x0016
KDF_ID: Final = 0x0001
AEAD_ID: Final = 0x0001
SECRET_BYTES: Final = 32
"""Nsecret and Nh."""
KEY_BYTES: Final = 16
"""Nk of AES-128-GCM [RFC 9180 7.3]."""
NONCE_BYTES: Final = 12
"""Nn."""
TAG_BYTES: Final = 16
"""Nt."""
SEQUENCE_MAX: Final = 2**63 - 1

_KEM_SUITE: Final = b"KEM" + KEM_ID.to_bytes(2, "big")
_SUITE: Final = b"HPKE" + b"".join(item.to_bytes(2, "big") for item in (KEM_ID, KDF_ID, AEAD_ID))
_MODE_BASE: Final = b"\x00"
_CONTEXT_VERSION: Final = b"\x01"
_CONTEXT_BYTES: Final = 1 + KEY_BYTES + NONCE_BYTES + SECRET_BYTES


class OpenError(MalformedError):
    """A ciphertext or an encapsulation was not made for this key, info, associated data and sequence."""


# Labelled HKDF [RFC 9180 4].


def _labeled_extract(suite: bytes, salt: bytes, label: bytes, input_key: bytes) -> bytes:
    return hkdf.extract(salt, b"HPKE-v1" + suite + label + input_key)


def _labeled_expand(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    return hkdf.expand(key, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)


# The KEM [RFC 9180 4.1, 7.1].


@final
class KemSecretKey(Scalar):
    """Opens what is sealed to it. `public_key` is the 65-byte uncompressed point."""

    __slots__ = ()

    _label: ClassVar[bytes] = b"bcami/kem_key/1"

    @staticmethod
    def _encode(point: Any) -> bytes:
        return native.uncompressed(point)

    @classmethod
    def derive(cls, ikm: bytes) -> Self:
        """Return DeriveKeyPair(ikm) [RFC 9180 7.1.3]. Raises ValueError below 32 bytes."""
        if len(ikm) < ENTROPY_BYTES_MIN:
            raise ValueError(f"key material has at least {ENTROPY_BYTES_MIN} bytes")
        root = _labeled_extract(_KEM_SUITE, b"", b"dkp_prk", ikm)
        for counter in range(256):
            candidate = _labeled_expand(_KEM_SUITE, root, b"candidate", bytes((counter,)), native.SCALAR_BYTES)
            try:
                return cls.from_scalar_bytes(candidate)
            except ValueError:
                continue
        raise ValueError("no key in 256 candidates")

    def shared_x(self, point: Any) -> bytes:
        """Return DH(self, point): the x coordinate [RFC 9180 7.1.1]."""
        return native.shared_x(self._scalar, point)


def is_valid_kem_key(data: bytes) -> bool:
    """Tell whether the bytes are an uncompressed point on the curve, not infinity [RFC 9180 7.1.4]."""
    return native.parse_uncompressed(data) is not None


def load_kem_secret(path: Path, kind: str) -> KemSecretKey:
    """Return the KEM key that `keys.save_secret` stored; errors name the file, never its contents."""
    try:
        return KemSecretKey.from_scalar_bytes(keyfile.read_secret(path, kind))
    except ValueError:
        raise keyfile.damaged_key(path) from None


def _shared_secret(dh: bytes, encapsulation: bytes, public_key: bytes) -> bytes:
    """Return ExtractAndExpand(dh, enc || pkRm) [RFC 9180 4.1]."""
    root = _labeled_extract(_KEM_SUITE, b"", b"eae_prk", dh)
    return _labeled_expand(_KEM_SUITE, root, b"shared_secret", encapsulation + public_key, SECRET_BYTES)


# The key schedule [RFC 9180 5.1], mode base: empty psk and psk_id.

_PSK_ID_HASH: Final = _labeled_extract(_SUITE, b"", b"psk_id_hash", b"")


def _key_schedule(shared_secret: bytes, info: bytes) -> bytes:
    """Return the context's stored form."""
    context = _MODE_BASE + _PSK_ID_HASH + _labeled_extract(_SUITE, b"", b"info_hash", info)
    secret = _labeled_extract(_SUITE, shared_secret, b"secret", b"")
    key = _labeled_expand(_SUITE, secret, b"key", context, KEY_BYTES)
    nonce = _labeled_expand(_SUITE, secret, b"base_nonce", context, NONCE_BYTES)
    exporter = _labeled_expand(_SUITE, secret, b"exp", context, SECRET_BYTES)
    return _CONTEXT_VERSION + key + nonce + exporter


# Contexts [RFC 9180 5.2, 5.3].


class _Context(Opaque):
    """Key, base nonce and exporter secret of one encapsulation."""

    __slots__ = ("_aead", "_base_nonce", "_stored")

    _aead: AESGCM
    _base_nonce: int
    _stored: bytes

    def __init__(self) -> None:
        raise TypeError(f"a {type(self).__name__} comes from a setup or from from_secret_bytes()")

    @classmethod
    def _restore(cls, stored: bytes) -> Self:
        context = object.__new__(cls)
        context._stored = stored
        context._aead = AESGCM(stored[1 : 1 + KEY_BYTES])
        context._base_nonce = int.from_bytes(stored[1 + KEY_BYTES : 1 + KEY_BYTES + NONCE_BYTES], "big")
        return context

    @classmethod
    def from_secret_bytes(cls, data: bytes) -> Self:
        """Take up a stored context. Raises MalformedError on another length or version."""
        if len(data) != _CONTEXT_BYTES or data[:1] != _CONTEXT_VERSION:
            raise MalformedError("not a stored HPKE context")
        return cls._restore(data)

    def to_secret_bytes(self, token: SecretAccess) -> bytes:
        """Return the 61 bytes that `from_secret_bytes` takes, to a caller who holds SECRET_ACCESS."""
        require_access(token)
        return self._stored

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """Return a secret that both sides have and that no ciphertext uses [RFC 9180 5.3]."""
        return _labeled_expand(_SUITE, self._stored[-SECRET_BYTES:], b"sec", exporter_context, length)

    def _nonce(self, sequence: int) -> bytes:
        """Return base_nonce XOR sequence [RFC 9180 5.2, ComputeNonce]."""
        if not 0 <= sequence <= SEQUENCE_MAX:
            raise ValueError("a sequence number is from 0 to 2^63 - 1")
        return (self._base_nonce ^ sequence).to_bytes(NONCE_BYTES, "big")


@final
class SealingContext(_Context):
    """The sender's side."""

    __slots__ = ("_sealed",)

    _sealed: int
    """Highest sequence sealed by this object."""

    @classmethod
    def _restore(cls, stored: bytes) -> Self:
        context = super()._restore(stored)
        context._sealed = -1  # noqa: SLF001
        return context

    def seal(self, sequence: int, aad: bytes, plaintext: bytes) -> bytes:
        """Return the ciphertext and its tag. Raises ValueError unless `sequence` is above the last one sealed here."""
        nonce = self._nonce(sequence)
        if sequence <= self._sealed:
            raise ValueError(f"sequence {sequence} is not above {self._sealed}: a nonce is never used twice")
        self._sealed = sequence
        return self._aead.encrypt(nonce, plaintext, aad)


@final
class OpeningContext(_Context):
    """The receiver's side: opens in any order, any number of times; replay is the caller's to stop."""

    __slots__ = ()

    def open(self, sequence: int, aad: bytes, ciphertext: bytes) -> bytes:
        """Return the plaintext. Raises OpenError when key, sequence, associated data or ciphertext differ."""
        try:
            return self._aead.decrypt(self._nonce(sequence), ciphertext, aad)
        except (InvalidTag, ValueError):
            raise OpenError("the ciphertext does not open") from None


# Setup [RFC 9180 5.1.1] and one-shot forms [RFC 9180 6.1].


def setup_sender(public_key: bytes, info: bytes, ephemeral_ikm: bytes) -> tuple[bytes, SealingContext]:
    """Return (enc, context). Raises MalformedError when the key is no point, ValueError below 32 bytes of material.

    The same `ephemeral_ikm` gives the same key and nonces: never pass it twice for different plaintexts.
    """
    point = native.parse_uncompressed(public_key)
    if point is None:
        raise MalformedError("not an uncompressed point of secp256k1")
    ephemeral = KemSecretKey.derive(ephemeral_ikm)
    shared = _shared_secret(ephemeral.shared_x(point), ephemeral.public_key, public_key)
    ephemeral.destroy()
    return ephemeral.public_key, SealingContext._restore(_key_schedule(shared, info))  # noqa: SLF001


def setup_receiver(encapsulation: bytes, secret: KemSecretKey, info: bytes) -> OpeningContext:
    """Return the context that opens. Raises OpenError when the encapsulation is no point of the curve."""
    point = native.parse_uncompressed(encapsulation)
    if point is None:
        raise OpenError("the encapsulation is not an uncompressed point of secp256k1")
    shared = _shared_secret(secret.shared_x(point), encapsulation, secret.public_key)
    return OpeningContext._restore(_key_schedule(shared, info))  # noqa: SLF001


def seal_to(public_key: bytes, info: bytes, aad: bytes, plaintext: bytes, ephemeral_ikm: bytes) -> tuple[bytes, bytes]:
    """Return (enc, ciphertext) of a single message."""
    encapsulation, context = setup_sender(public_key, info, ephemeral_ikm)
    return encapsulation, context.seal(0, aad, plaintext)


def open_from(encapsulation: bytes, secret: KemSecretKey, info: bytes, aad: bytes, ciphertext: bytes) -> bytes:
    """Return the plaintext of a single message. Raises OpenError."""
    return setup_receiver(encapsulation, secret, info).open(0, aad, ciphertext)
