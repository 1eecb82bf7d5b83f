"""What a replica reacts to: a closed set of frozen records, each of them one `Replica.step`."""

import msgspec

from bcami.model.batch import BatchCertificate
from bcami.model.block import BlockCertificate
from bcami.model.consensus import ConsensusMessage
from bcami.model.wire import Status


class Received(msgspec.Struct, frozen=True):
    """A message of `message.replica`, perhaps passed on by another; its signatures are checked in the step."""

    message: ConsensusMessage


class TimerFired(msgspec.Struct, frozen=True):
    """The timer of this name ran out. One that was cancelled or set anew meanwhile is ignored or does no harm."""

    name: str


class CertificateReady(msgspec.Struct, frozen=True):
    """A verified batch certificate wants to be ordered. Gossip brings each one to every replica (protocol 4.4)."""

    certificate: BatchCertificate


class Executed(msgspec.Struct, frozen=True):
    """The block at `height` is durable in the ledger. Repeating it, after a restart, does no harm."""

    height: int
    header_hash: bytes
    lanes: tuple[int, ...]
    """Last executed batch number of each collector, after this block."""


class BlockCertified(msgspec.Struct, frozen=True):
    """A block certificate learnt from a peer; not yet verified."""

    certificate: BlockCertificate


class Synced(msgspec.Struct, frozen=True):
    """Catch-up executed certified blocks up to `height`; they are durable."""

    height: int
    header_hash: bytes
    certificate: BlockCertificate
    lanes: tuple[int, ...]


class PeerStatus(msgspec.Struct, frozen=True):
    """A peer's periodic status; what it lacks is sent to it again (protocol 6.1)."""

    status: Status


Input = Received | TimerFired | CertificateReady | Executed | BlockCertified | Synced | PeerStatus
