"""Key files: what is written comes back, and every damage is told with file, cause and remedy, never with the key."""

import json
import traceback

import pytest

from bcami.crypto import keyfile
from bcami.crypto.hpke import KemSecretKey, load_kem_secret
from bcami.crypto.keys import (
    SECRET_ACCESS,
    SecretKey,
    export_secret,
    load_secret,
    load_secret_bytes,
    save_secret,
    save_secret_bytes,
    write_private,
)
from bcami.errors import BcamiError, EnvironmentFault, InputError

SCALAR = bytes.fromhex("c0ffee" + "5a" * 29)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "consensus.key"
    save_secret(file, SecretKey.from_scalar_bytes(SCALAR), "consensus")
    return file


def refusal(path, kind="consensus") -> str:
    """The whole error text; asserts that it names the file and no secret."""
    with pytest.raises(BcamiError) as caught:
        load_secret(path, kind)
    text = "".join(traceback.format_exception(caught.value))
    assert str(path) in text
    assert caught.value.do
    assert SCALAR.hex() not in text
    return text


def test_round_trip(path, tmp_path):
    assert export_secret(load_secret(path, "consensus"), SECRET_ACCESS) == SCALAR
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["consensus.key"]

    kem = KemSecretKey.from_scalar_bytes(SCALAR)
    save_secret(tmp_path / "enrolment.kem", kem, "enrolment-kem")
    assert load_kem_secret(tmp_path / "enrolment.kem", "enrolment-kem").public_key == kem.public_key

    save_secret_bytes(tmp_path / "network.key", b"n" * 32, "network")
    assert load_secret_bytes(tmp_path / "network.key", "network") == b"n" * 32


def test_an_existing_key_is_not_overwritten(path):
    other = SecretKey.generate(b"o" * 32)
    with pytest.raises(InputError, match="exists already"):
        save_secret(path, other, "consensus")
    assert load_secret(path, "consensus").public_key != other.public_key
    save_secret(path, other, "consensus", replace=True)
    assert load_secret(path, "consensus").public_key == other.public_key
    assert [entry.name for entry in path.parent.iterdir()] == ["consensus.key"]


def test_a_left_over_temporary_file_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 7)
    (tmp_path / ".a.key.7.new").write_bytes(b"torn")
    write_private(tmp_path / "a.key", b"whole")
    assert (tmp_path / "a.key").read_bytes() == b"whole"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        write_private(tmp_path / "missing" / "a.key", b"x")


def test_missing_file(tmp_path):
    assert "cannot be read: No such file" in refusal(tmp_path / "consensus.key")


def test_wrong_kind(path):
    assert "holds a 'consensus' key, not a 'tls' key" in refusal(path, "tls")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o610])
def test_permissions_that_are_too_open(path, mode):
    path.chmod(mode)
    assert f"others may read this key file (mode {mode:04o})" in refusal(path)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "not JSON"),
        (b"\x00\xff\xfe", "not JSON"),
        (b"[" * 9000, "not JSON"),
        (b"[]", "needs the entries"),
        (b'{"format": "bcami/secret/1"}', "needs the entries"),
        (b'{"format": 1, "kind": "consensus", "secret": "", "checksum": ""}', "needs the entries"),
        (b" " * (keyfile.FILE_BYTES_MAX + 1), "longer than"),
    ],
    ids=["empty", "binary", "nested", "list", "incomplete", "number", "long"],
)
def test_damage_is_told(path, data, cause):
    path.write_bytes(data)
    assert f"damaged: it {cause}" in refusal(path).replace("it is ", "it ")


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("format", "bcami/secret/9", "its format is not"),
        ("secret", "zz" * 32, "not hexadecimal"),
        ("secret", "5a" * 32, "checksum does not match"),
        ("checksum", "5a" * 32, "checksum does not match"),
        ("checksum", "ünicode", "checksum does not match"),
        ("kind", "tls", "holds a 'tls' key"),
    ],
)
def test_an_edited_entry_is_told(path, name, value, cause):
    record = json.loads(path.read_bytes())
    record[name] = value
    path.write_text(json.dumps(record))
    assert cause in refusal(path)


def test_a_swapped_kind_does_not_pass_the_checksum(path):
    record = json.loads(path.read_bytes())
    record["kind"] = "tls"
    path.write_text(json.dumps(record))
    assert "checksum does not match" in refusal(path, "tls")


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, b"short"])
def test_a_checksummed_secret_that_is_no_key(tmp_path, secret):
    path = tmp_path / "consensus.key"
    save_secret_bytes(path, secret, "consensus")
    assert "no private key of secp256k1" in refusal(path)
    with pytest.raises(InputError, match="no private key"):
        load_kem_secret(path, "consensus")


def test_every_flipped_byte_is_found_or_harmless(path):
    whole = path.read_bytes()
    found = 0
    for place in range(len(whole)):
        for flip in (0x01, 0x20, 0x80):
            path.write_bytes(whole[:place] + bytes((whole[place] ^ flip,)) + whole[place + 1 :])
            try:
                key = load_secret(path, "consensus")
            except InputError as error:
                found += 1
                assert SCALAR.hex() not in str(error)
            else:
                assert export_secret(key, SECRET_ACCESS) == SCALAR  # white space, or the case of a hex digit
    assert found > 2 * len(whole)


def test_every_truncation_is_found(path):
    whole = path.read_bytes()
    for size in range(len(whole) - 2):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            load_secret(path, "consensus")
