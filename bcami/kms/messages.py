"""What goes between the MDMS and its meters: the outer forms, what they carry, and Table 1 [KMS 2.2].

    down   Bootstrap        keys sealed to one meter's KEM key, signed                        protocol 8
           Envelope         unicast, broadcast or multicast, under a session key
           Rekey            what the members of a group need to follow it to its next key     [LKH]
    up     BootstrapRequest a meter asks for keys, signed by its session key
           Envelope         unicast only

Counters, versions and the KMS epoch stand in an envelope's header; the profile `paper` leaves them at 0, because there
both ends count by themselves.
"""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Annotated, Final, NamedTuple

import msgspec

from bcami.codec import Codec
from bcami.crypto.secret_record import SecretRecord
from bcami.model.ids import U32, U63, Hash, KemKey, Signature
from bcami.model.reasons import Reason
from bcami.units import KIB

KEY_BYTES: Final = 16
"""b = 128 bits: the length of every key, counter and additional value [KMS 9]."""
ROOT_GROUP: Final = 0
"""All meters; projects count from 1."""
GROUP_BYTES: Final = 4
NAME_CHARACTERS_MAX: Final = 64
BODY_BYTES_MAX: Final = 16 * KIB
CATCH_UP_BYTES_MAX: Final = 12 * KIB
"""What one catch-up carries at most; more goes into another one."""
TREE_HEIGHT_MAX: Final = 32
IDS_MAX: Final = 64
CHANGES_MAX: Final = 1 << 17
WRAPPED_BYTES: Final = KEY_BYTES + 16

Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Value = Annotated[bytes, msgspec.Meta(max_length=KEY_BYTES)]
Party = Annotated[bytes, msgspec.Meta(min_length=GROUP_BYTES, max_length=32)]
RequestId = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
ProjectName = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]


class Mode(IntEnum):
    """How a message goes [KMS 2.2]."""

    UNICAST = 1
    BROADCAST = 2
    MULTICAST = 3


class Direction(IntEnum):
    DOWN = 1
    UP = 2


class Envelope(msgspec.Struct, frozen=True, array_like=True, tag="envelope"):
    """One protected message. Everything before `body` is the header."""

    mode: Mode
    direction: Direction
    party: Party
    """HID of the meter, or the group's number in four bytes; the other end is the MDMS."""
    epoch: U63
    version: U63
    """Generation of the user key, or version of the group key."""
    counter: U63
    body: Annotated[bytes, msgspec.Meta(max_length=BODY_BYTES_MAX)]
    sign: Annotated[bytes, msgspec.Meta(max_length=64)]
    """`paper`: Sign_t, an HMAC under the session key. `hardened`: the MDMS's ECDSA signature on what many share."""


class Wrap(msgspec.Struct, frozen=True, array_like=True):
    """A node's new key under the key of one of its children."""

    node: U32
    child: U32
    sealed: Annotated[bytes, msgspec.Meta(min_length=WRAPPED_BYTES, max_length=WRAPPED_BYTES)]


class Rekey(msgspec.Struct, frozen=True, array_like=True, tag="rekey"):
    """Takes the members of a group from one version of its keys to the next."""

    group: U32
    epoch: U63
    from_version: U63
    version: U63
    splits: Annotated[tuple[U32, ...], msgspec.Meta(max_length=CHANGES_MAX)]
    """Leaves that became inner nodes, in order: the member of leaf x is at d·x+1 from now on."""
    joined: Annotated[tuple[U32, ...], msgspec.Meta(max_length=CHANGES_MAX)]
    """Positions of newcomers when nobody left: keys above them take one step of a one-way function."""
    wraps: Annotated[tuple[Wrap, ...], msgspec.Meta(max_length=CHANGES_MAX)]
    """Fresh keys, children before their parents, when somebody left."""
    sign: Annotated[bytes, msgspec.Meta(max_length=64)]


class NodeKey(SecretRecord, frozen=True, array_like=True):
    node: U32
    key: Key


class GroupKeys(SecretRecord, frozen=True, array_like=True, tag="group_keys"):
    """Everything that one member needs of a group, from whatever it has or lacks: one unicast."""

    group: U32
    position: U32
    degree: U32
    """Children of an inner node; 0 in a star."""
    version: U63
    floor: U63
    """Highest counter used under this version: nothing up to it is for this receiver."""
    count: Value
    """GCount_j (or Count_0) of the profile `paper`; empty in `hardened`."""
    path: Annotated[tuple[NodeKey, ...], msgspec.Meta(min_length=1, max_length=TREE_HEIGHT_MAX)]
    """Keys from the member's parent up to the root; the root's key is the group key."""


