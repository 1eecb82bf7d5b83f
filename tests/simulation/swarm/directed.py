"""Runs that are laid out by hand, for safeguards that drawn ones need too many seeds to miss.

Each raises Violation when an invariant breaks; with every safeguard in place none does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

import msgspec

from bcami.faults.batches import CensorCollector, CensorCollectorOptions
from bcami.faults.behaviour import AnyBehaviour, Behaviour, Options
from bcami.faults.node import FaultyNode
from bcami.faults.silence import Mute
from bcami.faults.simulator.agreement import Violation
from bcami.faults.simulator.byzzfuzz import Fuzzer, ProcessFault, Voice
from bcami.faults.simulator.cluster import SimulatedCluster
from bcami.faults.simulator.disk import DiskPlan
from bcami.faults.simulator.load import LoadPlan
from bcami.faults.simulator.misbehaviour import FOR_EVER_MS
from bcami.faults.simulator.network import NetworkPlan
from bcami.faults.simulator.node import Machine
from bcami.faults.simulator.plan import Plan
from bcami.faults.simulator.rounds import Instance, Rounds
from bcami.faults.simulator.signing import in_force
from bcami.faults.simulator.trace import Trace
from bcami.model.batch import BatchCertificate
from bcami.model.consensus import Checkpoint, Commit, ConsensusMessage, NewView, PrePrepare, ViewChange
from bcami.model.genesis import Parameters
from bcami.model.transaction import transaction_id
from bcami.model.wire import PeerMessage, SnapshotPart
from bcami.node.core.dissemination import RESEND_MS
from bcami.pbft.statements import Statements

# Ordering alone.


def two_leave_and_the_third_follows() -> None:
    """The primary is dead, and the timer of one of three backups has not run out: weak others take it along."""
    with in_force(real=False):
        group = Rounds(4, 4)
        group.excused.add(3)
        parts = (frozenset({0, 1, 2}), frozenset({3}))
        group.play(3, parts)
        group.play(0, parts, asleep=[2])
        if group.instances[2].pbft.view != 1:
            raise Violation("I11", f"two of three wait for the third: {group.describe()}")


def a_forged_proof_of_a_higher_view() -> None:
    """One node decides; of those that go on, one has the proof, and a liar claims to have a higher one."""
    with in_force(real=False):
        group = Rounds(4, 4)
        group.excused.add(3)
        liar = group.instances[3]
        voice = Voice(Statements(liar.roster, 3, liar.signer), liar.signer)
        fuzzer = Fuzzer({3: voice})
        fuzzer.faults = [
            ProcessFault(3, Commit, "nothing", 1, frozenset({1, 2})),
            ProcessFault(3, ViewChange, "forgery", 1, frozenset(range(4))),
        ]
        group.alter = fuzzer.alter
        group.play(0, (frozenset({0, 1, 3}), frozenset({2})))
        assert [len(item.chain) for item in group.instances[:3]] == [1, 0, 0]
        group.play(0, (frozenset({1, 2, 3}), frozenset({0})))
        group.play(2, (frozenset({1, 2, 3}), frozenset({0})))
        group.heal(12)


def a_checkpoint_that_is_a_lie_at_first() -> None:
    """Two liars tell one node something false before the truth, and a slow node never says anything to it."""
    victim, slow, liars = 4, 3, (5, 6)
    with in_force(real=False):
        group = Rounds(7, 4)
        group.excused |= set(liars)

        def alter(sender: Instance, receiver: Instance, message: ConsensusMessage) -> Sequence[ConsensusMessage]:
            if receiver.replica == slow and isinstance(message, Commit) and group.round == 0:
                return ()
            if receiver.replica == victim and sender.replica in liars and isinstance(message, Checkpoint):
                voice = Voice(Statements(sender.roster, sender.replica, sender.signer), sender.signer)
                return (voice.sign(msgspec.structs.replace(message, header_hash=bytes(32))), message)
            return (message,)

        group.alter = alter
        group.play(0, (frozenset(range(7)),))
        group.heal(1)


# Whole nodes.


def _plan(**changes: object) -> Plan:
    plain = Plan(
        seed=0,
        nodes=4,
        real_signatures=False,
        parameters=Parameters(view_timer_ms=150, view_timer_cap_ms=600, fairness_ms=1_000),
        safety_ms=1,
        fault_every_ms=10**9,
        faults=("heal",),
        network=NetworkPlan(delay_ms=(1, 3)),
        disk=DiskPlan(write_ms=(0, 2)),
        load=LoadPlan(transactions=10, every_ms=(20, 40), to_several=0, repeated=0, wrong=0, enrolments=0, sessions=0),
        byzantine=(),
        core_size=4,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


class _Directed(SimulatedCluster):
    """A cluster whose Byzantine nodes do one thing, and whose network may lose one kind of message."""

    behaviour: AnyBehaviour | None = None
    lost_until_ms = 0

    def _misbehave(self, node: FaultyNode, machine: Machine) -> None:
        assert self.behaviour is not None
        node.inject(self.behaviour, FOR_EVER_MS, machine.clock_ms)

    def leaves(self, machine: Machine, message: PeerMessage, to: int | None) -> None:
        if not (isinstance(message, NewView) and self.events.now_ms < self.lost_until_ms):
            super().leaves(machine, message, to)


def no_new_view_comes_for_a_while() -> None:
    """NEW-VIEWs are lost for many views; then the waiting time must not be out of proportion (protocol 6.2)."""
    with in_force(real=False):
        cluster = _Directed(_plan(safety_ms=15_000, byzantine=(0,)), Trace())
        cluster.behaviour = Mute(Options(), Random(1))
        cluster.lost_until_ms = 15_000
        cluster.run()


def a_primary_leaves_one_collector_out() -> None:
    """All others make progress: only the fairness timer sees it (protocol 4.4)."""
    load = LoadPlan(transactions=160, every_ms=(40, 70), to_several=0, repeated=0, wrong=0, enrolments=0, sessions=0)
    parameters = Parameters(view_timer_ms=600, view_timer_cap_ms=600, fairness_ms=1_000)
    with in_force(real=False):
        cluster = _Directed(_plan(load=load, byzantine=(0,), parameters=parameters), Trace())
        cluster.behaviour = CensorCollector(CensorCollectorOptions(collector=1), Random(1))
        cluster.excuse(0)
        for node in range(4):
            cluster.restart(node)
        cluster.clients.begin()
        cluster.events.run_until(500)
        tx = cluster.clients.meters[0].report(cluster.events.wall_ms)
        tx_id = transaction_id(tx, cluster.oracles.roster.chain, cluster.oracles.roster.epoch)
        cluster.submit(1, [tx])
        ledger = cluster.machines[2].disk.ledger
        wait_ms = parameters.fairness_ms + 4 * parameters.view_timer_cap_ms
        if not cluster.events.run_until(500 + wait_ms, lambda: ledger.place(tx_id) is not None):
            raise Violation("I11", f"a collector is left out for {wait_ms} ms while others are served")


def an_endorser_in_turn_is_dead() -> None:
    """The others endorse in its place before the collector has to send the batch again."""
    with in_force(real=False):
        cluster = SimulatedCluster(_plan(load=LoadPlan(transactions=0)), Trace())
        for node in range(3):
            cluster.restart(node)
        for node in range(3):
            tx = cluster.clients.meters[node].report(cluster.events.wall_ms)
            cluster.submit(node, [tx])
            ledger = cluster.machines[node].disk.ledger
            height = ledger.height
            deadline_ms = cluster.events.now_ms + RESEND_MS - 50
            if not cluster.events.run_until(deadline_ms, lambda ledger=ledger, height=height: ledger.height > height):
                raise Violation("I11", f"nothing committed {RESEND_MS - 50} ms after it was sent to {node}")


class _Stale(Behaviour[Options]):
    """A primary that proposes certificates again, and those of later numbers before their turn."""

    name = "stale_certificates"
    family = "primary"
    claim = "a number that is not the next one is a no-op"

    def __init__(self, options: Options, randomness: Random) -> None:
        super().__init__(options, randomness)
        self._ordered: list[BatchCertificate] = []

    def sent(self, node: FaultyNode, to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, PrePrepare) or message.replica != node.replica:
            return (message,)
        new = [item for item in message.proposal.certificates if item not in self._ordered]
        self._ordered += new
        again = (*reversed(message.proposal.certificates), *self._ordered[:2])
        proposal = msgspec.structs.replace(message.proposal, certificates=again)
        return (node.statements.pre_prepare(message.view, message.height, proposal),)


def a_primary_orders_batches_again() -> None:
    with in_force(real=False):
        cluster = _Directed(_plan(byzantine=(0,), safety_ms=2_000), Trace())
        cluster.behaviour = _Stale(Options(), Random(1))
        cluster.run()


class _OtherValues(Behaviour[Options]):
    """Gives snapshots whose first value is another one."""

    name = "other_values"
    family = "answers"
    claim = "a snapshot is compared with the state root that its certificate covers"

    def sent(self, node: FaultyNode, to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, SnapshotPart) or not message.rows:
            return (message,)
        (key, entry), *rest = message.rows
        other = msgspec.structs.replace(entry, value=bytes([entry.value[0] ^ 1]) + entry.value[1:])
        return (msgspec.structs.replace(message, rows=((key, other), *rest)),)


class _LiarFirst(_Directed):
    """No honest node gives a snapshot before the liar has given its own."""

    has_lied = False

    def leaves(self, machine: Machine, message: PeerMessage, to: int | None) -> None:
        if isinstance(message, SnapshotPart):
            self.has_lied |= machine.index == 0
            if not self.has_lied:
                return
        super().leaves(machine, message, to)


def a_liar_gives_the_first_snapshot() -> None:
    """A node has lost its ledger, and the others have pruned theirs; nothing else happens that would show the lie."""
    with in_force(real=False):
        cluster = _LiarFirst(_plan(load=LoadPlan(transactions=0), byzantine=(0,)), Trace())
        cluster.behaviour = _OtherValues(Options(), Random(1))
        cluster.excuse(0)
        for node in range(4):
            cluster.restart(node)
        for number in range(4):
            cluster.submit(1, [cluster.clients.meters[number % 2].report(cluster.events.wall_ms)])
            cluster.events.run_until(cluster.events.now_ms + 1_000)
        cluster.crash(3)
        late = cluster.machines[3].disk
        late.rebuild()
        height = cluster.machines[1].disk.ledger.certified_height
        assert late.ledger.height < height
        for machine in cluster.machines[:3]:
            machine.disk.ledger.prune(height)
        cluster.restart(3)
        assert cluster.events.run_until(60_000, lambda: late.ledger.height >= height)
        assert cluster.has_lied
        assert cluster.snapshots
        cluster.audit()
