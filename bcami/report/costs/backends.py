"""The same operations on secp256k1 by several libraries, and a pairing: what the choice of a library costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import coincurve
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from bcami.crypto.hpke import KemSecretKey, setup_sender
from bcami.crypto.keys import SecretKey
from bcami.crypto.signatures import verify
from bcami.faults.simulator.identities import entropy
from bcami.report.document import Chart, Column, Measured, Row, Section, Series, Table, paragraphs
from bcami.report.measuring import Effort, cpu_us

KEYGEN: Final = "key pair"
SIGN: Final = "sign"
VERIFY: Final = "verify"
MULTIPLY: Final = "point multiplication (ECDH)"
PAIRING: Final = "pairing (BN254)"
OPERATIONS: Final = (KEYGEN, SIGN, VERIFY, MULTIPLY, PAIRING)
_DIGEST: Final = sha256(b"report").digest()
_SECRET: Final = entropy("report back end")

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Backend:
    """One library's operations; what it lacks is not in `calls`."""

    name: str
    what: str
    calls: dict[str, Call]


@dataclass(frozen=True, slots=True)
class BackendCosts:
    """Microseconds by library and operation."""

    names: tuple[str, ...]
    what: dict[str, str]
    found: dict[tuple[str, str], Measured]
    missing: tuple[str, ...]
    """Libraries that are not installed."""


def measure_backends(effort: Effort) -> BackendCosts:
    """Return what each library takes for each operation that it has."""
    backends: list[Backend] = [_own(), _coincurve(), _cryptography()]
    missing = []
    for name, make in (("ecdsa", _ecdsa), ("py_ecc", _py_ecc)):
        try:
            backends.append(make())
        except ImportError:
            missing.append(name)
    found = {}
    for backend in backends:
        for operation, call in backend.calls.items():
            is_slow = backend.name in {"ecdsa", "py_ecc"}
            found[backend.name, operation] = cpu_us(call, _samples(effort, operation, is_slow=is_slow))
    return BackendCosts(
        tuple(item.name for item in backends), {item.name: item.what for item in backends}, found, tuple(missing)
    )


def _samples(effort: Effort, operation: str, *, is_slow: bool) -> int:
    if operation == PAIRING:
        return 1 if effort.quick else 5
    return effort.few if is_slow else effort.samples


def _own() -> Backend:
    key, kem = SecretKey.generate(_SECRET), KemSecretKey.generate(_SECRET)
    signature, other = key.sign(_DIGEST), KemSecretKey.generate(_DIGEST)
    numbers = iter(range(10**9))
    return Backend(
        "bcami",
        "libsecp256k1 as coincurve ships it, called directly; parsed keys are kept. Key pair: with HKDF. Point "
        "multiplication: a whole HPKE setup, that is two of them and the key schedule.",
        {
            KEYGEN: lambda: SecretKey.generate(next(numbers).to_bytes(32, "big")),
            SIGN: lambda: key.sign(_DIGEST),
            VERIFY: lambda: verify(key.public_key, signature, _DIGEST),
            MULTIPLY: lambda: setup_sender(kem.public_key, b"", other.public_key),
        },
    )


def _coincurve() -> Backend:
    key, other = coincurve.PrivateKey(_SECRET), coincurve.PrivateKey(_DIGEST)
    signature, public = key.sign(_DIGEST, hasher=None), key.public_key
    point = other.public_key.format()
    return Backend(
        "coincurve",
        "libsecp256k1 through coincurve's own classes, DER signatures.",
        {
            KEYGEN: coincurve.PrivateKey,
            SIGN: lambda: key.sign(_DIGEST, hasher=None),
            VERIFY: lambda: public.verify(signature, _DIGEST, hasher=None),
            MULTIPLY: lambda: key.ecdh(point),
        },
    )


def _cryptography() -> Backend:
    key, other = (ec.derive_private_key(int.from_bytes(item, "big"), ec.SECP256K1()) for item in (_SECRET, _DIGEST))
    scheme = ec.ECDSA(Prehashed(hashes.SHA256()))
    signature, public, exchange = key.sign(_DIGEST, scheme), key.public_key(), ec.ECDH()
    point = other.public_key()
    return Backend(
        "cryptography",
        "OpenSSL, generic code for this curve.",
        {
            KEYGEN: lambda: ec.generate_private_key(ec.SECP256K1()),
            SIGN: lambda: key.sign(_DIGEST, scheme),
            VERIFY: lambda: public.verify(signature, _DIGEST, scheme),
            MULTIPLY: lambda: key.exchange(exchange, point),
        },
    )


