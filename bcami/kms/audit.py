"""The append-only log of what the MDMS changed: each entry holds the hash of the one before.

Who knows a head (the chain does: it is anchored there) notices a log that was cut, changed or replaced by an old copy.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import Annotated, Final

import msgspec

from bcami.codec import Codec, encode
from bcami.kms.records import AUDIT, Step
from bcami.model.ids import NO_HASH, U63, Hash
from bcami.model.signing import prefixed, u64
from bcami.units import KIB

DETAIL_CHARACTERS_MAX: Final = 1024
RESUMED: Final = "resumed"
"""The action of an entry that goes on after an old backup was restored."""


class AuditEntry(msgspec.Struct, frozen=True, array_like=True):
    """One change."""

    sequence: U63
    time_ms: U63
    action: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    subject: Annotated[str, msgspec.Meta(max_length=128)]
    """HID in hexadecimal, project, or delivery."""
    detail: Annotated[str, msgspec.Meta(max_length=DETAIL_CHARACTERS_MAX)]
    previous: Hash


AUDIT_ENTRY: Final[Codec[AuditEntry]] = Codec(AuditEntry, 8 * KIB)


class AuditLog:
    """Where the log ends."""

    __slots__ = ("head", "length")

    def __init__(self, length: int = 0, head: bytes = NO_HASH) -> None:
        self.length = length
        self.head = head

    def append(self, step: Step, time_ms: int, action: str, subject: str = "", detail: str = "") -> None:
        """Add an entry to what the step writes."""
        entry = AuditEntry(self.length + 1, time_ms, action, subject, detail[:DETAIL_CHARACTERS_MAX], self.head)
        step.put(AUDIT, u64(entry.sequence), AUDIT_ENTRY, entry)
        self.length = entry.sequence
        self.head = entry_hash(entry)

    def resume(self, step: Step, time_ms: int, length: int, head: bytes) -> None:
        """Go on after what the chain has, although the store lacks some of it."""
        kept, own = self.length, self.head
        self.length, self.head = max(length, kept), head
        self.append(step, time_ms, RESUMED, _left(kept, length), own.hex())


def entry_hash(entry: AuditEntry) -> bytes:
    return sha256(prefixed(b"bcami/kms_audit/1") + encode(entry)).digest()


def _left(kept: int, anchored: int) -> str:
    return f"{kept} entries left, {anchored} anchored"


def resumed(entry: AuditEntry, count: int, previous: bytes) -> bool:
    """Tell whether an entry goes on after an old backup came back: it names what the chain had, and what was left.

    Its number is above both; `previous` is the anchored head, `detail` the hash of what was left.
    """
    return entry.action == RESUMED and entry.sequence > count and entry.detail == previous.hex()


def gaps(entries: Iterable[AuditEntry]) -> list[AuditEntry]:
    """Return the entries before which others are missing, because an old backup was restored."""
    return [entry for entry in entries if entry.action == RESUMED]


def check_log(entries: Iterable[AuditEntry], head: bytes | None = None, length: int | None = None) -> str | None:
    """Return what is wrong with a log, from its first entry on; None when it is whole and passes through the anchor.

    `head` and `length` are an anchor: that many entries had this head. Gaps that a restore left are no fault here
    (`gaps` tells them).
    """
    previous, count, found = NO_HASH, 0, length in (None, 0)
    fault: str | None = None
    for entry in entries:
        if resumed(entry, count, previous):
            if head == entry.previous and entry.subject == _left(count, length or 0):
                fault, found = None, True  # it goes on from this very anchor
        elif entry.sequence != count + 1 or entry.previous != previous:
            return f"entry {count + 1} does not follow the one before it"
        count = entry.sequence
        previous = entry_hash(entry)
        if count == length:
            if head is not None and previous != head:
                fault = f"the first {length} entries are not those that were anchored"
            found = True
    return fault if found else f"the log ends at {count}, and {length} entries were anchored"
