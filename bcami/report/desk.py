"""A cluster on the desk: real node cores, real signatures and real stores in one process, without network and HTTP.

Messages go through the wire codec, one after the other, and every step is timed as CPU of its receiver. So the cost of
each phase comes out by itself, which processes on a live cluster do not tell; and the counts of messages and bytes are
exact: they depend on the number of nodes and the size of batches only.

What a live node has on top: HTTP, TLS, the event loop, its threads. `live` measures those processes as wholes.
"""

import heapq
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, assert_never

from bcami.codec import encode
from bcami.faults.simulator.events import START_MS
from bcami.faults.simulator.identities import entropy
from bcami.faults.simulator.parties import Meter
from bcami.faults.simulator.prelude import prelude
from bcami.ledger.lmdb_ledger import LmdbLedger
from bcami.ledger.lmdb_promises import LmdbPromises
from bcami.ledger.store import LedgerCommit
from bcami.model.batch import Batch, BatchCertificate, Endorsement
from bcami.model.consensus import Checkpoint, Commit, Prepare, PrePrepare
from bcami.model.genesis import Parameters
from bcami.model.quorum import Quorum
from bcami.model.wire import PEER_CODEC, PeerMessage
from bcami.node.core import effects as core
from bcami.node.core.core import NodeCore

ADMISSION: Final = "admission"
DISSEMINATION: Final = "endorsement"
ORDERING: Final = "ordering"
EXECUTION: Final = "execution"
CERTIFICATION: Final = "certification"
STORAGE: Final = "storage"
OTHER: Final = "status and timers"
PHASES: Final = (ADMISSION, DISSEMINATION, ORDERING, EXECUTION, CERTIFICATION, STORAGE, OTHER)
FRAME_BYTES: Final = 4
"""Length before each message on the wire."""
SESSIONS_WINDOW: Final = 65_536
_READING_BYTES: Final = 16
_HEAD_BYTES: Final = 4 + 16
"""Of a sealed report: head and tag."""
_ROUND_STEPS_MAX: Final = 1_000_000


@dataclass(slots=True)
class Tally:
    """What a number of transactions took, all nodes together."""

    transactions: int = 0
    blocks: int = 0
    cpu_ns: Counter[str] = field(default_factory=Counter)
    """By phase."""
    messages: Counter[str] = field(default_factory=Counter)
    """By kind; a broadcast counts once for each receiver."""
    sent_bytes: Counter[str] = field(default_factory=Counter)
    """By kind, frames included."""
    writes: int = 0
    """Durable writes."""
    stored_bytes: int = 0
    """Growth of one node's ledger."""

    def cpu_us(self, phase: str) -> float:
        """Return CPU time for each transaction, all nodes together, microseconds."""
        return self.cpu_ns[phase] / 1000 / self.transactions


def phase_of(message: PeerMessage) -> str:
    """Return the phase that a message belongs to."""
    match message:
        case Batch() | Endorsement() | BatchCertificate():
            return DISSEMINATION
        case PrePrepare() | Prepare() | Commit():
            return ORDERING
        case Checkpoint():
            return CERTIFICATION
        case _:
            return OTHER


