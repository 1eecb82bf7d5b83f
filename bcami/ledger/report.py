"""What an audit found, and what whoever is above the ledger may add to it."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from bcami.errors import EnvironmentFault
from bcami.model.block import Header
from bcami.model.chain import ChainBlock, StateEntry, StoredBatch
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction

Read = Callable[[bytes], StateEntry | None]


class FirstError(msgspec.Struct, frozen=True):
    """The first thing that does not hold; an audit ends there."""

    height: int | None
    """The block that it belongs to; None where a record belongs to no block."""
    table: str
    reason: str

    def __str__(self) -> str:
        block = "" if self.height is None else f"block {self.height}, "
        return f"{block}table {self.table!r}: {self.reason}"


class AuditReport(msgspec.Struct, frozen=True):
    """The verdict on one ledger; the hashes are those of the last block, in hex."""

    name: str
    ok: bool
    mode: str
    """"full" or "quick": quick checks every record and the hash chain, not signatures and roots."""
    height: int = 0
    block_hash: str = ""
    state_root: str = ""
    certified_height: int = 0
    blocks_checked: int = 0
    transactions_checked: int = 0
    signatures_checked: int = 0
    """Signatures of transactions; those of certificates are always checked in full mode."""
    records_checked: int = 0
    pruned_to: int = 0
    executed_to: int = 0
    """Blocks up to here were executed again from genesis; 0 when nothing could execute them."""
    audited_from: int = 0
    """Height of the certified snapshot from which on signatures are checked and state is followed; 0: genesis.

    Below it hash chain, certificates, roots, outcomes and indexes are checked all the same.
    """
    first_error: FirstError | None = None

    def fault(self, what: str) -> EnvironmentFault:
        """Return the error with which a node refuses to start on this ledger."""
        return EnvironmentFault(
            f"the ledger of {self.name} is damaged: {self.first_error}",
            where=what,
            likely="the disk or another program changed the store, or the node's program did",
            do="rebuild the node's ledger from its peers; its keys and promises stay",
        )


@dataclass(frozen=True)
class AuditHooks:
    """What a ledger cannot know by itself; made in the auditing process by a factory that is named to it."""

    signers: Callable[[Transaction, Read], tuple[bytes, ...] | Reason] | None = None
    """Keys that must have signed a transaction, from its argument and the state below its block."""
    reexecute: Callable[[ChainBlock, tuple[StoredBatch, ...]], Header] | None = None
    """Executes the next block, from genesis on, and returns the header that comes out."""


class AuditError(Exception):
    """Ends an audit with its first error."""

    def __init__(self, table: str, height: int | None, reason: str) -> None:
        super().__init__(reason)
        self.first_error = FirstError(height, table, reason)
