"""Profile `hardened`, the default: the paper's key graph and life cycle without its holes (docs/deviations.md).

    sk, nonce = HKDF(ikm = key, info = chain, MDMS, header)      key = k_i, k_0 or gk_j
    body      = AES-128-GCM(sk, nonce, associated data = header)
    sign      = ECDSA of the MDMS over chain, header and body, when many share the key
    header    = mode, direction, KMS epoch, version of the key, counter, party

Each message has a key and nonce of its own, since each header is used once: a sender stores its counter before the
message leaves, and no key outlives a start of its owner (protocol 8), so no counter can fall back. A receiver takes a
counter once and none below its window. Direction, sender and receiver are in the header and so in the key.
"""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bcami.crypto import hkdf
from bcami.crypto.signatures import Signer, verify
from bcami.kms.messages import KEY_BYTES, Direction, Envelope, GroupKeys, Mode, Rekey
from bcami.kms.profile import Opened, Scope, header_bytes, rekey_digest, shared_digest
from bcami.kms.records import Channel, HardenedChannel
from bcami.kms.window import ALL_SEEN, admit
from bcami.model.reasons import Reason
from bcami.model.signing import prefixed

NONCE_BYTES: Final = 12
_SALT: Final = b"bcami/kms_session/1"


class HardenedProfile:
    """See the module."""

    name = "hardened"
    is_guarded = True

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._prefix = prefixed(scope.chain) + prefixed(scope.mdms)

    def session(self, key: bytes, header: bytes) -> tuple[bytes, bytes]:
        """Return (session key, nonce) of one message."""
        drawn = hkdf.derive(key, _SALT, self._prefix + header, KEY_BYTES + NONCE_BYTES)
        return drawn[:KEY_BYTES], drawn[KEY_BYTES:]

    def unicast(self, key: bytes, count: bytes, epoch: int, generation: int) -> Channel:
        return HardenedChannel(key, epoch, generation, sent=0, high=0, seen=0)

    def shared(self, keys: GroupKeys, epoch: int) -> Channel:
        return HardenedChannel(keys.path[-1].key, epoch, keys.version, sent=keys.floor, high=keys.floor, seen=ALL_SEEN)

    def counts(self, channel: Channel) -> tuple[bytes, int]:
        return b"", _hardened(channel).sent

    def protect(
        self, channel: Channel, direction: Direction, party: bytes, contents: bytes, *, answers: bool = False
    ) -> tuple[Channel, Envelope]:
        held = _hardened(channel)
        sent, _, body = self._seal(held, Mode.UNICAST, direction, party, contents)
        return sent, Envelope(Mode.UNICAST, direction, party, held.epoch, held.version, sent.sent, body, sign=b"")

    def open(self, channel: Channel, envelope: Envelope) -> Opened | Reason:
        return Reason.MALFORMED if envelope.sign else self._open(_hardened(channel), envelope)

    def protect_shared(
        self, channel: Channel, mode: Mode, party: bytes, contents: bytes, signer: Signer
    ) -> tuple[Channel, Envelope]:
        held = _hardened(channel)
        sent, header, body = self._seal(held, mode, Direction.DOWN, party, contents)
        sign = signer.sign(shared_digest(self._scope, header, body))
        return sent, Envelope(mode, Direction.DOWN, party, held.epoch, held.version, sent.sent, body, sign)

    def open_shared(self, channel: Channel, envelope: Envelope, kms_key: bytes) -> Opened | Reason:
        """Check the MDMS's signature first: who has the group key and is not the MDMS gets no further."""
        if envelope.epoch != _hardened(channel).epoch:
            return Reason.WRONG_KMS_EPOCH
        if not verify(kms_key, envelope.sign, shared_digest(self._scope, header_of(envelope), envelope.body)):
            return Reason.BAD_SIGNATURE
        return self._open(_hardened(channel), envelope)

    def sign_rekey(self, rekey: Rekey, signer: Signer) -> Rekey:
        signature = signer.sign(rekey_digest(self._scope, rekey))
        return Rekey(
            rekey.group,
            rekey.epoch,
            rekey.from_version,
            rekey.version,
            rekey.splits,
            rekey.joined,
            rekey.wraps,
            signature,
        )

    def check_rekey(self, rekey: Rekey, kms_key: bytes) -> Reason | None:
        return None if verify(kms_key, rekey.sign, rekey_digest(self._scope, rekey)) else Reason.BAD_SIGNATURE

    def refreshed(self, channel: Channel) -> Channel | None:
        """A refresh without fresh entropy heals nothing: the MDMS opens a new epoch instead."""
        return None

    def _seal(
        self, channel: HardenedChannel, mode: Mode, direction: Direction, party: bytes, contents: bytes
    ) -> tuple[HardenedChannel, bytes, bytes]:
        counter = channel.sent + 1
        header = header_bytes(mode, direction, party, channel.epoch, channel.version, counter)
        key, nonce = self.session(channel.key, header)
        body = AESGCM(key).encrypt(nonce, contents, header)
        after = HardenedChannel(
            channel.key, channel.epoch, channel.version, sent=counter, high=channel.high, seen=channel.seen
        )
        return after, header, body

    def _open(self, channel: HardenedChannel, envelope: Envelope) -> Opened | Reason:
        if envelope.epoch != channel.epoch:
            return Reason.WRONG_KMS_EPOCH
        if envelope.version != channel.version:
            return Reason.OUT_OF_STEP
        window = admit(channel.high, channel.seen, envelope.counter)
        if isinstance(window, Reason):
            return window
        header = header_of(envelope)
        key, nonce = self.session(channel.key, header)
        try:
            contents = AESGCM(key).decrypt(nonce, envelope.body, header)
        except InvalidTag:
            return Reason.WRONG_KEY
        high, seen = window
        after = HardenedChannel(channel.key, channel.epoch, channel.version, sent=channel.sent, high=high, seen=seen)
        return Opened(after, contents)


def header_of(envelope: Envelope) -> bytes:
    """Return the header's bytes."""
    return header_bytes(
        envelope.mode, envelope.direction, envelope.party, envelope.epoch, envelope.version, envelope.counter
    )


def _hardened(channel: Channel) -> HardenedChannel:
    if not isinstance(channel, HardenedChannel):
        raise TypeError("a channel of another profile")
    return channel
