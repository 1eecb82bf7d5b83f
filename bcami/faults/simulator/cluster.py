"""One run: a cluster, its clients and its faults; first the safety phase, then the liveness phase.

Safety: anything may fail, nothing may contradict. Liveness: a drawn core of at least a strong quorum of honest nodes is
healed for good while the other honest ones stay down and Byzantine ones go on; within `liveness_bound_ms` every open
request has its receipt, what the nodes of the core took in has its outcome, all their batches have executed, and they
are certified at one height, with a certificate of every height below it (I11). So are the nodes that lost their vote
log, which follow and say nothing.
"""

from collections.abc import Callable, Sequence

from bcami.errors import MalformedError
from bcami.faults.node import FaultyNode
from bcami.faults.simulator.agreement import Violation
from bcami.faults.simulator.disk import Disk, DiskPlan
from bcami.faults.simulator.events import Events, stream
from bcami.faults.simulator.evidence import Told
from bcami.faults.simulator.footprint import Scale
from bcami.faults.simulator.identities import entropy
from bcami.faults.simulator.load import Clients
from bcami.faults.simulator.misbehaviour import FOR_EVER_MS, draw_behaviours
from bcami.faults.simulator.network import Network, NetworkPlan
from bcami.faults.simulator.node import Machine
from bcami.faults.simulator.oracles import Oracles
from bcami.faults.simulator.plan import Plan
from bcami.faults.simulator.prelude import prelude
from bcami.faults.simulator.pruning import Pruning, PruningPlan
from bcami.faults.simulator.reads import Reads
from bcami.faults.simulator.replay import Auditor
from bcami.faults.simulator.saboteur import Saboteur
from bcami.faults.simulator.trace import Trace, describe
from bcami.model.api import CertifiedHeader, SubmitResult
from bcami.model.block import BlockCertificate
from bcami.model.consensus import ConsensusMessage
from bcami.model.events import Observation, SnapshotInstalled
from bcami.model.genesis import Parameters
from bcami.model.registration import ContributionAnswer, ContributionRequest
from bcami.model.signing import u64
from bcami.model.transaction import Transaction
from bcami.model.wire import PEER_CODEC, PeerMessage
from bcami.node.core import effects as core
from bcami.node.core.core import NodeCore
from bcami.node.core.dissemination import ENDORSED_PREFIX

CALM_NETWORK = NetworkPlan(delay_ms=(1, 10))
CALM_DISK = DiskPlan(write_ms=(0, 3))
KEPT_BUSY_MS = 5_000
"""So long before its bound a core that a faulty node keeps busy has to come to where its highest node is then."""


def liveness_bound_ms(parameters: Parameters, f: int) -> int:
    """Return the virtual time within which a healed core converges.

    Up to f + 1 primaries in a row may be Byzantine or down; each costs at most one capped view timer to leave and one
    to be replaced, and one fairness time when it orders, but not everything. Twice that, because views of the core
    may first have to meet, and twenty seconds for catch-up and for clients that ask again.
    """
    one_primary_ms = 2 * parameters.view_timer_cap_ms + parameters.fairness_ms
    return 2 * (f + 2) * one_primary_ms + 20_000


def _is_decodable(message: PeerMessage) -> bool:
    """Tell whether a receiver's decoder lets the message pass; honest nodes send nothing else."""
    try:
        PEER_CODEC.decode(PEER_CODEC.encode(message))
    except MalformedError:
        return False
    return True