class BootstrapRequest(msgspec.Struct, frozen=True, array_like=True, tag="bootstrap_request"):
    """A meter asks for keys of the current epoch."""

    hid: Hash
    session: U63
    epoch: U63
    """KMS epoch that it was told of."""
    asked_ms: U63
    """The meter's time. A later request has a later one, so that a recorded one cannot push a fresh one aside."""
    nonce: Hash
    signature: Signature
    """By the session key, over `request_digest`."""


class Bootstrap(msgspec.Struct, frozen=True, array_like=True, tag="bootstrap"):
    """Answers a request: `BootstrapContents` sealed to the KEM key that the meter registered (protocol 8)."""

    hid: Hash
    session: U63
    epoch: U63
    generation: U63
    """Rises with each bootstrap of this meter in this epoch."""
    nonce: Hash
    encapsulation: KemKey
    sealed: Annotated[bytes, msgspec.Meta(max_length=BODY_BYTES_MAX)]
    signature: Signature
    """By the epoch's KMS key, over `bootstrap_digest`."""


class BootstrapContents(SecretRecord, frozen=True, array_like=True):
    user_key: Key
    count: Value
    groups: tuple[GroupKeys, ...]


# Table 1: what applications send. Money is an integer of 10^-7 of the currency's unit per kWh, power of watts.


class MeterData(msgspec.Struct, frozen=True, array_like=True, tag="meter_data"):
    """Readings on demand; `bcami.model.report` has the form of the bytes."""

    report: Annotated[bytes, msgspec.Meta(max_length=8 * KIB)]


class MeterDataCall(msgspec.Struct, frozen=True, array_like=True, tag="meter_data_call"):
    """The MDMS's side of "meter data": all meters are asked for the readings of [from_s, to_s)."""

    from_s: U63
    to_s: U63


class JoinProject(msgspec.Struct, frozen=True, array_like=True, tag="join"):
    project: U32


class LeaveProject(msgspec.Struct, frozen=True, array_like=True, tag="leave"):
    project: U32


class Pricing(msgspec.Struct, frozen=True, array_like=True, tag="pricing"):
    starts_s: U63
    interval_s: U32
    prices: Annotated[tuple[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)], ...], msgspec.Meta(max_length=336)]


class ControlAction(StrEnum):
    """States, not changes: obeying one twice is obeying it once."""

    CONNECT = "connect"
    DISCONNECT = "disconnect"
    LIMIT = "limit"


class RemoteControl(msgspec.Struct, frozen=True, array_like=True, tag="remote_control"):
    action: ControlAction
    limit_w: U32
    starts_s: U63
    ends_s: U63


class EventKind(StrEnum):
    POWER_LOST = "power_lost"
    POWER_RESTORED = "power_restored"
    TAMPERED = "tampered"


class Notification(msgspec.Struct, frozen=True, array_like=True, tag="notification"):
    kind: EventKind
    at_s: U63


class PublishProject(msgspec.Struct, frozen=True, array_like=True, tag="publish"):
    project: U32
    name: ProjectName
    excludes: Annotated[tuple[U32, ...], msgspec.Meta(max_length=IDS_MAX)]
    """Projects that a participant of this one cannot take part in."""


DownPayload = MeterDataCall | Pricing | RemoteControl | PublishProject
UpPayload = MeterData | JoinProject | LeaveProject | Notification
Payload = DownPayload | UpPayload


class Rule(NamedTuple):
    """One row of Table 1."""

    title: str
    direction: Direction
    modes: frozenset[Mode]
    """How the sender may address it. A single meter may get each message for many again by unicast (catch-up)."""
    deadline_ms: int


_ALL_DOWN: Final = frozenset({Mode.UNICAST, Mode.BROADCAST, Mode.MULTICAST})
_SHARED: Final = frozenset({Mode.BROADCAST, Mode.MULTICAST})
_ONE: Final = frozenset({Mode.UNICAST})
_EVERYBODY: Final = frozenset({Mode.BROADCAST})

