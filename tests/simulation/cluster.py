"""A whole cluster in one process: real cores, memory stores, virtual time, a seeded network. No threads, no sleeps."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from bcami.bundled import find_bundled
from bcami.contract.package import load_package
from bcami.contract.runtime import Runtime
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.crypto.roster import Roster
from bcami.ledger.memory import MemoryLedger, MemoryPromises
from bcami.model.api import SubmitResult
from bcami.model.events import Observation
from bcami.model.genesis import Genesis, Member, Parameters, chain_id
from bcami.model.transaction import Transaction
from bcami.node.core import effects as core
from bcami.node.core.core import NodeCore

START_MS = 1_700_000_000_000


def entropy(*words: object) -> bytes:
    return repr(words).encode().ljust(32, b"\0")


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


def make_identities(n: int = 4, parameters: Parameters | None = None) -> Identities:
    consensus = [SecretKey.generate(entropy("consensus", i)) for i in range(n)]
    utility = SecretKey.generate(entropy("utility"))
    mdms = SecretKey.generate(entropy("mdms"))
    mdms_kem = KemSecretKey.generate(entropy("mdms-kem"))
    package = load_package(Path(find_bundled("chaincode")), None)
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


@dataclass
class Disk:
    """What survives a crash of one node."""

    ledger: MemoryLedger
    promises: MemoryPromises


@dataclass(order=True)
class _Event:
    at_ms: int
    order: int
    action: Callable[[], None] = field(compare=False)


class Cluster:
    """n nodes. `drop(sender, receiver, message)` decides about each message; crash and restart keep the disk."""

    def __init__(self, n: int = 4, seed: int = 1, parameters: Parameters | None = None) -> None:
        self.identities = make_identities(n, parameters)
        self.roster = self.identities.roster
        self.chain = chain_id(self.identities.genesis)
        self.n = n
        self.random = Random(seed)
        self.now_ms = START_MS
        self.package = load_package(Path(find_bundled("chaincode")), self.identities.genesis.chaincode_package)
        self.disks = [Disk(MemoryLedger(self.identities.genesis), MemoryPromises()) for _ in range(n)]
        self.cores: list[NodeCore | None] = [None] * n
        self.observations: list[tuple[int, Observation]] = []
        self.results: dict[bytes, SubmitResult] = {}
        self.drop: Callable[[int, int, object], bool] = lambda sender, receiver, message: False
        self.delay_ms: Callable[[], int] = lambda: self.random.randint(1, 5)
        self._events: list[_Event] = []
        self._order = 0
        self._timers: dict[tuple[int, str], _Event] = {}
        self._life = [0] * n
        self._tickets: dict[tuple[int, int], list[bytes]] = {}
        for i in range(n):
            self.start(i)

    def start(self, i: int) -> None:
        disk = self.disks[i]
        runtime = Runtime(self.package, self.identities.genesis)
        node = NodeCore(
            self.roster,
            i,
            self.identities.consensus[i],
            runtime,
            disk.ledger,
            list(disk.promises.items()),
            entropy("contribution", i),
        )
        self.cores[i] = node
        self._life[i] += 1
        self._run(i, node.start(self.now_ms))
        for j in range(self.n):
            other = self.cores[j]
            if j != i and other is not None:
                self._run(i, node.connected(j))
                self._run(j, other.connected(i))

    def crash(self, i: int) -> None:
        self.cores[i] = None
        self._life[i] += 1
        for key in [key for key in self._timers if key[0] == i]:
            del self._timers[key]
        for j, other in enumerate(self.cores):
            if other is not None:
                self._run(j, other.disconnected(i))

    def submit(self, i: int, transactions: list[Transaction]) -> list[bytes]:
        node = self.cores[i]
        assert node is not None
        ticket, ids, effects = node.submit(transactions, True)
        self._tickets[i, ticket] = ids
        self._run(i, effects)
        if (i, ticket) in self._tickets and node.tickets.is_complete(ticket):
            self._close(i, ticket)
        return ids

    def at(self, delay_ms: int, action: Callable[[], None]) -> _Event:
        self._order += 1
        event = _Event(self.now_ms + delay_ms, self._order, action)
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

    def heights(self) -> list[int]:
        return [disk.ledger.height for disk in self.disks]

    def certified(self) -> list[int]:
        return [disk.ledger.certified_height for disk in self.disks]

    def check_agreement(self) -> None:
        """I1, I2, I7: equal heights have equal headers."""
        for height in range(1, max(self.heights()) + 1):
            headers = {disk.ledger.header(height) for disk in self.disks if disk.ledger.height >= height}
            assert len(headers) == 1, f"fork at height {height}"

    def outcome(self, tx_id: bytes) -> str | None:
        result = self.results.get(tx_id)
        return None if result is None else result.reason

    def _close(self, i: int, ticket: int) -> None:
        node = self.cores[i]
        assert node is not None
        ids = self._tickets.pop((i, ticket))
        results, _ = node.close_ticket(ticket, ids)
        for result in results:
            self.results[result.transaction_id] = result

    def _alive(self, i: int, life: int) -> NodeCore | None:
        return self.cores[i] if self._life[i] == life else None

    def _run(self, i: int, effects: list[core.Effect]) -> None:
        life = self._life[i]
        for effect in effects:
            match effect:
                case core.Persist(puts, deletes):
                    self.disks[i].promises.apply(puts, deletes)
                case core.Send(to, message):
                    self._send(i, to, message)
                case core.Broadcast(message):
                    for j in range(self.n):
                        if j != i:
                            self._send(i, j, message)
                case core.CommitBlock(commit, certificate):

                    def durable(commit=commit, certificate=certificate, life=life, i=i) -> None:
                        node = self._alive(i, life)
                        if node is not None:
                            self.disks[i].ledger.commit(commit, () if certificate is None else (certificate,))
                            self._run(i, node.block_durable(commit.block.header.height, self.now_ms))

                    self.at(1, durable)
                case core.SaveCertificate(certificate):
                    self.disks[i].ledger.put_certificates([certificate])
                case core.SetTimer(name, delay_ms):
                    event = self.at(delay_ms, lambda: None)
                    event.action = self._timer_action(i, name, life, event)
                    self._timers[i, name] = event
                case core.CancelTimer(name):
                    self._timers.pop((i, name), None)
                case core.TicketReady(ticket):
                    if (i, ticket) in self._tickets:
                        self._close(i, ticket)
                case core.Observe(observation):
                    self.observations.append((i, observation))
                case core.MoreWork():
                    self._work_soon(i)

    def _work_soon(self, i: int) -> None:
        life = self._life[i]

        def work() -> None:
            node = self._alive(i, life)
            if node is not None:
                self._run(i, node.work(self.now_ms))

        self.at(0, work)

    def _timer_action(self, i: int, name: str, life: int, event: _Event) -> Callable[[], None]:
        def fire() -> None:
            node = self._alive(i, life)
            if node is not None and self._timers.get((i, name)) is event:
                del self._timers[i, name]
                self._run(i, node.timer(name, self.now_ms))

        return fire

    def _send(self, i: int, to: int, message: object) -> None:
        if self.drop(i, to, message):
            return
        life = self._life[to]

        def arrive() -> None:
            node = self._alive(to, life)
            if node is not None:
                self._run(to, node.receive(i, message, self.now_ms))

        self.at(self.delay_ms(), arrive)
