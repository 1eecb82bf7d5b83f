"""Everything that one node may say to another: a closed union of tagged records (design D16)."""

from typing import Annotated, Final

import msgspec

from bcami.codec import Codec
from bcami.model.batch import Batch, BatchCertificate, Endorsement
from bcami.model.block import BlockCertificate, Header
from bcami.model.chain import STATE_KEY_BYTES_MAX, BlockBundle, StateRow
from bcami.model.consensus import ConsensusMessage
from bcami.model.ids import U63, Hash, ReplicaId
from bcami.units import KIB, MIB

FRAME_BYTES_MAX: Final = 80 * MIB
"""Limit of a bulk frame, checked on the length prefix before anything is allocated."""
VOTE_FRAME_BYTES_MAX: Final = 8 * MIB
"""Limit of a vote frame: a new-view with full windows stays below it."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """First frame of a connection."""

    chain: Hash
    replica: ReplicaId
    lane: str
    """"votes" or "bulk": votes do not wait behind bulk data."""


class Status(msgspec.Struct, frozen=True, array_like=True, tag="status"):
    """Periodic and on reconnect; peers re-send what the sender lacks (protocol 6.1)."""

    epoch: U63
    replica: ReplicaId
    view: U63
    in_view_change: bool
    executed: U63
    """Highest height executed and durable."""
    certified: U63
    """Highest height with a block certificate, all below executed."""
    lanes: Annotated[tuple[U63, ...], msgspec.Meta(max_length=64)]
    """Last executed batch number of each collector."""
    suspects: bool = False
    """Its monitor finds the primary of `view` slower than it has to be (`bcami.pbft.monitor`)."""


class FetchBatch(msgspec.Struct, frozen=True, array_like=True, tag="fetch_batch"):
    """Asks an endorser for a batch that the sender lacks."""

    collector: ReplicaId
    number: U63
    batch_digest: Hash


class FetchBlocks(msgspec.Struct, frozen=True, array_like=True, tag="fetch_blocks"):
    """Asks for certified blocks from `first` on, as many as fit into one answer's limits."""

    first: U63
    last: U63


SNAPSHOT_PART_BYTES: Final = 512 * KIB
"""A part of a snapshot ends with the row that reaches this."""
SNAPSHOT_ROW_BYTES: Final = 16
"""What a row counts beside its bytes, so that the number of rows is bounded too."""
_ROWS_MAX: Final = SNAPSHOT_PART_BYTES // SNAPSHOT_ROW_BYTES + 1


class FetchSnapshot(msgspec.Struct, frozen=True, array_like=True, tag="fetch_snapshot"):
    """Asks for a part of the certified world state (protocol 5.5)."""

    height: U63
    """Of the snapshot that the sender is taking; 0 for the newest one."""
    after: Annotated[bytes, msgspec.Meta(max_length=STATE_KEY_BYTES_MAX)]
    """The last key that it has."""


class SnapshotPart(msgspec.Struct, frozen=True, array_like=True, tag="snapshot_part"):
    """Rows of the world state after one block, in key order."""

    header: Header
    certificate: BlockCertificate
    """The header's own."""
    after: Annotated[bytes, msgspec.Meta(max_length=STATE_KEY_BYTES_MAX)]
    """The key that the rows follow; empty in the first part."""
    rows: Annotated[tuple[StateRow, ...], msgspec.Meta(max_length=_ROWS_MAX)]
    is_last: bool


PeerMessage = (
    ConsensusMessage
    | Batch
    | Endorsement
    | BatchCertificate
    | Status
    | FetchBatch
    | FetchBlocks
    | BlockBundle
    | FetchSnapshot
    | SnapshotPart
)

PEER_CODEC: Final[Codec[PeerMessage]] = Codec(PeerMessage, FRAME_BYTES_MAX)
HELLO_CODEC: Final[Codec[Hello]] = Codec(Hello, 1024)
