"""What goes over HTTP between the MDMS's head-end and whoever carries its meters' messages.

    up     a request whose body is `UpBatch`: encoded `UpMessage`s of any meters
    down   an event stream: first the proof of the open epoch, then one `DownItem` for each message

Nothing here is secret or trusted: the messages inside protect themselves.
"""

from typing import Annotated, Final

import msgspec

from bcami.codec import Codec
from bcami.kms.messages import DOWN_CODEC, UP_CODEC
from bcami.model.ids import U32, Hash
from bcami.units import KIB, MIB

SUBSCRIBED_MAX: Final = 20_000
"""Meters behind one stream."""
UP_MESSAGES_MAX: Final = 1_000
UP_BYTES_MAX: Final = 4 * MIB

EPOCH_EVENT: Final = "epoch"
"""Data: the `TransactionProof` of open_kms."""
MESSAGE_EVENT: Final = "message"
"""Data: a `DownItem`."""
GAP_EVENT: Final = "gap"
"""The stream cannot go on where it ended: each meter checks in and is brought up to date."""

Subscription = Annotated[tuple[Hash, ...], msgspec.Meta(min_length=1, max_length=SUBSCRIBED_MAX)]
"""HIDs of the meters that a stream is for."""
UpBatch = Annotated[
    tuple[Annotated[bytes, msgspec.Meta(max_length=UP_CODEC.bytes_max)], ...],
    msgspec.Meta(max_length=UP_MESSAGES_MAX),
]


class DownItem(msgspec.Struct, frozen=True, array_like=True):
    """One message of the MDMS on its way down."""

    hid: Annotated[bytes, msgspec.Meta(max_length=32)]
    """The meter that it is for; empty for a group."""
    group: U32
    message: Annotated[bytes, msgspec.Meta(max_length=DOWN_CODEC.bytes_max)]


SUBSCRIPTION: Final[Codec[tuple[bytes, ...]]] = Codec(Subscription, 40 * SUBSCRIBED_MAX)
UP_BATCH: Final[Codec[tuple[bytes, ...]]] = Codec(UpBatch, UP_BYTES_MAX)
DOWN_ITEM: Final[Codec[DownItem]] = Codec(DownItem, DOWN_CODEC.bytes_max + KIB)
EVENT_TEXT_MAX: Final = 2 * DOWN_ITEM.bytes_max
"""Characters of one event: base64 of a record."""
