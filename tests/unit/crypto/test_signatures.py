"""ECDSA and point sums: against two independent libraries, and on input that is not what it should be."""

from hashlib import sha256

import ecdsa
import pytest
from ecdsa.ellipticcurve import INFINITY
from ecdsa.util import sigdecode_string, sigencode_string_canonize
from py_ecc.secp256k1 import secp256k1 as pure

from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.crypto.points import point_sum
from bcami.crypto.signatures import is_valid_public_key, verify

N = ecdsa.SECP256k1.order
P = ecdsa.SECP256k1.curve.p()
EDGES = [1, 2, 3, N - 1, N - 2, N // 2, N // 2 + 1, 1 << 255, int("5a" * 32, 16)]
DIGESTS = [
    bytes(32),
    b"\xff" * 32,  # above n: reduced before the nonce is derived [RFC 6979 2.3.4]
    N.to_bytes(32, "big"),
    (N - 1).to_bytes(32, "big"),
    (N + 1).to_bytes(32, "big"),
    sha256(b"reading").digest(),
]


def key_of(scalar: int) -> SecretKey:
    return SecretKey.from_scalar_bytes(scalar.to_bytes(32, "big"))


def compressed(point: tuple[int, int]) -> bytes:
    return bytes((2 + point[1] % 2,)) + point[0].to_bytes(32, "big")


def py_ecc_point(data: bytes) -> tuple[int, int]:
    x = int.from_bytes(data[1:], "big")
    y = pow(x**3 + 7, (P + 1) // 4, P)
    return x, y if y % 2 == data[0] % 2 else P - y


@pytest.mark.parametrize("scalar", EDGES)
def test_public_keys_agree(scalar):
    mine = key_of(scalar).public_key
    theirs = ecdsa.SigningKey.from_secret_exponent(scalar, ecdsa.SECP256k1).verifying_key
    assert mine == theirs.to_string("compressed")
    assert mine == compressed(pure.privtopub(scalar.to_bytes(32, "big")))


@pytest.mark.parametrize("scalar", EDGES)
@pytest.mark.parametrize("digest", DIGESTS, ids=lambda digest: digest.hex()[:8])
def test_signatures_agree_with_ecdsa(scalar, digest):
    key = key_of(scalar)
    theirs = ecdsa.SigningKey.from_secret_exponent(scalar, ecdsa.SECP256k1)
    expected = theirs.sign_digest_deterministic(digest, hashfunc=sha256, sigencode=sigencode_string_canonize)
    assert key.sign(digest) == expected
    assert theirs.verifying_key.verify_digest(expected, digest, sigdecode=sigdecode_string)
    assert verify(key.public_key, expected, digest)


@pytest.mark.parametrize("scalar", EDGES[:4])
def test_py_ecc_recovers_the_signer(scalar):
    digest = sha256(b"reading").digest()
    key = key_of(scalar)
    signature = key.sign(digest)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    recovered = {compressed(pure.ecdsa_raw_recover(digest, (v, r, s))) for v in (27, 28)}
    assert key.public_key in recovered

    v, r, s = pure.ecdsa_raw_sign(digest, scalar.to_bytes(32, "big"))
    assert v in (27, 28)
    low = min(s, N - s)
    assert verify(key.public_key, r.to_bytes(32, "big") + low.to_bytes(32, "big"), digest)
    assert not verify(key.public_key, r.to_bytes(32, "big") + (N - low).to_bytes(32, "big"), digest)


def test_point_sums_agree():
    points = [key_of(scalar).public_key for scalar in EDGES[:8]]
    by_ecdsa, by_py_ecc = INFINITY, None
    for count, data in enumerate(points, start=1):
        by_ecdsa = ecdsa.VerifyingKey.from_string(data, ecdsa.SECP256k1).pubkey.point + by_ecdsa
        point = py_ecc_point(data)
        by_py_ecc = point if by_py_ecc is None else pure.add(by_py_ecc, point)
        total = point_sum(points[:count])
        if by_ecdsa == INFINITY:
            assert total is None
            by_py_ecc = None
            continue
        assert total == by_ecdsa.to_bytes("compressed")
        assert total == compressed(by_py_ecc)


def test_point_sums_that_are_none():
    one, minus_one = key_of(1).public_key, key_of(N - 1).public_key
    assert point_sum([]) is None
    assert point_sum([one, minus_one]) is None
    assert point_sum([one, bytes(33)]) is None
    assert point_sum([one]) == one
    assert point_sum([one, one]) == key_of(2).public_key
    assert point_sum([one, minus_one, one]) == one


def x_off_the_curve() -> int:
    return next(x for x in range(1, 100) if pow(x**3 + 7, (P - 1) // 2, P) != 1)


BAD_KEYS = {
    "empty": b"",
    "zeros": bytes(33),
    "short": key_of(5).public_key[:-1],
    "long": key_of(5).public_key + b"\x00",
    "uncompressed": ecdsa.SigningKey.from_secret_exponent(5, ecdsa.SECP256k1).verifying_key.to_string("uncompressed"),
    "hybrid": ecdsa.SigningKey.from_secret_exponent(5, ecdsa.SECP256k1).verifying_key.to_string("hybrid"),
    "tag": b"\x05" + key_of(5).public_key[1:],
    "x_is_p": b"\x02" + P.to_bytes(32, "big"),
    "x_above_p": b"\x02" + (P + 1).to_bytes(32, "big"),
    "off_the_curve": b"\x02" + x_off_the_curve().to_bytes(32, "big"),
}


@pytest.mark.parametrize("data", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_bad_public_keys(data):
    digest = sha256(b"reading").digest()
    assert not is_valid_public_key(data)
    assert not verify(data, key_of(5).sign(digest), digest)
    assert not verify(data, key_of(5).sign(digest), digest)  # the second answer comes from the cache
    assert point_sum([data]) is None


def with_s(signature: bytes, s: int) -> bytes:
    return signature[:32] + s.to_bytes(32, "big")


def test_bad_signatures():
    digest = sha256(b"reading").digest()
    key = key_of(5)
    good = key.sign(digest)
    r, s = int.from_bytes(good[:32], "big"), int.from_bytes(good[32:], "big")
    assert verify(key.public_key, good, digest)
    assert s <= N // 2
    bad = [
        b"",
        good[:-1],
        good + b"\x00",
        good + good,
        bytes(64),
        b"\xff" * 64,
        with_s(good, 0),
        with_s(good, N - s),
        with_s(good, N),
        with_s(good, s + 1),
        bytes(32) + good[32:],
        N.to_bytes(32, "big") + good[32:],
        (r ^ 1).to_bytes(32, "big") + good[32:],
        good[32:] + good[:32],
    ]
    for signature in bad:
        assert not verify(key.public_key, signature, digest), signature.hex()
    for other in (b"", digest[:-1], digest + b"\x00", sha256(b"other").digest()):
        assert not verify(key.public_key, good, other)
    assert not verify(key_of(6).public_key, good, digest)


def test_an_r_above_n_is_refused():
    """Taken mod n it would be another form of the same signature."""
    digest = sha256(b"reading").digest()
    s = key_of(5).sign(digest)[32:]
    for r in (N, N + 1, N + 3, (1 << 256) - 1):
        assert not verify(key_of(5).public_key, r.to_bytes(32, "big") + s, digest)


def test_low_s_for_many_messages():
    """About half of raw RFC 6979 signatures are high-S: ours never are."""
    key = key_of(int("5a" * 32, 16))
    raw_key = ecdsa.SigningKey.from_secret_exponent(int("5a" * 32, 16), ecdsa.SECP256k1)
    turned = 0
    for place in range(40):
        digest = sha256(bytes((place,))).digest()
        raw = raw_key.sign_digest_deterministic(digest, hashfunc=sha256)
        mine = key.sign(digest)
        assert int.from_bytes(mine[32:], "big") <= N // 2
        turned += raw != mine
        assert verify(key.public_key, raw, digest) == (raw == mine)
    assert 5 < turned < 35
    assert export_secret(key, SECRET_ACCESS) == b"\x5a" * 32
