"""One node: `bcami.node.core` between a simulated disk, clock and network.

`Life` does what `bcami.node.driver` does, effect by effect: group commit of promises, sends held back until the group
before them is written, blocks and certificates written one after the other, work in slices, named timers. A crash ends
a life; the disk and the clock belong to the `Machine`, which may begin another one.
"""

import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol, assert_never

from bcami.faults.simulator.disk import Disk, DiskError, DiskPlan
from bcami.faults.simulator.events import START_MS, Events
from bcami.model.api import CertifiedHeader, SubmitResult
from bcami.model.block import BlockCertificate
from bcami.model.events import BlockExecuted, Observation
from bcami.model.transaction import Transaction
from bcami.model.wire import PeerMessage
from bcami.node.core import effects as core
from bcami.node.core.core import NodeCore


class Surroundings(Protocol):
    """What a node meets: the network, its clients, those who watch."""

    events: Events
    disk_plan: DiskPlan

    def make_core(self, machine: "Machine") -> NodeCore: ...

    def arrives(self, machine: "Machine", message: PeerMessage) -> None:
        """Take note of a message that the node is about to look at."""

    def stepped(self, machine: "Machine", what: str, effects: Sequence[core.Effect]) -> None:
        """Take note of one step; raises Violation."""

    def persisted(self, machine: "Machine", puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes]) -> None: ...

    def durable(self, machine: "Machine", puts: Sequence[tuple[bytes, bytes]]) -> None:
        """Take note of promises that are on disk now, whether or not the node hears of it; raises Violation."""

    def leaves(self, machine: "Machine", message: PeerMessage, to: int | None) -> None:
        """Carry a message to one peer or to all."""

    def executed(self, machine: "Machine", effect: core.CommitBlock, view: int) -> None: ...

    def certified(self, machine: "Machine", certificate: BlockCertificate) -> None: ...

    def observed(self, machine: "Machine", observation: Observation) -> None: ...

    def answered(
        self, machine: "Machine", results: Sequence[SubmitResult], blocks: Sequence[CertifiedHeader]
    ) -> None: ...

    def ended(self, machine: "Machine", why: str, *, by_disk: bool) -> None:
        """Take note that the node ended itself."""


@dataclass(slots=True)
class _Group:
    """Promises that become durable in one write, and what leaves after it."""

    puts: list[tuple[bytes, bytes]] = field(default_factory=list)
    deletes: list[bytes] = field(default_factory=list)
    sends: list[core.Send | core.Broadcast] = field(default_factory=list)


_LedgerWrite = core.CommitBlock | core.StageSnapshot | core.InstallSnapshot | tuple[BlockCertificate, ...]


class Machine:
    """A computer with a disk and a clock, on which a node runs or not."""

    def __init__(self, index: int, disk: Disk, surroundings: Surroundings, draw: Random) -> None:
        self.index = index
        self.disk = disk
        self.surroundings = surroundings
        self.draw = draw
        self.skew_ms = 0
        """How far the clock is ahead."""
        self.life: Life | None = None
        self.lives = 0

    @property
    def clock_ms(self) -> int:
        return max(1, START_MS + self.surroundings.events.now_ms + self.skew_ms)

    @property
    def core(self) -> NodeCore | None:
        return None if self.life is None else self.life.core

    def start(self) -> None:
        """Begin a life on what the disk holds."""
        assert self.life is None
        self.lives += 1
        life = self.life = Life(self)
        life.begin()

    def crash(self) -> None:
        """End the life at once: what was not durable is gone, what was being written is there or not."""
        life, self.life = self.life, None
        if life is not None:
            life.lose()


