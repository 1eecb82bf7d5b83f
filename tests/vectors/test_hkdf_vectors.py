"""HKDF-SHA-256 against RFC 5869 and Wycheproof."""

import pytest

from bcami.crypto import hkdf
from tests.shared import wycheproof


def test_rfc_5869_case_1():
    key = hkdf.extract(bytes(range(13)), b"\x0b" * 22)
    assert key.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    output = hkdf.expand(key, bytes(range(0xF0, 0xFA)), 42)
    assert output.hex() == ("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")


def test_rfc_5869_case_3_empty_salt_and_info():
    output = hkdf.derive(b"\x0b" * 22, b"", b"", 42)
    assert output.hex() == ("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8")


def test_wycheproof():
    tests = wycheproof("wycheproof_hkdf_sha256_test.json")
    for _, test in tests:
        inputs = [bytes.fromhex(test[name]) for name in ("ikm", "salt", "info")]
        if test["result"] == "valid":
            assert hkdf.derive(*inputs, test["size"]).hex() == test["okm"], test["tcId"]
        else:
            with pytest.raises(ValueError):
                hkdf.derive(*inputs, test["size"])
    assert len(tests) == 86
