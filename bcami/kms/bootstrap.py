"""The first keys of an epoch: how a meter and the MDMS come to share k_i (protocol 8).

    meter → MDMS   request     chain, HID, session, epoch, nonce, signed by the session key
    MDMS → meter   bootstrap   k_i and the groups' keys, sealed to the session's KEM key; signed by the epoch's KMS key
    meter → MDMS   confirm     the first message under k_i

The nonce makes a recorded bootstrap worthless, also to a meter that came back from an old backup. The time makes a
recorded request worthless: only a later one than the last is answered. Keys in use stay until new ones are confirmed.
The KMS key is announced by the MDMS's transaction that opened the epoch, so a meter has it with a receipt.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from bcami.codec import encode
from bcami.crypto.hpke import KemSecretKey, OpenError, open_from, seal_to
from bcami.crypto.signatures import Signer, verify
from bcami.errors import MalformedError
from bcami.kms.messages import (
    BOOTSTRAP_CONTENTS,
    Bootstrap,
    BootstrapContents,
    BootstrapRequest,
    GroupKeys,
)
from bcami.kms.profile import Scope
from bcami.kms.records import MeterRecord
from bcami.model.reasons import Reason
from bcami.model.signing import digest, u64

REQUEST_AHEAD_MS: Final = 600_000
"""How far a meter's clock may be ahead. One that was further ahead once would be shut out after it was set right."""


def request_digest(scope: Scope, hid: bytes, session: int, epoch: int, asked_ms: int, nonce: bytes) -> bytes:
    numbers = u64(session) + u64(epoch) + u64(asked_ms)
    return digest(b"bcami/kms_request/1", scope.chain, scope.epoch, hid, numbers, nonce)


def bootstrap_digest(scope: Scope, bootstrap: Bootstrap) -> bytes:
    """Return what the MDMS signs."""
    sealed = sha256(bootstrap.encapsulation + bootstrap.sealed).digest()
    return digest(b"bcami/kms_bootstrap/1", scope.chain, scope.epoch, scope.mdms, _bound(bootstrap), sealed)


def _bound(bootstrap: Bootstrap) -> bytes:
    numbers = u64(bootstrap.session) + u64(bootstrap.epoch) + u64(bootstrap.generation)
    return bootstrap.hid + numbers + bootstrap.nonce


def _info(scope: Scope, bootstrap: Bootstrap) -> bytes:
    """Return the HPKE info."""
    return b"bcami/kms_bootstrap_info/1" + scope.chain + u64(scope.epoch) + scope.mdms + _bound(bootstrap)


def make_request(
    scope: Scope, hid: bytes, session: int, epoch: int, asked_ms: int, nonce: bytes, session_key: Signer
) -> BootstrapRequest:
    signature = session_key.sign(request_digest(scope, hid, session, epoch, asked_ms, nonce))
    return BootstrapRequest(hid, session, epoch, asked_ms, nonce, signature)


def check_request(
    scope: Scope, request: BootstrapRequest, meter: MeterRecord, epoch: int, now_ms: int
) -> Reason | None:
    """Return why the MDMS does not answer. That the request is no old one is the caller's to check."""
    if meter.removed:
        return Reason.REVOKED_HID
    if request.session != meter.session:
        return Reason.UNKNOWN_SESSION if request.session > meter.session else Reason.SESSION_CLOSED
    if request.epoch != epoch:
        return Reason.WRONG_KMS_EPOCH
    if request.asked_ms > now_ms + REQUEST_AHEAD_MS:
        return Reason.TIMESTAMP_AHEAD
    signed = request_digest(scope, request.hid, request.session, request.epoch, request.asked_ms, request.nonce)
    return None if verify(meter.public_key, request.signature, signed) else Reason.BAD_SIGNATURE


def make_bootstrap(
    scope: Scope,
    request: BootstrapRequest,
    kem_key: bytes,
    generation: int,
    user_key: bytes,
    count: bytes,
    groups: Sequence[GroupKeys],
    ephemeral_ikm: bytes,
    signer: Signer,
) -> Bootstrap:
    """Return the answer to a request that was checked. `ephemeral_ikm` is fresh."""
    bare = Bootstrap(request.hid, request.session, request.epoch, generation, request.nonce, bytes(65), b"", bytes(64))
    contents = encode(BootstrapContents(user_key, count, tuple(groups)))
    encapsulation, sealed = seal_to(kem_key, _info(scope, bare), b"", contents, ephemeral_ikm)
    whole = _with(bare, encapsulation, sealed, bytes(64))
    return _with(whole, encapsulation, sealed, signer.sign(bootstrap_digest(scope, whole)))


def _with(bootstrap: Bootstrap, encapsulation: bytes, sealed: bytes, signature: bytes) -> Bootstrap:
    return Bootstrap(
        bootstrap.hid,
        bootstrap.session,
        bootstrap.epoch,
        bootstrap.generation,
        bootstrap.nonce,
        encapsulation,
        sealed,
        signature,
    )


def open_bootstrap(scope: Scope, bootstrap: Bootstrap, kms_key: bytes, kem: KemSecretKey) -> BootstrapContents | Reason:
    """Return what a bootstrap carries, once it is known to be for this meter and to answer its request."""
    if not verify(kms_key, bootstrap.signature, bootstrap_digest(scope, bootstrap)):
        return Reason.BAD_SIGNATURE
    try:
        contents = open_from(bootstrap.encapsulation, kem, _info(scope, bootstrap), b"", bootstrap.sealed)
    except OpenError:
        return Reason.WRONG_KEY
    try:
        return BOOTSTRAP_CONTENTS.decode(contents)
    except MalformedError:
        return Reason.MALFORMED
