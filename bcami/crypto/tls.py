"""Mutual TLS 1.3 between the members, with no certificate authority (design D16).

Each node has one self-signed certificate; genesis holds its fingerprint. A context trusts exactly the members'
certificates: they are not CAs, so a member cannot vouch for anybody else. That the peer is *some* member is what the
handshake proves; *which* one is `peer_fingerprint`, compared with genesis. Host names prove nothing here and are not
checked. Certificates pass OpenSSL's VERIFY_X509_STRICT, which Python 3.13 turns on by default.
"""

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bcami.errors import InputError

VALID_DAYS: Final = 3650
CLOCK_SKEW_DAYS: Final = 1
"""A peer whose clock is behind by less than this accepts a new certificate."""

_PEM_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"


def make_tls_identity(name: str) -> tuple[bytes, bytes]:
    """Return (key, certificate) of a new P-256 identity, both as PEM, valid for ten years from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=CLOCK_SKEW_DAYS))
        .not_valid_after(today + timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_SIGNATURE_ONLY, critical=True)
        .add_extension(usages, critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(key_id, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    return _private_pem(key), certificate.public_bytes(serialization.Encoding.PEM)


_SIGNATURE_ONLY: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_fingerprint(certificate: bytes) -> bytes:
    """Return SHA-256 of the DER of one certificate, given as PEM or DER. Raises InputError when it is neither."""
    try:
        if _PEM_BEGIN in certificate:
            parsed = x509.load_pem_x509_certificate(certificate)
        else:
            parsed = x509.load_der_x509_certificate(certificate)
    except ValueError:
        raise InputError("not a certificate", likely="the file is damaged or holds something else") from None
    return sha256(parsed.public_bytes(serialization.Encoding.DER)).digest()


def peer_fingerprint(connection: ssl.SSLObject | ssl.SSLSocket) -> bytes | None:
    """Return the fingerprint of the certificate the peer showed; None before the handshake."""
    try:
        certificate = connection.getpeercert(binary_form=True)
    except ValueError:
        return None
    return None if certificate is None else sha256(certificate).digest()


def server_context(
    certificate_file: Path, key_file: Path, member_certificates_pem: bytes | Sequence[bytes]
) -> ssl.SSLContext:
    """Return the accepting side's context. Raises InputError that names the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # a resumed session would skip the certificates
    return _configure(context, certificate_file, key_file, member_certificates_pem)


def client_context(
    certificate_file: Path, key_file: Path, member_certificates_pem: bytes | Sequence[bytes]
) -> ssl.SSLContext:
    """Return the connecting side's context. Raises InputError that names the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _configure(context, certificate_file, key_file, member_certificates_pem)


def _configure(
    context: ssl.SSLContext, certificate_file: Path, key_file: Path, member_certificates_pem: bytes | Sequence[bytes]
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    pems = [member_certificates_pem] if isinstance(member_certificates_pem, bytes) else member_certificates_pem
    try:
        context.load_verify_locations(cadata=b"\n".join(pems).decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise InputError(
            "the members' certificates cannot be read",
            likely="a file in certificates/ is damaged",
            do="copy the certificates of all members again",
        ) from None
    try:
        context.load_cert_chain(certificate_file, key_file, password="")  # an encrypted key is an error, no prompt
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a valid pair"
        raise InputError(
            f"the TLS certificate or its key cannot be used: {reason}",
            where=f"{certificate_file}, {key_file}",
            likely="one of them is missing or damaged, or the key belongs to another certificate",
            do="restore both from the backup of this node",
        ) from None
    return context
