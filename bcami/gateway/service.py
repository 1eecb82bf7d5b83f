"""What the routes need of a node, in one place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bcami.contract.runtime import Runtime
from bcami.crypto.roster import Roster
from bcami.gateway.metrics import NodeMetrics
from bcami.gateway.release import ReleasePolicy
from bcami.ledger.store import Ledger
from bcami.model import events
from bcami.model.api import QueryAnswer, TransactionProof
from bcami.model.block import header_hash
from bcami.model.chain import StateEntry
from bcami.model.reasons import Reason
from bcami.node.core.core import NodeCore
from bcami.node.driver import Driver, now_ms

EVIDENCE_MAX = 1_000


@dataclass(slots=True)
class NodeService:
    """One node as its gateway sees it."""

    name: str
    names: tuple[str, ...]
    pid: int
    url: str
    driver: Driver
    metrics: NodeMetrics
    release: ReleasePolicy
    operator_token: str
    on_stop: Callable[[], None]
    evidence: list[events.EquivocationSeen] = field(default_factory=list)
    is_stopping: bool = False

    @property
    def core(self) -> NodeCore:
        return self.driver.core

    @property
    def ledger(self) -> Ledger:
        return self.core.ledger

    @property
    def roster(self) -> Roster:
        return self.core.roster

    @property
    def runtime(self) -> Runtime:
        return self.core.runtime

    def observe(self, observation: events.Observation) -> None:
        """Feed metrics, release and evidence from the event stream."""
        self.metrics.observe(observation)
        if isinstance(observation, events.BlockCertified):
            self.release.certified(observation.height, now_ms())
        elif isinstance(observation, events.EquivocationSeen) and len(self.evidence) < EVIDENCE_MAX:
            self.evidence.append(observation)

    def count(self, reason: Reason) -> None:
        self.metrics.observe(events.Refused("gateway", reason))

    @property
    def released_height(self) -> int:
        return min(self.release.released_height(now_ms()), self.core.certified_height)

    def status(self) -> dict[str, Any]:
        """Return the node's part of `status --json`."""
        height = self.ledger.height
        header = self.ledger.header(height) if height else None
        transport = self.driver.transport
        return {
            "name": self.name,
            "replica": self.core.replica,
            "pid": self.pid,
            "url": self.url,
            "view": self.core.view,
            "primary": self.names[self.roster.quorum.primary(self.core.view)],
            "height": height,
            "certified_height": self.core.certified_height,
            "released_height": self.released_height,
            "block_hash": (self.roster.chain if header is None else header_hash(header)).hex(),
            "state_root": "" if header is None else header.state_root.hex(),
            "block_time_ms": 0 if header is None else header.time_ms,
            "peers_connected": 0 if transport is None else transport.peers_connected,
            "lag": max(0, self.core.catchup.best_certified - height),
            "pending": self.core.tickets.pending,
            "queued": self.core.queued,
            "halted": self.core.halted,
        }

    @property
    def is_ready(self) -> bool:
        """A quorum can be reached and this node is not far behind."""
        transport = self.driver.transport
        connected = 1 + (0 if transport is None else transport.peers_connected)
        return self.core.halted is None and connected >= self.roster.quorum.strong

    def query(self, contract: str, function: str, argument: bytes) -> QueryAnswer | Reason:
        """Run a contract's query on this node's state."""
        written = 0

        def read(key: bytes) -> StateEntry | None:
            nonlocal written
            entry = self.core.world.read(key)
            if entry is not None:
                written = max(written, entry.height)
            return entry

        answer = self.runtime.query(contract, function, argument, read, self.core.world.scan)
        if isinstance(answer, Reason):
            return answer
        return QueryAnswer(self.core.height, answer, written)

    def state(self, key: bytes) -> QueryAnswer:
        entry = self.core.world.read(key)
        if entry is None:
            return QueryAnswer(self.core.height, None, 0)
        return QueryAnswer(self.core.height, entry.value, entry.height)

    def period_proof(self) -> TransactionProof | None:
        """Return the newest valid registration of an MDMS period with its receipt (protocol 2.5)."""
        before = None
        while True:
            page = self.ledger.by_signer(self.roster.genesis.mdms_hid, 50, before)
            for height, index, tx_id in page:
                proof = self._registration(height, index, tx_id)
                if proof is not None:
                    return proof
            if len(page) < 50:
                return None
            before = self.ledger.place(page[-1][2])

    def _registration(self, height: int, index: int, tx_id: bytes) -> TransactionProof | None:
        bundle = self.ledger.bundle(height)
        if bundle is None or bundle.block.outcomes[index].reason is not Reason.VALID:
            return None
        receipt = self.ledger.receipt(tx_id)
        if receipt is None or receipt.header.height != height:
            return None
        for stored in bundle.batches:
            for tx in stored.batch.transactions:
                if tx.contract == "mdms" and tx.function == "register" and self.core.id_of(tx) == tx_id:
                    return TransactionProof(tx, receipt)
        return None
