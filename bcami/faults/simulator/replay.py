"""The chain of a finished phase, executed again from genesis by somebody who trusts nobody.

I3 validity      every valid transaction carries the signatures that its contract asks for
lanes            of each collector's batches those execute that have the next number, and no other (protocol 4.2); of
                 an executed batch exactly those transactions are absent that weak endorsers refuse (protocol 4.3)
I4 exactly once  no transaction, and no (signer, session, sequence), is valid twice; the first outcome is the one
                 that the index knows
I7 equality      the same headers, the same world state at every node of that height
I14 reads        what a node has at the chain's height is what the chain says (what it answers on the way: `reads`)
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from bcami.contract.runtime import Runtime
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import verify
from bcami.endorsement.pool import HeldBatch, hold
from bcami.faults.simulator.agreement import Violation
from bcami.ledger.memory import MemoryLedger
from bcami.ledger.store import Ledger
from bcami.model.block import header_hash
from bcami.model.chain import ChainBlock, StateEntry, StoredBatch, TransactionPlace
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction
from bcami.node.core.execution import ExecutedBlock, Executor
from bcami.node.core.world import WorldState

Key = tuple[bytes, int, int]


class History:
    """Every value that the chain ever gave to a key, in order; before the first a key holds nothing."""

    def __init__(self) -> None:
        self._heights: dict[bytes, list[int]] = {}
        self._entries: dict[bytes, list[StateEntry | None]] = {}

    def add(self, height: int, key: bytes, entry: StateEntry | None) -> None:
        self._heights.setdefault(key, []).append(height)
        self._entries.setdefault(key, [None]).append(entry)

    def keys(self) -> Iterable[bytes]:
        return self._heights

    def at(self, height: int, key: bytes) -> StateEntry | None:
        """Return what a key held after a height."""
        place = bisect_right(self._heights.get(key, ()), height)
        return self._entries[key][place] if place else None

    def standing(self, key: bytes, height: int) -> list[StateEntry | None]:
        """Return all that a key held at this height or later."""
        place = bisect_right(self._heights.get(key, ()), height)
        return self._entries.get(key, [None])[place:]


class Auditor:
    """Executes a ledger's blocks anew, from where it stopped the last time."""

    def __init__(self, roster: Roster, runtime: Runtime) -> None:
        self._roster = roster
        self.runtime = runtime
        self.history = History()
        self.ledger = MemoryLedger(roster.genesis)
        self._world = WorldState(self.ledger)
        self._executor = Executor(roster, runtime, self._world, self.ledger)
        self._valid: dict[bytes, int] = {}
        self._consumed: dict[Key, bytes] = {}
        self._first: dict[bytes, TransactionPlace] = {}
        self._lanes = [0] * roster.quorum.n
        self.transactions = 0

    def follow(self, source: Ledger, batches_of: Callable[[int], tuple[StoredBatch, ...]]) -> None:
        """Execute what the ledger has above the last audited height; its own payloads may be pruned."""
        for height in range(self._executor.height + 1, source.height + 1):
            self._block(source, height, batches_of(height))

    def _block(self, source: Ledger, height: int, batches: tuple[StoredBatch, ...]) -> None:
        block = source.block(height)
        assert block is not None
        held: dict[bytes, HeldBatch] = {}
        for stored in batches:
            batch = hold(stored.batch, self._roster.chain)
            held[batch.digest] = batch
        found = self._signed(held)
        result = self._executor.execute(block.proposal, held.get)
        if not isinstance(result, ExecutedBlock):
            raise Violation("I7", f"block {height} lacks batches that it executed")
        if header_hash(block.header) != result.header_hash:
            raise Violation("I7", f"executing block {height} again gives another header")
        self._check_lanes(block)
        self._check_absent(block, list(held.values()))
        for index, outcome in enumerate(result.commit.block.outcomes):
            self._outcome(outcome.transaction_id, outcome.reason, TransactionPlace(height, index), found)
        self.ledger.commit(result.commit)
        for key, _ in result.commit.writes:
            self.history.add(height, key, self.ledger.state(key))
        self._world.durable(height, [key for key, _ in result.commit.writes])

    def _check_lanes(self, block: ChainBlock) -> None:
        expected: list[int] = []
        for place, item in enumerate(block.proposal.certificates):
            if item.collector < len(self._lanes) and item.number == self._lanes[item.collector] + 1:
                self._lanes[item.collector] += 1
                expected.append(place)
        if list(block.executed) != expected:
            raise Violation("lanes", f"block {block.header.height} executes {block.executed} instead of {expected}")

    def _check_absent(self, block: ChainBlock, held: Sequence[HeldBatch]) -> None:
        """Count the refusals of each transaction anew; one batch may stand for what another lacks."""
        counted = {outcome.transaction_id for outcome in block.outcomes}
        present: set[bytes] = set()
        batches = {batch.digest: batch for batch in held}
        for place in block.executed:
            certificate = block.proposal.certificates[place]
            refusals = Counter(item.index for vote in certificate.votes for item in vote.refusals)
            for index, tx_id in enumerate(batches[certificate.batch_digest].ids):
                if refusals[index] < self._roster.quorum.weak:
                    present.add(tx_id)
        height = block.header.height
        if not counted <= present:
            raise Violation("lanes", f"block {height} gives an outcome to what weak endorsers refuse")
        if not present <= counted | self._first.keys():
            raise Violation("lanes", f"block {height} leaves out what less than weak endorsers refuse")

    def _signed(self, held: dict[bytes, HeldBatch]) -> dict[bytes, tuple[Transaction, bool]]:
        """Return each transaction by id, and whether its signatures are those asked for before the block."""
        found: dict[bytes, tuple[Transaction, bool]] = {}
        for batch in held.values():
            for tx, tx_id in zip(batch.batch.transactions, batch.ids, strict=True):
                keys = self.runtime.signers(tx, self._world.read)
                is_signed = not isinstance(keys, Reason) and len(keys) == len(tx.signatures)
                if not isinstance(keys, Reason) and is_signed:
                    is_signed = all(map(verify, keys, tx.signatures, [tx_id] * len(keys)))
                found[tx_id] = (tx, is_signed or found.get(tx_id, (tx, False))[1])
        return found

    def _outcome(
        self, tx_id: bytes, reason: Reason, place: TransactionPlace, found: dict[bytes, tuple[Transaction, bool]]
    ) -> None:
        self.transactions += 1
        self._first.setdefault(tx_id, place)
        if reason is not Reason.VALID:
            return
        tx, is_signed = found[tx_id]
        if not is_signed:
            raise Violation("I3", f"block {place.height} calls {tx.function} valid without its signatures")
        if tx_id in self._valid:
            raise Violation("I4", f"a transaction is valid in blocks {self._valid[tx_id]} and {place.height}")
        self._valid[tx_id] = place.height
        key = (tx.signer, tx.session, tx.sequence)
        if self._consumed.setdefault(key, tx_id) != tx_id:
            raise Violation("I4", f"number {tx.sequence} of a session is used twice, again in block {place.height}")

    def compare(self, ledger: Ledger, who: str) -> None:
        """Check that a ledger is a prefix of this chain, and that at equal height it holds the same state."""
        for height in range(1, ledger.height + 1):
            if ledger.header(height) != self.ledger.header(height):
                raise Violation("I7", f"{who} has another header at height {height}")
        if ledger.height != self.ledger.height:
            return
        if ledger.lthash() != self.ledger.lthash():
            raise Violation("I7", f"{who} has another state hash at height {ledger.height}")
        if list(ledger.scan(b"", 1 << 30)) != list(self.ledger.scan(b"", 1 << 30)):
            raise Violation("I14", f"{who} reads other values at height {ledger.height}")
        for tx_id, place in self._first.items():
            if ledger.place(tx_id) != place:
                raise Violation("I4", f"{who} places a transaction elsewhere than its first outcome")
