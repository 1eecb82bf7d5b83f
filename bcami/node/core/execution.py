"""Executes a proposal into a block: which batches count, which transactions are absent, what each outcome is.

The one commit point. Ordering, view change and catch-up all come through `Executor.execute`, which is a pure
function of the parent block, the world state, the proposal and the batches (protocol 4.2, 4.3, 5.1, 5.3).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bcami.contract.runtime import Runtime
from bcami.crypto import merkle
from bcami.crypto.lthash import LtHash, state_element
from bcami.crypto.roster import Roster
from bcami.crypto.verification import absent_transactions
from bcami.endorsement.pool import HeldBatch
from bcami.ledger.store import Ledger, LedgerCommit
from bcami.model.batch import BatchCertificate
from bcami.model.block import Header, Outcome, header_hash, result_leaf
from bcami.model.chain import ChainBlock, StateEntry, StoredBatch
from bcami.model.consensus import Proposal, proposal_digest
from bcami.model.reasons import Reason
from bcami.model.signing import u64
from bcami.model.transaction import transaction_leaf
from bcami.node.core.world import WorldState


def lane_key(collector: int) -> bytes:
    """World-state key of a collector's last executed batch number."""
    return b"system/lane/" + collector.to_bytes(2, "big")


@dataclass(frozen=True, slots=True)
class MissingBatches:
    """Execution waits for data that this node does not hold."""

    certificates: tuple[BatchCertificate, ...]


@dataclass(frozen=True, slots=True)
class Absent:
    """A transaction that weak refusals left out of a block: no outcome, it may be asked again (protocol 4.3)."""

    collector: int
    transaction_id: bytes
    reason: Reason


@dataclass(frozen=True, slots=True)
class ExecutedBlock:
    """A block that was executed here, not yet durable."""

    commit: LedgerCommit
    header_hash: bytes
    lanes: tuple[int, ...]
    results: merkle.Tree
    absent: tuple[Absent, ...]
    digests: tuple[bytes, ...]
    """Batches that executed."""
    faults: tuple[tuple[bytes, str], ...]
    """(transaction id, where the contract broke) of each transaction whose contract has a bug."""

    @property
    def header(self) -> Header:
        return self.commit.block.header

    @property
    def height(self) -> int:
        return self.commit.block.header.height


@dataclass(slots=True)
class _Work:
    """What grows while a block executes."""

    entries: dict[bytes, StateEntry | None] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    leaves: list[bytes] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)
    faults: list[tuple[bytes, str]] = field(default_factory=list)
    executed: list[int] = field(default_factory=list)
    batches: list[HeldBatch] = field(default_factory=list)


