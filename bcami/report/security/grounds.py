"""A whole network in this process: real node cores with real signatures, under virtual time, on simulated disks.

What decides is the product's own code: `bcami.node.core` and everything below it, `bcami.ami.meter`, `bcami.client`,
`bcami.mdms`. Replaced are threads, sockets and disks, by those of `bcami.faults.simulator`. An attacker sees and sends
what he likes: `tap` decides about each message between nodes, a `Puppet` speaks with a member's key, and clients may
submit anything.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from bcami.client.issuance import Draft, Party, Prepared, Share, contribution_request, open_share
from bcami.client.periods import MdmsPeriod, verify_period
from bcami.codec import Codec
from bcami.faults.behaviour import AnyBehaviour
from bcami.faults.catalogue import make_behaviour
from bcami.faults.node import FaultyNode
from bcami.faults.simulator.disk import Disk, DiskPlan
from bcami.faults.simulator.events import START_MS, Events, stream
from bcami.faults.simulator.identities import Identities, entropy, identities
from bcami.faults.simulator.node import Life, Machine
from bcami.faults.simulator.parties import Utility
from bcami.ledger.memory import MemoryLedger
from bcami.model.api import COMMITTED, CertifiedHeader, SubmitResult, TransactionProof
from bcami.model.block import BlockCertificate, Receipt
from bcami.model.chain import BlockBundle
from bcami.model.events import Observation, Refused
from bcami.model.genesis import Parameters
from bcami.model.reasons import Reason
from bcami.model.registration import ContributionAnswer
from bcami.model.transaction import TRANSACTION_BYTES_MAX, Transaction, transaction_id
from bcami.model.wire import PeerMessage
from bcami.node.core.core import NodeCore
from bcami.node.core.effects import CommitBlock, Effect

WAIT_MS: Final = 60_000
FOR_EVER_MS: Final = 10**12
QUIET: Final = DiskPlan(write_ms=(0, 2))
TRANSACTION_CODEC: Final[Codec[Transaction]] = Codec(Transaction, TRANSACTION_BYTES_MAX)

Tap = Callable[[int, int, PeerMessage], Iterable[PeerMessage]]
"""(sender, receiver, message) to what comes out at the other end."""


def pass_on(_sender: int, _to: int, message: PeerMessage) -> Iterable[PeerMessage]:
    """Let a message through as it is."""
    return (message,)


class Grounds:
    """n nodes, the utility, and time. `bcami.faults.simulator.node.Surroundings` for its machines."""

    def __init__(
        self,
        nodes: int = 4,
        seed: int = 0,
        *,
        parameters: Parameters | None = None,
        byzantine: Sequence[int] = (),
        down: Sequence[int] = (),
    ) -> None:
        self.seed = seed
        self.identities: Identities = identities(nodes, parameters or Parameters(), real=True)
        self.roster = self.identities.roster
        self.events = Events()
        self.disk_plan = QUIET
        self.byzantine = tuple(byzantine)
        self.observations: list[tuple[int, Observation]] = []
        self.results: dict[bytes, SubmitResult] = {}
        self.first: dict[bytes, SubmitResult] = {}
        """The first committed answer to each transaction."""
        self.blocks: dict[int, CertifiedHeader] = {}
        self.tap: Tap = pass_on
        self.puppets: dict[int, Puppet] = {}
        self.utility = Utility(self.identities)
        self._delay = stream(seed, "grounds")
        draw = stream(seed, "grounds disk")
        genesis = self.identities.genesis
        self.machines = [Machine(i, Disk.fresh(lambda: MemoryLedger(genesis)), self, draw) for i in range(nodes)]
        for machine in self.machines:
            if machine.index not in down:
                machine.start()
        self.introduce()

    def introduce(self) -> None:
        """Tell all nodes that run of each other, as a transport does when connections are made."""
        lives = [(machine.index, machine.life) for machine in self.machines if machine.life is not None]
        for index, life in lives:
            for other, _ in lives:
                if other != index:
                    life.connected(other)

    # Who is there.

    @property
    def n(self) -> int:
        return len(self.machines)

    @property
    def now_ms(self) -> int:
        return self.events.wall_ms

    @property
    def up(self) -> list[int]:
        return [machine.index for machine in self.machines if machine.life is not None]

    def life(self, node: int) -> Life:
        life = self.machines[node].life
        if life is None:
            raise RuntimeError(f"node {node} is down")
        return life

    def core(self, node: int) -> NodeCore:
        return self.life(node).core

    def ledger(self, node: int) -> MemoryLedger:
        return self.machines[node].disk.ledger

    def restart(self) -> None:
        """End all processes at once and start them again from their disks."""
        running = self.up
        for node in running:
            self.machines[node].crash()
        for node in running:
            self.machines[node].start()
        self.introduce()

    def misbehave(self, node: int, name: str, **options: object) -> AnyBehaviour:
        """Let a node that is Byzantine show a behaviour of the catalogue, for good."""
        return self.show(node, make_behaviour(name, options, self.seed))

    def show(self, node: int, behaviour: AnyBehaviour) -> AnyBehaviour:
        faulty = self.core(node)
        if not isinstance(faulty, FaultyNode):
            raise TypeError(f"node {node} is honest")
        faulty.inject(behaviour, FOR_EVER_MS, self.machines[node].clock_ms)
        return behaviour

    def behave(self, node: int) -> None:
        """End whatever a Byzantine node shows."""
        faulty = self.core(node)
        if isinstance(faulty, FaultyNode):
            faulty.stop_faults()

    # Time.

    def run(self, for_ms: int, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; True as soon as `until` holds."""
        if until is not None and until():
            return True
        return self.events.run_until(self.events.now_ms + for_ms, until)

    def settle(self, nodes: Sequence[int] | None = None) -> bool:
        """Let the nodes that run certify one height, not below any that a client heard of; tell whether they did."""
        places = self.up if nodes is None else nodes
        chosen = [self.ledger(node) for node in places]
        known = max((result.height for result in self.first.values()), default=0)

        def is_settled() -> bool:
            heights = {height for ledger in chosen for height in (ledger.height, ledger.certified_height)}
            heights |= {self.core(node).executor.height for node in places if self.machines[node].life is not None}
            return len(heights) == 1 and max(heights) >= known

        return self.run(WAIT_MS, is_settled)

    # Clients.

    def id_of(self, tx: Transaction) -> bytes:
        return transaction_id(tx, self.roster.chain, self.roster.epoch)

    def submit(self, node: int, tx: Transaction, wait_ms: int = WAIT_MS) -> SubmitResult | None:
        """Submit to one node and return its answer; None when it gives none."""
        tx_id = self.id_of(tx)
        self.results.pop(tx_id, None)
        self.life(node).submit([tx])
        self.run(wait_ms, lambda: tx_id in self.results)
        return self.results.get(tx_id)

    def reason(self, node: int, tx: Transaction, wait_ms: int = WAIT_MS) -> Reason | None:
        """Return what a node answers, `valid` included; None when it gives no answer."""
        answer = self.submit(node, tx, wait_ms)
        return None if answer is None else answer.reason

    def outcomes(self, tx_id: bytes, node: int) -> list[Reason]:
        """Return every outcome that the chain of a node gives a transaction."""
        ledger = self.ledger(node)
        blocks = [ledger.block(height) for height in range(1, ledger.height + 1)]
        return [
            outcome.reason
            for block in blocks
            if block is not None
            for outcome in block.outcomes
            if outcome.transaction_id == tx_id
        ]

    def receipt(self, tx: Transaction) -> Receipt | None:
        """Return the receipt of a transaction from whichever node has it first."""
        tx_id = self.id_of(tx)
        self.run(WAIT_MS, lambda: any(self.ledger(node).receipt(tx_id) is not None for node in self.up))
        found = (self.ledger(node).receipt(tx_id) for node in self.up)
        return next((receipt for receipt in found if receipt is not None), None)

    def bundles(self, node: int) -> list[BlockBundle]:
        """Return the certified blocks of a node, as it releases them."""
        ledger = self.ledger(node)
        found = [ledger.bundle(height) for height in range(1, ledger.certified_height + 1)]
        return [bundle for bundle in found if bundle is not None]

    def said_no(self, node: int, source: str | None = None) -> list[Reason]:
        """Return the reasons of all refusals that a node observed."""
        return [
            seen.reason
            for where, seen in self.observations
            if where == node and isinstance(seen, Refused) and source in (None, seen.source)
        ]

    def agree(self, nodes: Sequence[int]) -> bool:
        """Tell whether no two of the nodes have different headers of one height."""
        ledgers = [self.ledger(node) for node in nodes]
        highest = max(ledger.height for ledger in ledgers)
        return all(
            len({ledger.header(height) for ledger in ledgers if ledger.height >= height}) == 1
            for height in range(1, highest + 1)
        )

    # Key issuance.

    def shares(self, party: Party, draft: Draft, nodes: Sequence[int] | None = None) -> list[Share | Reason]:
        """Ask nodes for shares as a meter does, until f+1 are good; return what came, refusals included."""
        request = contribution_request(party, draft)
        found: list[Share | Reason] = []
        for node in self.up if nodes is None else nodes:
            if sum(isinstance(share, Share) for share in found) == self.roster.quorum.weak:
                break
            answer = self.core(node).contribute(request, self.machines[node].clock_ms)
            if isinstance(answer, ContributionAnswer):
                found.append(open_share(party, request, answer))
            else:
                found.append(answer)
        return found

    def prove(self, tx: Transaction) -> MdmsPeriod | Reason:
        """Return the MDMS period that a registration proves, as a meter believes it."""
        receipt = self.receipt(tx)
        if receipt is None:
            return Reason.BAD_PROOF
        return verify_period(TransactionProof(tx, receipt), self.roster.genesis, self.roster)

    # Surroundings of the machines.

    def make_core(self, machine: Machine) -> NodeCore:
        network, index = self.identities, machine.index
        kind = FaultyNode if index in self.byzantine else NodeCore
        return kind(
            network.roster,
            index,
            network.consensus[index],
            network.runtime,
            machine.disk.ledger,
            None if machine.disk.is_amnesiac else list(machine.disk.promises.items()),
            contribution_secret(index),
        )

    def leaves(self, machine: Machine, message: PeerMessage, to: int | None) -> None:
        for other in range(self.n) if to is None else (to,):
            if other != machine.index:
                for item in self.tap(machine.index, other, message):
                    self.deliver(machine.index, other, item)

    def deliver(self, sender: int, to: int, message: PeerMessage) -> None:
        """Carry a message as `sender`'s; nobody but a member can be a sender, which TLS sees to."""
        self.events.after(self._delay.randint(1, 4), self._arrive, sender, to, message)

    def _arrive(self, sender: int, to: int, message: PeerMessage) -> None:
        puppet, life = self.puppets.get(to), self.machines[to].life
        if puppet is not None:
            puppet.heard.append((sender, message))
        elif life is not None:
            life.receive(sender, message, "")

    def observed(self, machine: Machine, observation: Observation) -> None:
        self.observations.append((machine.index, observation))

    def answered(self, machine: Machine, results: Sequence[SubmitResult], blocks: Sequence[CertifiedHeader]) -> None:
        for block in blocks:
            self.blocks.setdefault(block.header.height, block)
        for result in results:
            self.results[result.transaction_id] = result
            if result.status == COMMITTED:
                self.first.setdefault(result.transaction_id, result)

    def ended(self, machine: Machine, why: str, *, by_disk: bool) -> None:
        raise RuntimeError(f"node {machine.index} ended: {why}")

    def arrives(self, machine: Machine, message: PeerMessage) -> None:
        """Nobody watches single messages here."""

    def stepped(self, machine: Machine, what: str, effects: Sequence[Effect]) -> None:
        """Nor single steps."""

    def durable(self, machine: Machine, puts: Sequence[tuple[bytes, bytes]]) -> None:
        """Nothing is judged here."""

    def persisted(self, machine: Machine, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes]) -> None:
        """Nobody watches promises here."""

    def executed(self, machine: Machine, effect: CommitBlock, view: int) -> None:
        """Blocks are looked at in the ledgers."""

    def certified(self, machine: Machine, certificate: BlockCertificate) -> None:
        """Certificates are looked at in the ledgers."""


def contribution_secret(node: int) -> bytes:
    return entropy("contribution", node)


class Puppet:
    """Somebody who has the keys of member `index` and speaks in its place."""

    def __init__(self, grounds: Grounds, index: int) -> None:
        grounds.machines[index].crash()
        grounds.puppets[index] = self
        self.grounds = grounds
        self.index = index
        self.heard: list[tuple[int, PeerMessage]] = []

    @property
    def others(self) -> list[int]:
        return [node for node in self.grounds.up if node != self.index]

    def say(self, message: PeerMessage, to: Sequence[int] | None = None) -> None:
        for node in self.others if to is None else to:
            self.grounds.deliver(self.index, node, message)


def transaction_of(prepared: Prepared) -> Transaction:
    return TRANSACTION_CODEC.decode(prepared.transaction)


__all__ = ["START_MS", "Grounds", "Puppet", "contribution_secret", "entropy", "transaction_of"]
