"""What goes over HTTP between the MDMS's head-end and whoever carries its meters' messages.

    up     a request whose body is `UpBatch`: encoded `UpMessage`s of any meters
    down   an event stream for meters that proved themselves (bcami.kms.subscription): who was left out, the proof of
           the open epoch, then one `DownItem` for each message

Nothing here is secret or trusted: the messages inside protect themselves.
"""

from typing import Annotated, Final

import msgspec

from bcami.codec import Codec
from bcami.kms.messages import DOWN_CODEC, UP_CODEC
from bcami.kms.subscription import SUBSCRIBED_MAX
from bcami.model.ids import U32, Hash
from bcami.model.reasons import Reason
from bcami.units import KIB, MIB

UP_MESSAGES_MAX: Final = 1_000
UP_BYTES_MAX: Final = 4 * MIB

LEFT_OUT_EVENT: Final = "left_out"
"""Data: `LeftOut`; the first event, when the stream is not for all meters that it was asked for."""
EPOCH_EVENT: Final = "epoch"
"""Data: the `TransactionProof` of open_kms."""
MESSAGE_EVENT: Final = "message"
"""Data: a `DownItem`."""
GAP_EVENT: Final = "gap"
"""The stream cannot go on where it ended: each meter checks in and is brought up to date."""

LeftOut = Annotated[tuple[tuple[Hash, Reason], ...], msgspec.Meta(max_length=SUBSCRIBED_MAX)]
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


LEFT_OUT: Final[Codec[tuple[tuple[bytes, Reason], ...]]] = Codec(LeftOut, 128 * SUBSCRIBED_MAX)
UP_BATCH: Final[Codec[tuple[bytes, ...]]] = Codec(UpBatch, UP_BYTES_MAX)
DOWN_ITEM: Final[Codec[DownItem]] = Codec(DownItem, DOWN_CODEC.bytes_max + KIB)
EVENT_TEXT_MAX: Final = 2 * DOWN_ITEM.bytes_max
"""Characters of one event: base64 of a record."""
