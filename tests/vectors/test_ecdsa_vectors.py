"""Published ECDSA answers: deterministic signatures, and Wycheproof's crafted ones under the low-S rule."""

from hashlib import sha256

import pytest
from coincurve import PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from bcami.crypto.keys import SecretKey
from bcami.crypto.signatures import verify
from tests.shared import wycheproof

N = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141

# RFC 6979 has no vectors for this curve; these are the community's (bitcointalk 285142; bitcoinjs fixtures).
DETERMINISTIC = [
    (
        1,
        b"Satoshi Nakamoto",
        (
            "934b1ea10a4b3c1757e2b0c017d0b6143ce3c9a7e6a4a49860d7a6ab210ee3d8"
            "2442ce9d2b916064108014783e923ec36b49743e2ffa1c4496f01a512aafd9e5"
        ),
    ),
    (
        1,
        b"All those moments will be lost in time, like tears in rain. Time to die...",
        (
            "8600dbd41e348fe5c9465ab92d23e3db8b98b873beecd930736488696438cb6b"
            "547fe64427496db33bf66019dacbf0039c04199abb0122918601db38a72cfc21"
        ),
    ),
    (
        N - 1,
        b"Satoshi Nakamoto",
        (
            "fd567d121db66e382991534ada77a6bd3106f0a1098c231e47993447cd6af2d0"
            "6b39cd0eb1bc8603e159ef5c20a5c8ad685a45b06ce9bebed3f153d10d93bed5"
        ),
    ),
]


@pytest.mark.parametrize(("scalar", "message", "signature"), DETERMINISTIC)
def test_rfc_6979_signatures(scalar, message, signature):
    key = SecretKey.from_scalar_bytes(scalar.to_bytes(32, "big"))
    digest = sha256(message).digest()
    assert key.sign(digest).hex() == signature
    assert verify(key.public_key, bytes.fromhex(signature), digest)


def test_the_high_s_form_of_a_valid_signature_is_refused():
    # Wycheproof ecdsa_secp256k1_sha256_bitcoin, tcId 1: valid ECDSA, malleable.
    key = _compressed(
        "04b838ff44e5bc177bf21189d0766082fc9d843226887fc9760371100b7ee20a6f"
        "f0c9d75bfba7b31a6bca1974496eeb56de357071955d83c4b1badaa0b21832e9"
    )
    digest = sha256(b"123400").digest()
    r = "813ef79ccefa9a56f7ba805f0e478584fe5f0dd5f567bc09b5123ccbc9832365"
    high = 0x900E75AD233FCC908509DBFF5922647DB37C21F4AFD3203AE8DC4AE7794B0F87
    assert not verify(key, bytes.fromhex(r) + high.to_bytes(32, "big"), digest)
    assert verify(key, bytes.fromhex(r) + (N - high).to_bytes(32, "big"), digest)


def test_wycheproof_p1363():
    accepted = refused_high = refused = 0
    for group, test in wycheproof("wycheproof_ecdsa_secp256k1_sha256_p1363_test.json"):
        signature = bytes.fromhex(test["sig"])
        key = _compressed(group["publicKey"]["uncompressed"])
        high = len(signature) == 64 and int.from_bytes(signature[32:], "big") > N // 2
        valid = verify(key, signature, sha256(bytes.fromhex(test["msg"])).digest())
        assert valid == (test["result"] == "valid" and not high), test["tcId"]
        accepted += valid
        refused_high += test["result"] == "valid" and high
        refused += test["result"] == "invalid"
    assert (accepted + refused_high, refused) == (167, 85)
    assert accepted > 50
    assert refused_high > 50


def test_wycheproof_bitcoin():
    accepted = refused = other_form = 0
    for group, test in wycheproof("wycheproof_ecdsa_secp256k1_sha256_bitcoin_test.json"):
        key = _compressed(group["publicKey"]["uncompressed"])
        signature = _from_der(bytes.fromhex(test["sig"]))
        if signature is None:
            assert test["result"] == "invalid", test["tcId"]
            other_form += 1
            continue
        valid = verify(key, signature, sha256(bytes.fromhex(test["msg"])).digest())
        assert valid == (test["result"] == "valid"), test["tcId"]
        accepted += valid
        refused += not valid
    assert (accepted, refused + other_form) == (162, 301)
    assert refused > 20


def _compressed(uncompressed: str) -> bytes:
    return PublicKey(bytes.fromhex(uncompressed)).format()


def _from_der(der: bytes) -> bytes | None:
    """Return r || s, or None when the bytes are not the one DER form or do not fit into 64 bytes."""
    try:
        r, s = decode_dss_signature(der)
        if encode_dss_signature(r, s) != der:
            return None
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")
    except (ValueError, OverflowError):
        return None
