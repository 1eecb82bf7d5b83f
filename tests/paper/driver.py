"""A small deterministic cluster of PBFT replicas: virtual time, one seed, a network and disks that misbehave on demand.

Effects are carried out in their order. A node may be made to crash right before a `Persist` becomes durable: that
effect and all after it are lost, and only what was persisted (and executed) comes back. Execution is a hash chain over
proposal digests with the lane rule of protocol 4.2.

Checked after every step, for correct replicas:

- I1 agreement: one digest per height.       I2 prefix: ledgers are prefixes of one chain.
- I5 vote discipline: one digest per signed (kind, view, height), restarts included.
- I9 persistence: a vote is on disk before it leaves; stored view, executed and low watermark never fall.
"""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from bcami.codec import encode
from bcami.model.batch import BatchCertificate
from bcami.model.block import BlockCertificate
from bcami.model.consensus import (
    Checkpoint,
    Commit,
    ConsensusMessage,
    NewView,
    Prepare,
    PrePrepare,
    Proposal,
    ViewChange,
    proposal_digest,
)
from bcami.model.events import EquivocationSeen, Refused
from bcami.model.signing import u64
from bcami.pbft import (
    Broadcast,
    CancelTimer,
    CertificateReady,
    Certified,
    Decided,
    Effect,
    Executed,
    Forget,
    Halt,
    Input,
    NeedBlocks,
    Observe,
    PeerStatus,
    Persist,
    Received,
    Relay,
    Replica,
    Restored,
    SendTo,
    SetTimer,
    Synced,
    TellStatus,
    TimerFired,
    lanes_after,
)
from tests.paper.keys import CHAIN, EPOCH, ToyRoster, ToySigner, check, roster_of

STATUS_MS = 200
START_MS = 1_700_000_000_000
GENESIS_HASH = sha256(b"genesis").digest()

Tamper = Callable[[int, int, ConsensusMessage], Sequence[ConsensusMessage]]
"""(sender, receiver, message) -> what really leaves."""


@dataclass(frozen=True)
class Block:
    digest: bytes
    header_hash: bytes
    proposal: Proposal
    lanes: tuple[int, ...]


@dataclass
class Network:
    delay_ms: tuple[int, int] = (1, 10)
    loss: float = 0.0
    duplication: float = 0.0
    blocked: set[tuple[int, int]] = field(default_factory=set)
    """Directed links that carry nothing."""

    def isolate(self, replica: int, n: int) -> None:
        for other in range(n):
            self.blocked |= {(replica, other), (other, replica)}

    def split(self, *sides: Sequence[int]) -> None:
        for left in sides:
            for right in sides:
                if left is not right:
                    self.blocked |= {(a, b) for a in left for b in right}

    def heal(self) -> None:
        self.blocked.clear()
        self.loss = self.duplication = 0.0


class Node:
    """A replica with its disk and its ledger; the disk survives a crash."""

    def __init__(self, index: int, lanes: int) -> None:
        self.index = index
        self.disk: dict[bytes, bytes] = {}
        self.blocks: list[Block] = []
        self.certificates: dict[int, BlockCertificate] = {}
        self.replica: Replica | None = None
        self.life = 0
        self.timers: dict[str, int] = {}
        self.decided: dict[int, Proposal] = {}
        self.executing = False
        self.syncing = False
        self.halted: str | None = None
        self.lanes = (0,) * lanes
        self.low = 0

    @property
    def height(self) -> int:
        return len(self.blocks)

    def header_hash(self, height: int) -> bytes:
        return self.blocks[height - 1].header_hash if height else GENESIS_HASH


