"""The durable state of both ends, as plain records, and what one step asks its driver to do.

The rule for whoever drives a step machine is one: make `Step.writes` durable, all or none, before anything in
`Step.sends` leaves. Every secret record hides its fields from repr and refuses to be copied or pickled.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from bcami.codec import Codec
from bcami.crypto.secret_record import SecretRecord
from bcami.kms.messages import (
    BODY_BYTES_MAX,
    IDS_MAX,
    TREE_HEIGHT_MAX,
    DeliveryId,
    DownMessage,
    DownPayload,
    Key,
    NodeKey,
    Payload,
    ProjectName,
    RequestId,
    UpMessage,
)
from bcami.model.ids import U32, U63, Hash, KemKey, PublicKey
from bcami.model.reasons import Reason
from bcami.units import MIB

WINDOW: Final = 63
"""Counters below the highest one that a receiver still tells apart."""
RECENT_MAX: Final = 64
"""Ids that each end remembers, so that what is repeated under new keys is not taken twice."""
OUTBOX_MAX: Final = 32
"""Requests that a meter keeps; the next one is refused until some are answered."""
PROJECTS_MAX: Final = 500
"""Projects of one MDMS."""
STANDING_MAX: Final = 2 * (PROJECTS_MAX + 1)
"""Topics of which a meter knows the newest: each project is one, and the prices of each group (`standing`)."""


class PaperChannel(SecretRecord, frozen=True, array_like=True, tag="paper"):
    """What one end stores of one transmission mode [KMS Table 6]: four values of b bits."""

    key: Key
    count: Key
    additional: Key
    """C_i, C_0 or GC_j of the current session."""
    session_key: Key


class HardenedChannel(SecretRecord, frozen=True, array_like=True, tag="hardened"):
    key: Key
    epoch: U63
    version: U63
    sent: U63
    """Highest counter that this end used."""
    high: U63
    """Highest counter that this end accepted."""
    seen: U63
    """Bit i: counter high - 1 - i was accepted."""


Channel = PaperChannel | HardenedChannel


class Membership(SecretRecord, frozen=True, array_like=True):
    """A group as one of its members holds it."""

    group: U32
    position: U32
    degree: U32
    version: U63
    channel: Channel
    """Under the group key, which is the key of the root."""
    path: Annotated[tuple[NodeKey, ...], msgspec.Meta(max_length=TREE_HEIGHT_MAX)]
    """Inner nodes from the parent up to, without, the root."""


class Outgoing(msgspec.Struct, frozen=True, array_like=True):
    """A meter's request that has no answer yet."""

    id: RequestId
    sent_ms: U63
    contents: Annotated[bytes, msgspec.Meta(max_length=BODY_BYTES_MAX)]
    next_ms: U63
    """When it is repeated."""


class MeterKeysRecord(SecretRecord, frozen=True, array_like=True):
    """Everything that a meter keeps of the KMS: written as one."""

    epoch: U63 = 0
    """Highest KMS epoch that it was told of: never falls (protocol 8)."""
    kms_key: Annotated[bytes, msgspec.Meta(max_length=33)] = b""
    """The MDMS's signing key of that epoch."""
    generation: U63 = 0
    confirmed: bool = False
    """The MDMS said that it uses the keys."""
    nonce: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    """Of the request that waits for its bootstrap; empty when none does."""
    asked_ms: U63 = 0
    unicast: Channel | None = None
    memberships: Annotated[tuple[Membership, ...], msgspec.Meta(max_length=IDS_MAX)] = ()
    outbox: Annotated[tuple[Outgoing, ...], msgspec.Meta(max_length=OUTBOX_MAX)] = ()
    taken: Annotated[tuple[DeliveryId, ...], msgspec.Meta(max_length=RECENT_MAX)] = ()
    """Ascending."""
    taken_floor: DeliveryId = DeliveryId(0, 0)
    """What is not above it is not taken any more: whether it was taken is forgotten."""
    gone: Annotated[tuple[tuple[U32, U63], ...], msgspec.Meta(max_length=IDS_MAX)] = ()
    """Groups that this meter left, with the version since which it is out."""
    standing: Annotated[tuple[tuple[U63, DeliveryId], ...], msgspec.Meta(max_length=STANDING_MAX)] = ()
    """The newest message taken of each topic (`standing`), ascending by id."""
    standing_floor: DeliveryId = DeliveryId(0, 0)
    """Up to here it is forgotten what was taken of topics that are not in `standing`."""


class Pending(SecretRecord, frozen=True, array_like=True):
    """A bootstrap that its meter has not confirmed."""

    generation: U63
    channel: Channel


class MeterRecord(SecretRecord, frozen=True, array_like=True):
    """One meter as the MDMS has it."""

    number: U32
    """i of u_i; never given twice."""
    hid: Hash
    session: U63
    public_key: PublicKey
    kem_key: KemKey
    removed: bool = False
    generation: U63 = 0
    """Of the last bootstrap, confirmed or not."""
    asked_ms: U63 = 0
    """Time of the request that it answered."""
    channel: Channel | None = None
    pending: Pending | None = None
    recent: Annotated[tuple[tuple[RequestId, Reason], ...], msgspec.Meta(max_length=RECENT_MAX)] = ()
    """Requests that were carried out, with their answers."""


class GroupRecord(msgspec.Struct, frozen=True, array_like=True):
    """A project, or all meters (number 0)."""

    number: U32
    name: ProjectName
    excludes: tuple[U32, ...]
    published_ms: U63