class Desk:
    """n nodes with an open MDMS period and three meters that have sessions."""

    def __init__(self, nodes: int, folder: Path) -> None:
        start = prelude(nodes, Parameters(replay_window=SESSIONS_WINDOW), real=True)
        self.meters: list[Meter] = start.new_meters()
        self.now_ms = START_MS + 10_000
        self.tally = Tally()
        self._queue: deque[tuple[int, int, bytes, str]] = deque()
        self._timers: list[tuple[int, int, int, str]] = []
        self._armed: dict[tuple[int, str], int] = {}
        self._count = 0
        self._nodes: list[_Node] = []
        network = start.network
        for index in range(nodes):
            place = folder / f"node{index}"
            place.mkdir(parents=True)
            ledger = LmdbLedger(place / "ledger", network.genesis)
            for commit, certificate in start.blocks:
                ledger.commit(commit, (certificate,))
            LmdbPromises.create(place / "promises", network.consensus[index].public_key)
            promises = LmdbPromises(place / "promises", network.consensus[index].public_key)
            node = NodeCore(
                network.roster,
                index,
                network.consensus[index],
                network.runtime,
                ledger,
                (),
                entropy("contribution", index),
            )
            self._nodes.append(_Node(self, node, ledger, promises))
        for held in self._nodes:
            held.step(OTHER, held.core.start, self.now_ms)
        self._drain()

    def close(self) -> None:
        for node in self._nodes:
            node.ledger.close()
            node.promises.close()

    def run(self, rounds: int, batch: int, readings: int) -> Tally:
        """Carry that many batches, one after the other, each of so many transactions, and return what it took."""
        self.tally = Tally()
        before = self._stored_bytes()
        first = self._nodes[0].ledger.height
        for number in range(rounds):
            self._submit(number % len(self._nodes), batch, readings)
        self.tally.blocks = self._nodes[0].ledger.height - first
        self.tally.stored_bytes = self._stored_bytes() - before
        return self.tally

    def _submit(self, collector: int, count: int, readings: int) -> None:
        sealed = _HEAD_BYTES + _READING_BYTES * readings
        transactions = [
            self.meters[place % len(self.meters)].report(self.now_ms, sealed_bytes=sealed) for place in range(count)
        ]
        self.tally.transactions += count
        node = self._nodes[collector]
        node.submit(transactions)
        for _ in range(_ROUND_STEPS_MAX):
            self._drain()
            if node.is_answered and self._is_level:
                return
            self._next_timer()
        raise AssertionError("a batch was never executed")

    @property
    def _is_level(self) -> bool:
        heights = {(node.ledger.height, node.ledger.certified_height) for node in self._nodes}
        return len(heights) == 1 and len(set(heights.pop())) == 1

    def _stored_bytes(self) -> int:
        return sum(size.stored_bytes for size in self._nodes[0].ledger.sizes().values())

    # What nodes ask for.

    def send(self, sender: int, to: int | None, message: PeerMessage) -> None:
        phase, kind = phase_of(message), type(message).__name__
        start = time.thread_time_ns()
        data = encode(message)
        self.tally.cpu_ns[phase] += time.thread_time_ns() - start
        for receiver in range(len(self._nodes)) if to is None else (to,):
            if receiver != sender:
                self.tally.messages[kind] += 1
                self.tally.sent_bytes[kind] += FRAME_BYTES + len(data)
                self._queue.append((sender, receiver, data, phase))

    def arm(self, node: int, name: str, delay_ms: int | None) -> None:
        """Set a timer, or cancel it."""
        self._count += 1
        self._armed[node, name] = self._count
        if delay_ms is not None:
            heapq.heappush(self._timers, (self.now_ms + delay_ms, self._count, node, name))

    def _drain(self) -> None:
        """Deliver and work until nobody has anything to do."""
        while True:
            if self._queue:
                sender, receiver, data, phase = self._queue.popleft()
                node = self._nodes[receiver]
                node.step(phase, lambda: node.core.receive(sender, PEER_CODEC.decode(data), self.now_ms))  # noqa: B023
            elif not self._settle():
                return

    def _settle(self) -> bool:
        """Let every node do one thing that is due; returns whether any had one."""
        settled = [node.settle() for node in self._nodes]
        return any(settled)

    def _next_timer(self) -> None:
        while self._timers:
            due_ms, number, index, name = heapq.heappop(self._timers)
            if self._armed.get((index, name)) == number:
                self.now_ms = max(self.now_ms, due_ms)
                node = self._nodes[index]
                node.step(OTHER, node.core.timer, name, self.now_ms)
                return


