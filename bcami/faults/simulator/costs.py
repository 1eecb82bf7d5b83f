"""What agreement costs: messages and bytes of each kind for each block and transaction, against the number of nodes.

Whole nodes in the simulator without any fault: a collector gets some reports at once, and when the blocks that they
make are certified at every node the next collector gets some. Bytes are frames as they would be sent: the encoded
message and its length, once for each receiver. TLS and TCP come on top.

A fault-free round of PBFT sends, for each block, what `expected` says [CL99 4.2, 4.3]: the count is exact.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from bcami.codec import encode
from bcami.faults.simulator.cluster import SimulatedCluster
from bcami.faults.simulator.disk import DiskPlan
from bcami.faults.simulator.load import LoadPlan
from bcami.faults.simulator.network import NetworkPlan
from bcami.faults.simulator.node import Machine
from bcami.faults.simulator.plan import Plan
from bcami.faults.simulator.signing import in_force
from bcami.faults.simulator.trace import Trace
from bcami.model.genesis import Parameters
from bcami.model.quorum import Quorum
from bcami.model.transaction import transaction_id
from bcami.model.wire import PeerMessage

SIZES: Final = (4, 7, 10, 13, 16, 19, 22, 25, 28, 31)
LENGTH_BYTES: Final = 4
"""Of a frame, before the message."""
PATIENCE_MS: Final = 20_000

NAMES: Final = {
    "Batch": "batch",
    "Endorsement": "endorsement",
    "BatchCertificate": "certificate gossip",
    "PrePrepare": "pre-prepare",
    "Prepare": "prepare",
    "Commit": "commit",
    "Checkpoint": "checkpoint",
    "Status": "status",
}
"""Names of kinds for people, in the order in which a transaction meets them; statuses come with time, not with load."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one kind of message cost in one cluster."""

    nodes: int
    kind: str
    messages: int
    bytes: int
    blocks: int
    batches: int
    transactions: int

    @property
    def messages_per_block(self) -> float:
        return self.messages / self.blocks

    @property
    def messages_per_transaction(self) -> float:
        return self.messages / self.transactions

    @property
    def bytes_per_transaction(self) -> float:
        return self.bytes / self.transactions


def expected(kind: str, nodes: int, blocks: int, batches: int) -> int | None:
    """Return how many messages of a kind so many blocks and batches take without faults; None where time decides."""
    others = nodes - 1
    counts = {
        "batch": batches * others,
        "endorsement": batches * (Quorum(nodes).strong - 1),  # the collector's own is not sent
        "certificate gossip": batches * others,
        "pre-prepare": blocks * others,
        "prepare": blocks * others * others,
        "commit": blocks * nodes * others,
        "checkpoint": blocks * nodes * others,
    }
    return counts.get(kind)


class _Counting(SimulatedCluster):
    """Counts what leaves."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, Trace())
        self.messages: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def leaves(self, machine: Machine, message: PeerMessage, to: int | None) -> None:
        receivers = 1 if to is not None else self.plan.nodes - 1
        name = type(message).__name__
        self.messages[name] += receivers
        self.bytes[name] += receivers * (LENGTH_BYTES + len(encode(message)))
        super().leaves(machine, message, to)

    def forget(self) -> None:
        self.messages.clear()
        self.bytes.clear()

    def wait(self, is_done: Callable[[], bool]) -> None:
        if not self.events.run_until(self.events.now_ms + PATIENCE_MS, is_done):
            raise RuntimeError(f"no block within {PATIENCE_MS} ms: {self.describe()}")

    def have_committed(self, ids: Sequence[bytes]) -> bool:
        """Tell whether every node has these transactions, and all of its blocks are certified there."""
        ledgers = [machine.disk.ledger for machine in self.machines]
        return all(ledger.certified_height == ledger.height for ledger in ledgers) and all(
            ledger.place(tx_id) is not None for ledger in ledgers for tx_id in ids
        )


def _undisturbed(nodes: int) -> Plan:
    return Plan(
        seed=0,
        nodes=nodes,
        real_signatures=False,
        parameters=Parameters(),
        safety_ms=0,
        fault_every_ms=1,
        faults=(),
        network=NetworkPlan(delay_ms=(1, 1)),
        disk=DiskPlan(write_ms=(0, 0)),
        load=LoadPlan(transactions=0),
        byzantine=(),
        core_size=nodes,
    )


def measure(nodes: int, turns: int, reports: int) -> list[Cost]:
    """Return the cost of each kind when so many collectors in turn get so many reports at once."""
    with in_force(real=False):
        cluster = _Counting(_undisturbed(nodes))
        for machine in cluster.machines:
            cluster.restart(machine.index)
        ledger = cluster.machines[0].disk.ledger
        begun = ledger.height
        cluster.wait(lambda: cluster.events.now_ms > 100)
        cluster.forget()
        meters = cluster.clients.meters
        for turn in range(turns):
            sent = [meters[i % len(meters)].report(cluster.events.wall_ms) for i in range(reports)]
            ids = [transaction_id(tx, cluster.oracles.roster.chain, cluster.oracles.roster.epoch) for tx in sent]
            cluster.submit(turn % nodes, sent)
            cluster.wait(partial(cluster.have_committed, ids))
        cluster.audit()
        executed = [block.executed for height in range(begun + 1, ledger.height + 1) if (block := ledger.block(height))]
    kinds = [*NAMES, *sorted(set(cluster.messages) - set(NAMES))]
    return [
        Cost(
            nodes,
            NAMES.get(kind, kind),
            cluster.messages[kind],
            cluster.bytes[kind],
            blocks=len(executed),
            batches=sum(map(len, executed)),
            transactions=turns * reports,
        )
        for kind in kinds
        if kind in cluster.messages
    ]


def fit_square(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return (a, R²) of the least-squares line y = a·n², and how much of the variance it explains."""
    a = sum(n * n * y for n, y in points) / sum(n**4 for n, _ in points)
    mean = sum(y for _, y in points) / len(points)
    spread = sum((y - mean) ** 2 for _, y in points)
    missed = sum((y - a * n * n) ** 2 for n, y in points)
    return a, 1 - missed / spread if spread else 1.0
