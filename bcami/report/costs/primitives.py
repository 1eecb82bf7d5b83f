"""Symmetric primitives on this machine, with which formulas of papers are priced."""

import hashlib
import hmac
import os
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from bcami.crypto.hpke import KemSecretKey, open_from, seal_to
from bcami.crypto.keys import SecretKey
from bcami.crypto.signatures import verify
from bcami.report.document import Column, Measured, Row, Table
from bcami.report.measuring import Effort, cpu_us


@dataclass(frozen=True, slots=True)
class Symmetric:
    """Microseconds for one operation on a 128-bit value."""

    hash: Measured
    hmac: Measured
    xor: Measured
    random: Measured
    seal: Measured
    wrap: Measured


def measure_symmetric(effort: Effort) -> Symmetric:
    """Return what SHA-256, HMAC, XOR, 128 random bits, AES-GCM and AES key wrap take here."""
    key, block, nonce = bytes(range(16)), bytes(range(16, 32)), bytes(12)
    aead, left, right = AESGCM(key), int.from_bytes(key, "big"), int.from_bytes(block, "big")
    return Symmetric(
        hash=cpu_us(lambda: hashlib.sha256(block).digest(), effort.samples),
        hmac=cpu_us(lambda: hmac.digest(key, block, "sha256"), effort.samples),
        xor=cpu_us(lambda: (left ^ right).to_bytes(16, "big"), effort.samples),
        random=cpu_us(lambda: os.urandom(16), effort.samples),
        seal=cpu_us(lambda: aead.encrypt(nonce, block, b""), effort.samples),
        wrap=cpu_us(lambda: aes_key_wrap(key, block), effort.samples),
    )


@dataclass(frozen=True, slots=True)
class Asymmetric:
    """Microseconds for one operation."""

    seal: Measured
    """HPKE, one key to one public key, encapsulation included."""
    open: Measured
    sign: Measured
    verify: Measured


def measure_asymmetric(effort: Effort) -> Asymmetric:
    """Return what HPKE of one 128-bit key and ECDSA take here, both on secp256k1."""
    key, kem, digest = SecretKey.generate(bytes(32)), KemSecretKey.generate(bytes(range(32))), bytes(range(32))
    encapsulation, sealed = seal_to(kem.public_key, b"", b"", bytes(16), digest)
    signature = key.sign(digest)
    return Asymmetric(
        seal=cpu_us(lambda: seal_to(kem.public_key, b"", b"", bytes(16), digest), effort.samples),
        open=cpu_us(lambda: open_from(encapsulation, kem, b"", b"", sealed), effort.samples),
        sign=cpu_us(lambda: key.sign(digest), effort.samples),
        verify=cpu_us(lambda: verify(key.public_key, signature, digest), effort.samples),
    )


def symmetric_table(found: Symmetric) -> Table:
    """Return the primitives as a table."""
    rows = (
        ("H: SHA-256 of 128 bits", found.hash, "hashlib"),
        ("HMAC-SHA-256 of 128 bits", found.hmac, "hmac.digest"),
        ("XOR of 128 bits", found.xor, "Python integers"),
        ("R, Kgen: 128 random bits", found.random, "the operating system's generator"),
        ("E: AES-128-GCM of 128 bits", found.seal, "cryptography"),
        ("AES key wrap of 128 bits", found.wrap, "cryptography, RFC 3394"),
    )
    return Table(
        "symmetric_primitives",
        "Symmetric primitives on this machine",
        (Column("primitive", "Primitive"), Column("cpu_us", "CPU time, µs", "measured")),
        tuple(Row((name, value), method) for name, value, method in rows),
        text="Most of each figure is Python calling the library, not the primitive.",
    )