class Cluster:
    """`n` replicas under one virtual clock."""

    def __init__(self, n: int = 4, seed: int = 0, execution_ms: int = 5, **parameters: int) -> None:
        self.n = n
        self.random = random.Random(seed)
        self.roster: ToyRoster = roster_of(n, **{"fairness_ms": 3000, "view_timer_ms": 400, **parameters})
        self.execution_ms = execution_ms
        self.network = Network()
        self.now_ms = START_MS
        self.nodes = [Node(index, n) for index in range(n)]
        self.byzantine: set[int] = set()
        self.tamper: Tamper | None = None
        self.crash_rate = 0.0
        """Chance that a node crashes right before one of its persists is durable."""
        self.skew_ms: dict[int, int] = {}
        self.certificates: list[BatchCertificate] = []
        self.observed: list[tuple[int, object]] = []
        self.sent: list[tuple[int, ConsensusMessage]] = []
        self.chain: dict[int, bytes] = {}
        """The digest decided at each height by the first correct replica."""
        self.signed: dict[tuple[object, ...], bytes] = {}
        self.steps = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0

    # Control.

    def start(self, *only: int) -> "Cluster":
        for index in only or range(self.n):
            self.restart(index)
        return self

    def restart(self, index: int) -> None:
        node = self.nodes[index]
        assert node.replica is None
        node.life += 1
        node.timers.clear()
        node.decided.clear()
        node.executing = node.syncing = False
        certified = max((height for height in node.certificates if height <= node.height), default=0)
        lanes = node.blocks[-1].lanes if node.blocks else (0,) * self.n
        headers = tuple((height, node.header_hash(height)) for height in range(certified + 1, node.height + 1))
        restored = Restored(tuple(node.disk.items()), node.height, node.certificates.get(certified), lanes, headers)
        node.replica = Replica(self.roster, index, ToySigner(index), check, restored)
        assert node.replica.low_watermark >= node.low or index in self.byzantine
        self._carry_out(node, node.replica.start(self._clock(index)))
        for certificate in self.certificates:
            if node.replica is not None:
                self.step(index, CertificateReady(certificate))
        self._later(0, self._status(index, node.life))

    def crash(self, index: int) -> None:
        self.nodes[index].replica = None

    def gossip(self, *certificates: BatchCertificate, to: Sequence[int] | None = None) -> None:
        self.certificates += certificates
        for certificate in certificates:
            for index in to if to is not None else range(self.n):
                delay = self.random.randint(*self.network.delay_ms)
                self._later(delay, lambda index=index, item=certificate: self.step(index, CertificateReady(item)))

    def run(self, duration_ms: int) -> None:
        end = self.now_ms + duration_ms
        while self._events and self._events[0][0] <= end:
            self.now_ms, _, happen = heapq.heappop(self._events)
            happen()
        self.now_ms = end

    def run_until(self, holds: Callable[[], bool], limit_ms: int = 60_000) -> None:
        end = self.now_ms + limit_ms
        while not holds():
            assert self._events and self._events[0][0] <= end, f"not within {limit_ms} ms: {self.describe()}"
            self.now_ms, _, happen = heapq.heappop(self._events)
            happen()

    def step(self, index: int, event: Input) -> None:
        node = self.nodes[index]
        if node.replica is None:
            return
        self.steps += 1
        self._carry_out(node, node.replica.step(event, self._clock(index)))
        self._check_monotone(node)

    # What tests ask.

    def live(self) -> list[Node]:
        return [node for node in self.nodes if node.replica is not None and node.index not in self.byzantine]

    def all_executed(self) -> bool:
        """Tell whether every live correct node executed and certified all gossiped certificates."""
        wanted = [0] * self.n
        for item in self.certificates:
            wanted[item.collector] = max(wanted[item.collector], item.number)
        return all(
            node.blocks and all(map(int.__ge__, node.blocks[-1].lanes, wanted)) and node.low == node.height
            for node in self.live()
        )

    def refusals(self, index: int) -> list[str]:
        return [item.reason.value for at, item in self.observed if at == index and isinstance(item, Refused)]

    def convictions(self) -> list[EquivocationSeen]:
        return [item for _, item in self.observed if isinstance(item, EquivocationSeen)]

    def describe(self) -> str:
        return "; ".join(
            f"{node.index}: down"
            if node.replica is None
            else f"{node.index}: view {node.replica.view}{'?' if node.replica.in_view_change else ''} low {node.low} "
            f"executed {node.height} decided {node.replica.decided} timers {sorted(node.timers)} {node.halted or ''}"
            for node in self.nodes
        )

    # Effects.

    def _carry_out(self, node: Node, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Persist) and self.crash_rate and self.random.random() < self.crash_rate:
                self.crash(node.index)
                return
            self._apply(node, effect)

    def _apply(self, node: Node, effect: Effect) -> None:
        match effect:
            case Persist(key, value):
                self._check_stored(node, key, value)
                node.disk[key] = value
            case Forget(keys):
                for key in keys:
                    node.disk.pop(key, None)
            case Broadcast(message):
                self._check_sent(node, message)
                for other in range(self.n):
                    if other != node.index:
                        self._send(node.index, other, message)
            case SendTo(replica, message):
                self._check_sent(node, message)
                self._send(node.index, replica, message)
            case Relay(replica, certificate):
                if (node.index, replica) not in self.network.blocked:
                    delay = self.random.randint(*self.network.delay_ms)
                    self._later(delay, lambda: self.step(replica, CertificateReady(certificate)))
            case TellStatus():
                self._tell_status(node)
            case SetTimer(name, delay_ms):
                self._order += 1
                node.timers[name] = self._order
                self._later(delay_ms, self._fire(node.index, node.life, name, self._order))
            case CancelTimer(name):
                node.timers.pop(name, None)
            case Decided(height, proposal, _):
                assert height not in node.decided, "decided twice in one life (B10)"
                self._check_decided(node, height, proposal)
                node.decided[height] = proposal
                self._execute_next(node)
            case Certified(certificate):
                node.certificates[certificate.height] = certificate
            case NeedBlocks(target):
                assert target > node.height or node.index in self.byzantine
                if not node.syncing:
                    node.syncing = True
                    self._later(20, self._sync(node.index, node.life))
            case Observe(observation):
                self.observed.append((node.index, observation))
            case Halt(reason):
                node.halted = reason

    def _send(self, sender: int, receiver: int, message: ConsensusMessage) -> None:
        self.sent.append((sender, message))
        leaving: Sequence[ConsensusMessage] = (message,)
        if self.tamper is not None and sender in self.byzantine:
            leaving = self.tamper(sender, receiver, message)
        for item in leaving:
            copies = 2 if self.random.random() < self.network.duplication else 1
            for _ in range(copies):
                if (sender, receiver) in self.network.blocked or self.random.random() < self.network.loss:
                    continue
                delay = self.random.randint(*self.network.delay_ms)
                self._later(delay, lambda item=item: self.step(receiver, Received(item)))

    def _fire(self, index: int, life: int, name: str, order: int) -> Callable[[], None]:
        def fire() -> None:
            node = self.nodes[index]
            if node.life == life and node.timers.get(name) == order:
                del node.timers[name]
                self.step(index, TimerFired(name))

        return fire

    def _status(self, index: int, life: int) -> Callable[[], None]:
        def tell() -> None:
            node = self.nodes[index]
            if node.life != life or node.replica is None:
                return
            self._tell_status(node)
            self._later(STATUS_MS, tell)

        return tell

    def _tell_status(self, node: Node) -> None:
        if node.replica is None:
            return
        status = node.replica.status()
        for other in range(self.n):
            if other != node.index and (node.index, other) not in self.network.blocked:
                delay = self.random.randint(*self.network.delay_ms)
                self._later(delay, lambda other=other: self.step(other, PeerStatus(status)))

    def _execute_next(self, node: Node) -> None:
        if node.executing or node.replica is None or node.height + 1 not in node.decided:
            return
        node.executing = True
        life, height = node.life, node.height + 1

        def execute() -> None:
            if node.life != life or node.replica is None:
                return
            node.executing = False
            if height == node.height + 1:
                self._append(node, node.decided[height])
                self.step(node.index, Executed(height, node.header_hash(height), node.blocks[-1].lanes))
            self._execute_next(node)

        self._later(self.execution_ms, execute)

    def _append(self, node: Node, proposal: Proposal) -> None:
        digest = proposal_digest(CHAIN, EPOCH, proposal)
        before = node.blocks[-1].lanes if node.blocks else (0,) * self.n
        header_hash = sha256(node.header_hash(node.height) + digest).digest()
        node.blocks.append(Block(digest, header_hash, proposal, lanes_after(before, proposal)))
        self._check_ledger(node)

    def _sync(self, index: int, life: int) -> Callable[[], None]:
        def fetch() -> None:
            node = self.nodes[index]
            node.syncing = False
            if node.life != life or node.replica is None:
                return
            reachable = [
                other
                for other in self.live()
                if other is not node and (other.index, index) not in self.network.blocked and other.low > node.height
            ]
            if not reachable:
                return
            source = self.random.choice(reachable)
            for height in range(node.height + 1, source.low + 1):
                self._append(node, source.blocks[height - 1].proposal)
            certificate = source.certificates[source.low]
            node.certificates.update(
                {height: item for height, item in source.certificates.items() if height <= source.low}
            )
            self.step(index, Synced(node.height, node.header_hash(node.height), certificate, node.blocks[-1].lanes))
            self._execute_next(node)

        return fetch

    def _later(self, delay_ms: int, happen: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now_ms + delay_ms, self._order, happen))

    def _clock(self, index: int) -> int:
        return self.now_ms + self.skew_ms.get(index, 0)

    # Invariants.

    def _check_decided(self, node: Node, height: int, proposal: Proposal) -> None:
        if node.index in self.byzantine:
            return
        digest = proposal_digest(CHAIN, EPOCH, proposal)
        assert self.chain.setdefault(height, digest) == digest, f"I1: two digests at height {height}"

    def _check_ledger(self, node: Node) -> None:
        if node.index not in self.byzantine:
            digest = node.blocks[-1].digest
            assert self.chain.setdefault(node.height, digest) == digest, f"I2: ledgers part at height {node.height}"

    def _check_sent(self, node: Node, message: ConsensusMessage) -> None:
        """I5 and I9 for what the replica itself signed."""
        if message.replica != node.index or node.index in self.byzantine:
            return
        place = encode(message) if isinstance(message, NewView | ViewChange) else None
        match message:
            case PrePrepare() | Prepare() | Commit():
                what: tuple[object, ...] = (type(message).__name__, message.view, message.height)
                place = message.digest
                kind = b"vote/prepared/" if isinstance(message, Commit) else b"vote/accepted/"
                stored = node.disk.get(kind + u64(message.height) + u64(message.view))
            case Checkpoint():
                what, place = ("Checkpoint", message.height), message.header_hash
                stored = node.disk.get(b"vote/checkpoint/" + u64(message.height))
                if message.height <= node.low:  # durably executed and certified, itself or by a later block
                    stored = b"forgotten"
            case ViewChange():
                what, stored = ("ViewChange", message.view), node.disk.get(b"vote/view_change")
            case NewView():
                what, stored = ("NewView", message.view), node.disk.get(b"vote/new_view")
        assert stored is not None, f"I9: {what} of {node.index} left before it was durable"
        assert place is not None
        key = (node.index, *what)
        assert self.signed.setdefault(key, place) == place, f"I5: {node.index} contradicts its {what}"

    def _check_stored(self, node: Node, key: bytes, value: bytes) -> None:
        before = node.disk.get(key)
        if before is not None and key in (b"vote/view_change", b"vote/new_view"):
            assert _view_of(value) > _view_of(before), "I9: the stored view fell"

    def _check_monotone(self, node: Node) -> None:
        if node.replica is None or node.index in self.byzantine:
            return
        low = node.replica.low_watermark
        assert low >= node.low, "I9: the low watermark fell"
        node.low = low
        assert low <= node.replica.executed <= node.height <= max(node.replica.decided, node.height)


def _view_of(record: bytes) -> int:
    import msgspec

    return int(msgspec.msgpack.decode(record)[2])
