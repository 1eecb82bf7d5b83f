"""HPKE contexts: what opens, what does not, and that a nonce is not used twice. Vectors: tests/vectors."""

import traceback

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from bcami.crypto import native
from bcami.crypto.hpke import (
    SEQUENCE_MAX,
    KemSecretKey,
    OpenError,
    OpeningContext,
    SealingContext,
    is_valid_kem_key,
    open_from,
    seal_to,
    setup_receiver,
    setup_sender,
)
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.errors import MalformedError

RECEIVER = KemSecretKey.generate(b"receiver" * 4)
INFO = b"chain hid session key id"
AAD = b"hid session sequence timestamp"
REPORT = bytes(20)


@pytest.fixture
def contexts():
    encapsulation, sealing = setup_sender(RECEIVER.public_key, INFO, b"ephemeral material of the meter!")
    return sealing, setup_receiver(encapsulation, RECEIVER, INFO)


def test_sealed_reports_open_in_any_order(contexts):
    sealing, opening = contexts
    sequences = [0, 1, 2, 7, 1024, SEQUENCE_MAX]
    sealed = [sealing.seal(sequence, AAD, REPORT) for sequence in sequences]
    assert all(len(item) == len(REPORT) + 16 for item in sealed)
    assert len(set(sealed)) == len(sealed)
    for sequence, ciphertext in reversed(list(zip(sequences, sealed, strict=True))):
        assert opening.open(sequence, AAD, ciphertext) == REPORT
        assert opening.open(sequence, AAD, ciphertext) == REPORT


def test_a_sequence_is_sealed_once(contexts):
    sealing, _ = contexts
    sealing.seal(5, AAD, REPORT)
    for sequence in (5, 4, 0):
        with pytest.raises(ValueError, match="never used twice"):
            sealing.seal(sequence, AAD, REPORT)
    sealing.seal(6, AAD, REPORT)


@pytest.mark.parametrize("sequence", [-1, SEQUENCE_MAX + 1])
def test_sequences_outside_the_range(contexts, sequence):
    sealing, opening = contexts
    with pytest.raises(ValueError, match="from 0 to"):
        sealing.seal(sequence, AAD, REPORT)
    with pytest.raises(OpenError):
        opening.open(sequence, AAD, bytes(36))


def test_what_does_not_open(contexts):
    sealing, opening = contexts
    ciphertext = sealing.seal(3, AAD, REPORT)
    altered = [ciphertext[:place] + bytes((ciphertext[place] ^ 1,)) + ciphertext[place + 1 :] for place in range(36)]
    cuts = [ciphertext[:size] for size in range(36)]
    for bad in [*altered, *cuts, ciphertext + b"\x00"]:
        with pytest.raises(OpenError):
            opening.open(3, AAD, bad)
    for sequence, aad in ((2, AAD), (4, AAD), (3, AAD + b"x"), (3, b"")):
        with pytest.raises(OpenError):
            opening.open(sequence, aad, ciphertext)


def test_wrong_info_or_key_does_not_open():
    encapsulation, ciphertext = seal_to(RECEIVER.public_key, INFO, AAD, REPORT, bytes(range(32)))
    assert open_from(encapsulation, RECEIVER, INFO, AAD, ciphertext) == REPORT
    other = KemSecretKey.generate(b"somebody" * 4)
    for secret, info in ((RECEIVER, INFO + b"x"), (RECEIVER, b""), (other, INFO)):
        with pytest.raises(OpenError):
            open_from(encapsulation, secret, info, AAD, ciphertext)


def bad_points() -> list[bytes]:
    good = RECEIVER.public_key
    signing = SecretKey.from_scalar_bytes(export_secret(RECEIVER, SECRET_ACCESS))
    return [
        b"",
        bytes(65),
        good[:-1],
        good + b"\x00",
        good[:-1] + bytes((good[-1] ^ 1,)),
        b"\x06" + good[1:],
        b"\x07" + good[1:],
        b"\x04" + b"\xff" * 64,
        signing.public_key,
        signing.public_key + bytes(32),
    ]


@pytest.mark.parametrize("point", bad_points(), ids=lambda point: f"{len(point)}-{point[:1].hex()}")
def test_points_are_validated(point):
    """RFC 9180 7.1.4: on the curve and not infinity; and in the one form of this KEM."""
    assert is_valid_kem_key(RECEIVER.public_key)
    assert not is_valid_kem_key(point)
    with pytest.raises(MalformedError):
        setup_sender(point, INFO, bytes(32))
    with pytest.raises(OpenError):
        setup_receiver(point, RECEIVER, INFO)


def test_the_ephemeral_key_comes_from_the_material_alone():
    first, again = (setup_sender(RECEIVER.public_key, INFO, bytes(32))[0] for _ in range(2))
    assert first == again != setup_sender(RECEIVER.public_key, INFO, b"\x01" * 32)[0]
    with pytest.raises(ValueError, match="at least 32 bytes"):
        setup_sender(RECEIVER.public_key, INFO, bytes(31))


def test_contexts_are_stored_and_taken_up_again(contexts):
    sealing, opening = contexts
    stored = sealing.to_secret_bytes(SECRET_ACCESS)
    assert stored == opening.to_secret_bytes(SECRET_ACCESS)
    ciphertext = SealingContext.from_secret_bytes(stored).seal(9, AAD, REPORT)
    assert OpeningContext.from_secret_bytes(stored).open(9, AAD, ciphertext) == REPORT
    assert opening.open(9, AAD, ciphertext) == REPORT
    for bad in (b"", stored[:-1], stored + b"\x00", b"\x02" + stored[1:]):
        with pytest.raises(MalformedError) as caught:
            OpeningContext.from_secret_bytes(bad)
        assert stored[1:17].hex() not in "".join(traceback.format_exception(caught.value))


def test_exports_agree_and_differ_by_context(contexts):
    sealing, opening = contexts
    assert sealing.export(b"kms", 32) == opening.export(b"kms", 32) != sealing.export(b"other", 32)
    assert len(sealing.export(b"kms", 100)) == 100


def test_the_shared_coordinate_agrees_with_openssl():
    """libsecp256k1 computes the DH; OpenSSL is the oracle."""
    for place in range(1, 6):
        mine = KemSecretKey.generate(bytes((place,)) * 32)
        scalar = int.from_bytes(export_secret(mine, SECRET_ACCESS), "big")
        theirs = ec.derive_private_key(scalar, ec.SECP256K1())
        peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), RECEIVER.public_key)
        assert mine.shared_x(native.parse_uncompressed(RECEIVER.public_key)) == theirs.exchange(ec.ECDH(), peer)
