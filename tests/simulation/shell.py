"""One node's outside under virtual time, as bcami/node/driver.py has it: what is promised, written and sent, and when.

Promises go to disk in groups: those that arise while a write is running go into the next one together. A send is held
until the group with the promises before it is on disk. Blocks and certificates are written one after another on a
thread of their own. A crash loses all that is not on disk: open groups, queued writes, held sends; of a write that is
under way it may lose nothing.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bcami.ledger.memory import MemoryLedger, MemoryPromises
from bcami.model.block import BlockCertificate
from bcami.node.core import effects as core
from bcami.node.core.core import NodeCore

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster, Event


@dataclass
class Disk:
    """What survives a crash of one node."""

    ledger: MemoryLedger
    promises: MemoryPromises
    is_amnesiac: bool = False
    """The promises are lost (protocol 6.3)."""
    is_broken: bool = False
    """The next write fails, and the node ends (fault F16)."""


@dataclass
class _Group:
    puts: list[tuple[bytes, bytes]] = field(default_factory=list)
    deletes: list[bytes] = field(default_factory=list)
    sends: list[core.Send | core.Broadcast] = field(default_factory=list)


class Shell:
    """Carries out the effects of one life of one node."""

    def __init__(self, cluster: "Cluster", replica: int, node: NodeCore, disk: Disk) -> None:
        self.core = node
        self.is_over = False
        self._cluster = cluster
        self._replica = replica
        self._disk = disk
        self._open = _Group()
        self._writing: _Group | None = None
        self._certificates: list[BlockCertificate] = []
        self._ledger_queue: deque[tuple[Callable[[], None], Callable[[], None]]] = deque()
        self._timers: dict[str, Event] = {}
        self._is_work_due = False

    # Inputs.

    @property
    def now_ms(self) -> int:
        return self._cluster.now_ms + self._cluster.clock_ms[self._replica]

    def step(self, effects: list[core.Effect]) -> None:
        """Carry out the effects of one thing that happened."""
        for effect in effects:
            if self.is_over:
                return
            self._carry_out(effect)
            self._cluster.effect_done(self._replica)
        if self.is_over:
            return
        certificates, self._certificates = self._certificates, []
        if any(self._disk.ledger.certificate(item.height) is None for item in certificates):
            self._write_ledger(lambda: self._disk.ledger.put_certificates(certificates), lambda: None)
        self._write_group()

    def receive(self, sender: int, message: object) -> None:
        if not self.is_over:
            self.step(self.core.receive(sender, message, self.now_ms))

    def crash(self) -> None:
        """End this life. A write that is under way may have reached the disk."""
        self.is_over = True
        if self._disk.is_broken:
            return
        if self._writing is not None and self._cluster.random.random() < 0.5:
            self._disk.promises.apply(self._writing.puts, self._writing.deletes)
        if self._ledger_queue and self._cluster.random.random() < 0.5:
            self._ledger_queue[0][0]()

    # Effects.

    def _carry_out(self, effect: core.Effect) -> None:
        match effect:
            case core.Persist(puts, deletes):
                self._open.puts.extend(puts)
                self._open.deletes.extend(deletes)
            case core.Send() | core.Broadcast():
                if self._open.puts:
                    self._open.sends.append(effect)
                elif self._writing is not None:
                    self._writing.sends.append(effect)
                else:
                    self._send(effect)
            case core.CommitBlock(commit, _):
                height = commit.block.header.height
                self._write_ledger(
                    lambda: self._disk.ledger.commit(commit, effect.own_certificates),
                    lambda: self.step(self.core.block_durable(height, self.now_ms)),
                )
            case core.SaveCertificate(certificate):
                self._certificates.append(certificate)
            case core.StageSnapshot(bundles, rows, fresh):
                self._write_ledger(
                    lambda: self._disk.ledger.stage(bundles, rows, fresh=fresh),
                    lambda: self.step(self.core.snapshot_staged(self.now_ms)),
                )
            case core.InstallSnapshot(header, certificate, lthash):
                self._write_ledger(
                    lambda: self._disk.ledger.install(header, certificate, lthash),
                    lambda: self.step(self.core.snapshot_installed(self.now_ms)),
                )
            case core.SetTimer(name, delay_ms):
                self._set_timer(name, delay_ms)
            case core.CancelTimer(name):
                self._timers.pop(name, None)
            case core.TicketReady(ticket):
                self._cluster.ticket_ready(self._replica, ticket)
            case core.Observe(observation):
                self._cluster.observations.append((self._replica, observation))
            case core.MoreWork():
                self._work_soon()

    def _send(self, effect: core.Send | core.Broadcast) -> None:
        receivers = [effect.to] if isinstance(effect, core.Send) else range(self._cluster.n)
        for to in receivers:
            if to != self._replica:
                self._cluster.send(self._replica, to, effect.message)

    def _write_group(self) -> None:
        group = self._open
        if self._writing is not None or not (group.puts or group.deletes):
            return
        self._writing, self._open = group, _Group()
        self._cluster.at(self._cluster.promise_ms(), self._group_written)

    def _group_written(self) -> None:
        if self.is_over:
            return
        group, self._writing = self._writing, None
        assert group is not None
        if self._disk.is_broken:
            self._cluster.crash(self._replica)
            return
        self._disk.promises.apply(group.puts, group.deletes)
        for effect in group.sends:
            self._send(effect)
        self._write_group()

    def _write_ledger(self, write: Callable[[], None], done: Callable[[], None]) -> None:
        self._ledger_queue.append((write, done))
        if len(self._ledger_queue) == 1:
            self._cluster.at(self._cluster.block_ms(), self._ledger_written)

    def _ledger_written(self) -> None:
        if self.is_over:
            return
        if self._disk.is_broken:
            self._cluster.crash(self._replica)
            return
        write, done = self._ledger_queue.popleft()
        write()
        if self._ledger_queue:
            self._cluster.at(self._cluster.block_ms(), self._ledger_written)
        done()

    def _work_soon(self) -> None:
        if not self._is_work_due:
            self._is_work_due = True
            self._cluster.at(0, self._work)

    def _work(self) -> None:
        self._is_work_due = False
        if not self.is_over:
            self.step(self.core.work(self.now_ms))

    def _set_timer(self, name: str, delay_ms: int) -> None:
        event = self._cluster.at(delay_ms, lambda: None)

        def fire() -> None:
            if not self.is_over and self._timers.get(name) is event:
                del self._timers[name]
                self.step(self.core.timer(name, self.now_ms))

        event.action = fire
        self._timers[name] = event
