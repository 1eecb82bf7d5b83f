"""Mutual TLS between members, handshaken in memory."""

import ssl
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bcami.crypto.tls import (
    certificate_fingerprint,
    client_context,
    make_tls_identity,
    peer_fingerprint,
    server_context,
)
from bcami.errors import InputError

NAMES = ("dc0", "dc1", "stranger")
IDENTITIES = {name: make_tls_identity(name) for name in NAMES}


@pytest.fixture
def files(tmp_path):
    """(certificate file, key file) by name."""
    paths = {}
    for name, (key, certificate) in IDENTITIES.items():
        paths[name] = (tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        paths[name][0].write_bytes(certificate)
        paths[name][1].write_bytes(key)
    return paths


MEMBERS = [IDENTITIES["dc0"][1], IDENTITIES["dc1"][1]]


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = None):
    """Shake hands and pass a word each way; an alert on either side raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    accepting = server.wrap_bio(to_server, to_client, server_side=True)
    connecting = client.wrap_bio(to_client, to_server, server_hostname=name)
    waiting = [connecting, accepting]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert not waiting
    connecting.write(b"vote")
    assert accepting.read(16) == b"vote"
    accepting.write(b"status")
    assert connecting.read(16) == b"status"
    return accepting, connecting


def test_members_shake_hands(files):
    accepting, connecting = handshake(
        server_context(*files["dc0"], MEMBERS), client_context(*files["dc1"], b"".join(MEMBERS))
    )
    assert accepting.version() == connecting.version() == "TLSv1.3"
    assert peer_fingerprint(connecting) == certificate_fingerprint(IDENTITIES["dc0"][1])
    assert peer_fingerprint(accepting) == certificate_fingerprint(IDENTITIES["dc1"][1])


def test_the_checks_are_strict(files):
    for context in (server_context(*files["dc0"], MEMBERS), client_context(*files["dc1"], MEMBERS)):
        assert context.verify_flags & ssl.VERIFY_X509_STRICT
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3


def test_a_stranger_is_refused_as_client_and_as_server(files):
    with pytest.raises(ssl.SSLError, match="(?i)verify failed"):
        handshake(server_context(*files["dc0"], MEMBERS), client_context(*files["stranger"], MEMBERS))
    with pytest.raises(ssl.SSLError, match="(?i)verify failed"):
        handshake(server_context(*files["stranger"], MEMBERS), client_context(*files["dc1"], MEMBERS))


def test_a_member_that_is_not_on_the_list_is_refused(files):
    with pytest.raises(ssl.SSLError, match="(?i)verify failed"):
        handshake(server_context(*files["dc0"], MEMBERS[:1]), client_context(*files["dc1"], MEMBERS))


def test_a_client_without_a_certificate_is_refused(files):
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(cadata=MEMBERS[0].decode())
    with pytest.raises(ssl.SSLError, match="(?i)did not return a certificate"):
        handshake(server_context(*files["dc0"], MEMBERS), bare)


def test_older_tls_is_refused(files):
    old = client_context(*files["dc1"], MEMBERS)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        handshake(server_context(*files["dc0"], MEMBERS), old)


def make_certificate(name: str, signer: ec.EllipticCurvePrivateKey, issuer: str, days: tuple[int, int]):
    key = ec.generate_private_key(ec.SECP256R1())
    signing = signer or key
    now = datetime.now(UTC)
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_id, critical=False)
        .add_extension(issuer_id, critical=False)
        .sign(signing, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, certificate.public_bytes(pem)


def write(folder, key: bytes, certificate: bytes):
    (folder / "made.pem").write_bytes(certificate)
    (folder / "made.key").write_bytes(key)
    return folder / "made.pem", folder / "made.key"


def test_a_member_cannot_vouch_for_somebody(files, tmp_path):
    """Members are no certificate authorities: what dc1 signs for a friend is worth nothing."""
    member = serialization.load_pem_private_key(IDENTITIES["dc1"][0], None)
    key, certificate = make_certificate("friend", member, "dc1", (-1, 10))
    pair = write(tmp_path, key, certificate + MEMBERS[1])
    with pytest.raises(ssl.SSLError, match="(?i)verify failed"):
        handshake(server_context(*files["dc0"], MEMBERS), client_context(*pair, MEMBERS))


@pytest.mark.parametrize("days", [(-20, -10), (10, 20)], ids=["expired", "not_yet"])
def test_validity_is_checked(files, tmp_path, days):
    key, certificate = make_certificate("dc2", None, "dc2", days)
    members = [*MEMBERS, certificate]
    with pytest.raises(ssl.SSLError, match="(?i)verify failed"):
        handshake(server_context(*files["dc0"], members), client_context(*write(tmp_path, key, certificate), members))


def test_the_same_name_with_another_key_is_refused(files, tmp_path):
    pair = write(tmp_path, *make_tls_identity("dc1"))
    with pytest.raises(ssl.SSLError, match="(?i)verify failed"):
        handshake(server_context(*files["dc0"], MEMBERS), client_context(*pair, MEMBERS))


def test_an_identity_is_fresh_long_lived_and_no_authority():
    key, certificate = make_tls_identity("dc_9-a")
    assert make_tls_identity("dc_9-a")[0] != key
    parsed = x509.load_pem_x509_certificate(certificate)
    now = datetime.now(UTC)
    assert parsed.not_valid_before_utc < now - timedelta(hours=23)
    assert timedelta(days=3640) < parsed.not_valid_after_utc - now <= timedelta(days=3650)
    assert not parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not parsed.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["dc_9-a"]


def test_fingerprints():
    _, pem = IDENTITIES["dc0"]
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    assert certificate_fingerprint(pem) == certificate_fingerprint(der) == sha256(der).digest()
    for damaged in (b"", b"x", der[:-1], pem.replace(b"M", b"!"), IDENTITIES["dc0"][0]):
        with pytest.raises(InputError, match="not a certificate"):
            certificate_fingerprint(damaged)


def test_no_fingerprint_before_the_handshake(files):
    unshaken = client_context(*files["dc1"], MEMBERS).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
    assert peer_fingerprint(unshaken) is None


@pytest.mark.parametrize("make", [server_context, client_context])
def test_files_that_cannot_be_used_are_named(files, tmp_path, make):
    certificate, key = files["dc0"]
    encrypted = serialization.load_pem_private_key(key.read_bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    (tmp_path / "encrypted.key").write_bytes(encrypted)
    (tmp_path / "empty.key").write_bytes(b"")
    bad_pairs = [
        (certificate, tmp_path / "missing.key"),
        (tmp_path / "missing.pem", key),
        (certificate, tmp_path / "empty.key"),
        (certificate, tmp_path / "encrypted.key"),
        (certificate, files["dc1"][1]),
        (key, certificate),
    ]
    for pair in bad_pairs:
        with pytest.raises(InputError) as caught:
            make(*pair, MEMBERS)
        assert str(pair[1]) in str(caught.value)
        assert "PRIVATE KEY" not in str(caught.value)
    for members in (b"", [], [b"junk"], [MEMBERS[0], b"\xff"], [MEMBERS[0][:-40]]):
        with pytest.raises(InputError, match="members' certificates"):
            make(certificate, key, members)
