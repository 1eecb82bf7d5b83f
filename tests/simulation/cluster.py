"""A whole cluster in one process: real cores, simulated disks, virtual time, a seeded network. No threads, no sleeps."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

from bcami.bundled import find_bundled
from bcami.contract.package import Package, load_package
from bcami.contract.runtime import Runtime
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.crypto.roster import Roster
from bcami.crypto.verification import verify_receipt
from bcami.ledger.memory import MemoryLedger, MemoryPromises
from bcami.model.api import COMMITTED, CertifiedHeader, SubmitResult
from bcami.model.batch import Batch
from bcami.model.block import Outcome, Receipt
from bcami.model.chain import BlockBundle
from bcami.model.events import Observation, Refused
from bcami.model.genesis import Genesis, Member, Parameters, chain_id
from bcami.model.transaction import Transaction
from bcami.node.core.core import NodeCore
from tests.simulation.discipline import Discipline
from tests.simulation.shell import Disk, Shell

START_MS = 1_700_000_000_000


def entropy(*words: object) -> bytes:
    return repr(words).encode().ljust(32, b"\0")


@cache
def package_of(folder: Path) -> Package:
    """Chaincode is checked once for all clusters of a test run."""
    return load_package(folder, None)


@dataclass
class Identities:
    """All secrets of a test network."""

    consensus: list[SecretKey]
    utility: SecretKey
    mdms: SecretKey
    mdms_kem: KemSecretKey
    genesis: Genesis

    @property
    def roster(self) -> Roster:
        return Roster.from_genesis(self.genesis)


def make_identities(n: int = 4, parameters: Parameters | None = None, chaincode: Path | None = None) -> Identities:
    consensus = [SecretKey.generate(entropy("consensus", i)) for i in range(n)]
    utility = SecretKey.generate(entropy("utility"))
    mdms = SecretKey.generate(entropy("mdms"))
    mdms_kem = KemSecretKey.generate(entropy("mdms-kem"))
    package = package_of(chaincode or Path(find_bundled("chaincode")))
    genesis = Genesis(
        network="test",
        created_ms=START_MS,
        epoch=0,
        members=tuple(Member(f"node{i + 1}", key.public_key, bytes([i]) * 32) for i, key in enumerate(consensus)),
        utility_key=utility.public_key,
        mdms_hid=b"M" * 32,
        mdms_enrolment_key=mdms.public_key,
        mdms_enrolment_kem_key=mdms_kem.public_key,
        chaincode_package=package.package_id,
        execution_version=1,
        parameters=parameters or Parameters(),
        faults_allowed=False,
    )
    return Identities(consensus, utility, mdms, mdms_kem, genesis)


@dataclass(order=True)
class Event:
    at_ms: int
    order: int
    action: Callable[[], None] = field(compare=False)


class Cluster:
    """n nodes of real cores on simulated disks, clocks and a network.

    What a test may set: `drop(sender, receiver, message)` decides about each message; `lies[i]`, given (receiver,
    message), returns what node i sends in its place; `clock_ms[i]` is how far node i's clock is off; `promise_ms` and
    `block_ms` are the times of durable writes; `fuses[i]` is the number of effects after which node i crashes.
    """

    def __init__(
        self, n: int = 4, seed: int = 1, parameters: Parameters | None = None, chaincode: Path | None = None
    ) -> None:
        folder = chaincode or Path(find_bundled("chaincode"))
        self.identities = make_identities(n, parameters, folder)
        self.roster = self.identities.roster
        self.chain = chain_id(self.identities.genesis)
        self.n = n
        self.random = Random(seed)
        self.now_ms = START_MS
        self.package = package_of(folder)
        self.disks = [Disk(MemoryLedger(self.identities.genesis), MemoryPromises()) for _ in range(n)]
        self.shells: list[Shell | None] = [None] * n
        self.observations: list[tuple[int, Observation]] = []
        self.results: dict[bytes, SubmitResult] = {}
        """The newest answer to each transaction."""
        self.receipts: dict[bytes, tuple[SubmitResult, CertifiedHeader]] = {}
        """The first receipt that a client was given: final, whatever happens later."""
        self.drop: Callable[[int, int, object], bool] = lambda sender, receiver, message: False
        self.lies: dict[int, Callable[[int, object], list[object]]] = {}
        self.delay_ms: Callable[[], int] = lambda: self.random.randint(1, 5)
        self.promise_ms: Callable[[], int] = lambda: self.random.randint(1, 2)
        self.block_ms: Callable[[], int] = lambda: self.random.randint(1, 3)
        self.clock_ms = [0] * n
        self.fuses: dict[int, int] = {}
        self.discipline = Discipline(self.chain)
        self._events: list[Event] = []
        self._order = 0
        self._bulk_ms: dict[tuple[int, int], int] = {}
        self._tickets: dict[tuple[int, int], list[bytes]] = {}
        for i in range(n):
            self.start(i)

    # Nodes.

    @property
    def cores(self) -> list[NodeCore | None]:
        return [None if shell is None else shell.core for shell in self.shells]

    def node(self, i: int) -> NodeCore:
        shell = self.shells[i]
        assert shell is not None, f"node {i} is down"
        return shell.core

    def start(self, i: int) -> None:
        disk = self.disks[i]
        node = NodeCore(
            self.roster,
            i,
            self.identities.consensus[i],
            Runtime(self.package, self.identities.genesis),
            disk.ledger,
            None if disk.is_amnesiac else list(disk.promises.items()),
            entropy("contribution", i),
        )
        shell = self.shells[i] = Shell(self, i, node, disk)
        shell.step(node.start(shell.now_ms))
        for j, other in enumerate(self.shells):
            if j != i and other is not None and self.shells[i] is shell:
                shell.step(node.connected(j))
                other.step(other.core.connected(i))

    def crash(self, i: int) -> None:
        shell, self.shells[i] = self.shells[i], None
        if shell is None:
            return
        shell.crash()
        for key in [key for key in self._tickets if key[0] == i]:
            del self._tickets[key]
        for other in self.shells:
            if other is not None:
                other.step(other.core.disconnected(i))

    def lose_promises(self, i: int) -> None:
        """Let node i lose its vote log and start again; its other files stay."""
        self.crash(i)
        self.disks[i].promises, self.disks[i].is_amnesiac = MemoryPromises(), True
        self.start(i)

    def restart(self, i: int) -> None:
        self.crash(i)
        self.start(i)

    def effect_done(self, i: int) -> None:
        """Burn node i's fuse by one effect."""
        if i not in self.fuses:
            return
        self.fuses[i] -= 1
        if self.fuses[i] <= 0:
            del self.fuses[i]
            self.crash(i)

    # Clients.

    def submit(self, i: int, transactions: list[Transaction], wait: bool = True) -> list[bytes]:
        shell = self.shells[i]
        assert shell is not None
        ticket, ids, effects = shell.core.submit(transactions, wait)
        self._tickets[i, ticket] = ids
        shell.step(effects)
        if (i, ticket) in self._tickets and shell.core.tickets.is_complete(ticket):
            self.ticket_ready(i, ticket)
        return ids

    def give_up(self, i: int) -> None:
        """The clients of node i wait no longer: what has no outcome is answered as unknown."""
        for _, ticket in [key for key in self._tickets if key[0] == i]:
            self.ticket_ready(i, ticket)

    def ticket_ready(self, i: int, ticket: int) -> None:
        ids = self._tickets.pop((i, ticket), None)
        if ids is None:
            return
        results, blocks = self.node(i).close_ticket(ticket, ids)
        headers = {block.header.height: block for block in blocks}
        for result in results:
            self.results[result.transaction_id] = result
            if result.status == COMMITTED:
                self._check_receipt(result, headers[result.height])

    def _check_receipt(self, result: SubmitResult, block: CertifiedHeader) -> None:
        """Any answer with an outcome is a proof, and always of the first outcome (protocol 3.5, 5.3)."""
        assert result.reason is not None
        outcome = Outcome(result.transaction_id, result.reason)
        receipt = Receipt(outcome, result.index, result.path, block.header, block.certificate)
        assert verify_receipt(receipt, self.roster) is None
        first, _ = self.receipts.setdefault(result.transaction_id, (result, block))
        assert (first.height, first.index, first.reason) == (result.height, result.index, result.reason)

    def outcome(self, tx_id: bytes) -> str | None:
        result = self.results.get(tx_id)
        return None if result is None else result.reason

    # Time and network.

    def at(self, delay_ms: int, action: Callable[[], None]) -> Event:
        self._order += 1
        event = Event(self.now_ms + delay_ms, self._order, action)
        heapq.heappush(self._events, event)
        return event

    def run(self, for_ms: int, until: Callable[[], bool] | None = None) -> bool:
        """Advance virtual time; True when `until` came true."""
        end = self.now_ms + for_ms
        while self._events and self._events[0].at_ms <= end:
            if until is not None and until():
                return True
            event = heapq.heappop(self._events)
            self.now_ms = max(self.now_ms, event.at_ms)
            event.action()
        self.now_ms = end
        return until is not None and until()

    def send(self, sender: int, to: int, message: object) -> None:
        """Carry one message of a core, or what its lie makes of it."""
        lie = self.lies.get(sender)
        self.discipline.heard(sender, message)
        for item in [message] if lie is None else lie(to, message):
            self.inject(sender, to, item)

    def inject(self, sender: int, to: int, message: object) -> None:
        """Carry a message as it is, to the life that node `to` is in now.

        Bulk data comes in the order in which it was sent, as on its own connection; votes overtake each other.
        """
        shell = self.shells[to]
        if shell is None or self.drop(sender, to, message):
            return
        delay_ms = self.delay_ms()
        if isinstance(message, Batch | BlockBundle):
            delay_ms = max(delay_ms, self._bulk_ms.get((sender, to), 0) - self.now_ms)
            self._bulk_ms[sender, to] = self.now_ms + delay_ms
        self.at(delay_ms, lambda: shell.receive(sender, message))

    # What must hold.

    def heights(self) -> list[int]:
        return [disk.ledger.height for disk in self.disks]

    def certified(self) -> list[int]:
        return [disk.ledger.certified_height for disk in self.disks]

    def check_agreement(self, nodes: list[int] | None = None) -> None:
        """I1, I2, I7: equal heights have equal headers. I15: a receipt that was given stays true."""
        chosen = [self.disks[i].ledger for i in (range(self.n) if nodes is None else nodes)]
        for height in range(1, max(ledger.height for ledger in chosen) + 1):
            headers = {ledger.header(height) for ledger in chosen if ledger.height >= height}
            assert len(headers) == 1, f"fork at height {height}"
        for tx_id, (result, block) in self.receipts.items():
            for ledger in chosen:
                if ledger.height >= result.height:
                    assert ledger.header(result.height) == block.header
                    place = ledger.place(tx_id)
                    assert place is not None
                    assert (place.height, place.index) == (result.height, result.index)

    def reasons(self, i: int, source: str | None = None) -> set[str]:
        """Return the reasons of all refusals that node i has observed."""
        return {
            str(seen.reason)
            for node, seen in self.observations
            if node == i and isinstance(seen, Refused) and source in (None, seen.source)
        }

    def outcomes_of(self, tx_id: bytes, i: int = 0) -> list[str]:
        """Return every outcome of a transaction in node i's chain, in order."""
        ledger = self.disks[i].ledger
        return [
            str(outcome.reason)
            for height in range(1, ledger.height + 1)
            for outcome in ledger.block(height).outcomes
            if outcome.transaction_id == tx_id
        ]
