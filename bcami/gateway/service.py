"""What the routes need of a node, in one place."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bcami.contract.runtime import Runtime
from bcami.crypto.roster import Roster
from bcami.gateway.metrics import NodeMetrics
from bcami.gateway.openapi import ANY_NUMBER, TEXT, Schema, optional, schema_of, structure
from bcami.gateway.release import ReleasePolicy
from bcami.ledger.store import Ledger
from bcami.model import events
from bcami.model.api import QueryAnswer, TransactionProof
from bcami.model.block import header_hash
from bcami.model.evidence import KeptEvidence
from bcami.model.ids import Hash
from bcami.model.reasons import Reason
from bcami.node.core import reads
from bcami.node.core.core import NodeCore
from bcami.node.driver import Driver, now_ms

STATUS_SCHEMA: Final[Schema] = structure(
    name=TEXT,
    replica=ANY_NUMBER,
    pid=ANY_NUMBER,
    url=TEXT,
    view=ANY_NUMBER,
    primary=TEXT,
    height=ANY_NUMBER,
    certified_height=ANY_NUMBER,
    released_height=ANY_NUMBER,
    block_hash=schema_of(Hash),
    state_root=TEXT,
    block_time_ms=ANY_NUMBER,
    peers_connected=ANY_NUMBER,
    lag=ANY_NUMBER,
    pending=ANY_NUMBER,
    queued=ANY_NUMBER,
    halted=optional(TEXT),
    amnesia={"type": "boolean"},
)


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
    others: tuple[str, ...] = ()
    """The other nodes and where they are, for people."""
    held_evidence: Callable[[], Sequence[KeptEvidence]] = tuple
    """What the process keeps against members."""
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _period: TransactionProof | None = None

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
        """Feed metrics and release from the event stream."""
        self.metrics.observe(observation)
        if isinstance(observation, events.BlockCertified):
            self.release.certified(observation.height, now_ms())

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def begin_stop(self) -> None:
        """End the event streams, which would otherwise hold the server open."""
        self._stopping.set()

    async def next_block(self, wait_s: float) -> bool:
        """Return True at the next block certificate, False when the time is over or the process stops."""
        block = asyncio.ensure_future(self.driver.next_block())
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((block, stop), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            return block.done()
        finally:
            block.cancel()
            stop.cancel()

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
            "lag": self.lag,
            "pending": self.core.tickets.pending,
            "queued": self.core.queued,
            "halted": self.core.halted,
            "amnesia": self.core.is_amnesiac,
        }

    @property
    def lag(self) -> int:
        """Blocks that f+1 peers have certified and this node has not."""
        return max(0, self.core.catchup.best_certified - self.ledger.height)

    @property
    def why_not_ready(self) -> str | None:
        """None when a quorum can be reached and this node is not behind the window."""
        if self.core.halted is not None:
            return f"halted: {self.core.halted}"
        if self.is_stopping:
            return "stopping"
        transport = self.driver.transport
        connected = 1 + (0 if transport is None else transport.peers_connected)
        strong = self.roster.quorum.strong
        if connected < strong:
            return f"{connected} of {self.roster.quorum.n} nodes are connected, {strong} are needed"
        if self.lag > self.roster.genesis.parameters.window:
            return f"{self.lag} blocks behind"
        return None

    @property
    def height(self) -> int:
        """Height of the state that reads see."""
        return reads.height(self.core)

    def query(self, contract: str, function: str, argument: bytes) -> QueryAnswer | Reason:
        """Run a contract's query on this node's state."""
        return reads.query(self.core, contract, function, argument)

    def state(self, key: bytes) -> QueryAnswer:
        """Return one value of this node's state."""
        return reads.state(self.core, key)

    def period_proof(self) -> TransactionProof | None:
        """Return the newest valid registration of an MDMS period with its receipt (protocol 2.5).

        The former one until the block of a new one is certified here.
        """
        answer = self.query("mdms", "period", b"")
        if isinstance(answer, Reason):
            return None
        known = self._period
        if known is None or known.receipt.header.height != answer.written:
            self._period = self._registration(answer.written) or known
        return self._period

    def _registration(self, height: int) -> TransactionProof | None:
        """Return the last valid mdms.register of a certified block."""
        bundle = self.ledger.bundle(height)
        batches = () if bundle is None else bundle.batches
        transactions = [tx for stored in batches for tx in stored.batch.transactions]
        for tx in reversed(transactions):
            if (tx.contract, tx.function) != ("mdms", "register"):
                continue
            receipt = self.ledger.receipt(self.core.id_of(tx))
            if receipt is not None and receipt.header.height == height and receipt.outcome.reason is Reason.VALID:
                return TransactionProof(tx, receipt)
        return None