class GroupChannel(SecretRecord, frozen=True, array_like=True):
    """What changes with each message to a group."""

    version: U63
    channel: Channel


class Received(msgspec.Struct, frozen=True, array_like=True):
    """A message of Table 1 that was accepted: written together with the counter that will not accept it again."""

    hid: Hash
    id: RequestId
    """Of a delivery: its epoch and number."""
    payload: Payload
    sent_ms: U63
    received_ms: U63
    in_time: bool


class DeliveryRecord(msgspec.Struct, frozen=True, array_like=True):
    """A message of the MDMS and whom it is for."""

    id: DeliveryId
    group: U32 | None
    """None: the single meter in `audience`."""
    sent_ms: U63
    until_ms: U63
    payload: DownPayload
    audience: bytes
    """Bit i: the meter with number i."""


class Taken(msgspec.Struct, frozen=True, array_like=True):
    """One meter's acknowledgement."""

    received_ms: U63


class AboutRecord(msgspec.Struct, frozen=True, array_like=True):
    """Where the MDMS is."""

    epoch: U63
    next_meter: U32
    next_delivery: U63


ABOUT: Final = b"kms_about"
METERS: Final = b"kms_meters"
"""HID → MeterRecord."""
GROUPS: Final = b"kms_groups"
"""Group number → GroupRecord."""
CHANNELS: Final = b"kms_channels"
"""Group number → GroupChannel."""
LEAVES: Final = b"kms_leaves"
"""Group number, position → number of the meter there, 4 bytes."""
NODES: Final = b"kms_nodes"
"""Group number, inner node → its key."""
DELIVERIES: Final = b"kms_deliveries"
"""Epoch, number → DeliveryRecord."""
TAKEN: Final = b"kms_taken"
"""Epoch, number, meter number → Taken."""
ADDRESSED: Final = b"kms_addressed"
"""Epoch, number, meter number → when the delivery was addressed to a meter that came after it, 8 bytes."""
CHANGES: Final = b"kms_changes"
"""Group number, meter number → 1 for a join, 0 for a leave that waits for the end of the period."""
INBOX: Final = b"kms_inbox"
"""Running number → Received: notifications and meter data, the newest ones."""
AUDIT: Final = b"kms_audit"
"""Sequence → AuditEntry; nothing is ever deleted here."""
TABLES: Final = (
    ABOUT,
    METERS,
    GROUPS,
    CHANNELS,
    LEAVES,
    NODES,
    DELIVERIES,
    TAKEN,
    ADDRESSED,
    CHANGES,
    INBOX,
    AUDIT,
)

METER_KEYS: Final[Codec[MeterKeysRecord]] = Codec(MeterKeysRecord, MIB)
METER: Final[Codec[MeterRecord]] = Codec(MeterRecord, MIB)
GROUP: Final[Codec[GroupRecord]] = Codec(GroupRecord, MIB)
GROUP_CHANNEL: Final[Codec[GroupChannel]] = Codec(GroupChannel, MIB)
DELIVERY: Final[Codec[DeliveryRecord]] = Codec(DeliveryRecord, 4 * MIB)
RECEIVED: Final[Codec[Received]] = Codec(Received, 2 * BODY_BYTES_MAX)
TAKEN_CODEC: Final[Codec[Taken]] = Codec(Taken, 64)
ABOUT_CODEC: Final[Codec[AboutRecord]] = Codec(AboutRecord, 64)


class Write(NamedTuple):
    """One change of the store; None deletes."""

    table: bytes
    key: bytes
    value: bytes | None


class ToMeter(NamedTuple):
    hid: bytes
    message: DownMessage


class ToGroup(NamedTuple):
    """For every meter that is a member of the group, whoever else may hear it."""

    group: int
    message: DownMessage


class ToMdms(NamedTuple):
    message: UpMessage


Send = ToMeter | ToGroup | ToMdms


class Accepted(NamedTuple):
    """An application message that arrived: once for each id."""

    hid: bytes
    id: bytes
    """Of the request, or the delivery's epoch and number: 16 bytes."""
    payload: Payload
    sent_ms: int
    received_ms: int
    in_time: bool
    """Within the deadline of Table 1."""


def accepted(received: Received) -> Accepted:
    """Return the event that handed a message over, or is to do so again."""
    return Accepted(
        received.hid, received.id, received.payload, received.sent_ms, received.received_ms, received.in_time
    )


class Delivered(NamedTuple):
    """A meter acknowledged a delivery."""

    hid: bytes
    id: DeliveryId
    latency_ms: int
    in_time: bool


class Refused(NamedTuple):
    """Something was not accepted; counted under the reason's name."""

    reason: Reason
    hid: bytes | None


Event = Accepted | Delivered | Refused


@dataclass(slots=True)
class Step:
    """What one input brought about."""

    writes: list[Write] = field(default_factory=list)
    sends: list[Send] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    encryptions: int = 0
    """Keys and messages that were encrypted: for the cost report."""

    def put(self, table: bytes, key: bytes, codec: Codec[Any], record: Any) -> None:
        self.writes.append(Write(table, key, codec.encode(record)))

    def refuse(self, reason: Reason, hid: bytes | None = None) -> None:
        self.events.append(Refused(reason, hid))

    @property
    def refusals(self) -> list[Reason]:
        return [event.reason for event in self.events if isinstance(event, Refused)]
