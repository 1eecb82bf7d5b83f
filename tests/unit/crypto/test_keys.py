"""Private keys: what they can do, and that they cannot leak by accident."""

import contextlib
import copy
import json
import logging
import pickle
import traceback

import msgspec
import pytest

from bcami.crypto import hkdf
from bcami.crypto.hpke import KemSecretKey, OpeningContext, SealingContext, setup_receiver, setup_sender
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.crypto.opaque import SecretAccess
from bcami.crypto.points import point_sum
from bcami.crypto.signatures import Signer, verify
from tests.shared import REPOSITORY

N = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
SCALAR = bytes.fromhex("c0ffee" + "5a" * 29)
DIGEST = bytes(range(32))


def make_secrets():
    """One object of each secret class, with the secret bytes that nothing may show."""
    kem = KemSecretKey.from_scalar_bytes(SCALAR)
    encapsulation, sealing = setup_sender(kem.public_key, b"info", b"\x07" * 32)
    opening = setup_receiver(encapsulation, kem, b"info")
    stored = sealing.to_secret_bytes(SECRET_ACCESS)
    return [
        (SecretKey.from_scalar_bytes(SCALAR), SCALAR),
        (kem, SCALAR),
        (sealing, stored[1:17]),
        (opening, stored[1:17]),
    ]


SECRETS = make_secrets()
IDS = [type(item).__name__ for item, _ in SECRETS]


def assert_hides(text: str, secret: bytes) -> None:
    lowered = text.lower()
    assert secret.hex() not in lowered
    assert repr(secret)[2:-1].lower() not in lowered
    assert str(int.from_bytes(secret, "big")) not in lowered


@pytest.mark.parametrize(("item", "secret"), SECRETS, ids=IDS)
def test_no_text_shows_the_secret(item, secret):
    texts = [repr(item), str(item), f"{item}", f"{item!r:>99}", f"{item:x}", f"{[item]}", "{}".format(item)]  # noqa: UP032
    for text in [*texts, "%s" % item]:  # noqa: UP031
        assert_hides(text, secret)


@pytest.mark.parametrize(("item", "secret"), SECRETS, ids=IDS)
def test_a_log_line_does_not_show_it(item, secret, caplog):
    logging.getLogger("test").warning("got %s and %r", item, item)
    assert_hides(caplog.text, secret)


@pytest.mark.parametrize(("item", "secret"), SECRETS, ids=IDS)
@pytest.mark.parametrize(
    "carry",
    [
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        json.dumps,
        msgspec.msgpack.encode,
        msgspec.to_builtins,
        bytes,
        hash,
        vars,
        list,
    ],
    ids=lambda carry: carry.__name__,
)
def test_nothing_carries_it_away(item, secret, carry):
    with pytest.raises(TypeError) as caught:
        carry(item)
    assert_hides("".join(traceback.format_exception(caught.value)), secret)


@pytest.mark.parametrize(("item", "secret"), SECRETS, ids=IDS)
def test_secrets_are_not_compared(item, secret):
    for other in (item, secret, None):
        with pytest.raises(TypeError):
            _ = item == other
        with pytest.raises(TypeError):
            _ = item != other


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickle_protocol_takes_a_key(protocol):
    with pytest.raises(TypeError, match="neither pickled nor copied"):
        pickle.dumps(SecretKey.from_scalar_bytes(SCALAR), protocol)


@pytest.mark.parametrize("kind", [SecretKey, KemSecretKey, SealingContext, OpeningContext])
def test_secrets_are_not_built_by_hand(kind):
    with pytest.raises(TypeError, match="comes from"):
        kind()


@pytest.mark.parametrize("item", [SECRETS[0][0], SECRETS[1][0]], ids=IDS[:2])
def test_export_needs_the_token(item):
    assert export_secret(item, SECRET_ACCESS) == SCALAR
    for token in (None, True, SecretAccess(), "SECRET_ACCESS"):
        with pytest.raises(TypeError):
            export_secret(item, token)


def test_a_context_needs_the_token():
    for context, _ in SECRETS[2:]:
        with pytest.raises(TypeError):
            context.to_secret_bytes(SecretAccess())


@pytest.mark.parametrize("kind", [SecretKey, KemSecretKey])
@pytest.mark.parametrize("data", [b"", SCALAR[:31], SCALAR + b"\x00", bytes(32), N.to_bytes(32, "big"), b"\xff" * 32])
def test_only_scalars_become_keys_and_errors_do_not_quote_them(kind, data):
    with pytest.raises(ValueError) as caught:
        kind.from_scalar_bytes(data)
    if len(data) > 8:
        assert_hides("".join(traceback.format_exception(caught.value)), data)