TABLE_1: Final[Mapping[type[Payload], Rule]] = MappingProxyType(
    {
        MeterData: Rule("meter data", Direction.UP, _ONE, 15_000),
        MeterDataCall: Rule("meter data", Direction.DOWN, _EVERYBODY, 15_000),
        JoinProject: Rule("joining or leaving the DR", Direction.UP, _ONE, 15_000),
        LeaveProject: Rule("joining or leaving the DR", Direction.UP, _ONE, 15_000),
        Pricing: Rule("pricing", Direction.DOWN, _SHARED, 15_000),
        RemoteControl: Rule("remote control", Direction.DOWN, _ALL_DOWN, 5_000),
        Notification: Rule("notifications", Direction.UP, _ONE, 5_000),
        PublishProject: Rule("publishing DR", Direction.DOWN, _EVERYBODY, 5_000),
    }
)
"""[KMS Table 1]; that remote control also goes by unicast is the text of 5.1."""


# What an envelope's plaintext is.


class DeliveryId(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Names a message of the MDMS; no two have the same, also after an old backup came back."""

    epoch: U63
    number: U63


class Delivery(msgspec.Struct, frozen=True, array_like=True, tag="delivery"):
    """A message of Table 1 on its way down."""

    id: DeliveryId
    sent_ms: U63
    until_ms: U63
    """A meter does not take it after this time."""
    payload: DownPayload
    group: U32 | None = None
    """For whom it was sent, also when one meter gets it again by unicast; None: for this meter alone."""


class Request(msgspec.Struct, frozen=True, array_like=True, tag="request"):
    """A message of Table 1 on its way up; repeated under the same id until it is answered."""

    id: RequestId
    sent_ms: U63
    payload: UpPayload


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """response+ (`valid`) or response- (why not) [KMS Figure 9, steps 4 to 6]; answers any request."""

    id: RequestId
    reason: Reason


class Confirm(msgspec.Struct, frozen=True, array_like=True, tag="confirm"):
    """The meter has stored its keys, and holds groups at these versions: sent after a bootstrap, and to catch up."""

    holds: Annotated[tuple[tuple[U32, U63], ...], msgspec.Meta(max_length=IDS_MAX)]


class Acknowledge(msgspec.Struct, frozen=True, array_like=True, tag="acknowledge"):
    """Deliveries that the meter took, with its time of receipt."""

    taken: Annotated[tuple[tuple[DeliveryId, U63], ...], msgspec.Meta(max_length=IDS_MAX)]
    too_old: Annotated[tuple[DeliveryId, ...], msgspec.Meta(max_length=IDS_MAX)]
    """Deliveries below what it remembers: it does not take them, and need not get them again."""


class Dismissed(msgspec.Struct, frozen=True, array_like=True, tag="dismissed"):
    """The meter is no member of this group any more, as of this version."""

    group: U32
    version: U63


class CatchUp(SecretRecord, frozen=True, array_like=True, tag="catch_up"):
    """Answers `Confirm`: the MDMS uses the keys now, and this is all that the meter lacked, in one unicast."""

    grants: tuple[GroupKeys, ...]
    dismissed: tuple[Dismissed, ...]
    deliveries: Annotated[tuple[Delivery, ...], msgspec.Meta(max_length=IDS_MAX)]
    """Oldest first: what waits, and what still holds of what was sent before the meter came."""


DownContents = Delivery | Answer | GroupKeys | CatchUp | Dismissed
UpContents = Request | Confirm | Acknowledge
DownMessage = Bootstrap | Envelope | Rekey
UpMessage = BootstrapRequest | Envelope

DOWN_CODEC: Final[Codec[DownMessage]] = Codec(DownMessage, 8 * KIB * KIB)
UP_CODEC: Final[Codec[UpMessage]] = Codec(UpMessage, 32 * KIB)
DOWN_CONTENTS: Final[Codec[DownContents]] = Codec(DownContents, BODY_BYTES_MAX)
UP_CONTENTS: Final[Codec[UpContents]] = Codec(UpContents, BODY_BYTES_MAX)
BOOTSTRAP_CONTENTS: Final[Codec[BootstrapContents]] = Codec(BootstrapContents, BODY_BYTES_MAX)


def group_party(group: int) -> bytes:
    return group.to_bytes(GROUP_BYTES, "big")


def mode_of(group: int) -> Mode:
    return Mode.BROADCAST if group == ROOT_GROUP else Mode.MULTICAST
