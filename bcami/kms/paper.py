"""Profile `paper`: the formulas of Tables 2 to 5 [KMS], corrected where they cannot be carried out, with b = 128.

    unicast    C_i  = H(HMAC_{k_i}(M_i xor CDate) xor Count_i)     sk_i  = H(k_i xor C_i)
    broadcast  C_0  = H(Count_0)                                   sk_0  = H(k_0 xor C_0)
    multicast  GC_j = H(GCount_j)                                  gsk_j = H(gk_j xor GC_j)
    each session: counter + 1.     Periodically: k <- H(k).
    EData = E_sk(Data), Sign = HMAC_sk(EData); the receiver checks Sign, then decrypts.

For tables and for showing what goes wrong: it keeps every weakness of the scheme. H and HMAC are SHA-256 and its HMAC
cut to b bits, so that the XORs join strings of equal length. The paper names no mode of E; AES-CTR from a zero block
is the plainest one. Counters are not sent: a receiver tries the current session's key, then the next one's.
"""

import hmac
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from bcami.crypto.signatures import Signer
from bcami.kms.messages import KEY_BYTES, Direction, Envelope, GroupKeys, Mode, Rekey
from bcami.kms.profile import Opened
from bcami.kms.records import Channel, PaperChannel
from bcami.model.reasons import Reason

_ZERO: Final = bytes(KEY_BYTES)
_COUNT_MASK: Final = (1 << 8 * KEY_BYTES) - 1

Metering = Callable[[bytes], bytes]
"""M_i xor CDate of the meter with this HID, b bits, as this end believes it to be."""


def hashed(data: bytes) -> bytes:
    """H, b bits."""
    return sha256(data).digest()[:KEY_BYTES]


def keyed_hash(key: bytes, data: bytes) -> bytes:
    """HMAC, b bits."""
    return hmac.digest(key, data, "sha256")[:KEY_BYTES]


def xor(left: bytes, right: bytes) -> bytes:
    """Return the exclusive or of two values of b bits."""
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(KEY_BYTES, "big")


def unicast_session(key: bytes, count: bytes, metering: bytes) -> tuple[bytes, bytes]:
    """Return (C_i, sk_i) [KMS Table 2]: one HMAC, two hashes, two of the three XORs of Table 9 (M xor CDate before)."""
    additional = hashed(xor(keyed_hash(key, metering), count))
    return additional, hashed(xor(key, additional))


def shared_session(key: bytes, count: bytes) -> tuple[bytes, bytes]:
    """Return (C_0, sk_0) or (GC_j, gsk_j) [KMS Tables 3, 4 corrected]: two hashes and one XOR."""
    additional = hashed(count)
    return additional, hashed(xor(key, additional))


def counted(count: bytes) -> bytes:
    """Return Count + 1."""
    return ((int.from_bytes(count, "big") + 1) & _COUNT_MASK).to_bytes(KEY_BYTES, "big")


def crypt(session_key: bytes, data: bytes) -> bytes:
    """E_sk, and D_sk."""
    return Cipher(algorithms.AES(session_key), modes.CTR(_ZERO)).encryptor().update(data)


class PaperProfile:
    """See the module."""

    name = "paper"
    is_guarded = False

    def __init__(self, metering: Metering = lambda _: _ZERO) -> None:
        self._metering = metering

    def unicast(self, key: bytes, count: bytes, epoch: int, generation: int) -> Channel:
        return PaperChannel(key, count, _ZERO, _ZERO)

    def shared(self, keys: GroupKeys, epoch: int) -> Channel:
        key = keys.path[-1].key
        count = keys.count or hashed(key)  # a hierarchy's members draw the next counter from the key that they get
        return PaperChannel(key, count, *shared_session(key, count))

    def counts(self, channel: Channel) -> tuple[bytes, int]:
        return _paper(channel).count, 0

    def protect(
        self, channel: Channel, direction: Direction, party: bytes, contents: bytes, *, answers: bool = False
    ) -> tuple[Channel, Envelope]:
        held = _paper(channel)
        if not answers or held.session_key == _ZERO:
            held = self._next(held, party)
        return held, _sealed(held.session_key, Mode.UNICAST, direction, party, contents)

    def open(self, channel: Channel, envelope: Envelope) -> Opened | Reason:
        held = _paper(channel)
        for session in (held, self._next(held, envelope.party)):
            if session.session_key != _ZERO and _is_signed(session.session_key, envelope):
                return Opened(session, crypt(session.session_key, envelope.body))
        return Reason.WRONG_KEY

    def protect_shared(
        self, channel: Channel, mode: Mode, party: bytes, contents: bytes, signer: Signer
    ) -> tuple[Channel, Envelope]:
        held = _next_shared(_paper(channel))
        return held, _sealed(held.session_key, mode, Direction.DOWN, party, contents)

    def open_shared(self, channel: Channel, envelope: Envelope, kms_key: bytes) -> Opened | Reason:
        held = _paper(channel)
        for session in (held, _next_shared(held)):
            if _is_signed(session.session_key, envelope):
                return Opened(session, crypt(session.session_key, envelope.body))
        return Reason.WRONG_KEY

    def sign_rekey(self, rekey: Rekey, signer: Signer) -> Rekey:
        return rekey

    def check_rekey(self, rekey: Rekey, kms_key: bytes) -> Reason | None:
        return None

    def refreshed(self, channel: Channel) -> Channel | None:
        held = _paper(channel)
        return PaperChannel(hashed(held.key), held.count, held.additional, held.session_key)

    def _next(self, channel: PaperChannel, party: bytes) -> PaperChannel:
        count = counted(channel.count)
        return PaperChannel(channel.key, count, *unicast_session(channel.key, count, self._metering(party)))


def _next_shared(channel: PaperChannel) -> PaperChannel:
    count = counted(channel.count)
    return PaperChannel(channel.key, count, *shared_session(channel.key, count))


def _sealed(session_key: bytes, mode: Mode, direction: Direction, party: bytes, contents: bytes) -> Envelope:
    body = crypt(session_key, contents)
    return Envelope(mode, direction, party, 0, 0, 0, body, keyed_hash(session_key, body))


def _is_signed(session_key: bytes, envelope: Envelope) -> bool:
    return hmac.compare_digest(keyed_hash(session_key, envelope.body), envelope.sign)


def _paper(channel: Channel) -> PaperChannel:
    if not isinstance(channel, PaperChannel):
        raise TypeError("a channel of another profile")
    return channel