class _Node:
    """One node: its core, its stores, and what it has still to do."""

    def __init__(self, desk: Desk, node: NodeCore, ledger: LmdbLedger, promises: LmdbPromises) -> None:
        self.core, self.ledger, self.promises = node, ledger, promises
        self._desk = desk
        self._has_work = False
        self._submitting = False
        self._written: deque[int] = deque()
        self._ticket: tuple[int, list[bytes]] | None = None
        self._execute = node.executor.execute
        self._executing_ns = 0
        setattr(node.executor, "execute", self._timed_execute)  # noqa: B010  the seam between ordering and execution

    def _timed_execute(self, *args: Any) -> Any:
        start = time.thread_time_ns()
        try:
            return self._execute(*args)
        finally:
            self._executing_ns += time.thread_time_ns() - start

    @property
    def is_answered(self) -> bool:
        if self._ticket is not None and self.core.tickets.is_complete(self._ticket[0]):
            self.core.close_ticket(*self._ticket)
            self._ticket = None
        return self._ticket is None

    def submit(self, transactions: Sequence[Any]) -> None:
        def take() -> Sequence[core.Effect]:
            ticket, ids, effects = self.core.submit(transactions, True)
            self._ticket = ticket, ids
            return effects

        self._submitting = True
        self.step(ADMISSION, take)

    def settle(self) -> bool:
        """Do one thing that is due; returns whether there was one."""
        if self._written:
            self.step(CERTIFICATION, self.core.block_durable, self._written.popleft(), self._desk.now_ms)
            return True
        if self._has_work:
            self._has_work = False
            self.step(ADMISSION if self._submitting else DISSEMINATION, self.core.work, self._desk.now_ms)
            return True
        self._submitting = False
        return False

    def step(self, phase: str, call: Any, *args: Any) -> None:
        """Let one thing happen and carry out what follows."""
        tally, before = self._desk.tally, self._executing_ns
        start = time.thread_time_ns()
        effects = call(*args)
        spent, executing = time.thread_time_ns() - start, self._executing_ns - before
        tally.cpu_ns[phase] += spent - executing
        tally.cpu_ns[EXECUTION] += executing
        self._carry_out(effects)

    def _carry_out(self, effects: Sequence[core.Effect]) -> None:
        index = self.core.replica
        puts: list[tuple[bytes, bytes]] = []
        deletes: list[bytes] = []
        sends: list[core.Send | core.Broadcast] = []
        for effect in effects:
            match effect:
                case core.Persist(more, gone):
                    puts.extend(more)
                    deletes.extend(gone)
                case core.Send() | core.Broadcast():
                    sends.append(effect)
                case core.CommitBlock(commit, _):
                    self._write(lambda: self.ledger.commit(commit))
                    self._note_height(commit)
                case core.SaveCertificate(certificate):
                    self._write(lambda: self.ledger.put_certificates((certificate,)))
                case core.SetTimer(name, delay_ms):
                    self._desk.arm(index, name, delay_ms)
                case core.CancelTimer(name):
                    self._desk.arm(index, name, None)
                case core.MoreWork():
                    self._has_work = True
                case core.StageSnapshot() | core.InstallSnapshot():
                    raise AssertionError("nobody is behind at this desk")
                case core.TicketReady() | core.Observe():
                    pass
                case _:
                    assert_never(effect)
        if puts or deletes:
            self._write(lambda: self.promises.apply(puts, deletes))
        for send in sends:
            self._desk.send(index, send.to if isinstance(send, core.Send) else None, send.message)

    def _write(self, write: Any) -> None:
        start = time.thread_time_ns()
        write()
        self._desk.tally.cpu_ns[STORAGE] += time.thread_time_ns() - start
        self._desk.tally.writes += 1

    def _note_height(self, commit: LedgerCommit) -> None:
        self._written.append(commit.block.header.height)


def expected_messages(nodes: int) -> dict[str, int]:
    """Return the messages for one batch in a block of its own, by kind, in the normal case (design D2 to D4)."""
    others = nodes - 1
    return {
        "Batch": others,
        "Endorsement": Quorum(nodes).strong - 1,
        "BatchCertificate": others,
        "PrePrepare": others,
        "Prepare": others * others,
        "Commit": nodes * others,
        "Checkpoint": nodes * others,
    }