class SimulatedCluster:
    """Everything of one run."""

    def __init__(self, plan: Plan, trace: Trace) -> None:
        self.plan = plan
        self.trace = trace
        self.events = Events()
        self.disk_plan = plan.disk
        start = prelude(plan.nodes, plan.parameters, real=plan.real_signatures)
        self._identities = start.network
        self.oracles = Oracles(self._identities.roster)
        self.excused = self.oracles.excused
        self.network = Network(plan.nodes, plan.network, stream(plan.seed, "network"))
        self._behaviour_draw = stream(plan.seed, "behaviour")
        draw = stream(plan.seed, "disk")
        self.machines = [Machine(i, Disk.fresh(start.ledger), self, draw) for i in range(plan.nodes)]
        self.clients = Clients(start, plan.load, self.events, self, stream(plan.seed, "load"))
        self.saboteur = Saboteur(self, plan, stream(plan.seed, "saboteur"))
        self._auditor = Auditor(self._identities.roster, self._identities.runtime)
        self.pruning = Pruning(PruningPlan.draw(plan.seed), self.events, self.machines)
        self._reads = Reads(self.machines, self.oracles, self.clients, self.events, stream(plan.seed, "reads"))
        self.snapshots = 0
        """World states that nodes took from each other."""
        for commit, certificate in start.blocks:
            self.oracles.began(commit, certificate)
            self.pruning.keep(commit)
        self._may_start: Callable[[int], bool] = lambda _: True
        self._told: Told | None = None
        """What the step that is about to be made looks at, when it may be evidence some day."""

    # The two phases.

    def run(self) -> None:
        """Run both phases. Raises Violation."""
        for node in self.plan.byzantine:
            self.excuse(node)
        for machine in self.machines:
            self.restart(machine.index)
        self.clients.begin()
        self.saboteur.begin()
        self.pruning.begin()
        self._reads.begin()
        self.events.run_until(self.plan.safety_ms)
        self.audit()
        self._heal()
        bound_ms = liveness_bound_ms(self.plan.parameters, self.plan.quorum.f)
        deadline_ms = self.events.now_ms + bound_ms
        for _ in range(3):
            self.clients.send_new()
        if not self.events.run_until(deadline_ms - KEPT_BUSY_MS, self._has_converged):
            goal = max(self.machines[i].disk.ledger.height for i in self.healed)
            if not self.events.run_until(deadline_ms, lambda: self._have_come_to(goal)):
                raise Violation("I11", f"no convergence within {bound_ms} ms: {self.describe()}")
        self.audit()

    def _heal(self) -> None:
        """End all faults for a core of honest nodes, for good; the other honest ones go down for good."""
        self.saboteur.stop()
        self.network.heal()
        self.network.plan, self.disk_plan = CALM_NETWORK, CALM_DISK
        honest = [i for i in range(self.plan.nodes) if i not in self.excused and i not in self.saboteur.dead]
        size = max(self.plan.quorum.strong, self.plan.core_size - (self.plan.nodes - len(honest)))
        self.chosen = sorted(stream(self.plan.seed, "core").sample(honest, min(size, len(honest))))
        readers = sorted(self.saboteur.dead - self.excused)
        self.healed = [*self.chosen, *readers]
        self._may_start = lambda node: node in self.healed or node in self.excused
        self.note(f"heal {self.chosen} for good" + (f", and the readers {readers}" if readers else ""))
        for machine in self.machines:
            machine.skew_ms, machine.disk.is_full = 0, False
            if machine.index not in self.healed and machine.index not in self.excused:
                self.crash(machine.index)
            elif machine.life is None:
                self.restart(machine.index)
            elif machine.life.is_paused:
                machine.life.resume()

    def _has_converged(self) -> bool:
        if self.trace.steps % 16:
            return False
        ledgers = [self.machines[i].disk.ledger for i in self.healed]
        certified = ledgers[0].certified_height
        if any(ledger.certified_height != certified or ledger.height != certified for ledger in ledgers):
            return False
        return self._is_settled(certified)

    def _have_come_to(self, height: int) -> bool:
        """Tell whether all have that height: a faulty node whose own batches never end lets them not stand still."""
        if self.trace.steps % 16:
            return False
        is_there = all(self.machines[i].disk.ledger.certified_height >= height for i in self.healed)
        return is_there and self._is_settled(height) and self._is_theirs(height)

    def _is_theirs(self, height: int) -> bool:
        """Tell whether each block above has a batch of a faulty node: honest ones may not go on for ever."""
        ledger = max((self.machines[i].disk.ledger for i in self.healed), key=lambda ledger: ledger.height)
        for above in range(height + 1, ledger.height + 1):
            block = ledger.block(above)
            assert block is not None
            collectors = {block.proposal.certificates[place].collector for place in block.executed}
            if not collectors & self.excused:
                return False
        return True

    def _is_settled(self, height: int) -> bool:
        """Tell whether nobody waits for anything, and all to this height is certified."""
        nodes = [self.machines[i].core for i in self.chosen]
        ledgers = [self.machines[i].disk.ledger for i in self.healed]
        if self.clients.open or any(node is None or node.tickets.pending for node in nodes):
            return False
        if any(any(self.machines[i].disk.promises.items(ENDORSED_PREFIX + u64(i))) for i in self.chosen):
            return False  # an own batch waits in its lane
        return all(ledger.certificate(item) for ledger in ledgers for item in range(1, height + 1))

    # What the saboteur does.

    def restart(self, node: int) -> None:
        """Start a node that is down; its peers notice."""
        machine = self.machines[node]
        if machine.life is not None or not self._may_start(node):
            return
        self.note(f"start {node}")
        machine.start()
        for other in self.machines:
            if other is not machine and machine.life is not None and other.life is not None:
                machine.life.connected(other.index)
                other.life.connected(node)

    def crash(self, node: int) -> None:
        """End a process at once; its peers notice."""
        machine = self.machines[node]
        if machine.life is None:
            return
        machine.crash()
        self._gone(node)

    def excuse(self, node: int) -> None:
        """Expect nothing of a node any more."""
        self.excused.add(node)

    def note(self, what: str) -> None:
        self.trace.note(self.events.now_ms, what)

    def _gone(self, node: int) -> None:
        for other in self.machines:
            if other.life is not None:
                other.life.disconnected(node)

    # What clients do.

    def reachable(self) -> list[int]:
        return [machine.index for machine in self.machines if machine.life is not None and not machine.life.is_paused]

    def submit(self, node: int, transactions: list[Transaction]) -> None:
        life = self.machines[node].life
        if life is not None:
            life.submit(transactions)

    def contribute(self, node: int, request: ContributionRequest) -> object:
        life = self.machines[node].life
        if life is None:
            return None
        answer = life.core.contribute(request, self.machines[node].clock_ms)
        if isinstance(answer, ContributionAnswer):
            self.oracles.contributed(node)
        return answer

    # What nodes meet.

    def make_core(self, machine: Machine) -> NodeCore:
        network, index = self._identities, machine.index
        self.oracles.contradictions.begins(index)
        kind = FaultyNode if index in self.plan.byzantine else NodeCore
        node = kind(
            network.roster,
            index,
            network.consensus[index],
            network.runtime,
            machine.disk.ledger,
            None if machine.disk.is_amnesiac else list(machine.disk.promises.items()),
            entropy("contribution", index),
        )
        node.catchup.far_blocks = self.pruning.plan.far_blocks
        if isinstance(node, FaultyNode):
            self._misbehave(node, machine)
        return node

    def misbehave(self, node: int) -> str:
        """Let a Byzantine node show something else from now on."""
        machine = self.machines[node]
        if isinstance(machine.core, FaultyNode):
            self._misbehave(machine.core, machine)
        return ""

    def _misbehave(self, node: FaultyNode, machine: Machine) -> None:
        node.stop_faults()
        shown = draw_behaviours(self._behaviour_draw, self.plan.nodes, self.clients.meters[0].hid)
        for behaviour in shown:
            node.inject(behaviour, FOR_EVER_MS, machine.clock_ms)
        self.note(f"{machine.index} shows {', '.join(behaviour.name for behaviour in shown)}")

    def arrives(self, machine: Machine, message: PeerMessage) -> None:
        if isinstance(message, ConsensusMessage) and message.replica in self.excused and machine.core is not None:
            self._told = self.oracles.contradictions.arrives(machine.index, machine.core.pbft, message)

    def stepped(self, machine: Machine, what: str, effects: Sequence[core.Effect]) -> None:
        is_excused = machine.index in self.excused
        if not is_excused and (clock_ms := machine.clock_ms) > self.oracles.latest_clock_ms:
            self.oracles.latest_clock_ms = clock_ms
        mark = "!" if is_excused else ""
        self.trace.step(self.events.now_ms, machine, what, effects, mark)
        for effect in effects:
            if isinstance(effect, core.SaveCertificate | core.InstallSnapshot):
                self.oracles.certified(machine.index, effect.certificate)
        if (told := self._told) is not None and machine.core is not None:
            self._told = None
            seen = [effect.observation for effect in effects if isinstance(effect, core.Observe)]
            self.oracles.contradictions.taken(told, machine.core.pbft, seen)

    def persisted(self, machine: Machine, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes]) -> None:
        self.oracles.persisted(machine.index, machine.disk, puts, deletes)

    def durable(self, machine: Machine, puts: Sequence[tuple[bytes, bytes]]) -> None:
        self.oracles.durable(machine.index, puts)

    def leaves(self, machine: Machine, message: PeerMessage, to: int | None) -> None:
        self.oracles.leaves(machine.index, machine.disk, message)
        if machine.index in self.plan.byzantine and not _is_decodable(message):
            return
        what = f"{describe(message)} <- {machine.index}"
        for other in self.machines if to is None else (self.machines[to],):
            if other is machine:
                continue
            for delay_ms, item in self.network.passages(machine.index, other.index, message, self.events.now_ms):
                name = what if item is message else f"{describe(item)} <- {machine.index} again"
                self.events.after(delay_ms, self._arrive, machine.index, other, item, name)

    def _arrive(self, sender: int, machine: Machine, message: PeerMessage, what: str) -> None:
        if machine.life is not None:
            machine.life.receive(sender, message, what)

    def executed(self, machine: Machine, effect: core.CommitBlock, view: int) -> None:
        self.pruning.keep(effect.commit)
        self.oracles.executed(machine.index, effect.commit, view if effect.certificate is None else None)

    def certified(self, machine: Machine, certificate: BlockCertificate) -> None:
        """Checked in `stepped`, before what else the step led to."""

    def observed(self, machine: Machine, observation: Observation) -> None:
        self.snapshots += isinstance(observation, SnapshotInstalled)
        self.oracles.observed(machine.index, observation)

    def answered(self, machine: Machine, results: Sequence[SubmitResult], blocks: Sequence[CertifiedHeader]) -> None:
        self.oracles.answered(machine.index, results, blocks)
        if machine.index not in self.excused:
            for result in results:
                self.clients.settle(result)

    def ended(self, machine: Machine, why: str, *, by_disk: bool) -> None:
        self.note(f"{machine.index} ended: {why.splitlines()[-1]}")
        if not by_disk:
            self.oracles.ended(machine.index, why)
        self._gone(machine.index)

    # The end of a phase.

    def audit(self) -> None:
        """Execute the longest honest chain again from genesis and compare all honest nodes with it (I3, I4, I7).

        Ask for the evidence that there has to be (I12), and judge what was read (I14).
        """
        honest = [machine for machine in self.machines if machine.index not in self.excused]
        longest = max(honest, key=lambda machine: machine.disk.ledger.height)
        self._auditor.follow(longest.disk.ledger, self.pruning.batches)
        scale = Scale()
        for machine in honest:
            if machine.core is not None:
                scale.check(machine.index, machine.core)
        for machine in honest:
            self._auditor.compare(machine.disk.ledger, f"node {machine.index}")
        for result in self.oracles.receipts.values():
            self._check_receipt(result)
        self.oracles.contradictions.check()
        self._reads.check(self._auditor)

    def _check_receipt(self, result: SubmitResult) -> None:
        """I15: what was acknowledged is on an honest disk, and still the first outcome."""
        place = self._auditor.ledger.place(result.transaction_id)
        if place is None or (place.height, place.index) != (result.height, result.index):
            raise Violation("I15", f"an acknowledged transaction of block {result.height} is lost or elsewhere")

    def describe(self) -> str:
        """Return where everybody stands."""
        parts = []
        for machine in self.machines:
            node, ledger = machine.core, machine.disk.ledger
            state = "down" if node is None else f"view {node.view}{'?' if node.pbft.in_view_change else ''}"
            mark = "!" if machine.index in self.excused else ""
            parts.append(f"{machine.index}{mark}: {state} {ledger.height}/{ledger.certified_height}")
        waiting = [f"{item.tx.function} {item.tx.session}/{item.tx.sequence} {item.last}" for item in self.clients.open]
        pending = [core.tickets.pending for i in self.chosen if (core := self.machines[i].core) is not None]
        parts.append(f"pending in own lanes {pending}")
        return "; ".join(parts) + f"; open requests: {', '.join(waiting[:8])}"
