"""What a profile decides: how a session key comes about, and how a message is protected under it (design D15).

A profile holds no state. Its methods take a channel record and return the one that follows it; a refusal leaves the
channel as it was.
"""

import struct
from typing import Final, NamedTuple, Protocol

from bcami.crypto.signatures import Signer
from bcami.kms.messages import Direction, Envelope, GroupKeys, Mode, Rekey, Wrap
from bcami.kms.records import Channel
from bcami.model.reasons import Reason
from bcami.model.signing import digest, prefixed, u32, u64

_FIXED: Final = struct.Struct(">BBQQQ")


class Scope(NamedTuple):
    """Whose keys these are: nothing made in one network holds in another (protocol 1.4)."""

    chain: bytes
    epoch: int
    """The consortium's, not the KMS epoch."""
    mdms: bytes
    """HID of the MDMS."""


class Opened(NamedTuple):
    channel: Channel
    contents: bytes


class Profile(Protocol):
    """`paper` or `hardened`. Both ends of a network use the same."""

    name: str
    is_guarded: bool
    """Whether sources, versions, lifetimes and repeats are checked; the paper's scheme checks none of them."""

    def unicast(self, key: bytes, count: bytes, epoch: int, generation: int) -> Channel:
        """Return a new channel between the MDMS and one meter."""

    def shared(self, keys: GroupKeys, epoch: int) -> Channel:
        """Return a channel under a group's key, as of `keys`."""

    def counts(self, channel: Channel) -> tuple[bytes, int]:
        """Return the counter to hand out beside the key, and the highest counter used."""

    def protect(
        self, channel: Channel, direction: Direction, party: bytes, contents: bytes, *, answers: bool = False
    ) -> tuple[Channel, Envelope]:
        """Return the unicast envelope and the channel after it, which must be durable before the envelope leaves.

        `answers`: it belongs to the session of the message that it answers.
        """

    def open(self, channel: Channel, envelope: Envelope) -> Opened | Reason:
        """Open a unicast envelope whose direction and party the caller has checked."""

    def protect_shared(
        self, channel: Channel, mode: Mode, party: bytes, contents: bytes, signer: Signer
    ) -> tuple[Channel, Envelope]:
        """Return the envelope for all members of a group."""

    def open_shared(self, channel: Channel, envelope: Envelope, kms_key: bytes) -> Opened | Reason:
        """Open an envelope for a group."""

    def sign_rekey(self, rekey: Rekey, signer: Signer) -> Rekey:
        """Return the rekeying as the MDMS sends it."""

    def check_rekey(self, rekey: Rekey, kms_key: bytes) -> Reason | None:
        """Check who made a rekeying."""

    def refreshed(self, channel: Channel) -> Channel | None:
        """Return the channel after a periodic refresh that both ends make alone; None when a new epoch is needed."""


def header_bytes(mode: int, direction: int, party: bytes, epoch: int, version: int, counter: int) -> bytes:
    """Return the header of an envelope: associated data, and part of what its key is derived from."""
    return _FIXED.pack(mode, direction, epoch, version, counter) + prefixed(party)


def shared_digest(scope: Scope, header: bytes, body: bytes) -> bytes:
    """Return what the MDMS signs of a message for many."""
    return digest(b"bcami/kms_shared/1", scope.chain, scope.epoch, scope.mdms, prefixed(header), prefixed(body))


def rekey_digest(scope: Scope, rekey: Rekey) -> bytes:
    """Return what the MDMS signs of a rekeying."""
    return digest(
        b"bcami/kms_rekey/1",
        scope.chain,
        scope.epoch,
        scope.mdms,
        u64(rekey.group),
        u64(rekey.epoch),
        u64(rekey.from_version),
        u64(rekey.version),
        u64(len(rekey.splits)),
        *map(u32, rekey.splits),
        u64(len(rekey.joined)),
        *map(u32, rekey.joined),
        u64(len(rekey.wraps)),
        *map(_wrap_bytes, rekey.wraps),
    )


def _wrap_bytes(wrap: Wrap) -> bytes:
    return u32(wrap.node) + u32(wrap.child) + wrap.sealed
