"""Observations: the one typed event stream that feeds logs, metrics, live views and run history (design D19)."""

import msgspec

from bcami.model.reasons import Reason


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Something was refused; `source` is the place: admission, endorsement, consensus, transport, sync, contribute."""

    source: str
    reason: Reason
    peer: int | None = None
    count: int = 1
    detail: str = ""


class BatchCertified(msgspec.Struct, frozen=True, tag="batch_certified"):
    collector: int
    number: int
    transactions: int


class BlockExecuted(msgspec.Struct, frozen=True, tag="block_executed"):
    height: int
    view: int
    transactions: int
    rejected: int


class BlockCertified(msgspec.Struct, frozen=True, tag="block_certified"):
    height: int


class ViewChangeStarted(msgspec.Struct, frozen=True, tag="view_change_started"):
    view: int
    cause: str


class ViewEntered(msgspec.Struct, frozen=True, tag="view_entered"):
    view: int
    primary: int


class PrimarySuspected(msgspec.Struct, frozen=True, tag="primary_suspected"):
    """The node finds the primary too slow; it leaves the view when weak nodes do."""

    view: int
    primary: int
    wait_ms: int
    """How long the certificate that waits longest has been at the primary."""
    demand_ms: int
    """The longest wait that would have been in order."""


class EquivocationSeen(msgspec.Struct, frozen=True, tag="equivocation_seen"):
    """Two signed statements of `replica` contradict each other; both are kept as bytes."""

    replica: int
    what: str
    first: bytes
    second: bytes


class SyncProgress(msgspec.Struct, frozen=True, tag="sync_progress"):
    height: int
    target: int
    peer: int


class SnapshotInstalled(msgspec.Struct, frozen=True, tag="snapshot_installed"):
    """A peer's world state was taken in place of executing blocks (protocol 5.5)."""

    height: int
    peer: int


class Halted(msgspec.Struct, frozen=True, tag="halted"):
    """The node stopped ordering, with the reason for its operator."""

    reason: str


class Amnesia(msgspec.Struct, frozen=True, tag="amnesia"):
    """The node started without the votes that it once made: it never votes again and counts towards f."""

    reason: str


class ContractFault(msgspec.Struct, frozen=True, tag="contract_fault"):
    """A contract broke while it executed a transaction, which was rejected for it; for the contract's author."""

    height: int
    transaction_id: bytes
    fault: str


class PeerUp(msgspec.Struct, frozen=True, tag="peer_up"):
    peer: int


class PeerDown(msgspec.Struct, frozen=True, tag="peer_down"):
    peer: int
    reason: str


Observation = (
    Refused
    | BatchCertified
    | BlockExecuted
    | BlockCertified
    | ViewChangeStarted
    | ViewEntered
    | PrimarySuspected
    | EquivocationSeen
    | SyncProgress
    | SnapshotInstalled
    | Halted
    | Amnesia
    | ContractFault
    | PeerUp
    | PeerDown
)
