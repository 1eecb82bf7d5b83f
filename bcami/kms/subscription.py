"""Who may listen to a meter's stream: the meter, as it proves by its session key over a challenge of the MDMS.

    carrier → MDMS   asks for a challenge: 32 random bytes, good for one subscription, for a minute, in one run
    carrier → MDMS   for each meter its HID, session and signature over chain, MDMS, HID, session and challenge
    MDMS → carrier   the stream of those that proved themselves; the others are named

What is on the stream protects itself (bcami.kms.hardened); this keeps strangers from watching when a meter is sent
something, and from using up streams. Messages up need no other proof: they are sealed or signed by the meter.
"""

from typing import Annotated, Final

import msgspec

from bcami.codec import Codec
from bcami.crypto.signatures import Signer, verify
from bcami.kms.profile import Scope
from bcami.kms.records import MeterRecord
from bcami.model.ids import U63, Hash, Signature
from bcami.model.reasons import Reason
from bcami.model.signing import digest, prefixed, u64

SUBSCRIBED_MAX: Final = 20_000
"""Meters behind one stream."""
CHALLENGE_BYTES: Final = 32


class Subscriber(msgspec.Struct, frozen=True, array_like=True):
    """One meter's proof."""

    hid: Hash
    session: U63
    signature: Signature
    """By the session key, over `subscription_digest`."""


class Subscription(msgspec.Struct, frozen=True, array_like=True):
    challenge: Hash
    meters: Annotated[tuple[Subscriber, ...], msgspec.Meta(min_length=1, max_length=SUBSCRIBED_MAX)]


SUBSCRIPTION: Final[Codec[Subscription]] = Codec(Subscription, 128 * SUBSCRIBED_MAX)


def subscription_digest(scope: Scope, hid: bytes, session: int, challenge: bytes) -> bytes:
    """Return what a meter signs to listen."""
    return digest(
        b"bcami/kms_subscribe/1", scope.chain, scope.epoch, hid, u64(session) + prefixed(scope.mdms) + challenge
    )


def subscriber(scope: Scope, hid: bytes, session: int, challenge: bytes, session_key: Signer) -> Subscriber:
    return Subscriber(hid, session, session_key.sign(subscription_digest(scope, hid, session, challenge)))


def check_subscriber(scope: Scope, challenge: bytes, shown: Subscriber, meter: MeterRecord | None) -> Reason | None:
    """Return why a meter's stream is not given, None when it is. Whether the challenge is fresh is not asked here."""
    if meter is None:
        return Reason.UNKNOWN_HID
    if meter.removed:
        return Reason.REVOKED_HID
    if shown.session != meter.session:
        return Reason.UNKNOWN_SESSION if shown.session > meter.session else Reason.SESSION_CLOSED
    signed = subscription_digest(scope, shown.hid, shown.session, challenge)
    return None if verify(meter.public_key, shown.signature, signed) else Reason.BAD_SIGNATURE