class Life:
    """One process: everything here is lost in a crash."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.core: NodeCore = machine.surroundings.make_core(machine)
        self.is_over = False
        self._where = machine.surroundings
        self._events = machine.surroundings.events
        self._open = _Group()
        self._writing: _Group | None = None
        self._ledger_writes: deque[_LedgerWrite] = deque()
        self._certificates: list[BlockCertificate] = []
        self._timers: dict[str, int] = {}
        self._timer_count = 0
        self._tickets: dict[int, list[bytes]] = {}
        self._is_work_due = False
        self._view = 0
        self._paused: list[tuple[Callable[..., None], tuple[Any, ...]]] | None = None

    # What happens to it.

    def begin(self) -> None:
        self._step("start", self.core.start, self.machine.clock_ms)

    def receive(self, peer: int, message: PeerMessage, what: str) -> None:
        self._happen(self._receive, peer, message, what)

    def connected(self, peer: int) -> None:
        self._happen(self._connected, peer)

    def disconnected(self, peer: int) -> None:
        self._happen(self._disconnected, peer)

    def submit(self, transactions: Sequence[Transaction]) -> None:
        self._happen(self._submit, transactions)

    def pause(self) -> None:
        """Stand still: nothing that happens is seen until `resume` (fault F9)."""
        if self._paused is None:
            self._paused = []

    def resume(self) -> None:
        """Go on with all that happened meanwhile, in its order."""
        missed, self._paused = self._paused or [], None
        for happen, args in missed:
            self._happen(happen, *args)

    @property
    def is_paused(self) -> bool:
        return self._paused is not None

    def lose(self) -> None:
        """The machine stops here."""
        self.is_over = True
        draw = self.machine.draw
        if self._writing is not None and draw.random() < 0.5:
            self._apply_promises(self._writing)
        if self._ledger_writes and draw.random() < 0.5:
            self._apply_to_ledger(self._ledger_writes[0])

    def _happen(self, happen: Callable[..., None], *args: Any) -> None:
        if self.is_over:
            return
        if self._paused is not None:
            self._paused.append((happen, args))
        else:
            happen(*args)

    def _receive(self, peer: int, message: PeerMessage, what: str) -> None:
        self._where.arrives(self.machine, message)
        self._step(what, self.core.receive, peer, message, self.machine.clock_ms)

    def _connected(self, peer: int) -> None:
        self._step(f"up {peer}", self.core.connected, peer)

    def _disconnected(self, peer: int) -> None:
        self._step(f"down {peer}", self.core.disconnected, peer)

    def _submit(self, transactions: Sequence[Transaction]) -> None:
        ticket, ids, effects = self.core.submit(transactions, True)
        self._tickets[ticket] = ids
        self._step(f"submit {len(ids)}", lambda: effects)
        if ticket in self._tickets and not self.is_over and self.core.tickets.is_complete(ticket):
            self._close(ticket)

    def give_up(self) -> None:
        """Close all tickets: their clients went away."""
        for ticket in list(self._tickets):
            self._close(ticket)

    # Steps and effects, as the driver has them.

    def _step(self, what: str, step: Callable[..., Sequence[core.Effect]], *args: Any) -> None:
        if self.is_over:
            return
        try:
            effects = step(*args)
        except Exception:
            self._end(traceback.format_exc(), by_disk=False)
            return
        self._where.stepped(self.machine, what, effects)
        self._run(effects)

    def _run(self, effects: Sequence[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.Persist(puts, deletes):
                    self._where.persisted(self.machine, puts, deletes)
                    self._open.puts.extend(puts)
                    self._open.deletes.extend(deletes)
                case core.Send() | core.Broadcast():
                    self._send_in_order(effect)
                case core.CommitBlock():
                    self._where.executed(self.machine, effect, self._view)
                    self._write_to_ledger(effect)
                case core.SaveCertificate(certificate):
                    self._where.certified(self.machine, certificate)
                    self._certificates.append(certificate)
                case core.StageSnapshot() | core.InstallSnapshot():
                    self._write_to_ledger(effect)
                case core.SetTimer(name, delay_ms):
                    self._timer_count += 1
                    self._timers[name] = self._timer_count
                    self._events.after(delay_ms, self._fire, name, self._timer_count)
                case core.CancelTimer(name):
                    self._timers.pop(name, None)
                case core.TicketReady(ticket):
                    if ticket in self._tickets:
                        self._close(ticket)
                case core.Observe(observation):
                    if isinstance(observation, BlockExecuted):
                        self._view = observation.view
                    self._where.observed(self.machine, observation)
                case core.MoreWork():
                    if not self._is_work_due:
                        self._is_work_due = True
                        self._events.after(0, self._happen, self._work)
                case _:
                    assert_never(effect)
        if self._certificates:
            certificates, self._certificates = tuple(self._certificates), []
            self._write_to_ledger(certificates)
        self._write_group()

    def _work(self) -> None:
        self._is_work_due = False
        self._step("work", self.core.work, self.machine.clock_ms)

    def _fire(self, name: str, number: int) -> None:
        self._happen(self._fire_now, name, number)

    def _fire_now(self, name: str, number: int) -> None:
        if self._timers.get(name) == number:
            del self._timers[name]
            self._step(f"timer {name}", self.core.timer, name, self.machine.clock_ms)

    def _close(self, ticket: int) -> None:
        results, blocks = self.core.close_ticket(ticket, self._tickets.pop(ticket))
        self._where.answered(self.machine, results, blocks)

    def _send_in_order(self, effect: core.Send | core.Broadcast) -> None:
        if self._open.puts:
            self._open.sends.append(effect)
        elif self._writing is not None:
            self._writing.sends.append(effect)
        else:
            self._send(effect)

    def _send(self, effect: core.Send | core.Broadcast) -> None:
        to = effect.to if isinstance(effect, core.Send) else None
        self._where.leaves(self.machine, effect.message, to)

    # Promises.

    def _write_group(self) -> None:
        group = self._open
        if self._writing is not None or not (group.puts or group.deletes):
            return
        self._writing, self._open = group, _Group()
        self._events.after(self._write_ms(), self._group_written, group)

    def _group_written(self, group: _Group) -> None:
        if self.is_over:
            return
        try:
            self._disk_turn(lambda: self._apply_promises(group))
        except DiskError as error:
            self._end(f"the promise store: {error}", by_disk=True)
            return
        self._happen(self._after_group, group)

    def _after_group(self, group: _Group) -> None:
        self._writing = None
        for effect in group.sends:
            self._send(effect)
        self._write_group()

    def _apply_promises(self, group: _Group) -> None:
        self.machine.disk.promises.apply(group.puts, group.deletes)
        self._where.durable(self.machine, group.puts)

    # Ledger.

    def _write_to_ledger(self, write: _LedgerWrite) -> None:
        self._ledger_writes.append(write)
        if len(self._ledger_writes) == 1:
            self._events.after(self._write_ms(), self._ledger_written)

    def _ledger_written(self) -> None:
        if self.is_over:
            return
        write = self._ledger_writes[0]
        try:
            self._disk_turn(lambda: self._apply_to_ledger(write))
        except DiskError as error:
            self._end(f"the ledger: {error}", by_disk=True)
            return
        except ValueError as error:
            self._end(f"the ledger: {error}", by_disk=False)
            return
        self._ledger_writes.popleft()
        if self._ledger_writes:
            self._events.after(self._write_ms(), self._ledger_written)
        match write:
            case core.CommitBlock():
                self._happen(self._block_durable, write.commit.block.header.height)
            case core.StageSnapshot():
                self._happen(self._snapshot_staged)
            case core.InstallSnapshot():
                self._happen(self._snapshot_installed, write.header.height)
            case _:
                pass

    def _block_durable(self, height: int) -> None:
        self._step(f"durable {height}", self.core.block_durable, height, self.machine.clock_ms)

    def _snapshot_staged(self) -> None:
        self._step("staged", self.core.snapshot_staged, self.machine.clock_ms)

    def _snapshot_installed(self, height: int) -> None:
        self._step(f"installed {height}", self.core.snapshot_installed, self.machine.clock_ms)

    def _apply_to_ledger(self, write: _LedgerWrite) -> None:
        ledger = self.machine.disk.ledger
        match write:
            case core.CommitBlock():
                ledger.commit(write.commit, write.own_certificates)
            case core.StageSnapshot():
                ledger.stage(write.bundles, write.rows, fresh=write.fresh)
            case core.InstallSnapshot():
                ledger.install(write.header, write.certificate, write.lthash)
            case _:
                ledger.put_certificates(write)

    # The disk.

    def _write_ms(self) -> int:
        low, high = self._where.disk_plan.write_ms
        return low + int(self.machine.draw.random() * (high - low + 1))

    def _disk_turn(self, apply: Callable[[], None]) -> None:
        """Let a write end: well, in a crash before or after it, or refused with its data there or not."""
        plan, draw = self._where.disk_plan, self.machine.draw
        if self.machine.disk.is_full:
            raise DiskError("no space left")
        if plan.fail and draw.random() < plan.fail:
            if draw.random() < 0.5:
                apply()
            raise DiskError("fsync failed")
        if plan.crash_at_write and draw.random() < plan.crash_at_write:
            self.machine.crash()
            self._where.ended(self.machine, "crash at a write", by_disk=True)
            return
        apply()

    def _end(self, why: str, *, by_disk: bool) -> None:
        """Never vote again: the process ends."""
        self.is_over = True
        self.machine.life = None
        self._where.ended(self.machine, why, by_disk=by_disk)