class Executor:
    """Holds what the next block builds on: the parent's hash and time, the state hash, the lanes."""

    def __init__(self, roster: Roster, runtime: Runtime, world: WorldState, ledger: Ledger) -> None:
        self._roster = roster
        self._runtime = runtime
        self._world = world
        self.restart(ledger)

    def restart(self, ledger: Ledger) -> None:
        """Go on from where the ledger stands."""
        roster = self._roster
        self.height = ledger.height
        header = ledger.header(self.height) if self.height else None
        self._parent_hash = roster.chain if header is None else header_hash(header)
        self._parent_time = roster.genesis.created_ms if header is None else header.time_ms
        self._state_bytes = 0 if header is None else header.state_bytes
        self._lthash = LtHash(ledger.lthash())
        self.lanes = tuple(self._lane(collector) for collector in range(roster.quorum.n))

    def _lane(self, collector: int) -> int:
        entry = self._world.read(lane_key(collector))
        return 0 if entry is None else int.from_bytes(entry.value, "big")

    @property
    def parent_hash(self) -> bytes:
        return self._parent_hash

    @property
    def parent_time_ms(self) -> int:
        return self._parent_time

    def needed(self, proposal: Proposal) -> list[tuple[int, BatchCertificate]]:
        """Return (place, certificate) of each certificate that executes: the next number of its lane, in order."""
        lanes = list(self.lanes)
        found = []
        for place, certificate in enumerate(proposal.certificates):
            if certificate.collector < len(lanes) and certificate.number == lanes[certificate.collector] + 1:
                lanes[certificate.collector] += 1
                found.append((place, certificate))
        return found

    def execute(
        self, proposal: Proposal, batch_of: Callable[[bytes], HeldBatch | None]
    ) -> ExecutedBlock | MissingBatches:
        """Execute the proposal on top of the last one and move on to it, or name the batches that are missing."""
        needed = self.needed(proposal)
        missing = tuple(item for _, item in needed if batch_of(item.batch_digest) is None)
        if missing:
            return MissingBatches(missing)
        height = self.height + 1
        time_ms = max(self._parent_time, proposal.time_ms)
        work = _Work()
        lanes = list(self.lanes)
        for place, certificate in needed:
            held = batch_of(certificate.batch_digest)
            assert held is not None
            lanes[certificate.collector] = certificate.number
            work.executed.append(place)
            work.batches.append(held)
            self._run_batch(work, held, certificate, height, time_ms)
        for collector, number in enumerate(lanes):
            if number != self.lanes[collector]:
                work.entries[lane_key(collector)] = StateEntry(u64(number), height)
        return self._close(work, proposal, lanes, height, time_ms)

    def _run_batch(
        self, work: _Work, held: HeldBatch, certificate: BatchCertificate, height: int, time_ms: int
    ) -> None:
        absent = absent_transactions(certificate, self._roster.quorum)
        reasons: dict[int, Reason] = {}
        if absent:
            reasons = {item.index: item.reason for vote in certificate.votes for item in vote.refusals}
        entries, base = work.entries, self._world.read

        def read(key: bytes) -> StateEntry | None:
            return entries[key] if key in entries else base(key)

        execute = self._runtime.execute
        for index, (tx, tx_id) in enumerate(zip(held.batch.transactions, held.ids, strict=True)):
            if index in absent:
                work.absent.append(Absent(certificate.collector, tx_id, reasons[index]))
                continue
            result = execute(tx, tx_id, read, height, time_ms)
            for key, value in result.writes.items():
                entries[key] = None if value is None else StateEntry(value, height)
            if result.fault:
                work.faults.append((tx_id, result.fault))
            work.outcomes.append(Outcome(tx_id, result.reason))
            work.leaves.append(transaction_leaf(tx_id, tx.signatures))

    def _close(self, work: _Work, proposal: Proposal, lanes: Sequence[int], height: int, time_ms: int) -> ExecutedBlock:
        self._apply_state(work.entries)
        results = merkle.Tree([result_leaf(outcome, index) for index, outcome in enumerate(work.outcomes)])
        header = Header(
            chain=self._roster.chain,
            epoch=self._roster.epoch,
            height=height,
            previous=self._parent_hash,
            proposal_digest=proposal_digest(self._roster.chain, self._roster.epoch, proposal),
            transaction_count=len(work.outcomes),
            transactions_root=merkle.root(work.leaves),
            results_root=results.root(),
            state_root=self._lthash.root(),
            state_bytes=self._state_bytes,
            time_ms=time_ms,
            members_hash=self._roster.members_hash,
        )
        block = ChainBlock(header, proposal, tuple(work.executed), tuple(work.outcomes))
        writes = tuple((key, None if entry is None else entry.value) for key, entry in sorted(work.entries.items()))
        commit = LedgerCommit(
            block=block,
            batches=tuple(StoredBatch(held.batch, ()) for held in work.batches),
            writes=writes,
            lthash=self._lthash.to_bytes(),
        )
        self._world.layer(height, work.entries)
        self.height = height
        self.lanes = tuple(lanes)
        self._parent_hash = header_hash(header)
        self._parent_time = time_ms
        return ExecutedBlock(
            commit,
            self._parent_hash,
            self.lanes,
            results,
            tuple(work.absent),
            tuple(held.digest for held in work.batches),
            tuple(work.faults),
        )

    def _apply_state(self, entries: dict[bytes, StateEntry | None]) -> None:
        added: list[bytes] = []
        removed: list[bytes] = []
        for key, entry in entries.items():
            old = self._world.read(key)
            if old is not None:
                removed.append(state_element(key, old.value, old.height))
                self._state_bytes -= len(key) + len(old.value)
            if entry is not None:
                added.append(state_element(key, entry.value, entry.height))
                self._state_bytes += len(key) + len(entry.value)
        self._lthash.update(added, removed)
