"""What a ledger holds of one height, and what sync, release and audits pass on."""

from typing import Annotated, Final

import msgspec

from bcami.model.batch import Batch
from bcami.model.block import BlockCertificate, Header, Outcome
from bcami.model.consensus import PROPOSAL_CERTIFICATES_MAX, Proposal
from bcami.model.ids import U32, U63, Hash
from bcami.units import MIB

BUNDLE_BYTES_MAX: Final = 72 * MIB
"""64 batches of at most 1 MiB and their certificates; a proposal is kept far smaller by the primary."""

HEADERS_ABOVE_MAX: Final = 256
"""Headers between a block and the certificate that proves it. A window is the usual distance; crashes may add to it."""


class ChainBlock(msgspec.Struct, frozen=True, array_like=True):
    """An executed proposal and what came of it."""

    header: Header
    proposal: Proposal
    executed: Annotated[tuple[U32, ...], msgspec.Meta(max_length=PROPOSAL_CERTIFICATES_MAX)]
    """Places in `proposal.certificates` whose batches executed: next in lane (protocol 4.2); the others are no-ops."""
    outcomes: tuple[Outcome, ...]
    """One for each executed transaction: batches in order, absent ones (weak refusals) left out (protocol 4.3)."""


class StoredBatch(msgspec.Struct, frozen=True, array_like=True):
    """A batch; when its usage payloads are pruned their arguments are empty and `leaves` holds all leaf hashes."""

    batch: Batch
    leaves: tuple[Hash, ...]
    """Empty while the batch is whole (leaf hashes are then recomputed)."""


class BlockBundle(msgspec.Struct, frozen=True, array_like=True, tag="block_bundle"):
    """All that is needed to check a block against genesis and the block below: sync and release carry it."""

    block: ChainBlock
    batches: tuple[StoredBatch, ...]
    """One for each entry of `block.executed`, in that order."""
    certificate: BlockCertificate
    """Of this block, or of the first one above it that has a certificate: the hash chain makes it speak for both."""
    headers: Annotated[tuple[Header, ...], msgspec.Meta(max_length=HEADERS_ABOVE_MAX)] = ()
    """Headers above this block, up to that of the certificate; none when it is the block's own."""


STATE_KEY_BYTES_MAX: Final = 480
"""LMDB takes keys of 511 bytes; a history key is a state key with its length and a height."""
STATE_VALUE_BYTES_MAX: Final = 1024 * 1024


class StateEntry(msgspec.Struct, frozen=True, array_like=True):
    """One value of the world state with the height that last wrote it (protocol 5.6)."""

    value: Annotated[bytes, msgspec.Meta(max_length=STATE_VALUE_BYTES_MAX)]
    height: U63


StateRow = tuple[Annotated[bytes, msgspec.Meta(min_length=1, max_length=STATE_KEY_BYTES_MAX)], StateEntry]
"""One key of the world state and what it holds."""


class TransactionPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where the first outcome of a transaction stands (protocol 3.5)."""

    height: U63
    index: U32


class StateVersion(msgspec.Struct, frozen=True, array_like=True):
    """One entry of a key's history; `value` is None where the key was deleted."""

    height: U63
    value: bytes | None
