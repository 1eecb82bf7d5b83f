"""How much a cluster commits: clients that send the next report when they have the receipt of the one before.

With such a closed loop a primary that takes its time costs throughput, not only latency. The cluster is the
simulator's (real cores, virtual time, a seeded network and disks) without its drawn faults; what a node does wrong, and
when, the test says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bcami.faults.behaviour import AnyBehaviour
from bcami.faults.node import FaultyNode
from bcami.faults.simulator.cluster import SimulatedCluster
from bcami.faults.simulator.disk import DiskPlan
from bcami.faults.simulator.events import stream
from bcami.faults.simulator.load import LoadPlan
from bcami.faults.simulator.network import Network, NetworkPlan
from bcami.faults.simulator.node import Machine
from bcami.faults.simulator.parties import Meter
from bcami.faults.simulator.plan import Plan
from bcami.faults.simulator.signing import in_force
from bcami.faults.simulator.trace import Trace
from bcami.model.api import COMMITTED, CertifiedHeader, SubmitResult
from bcami.model.events import Observation, PrimarySuspected, ViewChangeStarted
from bcami.model.genesis import Parameters
from bcami.model.transaction import transaction_id
from bcami.model.wire import PeerMessage

FOR_EVER_MS = 10**12
Makers = Mapping[int, Callable[[], AnyBehaviour]]
"""By replica id, what makes its behaviour."""


@dataclass(frozen=True)
class Leave:
    at_ms: int
    node: int
    view: int
    cause: str


def quiet_plan(
    seed: int,
    nodes: int = 4,
    byzantine: Sequence[int] = (),
    parameters: Parameters | None = None,
    network: NetworkPlan | None = None,
    disk: DiskPlan | None = None,
) -> Plan:
    """Return a run in which nothing is drawn to go wrong."""
    return Plan(
        seed=seed,
        nodes=nodes,
        real_signatures=False,
        parameters=parameters or Parameters(),
        safety_ms=0,
        fault_every_ms=1_000,
        faults=(),
        network=network or NetworkPlan(delay_ms=(1, 10)),
        disk=disk or DiskPlan(write_ms=(1, 4)),
        load=LoadPlan(transactions=0),
        byzantine=tuple(byzantine),
        core_size=nodes,
    )


class Lines(Network):
    """A network in which each direction of each link may take longer than the others."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.nodes, plan.network, stream(plan.seed, "network"))
        self.longer_ms: dict[tuple[int, int], int] = {}

    def passages(self, sender: int, to: int, message: PeerMessage, now_ms: int) -> list[tuple[int, PeerMessage]]:
        longer_ms = self.longer_ms.get((sender, to), 0)
        return [(delay_ms + longer_ms, item) for delay_ms, item in super().passages(sender, to, message, now_ms)]


class Pace(SimulatedCluster):
    """One run, and what it committed."""

    def __init__(self, plan: Plan, makers: Makers | None = None, write: Callable[[str], None] | None = None) -> None:
        self._makers = makers or {}
        self.committed_ms: list[int] = []
        """When each report had its receipt."""
        self.leaves_seen: list[Leave] = []
        self.suspicions: list[tuple[int, int, PrimarySuspected]] = []
        """Time, node, what it found."""
        self._waiting: dict[bytes, tuple[Meter, int]] = {}
        self._resting = False
        super().__init__(plan, Trace(write))
        self.lines = Lines(plan)
        self.network = self.lines

    # The cluster.

    def begin(self) -> None:
        """Start all nodes; call it inside `in_force`."""
        for node in self.plan.byzantine:
            self.excuse(node)
        for machine in self.machines:
            self.restart(machine.index)

    def _misbehave(self, node: FaultyNode, machine: Machine) -> None:
        node.stop_faults()
        maker = self._makers.get(machine.index)
        if maker is not None:
            node.inject(maker(), FOR_EVER_MS, machine.clock_ms)

    def observed(self, machine: Machine, observation: Observation) -> None:
        super().observed(machine, observation)
        if isinstance(observation, ViewChangeStarted):
            self.leaves_seen.append(Leave(self.events.now_ms, machine.index, observation.view, observation.cause))
        elif isinstance(observation, PrimarySuspected):
            self.suspicions.append((self.events.now_ms, machine.index, observation))

    @property
    def views(self) -> list[int]:
        return [0 if machine.core is None else machine.core.view for machine in self.machines]

    @property
    def honest_leaves(self) -> list[Leave]:
        return [item for item in self.leaves_seen if item.node not in self.excused]

    # The load.

    def load(self, meters: int, at: Sequence[int] | None = None) -> None:
        """Let so many meters report, each at a node of its own, as fast as receipts come."""
        nodes = list(range(self.plan.nodes)) if at is None else list(at)
        for i in range(meters):
            meter = self.clients.meters[i % len(self.clients.meters)]
            self._send(meter, nodes[i % len(nodes)])

    def burst(self, count: int, node: int) -> None:
        """Let so many reports arrive at once, with nobody waiting for them."""
        txs = [self.clients.meters[i % len(self.clients.meters)].report(self.events.wall_ms) for i in range(count)]
        self.submit(node, txs)

    def rest(self, resting: bool) -> None:
        """Let nobody send while receipts come in, or go on."""
        self._resting = resting

    def pause(self, node: int, wait_ms: int) -> None:
        """Let a process stand still for so long."""
        life = self.machines[node].life
        if life is not None and not life.is_paused:
            life.pause()
            self.events.after(wait_ms, life.resume)

    def _send(self, meter: Meter, node: int) -> None:
        tx = meter.report(self.events.wall_ms)
        roster = self._identities.roster
        self._waiting[transaction_id(tx, roster.chain, roster.epoch)] = (meter, node)
        self.submit(node, [tx])

    def answered(self, machine: Machine, results: Sequence[SubmitResult], blocks: Sequence[CertifiedHeader]) -> None:
        super().answered(machine, results, blocks)
        for result in results:
            if result.status == COMMITTED and result.transaction_id in self._waiting:
                meter, node = self._waiting.pop(result.transaction_id)
                self.committed_ms.append(self.events.now_ms)
                if not self._resting:
                    self.events.after(0, self._send, meter, node)

    def committed_between(self, start_ms: int, end_ms: int) -> int:
        return sum(start_ms <= at_ms < end_ms for at_ms in self.committed_ms)


def run_pace(
    plan: Plan,
    run_ms: int,
    makers: Makers | None = None,
    meters: int = 12,
    prepare: Callable[[Pace], None] = lambda pace: None,
) -> Pace:
    """Run a cluster under a closed loop of clients at all of its nodes, and audit it at the end."""
    with in_force(real=False):
        pace = Pace(plan, makers)
        pace.begin()
        prepare(pace)
        pace.load(meters)
        pace.events.run_until(run_ms)
        pace.audit()
    return pace