@pytest.mark.parametrize("kind", [SecretKey, KemSecretKey])
def test_a_destroyed_key_is_gone(kind):
    key = kind.from_scalar_bytes(SCALAR)
    key.destroy()
    assert export_secret(key, SECRET_ACCESS) == bytes(32)
    with pytest.raises(ValueError):
        if isinstance(key, SecretKey):
            key.sign(DIGEST)
        else:
            setup_receiver(setup_sender(key.public_key, b"", bytes(32))[0], key, b"")


def test_generate_is_hedged_and_deterministic():
    key = SecretKey.generate(b"\x01" * 32 + b"stored")
    assert key.public_key == SecretKey.generate(b"\x01" * 32 + b"stored").public_key
    assert key.public_key != SecretKey.generate(b"\x01" * 32 + b"other").public_key
    assert export_secret(key, SECRET_ACCESS) != export_secret(
        KemSecretKey.generate(b"\x01" * 32 + b"stored"), SECRET_ACCESS
    )
    for kind in (SecretKey, KemSecretKey):
        with pytest.raises(ValueError, match="at least 32 bytes"):
            kind.generate(b"\x01" * 31)
    with pytest.raises(ValueError, match="at least 32 bytes"):
        KemSecretKey.derive(b"\x01" * 31)


def test_candidates_that_are_no_scalar_are_skipped(monkeypatch):
    """RFC 9180 7.1.3: the next counter is tried; about one 32-byte string in 2^128 needs it."""
    real, calls = hkdf.expand, []

    def expand(key, info, length):
        calls.append(info)
        return b"\xff" * 32 if len(calls) % 3 else real(key, info, length)

    monkeypatch.setattr(hkdf, "expand", expand)
    for make in (KemSecretKey.derive, SecretKey.generate):
        calls.clear()
        make(b"\x01" * 32)
        assert [info[-1] for info in calls] == [0, 1, 2]
    monkeypatch.setattr(hkdf, "expand", lambda *_: bytes(32))
    for make in (KemSecretKey.derive, SecretKey.generate):
        with pytest.raises(ValueError, match="in 256"):
            make(b"\x01" * 32)


def test_a_key_is_a_signer():
    signer: Signer = SecretKey.from_scalar_bytes(SCALAR)
    assert verify(signer.public_key, signer.sign(DIGEST), DIGEST)
    for size in (0, 31, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            signer.sign(bytes(size))


def test_plus_adds_scalars_and_points():
    shares = [SecretKey.generate(bytes((place,)) * 32) for place in range(4)]
    total = shares[0].plus(*shares[1:])
    scalars = [int.from_bytes(export_secret(share, SECRET_ACCESS), "big") for share in shares]
    assert int.from_bytes(export_secret(total, SECRET_ACCESS), "big") == sum(scalars) % N
    assert total.public_key == point_sum([share.public_key for share in shares])
    assert shares[0].plus().public_key == shares[0].public_key
    assert int.from_bytes(export_secret(shares[0], SECRET_ACCESS), "big") == scalars[0]


def test_plus_refuses_a_sum_of_zero():
    key = SecretKey.from_scalar_bytes(SCALAR)
    opposite = SecretKey.from_scalar_bytes((N - int.from_bytes(SCALAR, "big")).to_bytes(32, "big"))
    with pytest.raises(ValueError, match="add up to zero"):
        key.plus(opposite)


NEVER = ("cli", "gateway", "replay", "node", "ledger", "contract", "endorsement", "pbft", "model", "report")
SEALS_SHARES = REPOSITORY / "bcami" / "contract" / "issuance.py"
"""Seals a fresh share of a key to the meter that asked (design D7 step 2)."""
STEALS = REPOSITORY / "bcami" / "report" / "security"
"""Its attackers hold keys that they made or stole; no key of a network is there."""


def test_who_takes_secrets_out():
    """Whole layers that never see a private key never import the token."""
    folders = [REPOSITORY / "chaincode", *(REPOSITORY / "bcami" / layer for layer in NEVER)]
    users = {path for folder in folders for path in folder.rglob("*.py") if "SECRET_ACCESS" in path.read_text()}
    assert {path for path in users if STEALS not in path.parents} == {SEALS_SHARES}


def test_an_assertion_on_a_key_does_not_show_it():
    key = SecretKey.from_scalar_bytes(SCALAR)
    text = ""
    with contextlib.suppress(AssertionError):
        try:
            assert key is None
        except AssertionError:
            text = traceback.format_exc()
            raise
    assert text
    assert_hides(text, SCALAR)