def _ecdsa() -> Backend:
    import ecdsa

    curve = ecdsa.SECP256k1
    key = ecdsa.SigningKey.from_string(_SECRET, curve=curve, hashfunc=sha256)
    signature, public = key.sign_digest_deterministic(_DIGEST, hashfunc=sha256), key.verifying_key
    point, scalar = public.pubkey.point, int.from_bytes(_DIGEST, "big")
    return Backend(
        "ecdsa",
        "pure Python; an oracle of the tests.",
        {
            KEYGEN: lambda: ecdsa.SigningKey.generate(curve=curve),
            SIGN: lambda: key.sign_digest_deterministic(_DIGEST, hashfunc=sha256),
            VERIFY: lambda: public.verify_digest(signature, _DIGEST),
            MULTIPLY: lambda: point * scalar,
        },
    )


def _py_ecc() -> Backend:
    from py_ecc.optimized_bn128.optimized_curve import G1, G2
    from py_ecc.optimized_bn128.optimized_curve import multiply as multiply_bn
    from py_ecc.optimized_bn128.optimized_pairing import pairing
    from py_ecc.secp256k1 import secp256k1

    signature = secp256k1.ecdsa_raw_sign(_DIGEST, _SECRET)
    public = secp256k1.privtopub(_SECRET)
    scalar = int.from_bytes(_DIGEST, "big")
    first, second = multiply_bn(G1, 5), multiply_bn(G2, 7)
    return Backend(
        "py_ecc",
        "pure Python; an oracle of the tests. Verify recovers the key. The only one of the five with a pairing.",
        {
            KEYGEN: lambda: secp256k1.privtopub(_SECRET),
            SIGN: lambda: secp256k1.ecdsa_raw_sign(_DIGEST, _SECRET),
            VERIFY: lambda: secp256k1.ecdsa_raw_recover(_DIGEST, signature),
            MULTIPLY: lambda: secp256k1.multiply(public, scalar),
            PAIRING: lambda: pairing(second, first),
        },
    )


def backends_section(costs: BackendCosts) -> Section:
    """Return the comparison of libraries."""
    text = list(
        paragraphs(
            """
            The node and the meter use libsecp256k1 only. The other libraries show what the choice is worth. The pairing
            is there because related schemes count it and no other library here has one; in pure Python it is no measure
            of a pairing in C, which takes a few dozen point multiplications.
            """
        )
    )
    if costs.missing:
        text.append(f"Not installed here: {', '.join(costs.missing)} (`pip install bcami[oracles]`).")
    return Section("backends", "Beyond the papers: crypto libraries", tuple(text), (_table(costs), _chart(costs)))


def _table(costs: BackendCosts) -> Table:
    rows = tuple(
        Row(
            (name, *(costs.found.get((name, operation)) for operation in OPERATIONS)),
            costs.what[name],
        )
        for name in costs.names
    )
    return Table(
        "crypto_backends",
        "ECDSA and ECDH on secp256k1 by library, CPU time in µs",
        (
            Column("library", "Library"),
            *(Column(_key(operation), operation, "measured") for operation in OPERATIONS),
        ),
        rows,
    )


def _key(operation: str) -> str:
    return operation.split(" (", maxsplit=1)[0].replace(" ", "_") + "_us"


def _chart(costs: BackendCosts) -> Chart:
    shown: Sequence[str] = (SIGN, VERIFY, MULTIPLY)
    series = []
    for operation in shown:
        known = [
            (name, costs.found[name, operation].median) for name in costs.names if (name, operation) in costs.found
        ]
        series.append(Series(operation, "measured", tuple(n for n, _ in known), tuple(v for _, v in known)))
    return Chart(
        "crypto_backends_chart",
        "The same operation by library",
        "bars",
        "library",
        "CPU time, µs (log)",
        tuple(series),
        caption="Medians. bcami's point multiplication is a whole HPKE setup: two of them, and the key schedule.",
        y_log=True,
    )
