"""Carries out the core's effects on a real machine: bytes, timers and durable writes. Nothing is decided here.

Group commit: promises that arise while a write is running go into the next write together. A send is held back until
the write that holds every promise made before it is on disk; a send with no open promise leaves at once.
"""

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, assert_never

from bcami.errors import BcamiError, EnvironmentFault
from bcami.ledger.store import Ledger, PromiseStore
from bcami.model import events
from bcami.model.api import CertifiedHeader, SubmitResult
from bcami.model.block import BlockCertificate
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction
from bcami.model.wire import PeerMessage
from bcami.node.core import effects as core
from bcami.node.core.admission import refused
from bcami.node.core.core import NodeCore
from bcami.node.transport import Transport

P = ParamSpec("P")


def now_ms() -> int:
    """Return Unix milliseconds; the one place where a node reads its clock."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class _Group:
    """Promises that become durable in one write, and what leaves after it."""

    puts: list[tuple[bytes, bytes]] = field(default_factory=list)
    deletes: list[bytes] = field(default_factory=list)
    sends: list[core.Send | core.Broadcast] = field(default_factory=list)


class Driver:
    """Runs one core on the current event loop."""

    def __init__(
        self,
        node: NodeCore,
        ledger: Ledger,
        promises: PromiseStore | None,
        observe: Callable[[events.Observation], None],
        on_fatal: Callable[[BcamiError], None],
    ) -> None:
        """`promises` is None at a node that lost them and makes none any more (protocol 6.3).

        `on_fatal` hears once, with its cause, that this node has stopped for good: it must be ended.
        """
        self.core = node
        self.transport: Transport | None = None
        self._ledger = ledger
        self._promises = promises
        self._observe = observe
        self._on_fatal = on_fatal
        self._promise_thread = ThreadPoolExecutor(1, thread_name_prefix="promises")
        self._ledger_thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._open = _Group()
        self._writing: _Group | None = None
        self._certificates: list[BlockCertificate] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tickets: dict[int, asyncio.Event] = {}
        self._blocks_seen = asyncio.Event()
        self._is_work_due = False
        self._stopped = False

    # Inputs.

    def start(self) -> None:
        self._step(self.core.start, now_ms())

    def on_frame(self, peer: int, message: PeerMessage) -> None:
        self._step(self.core.receive, peer, message, now_ms())

    def on_peer_up(self, peer: int) -> None:
        self.observe(events.PeerUp(peer))
        self._step(self.core.connected, peer)

    def on_peer_down(self, peer: int, reason: str) -> None:
        self.observe(events.PeerDown(peer, reason))
        self._step(self.core.disconnected, peer)

    def observe(self, observation: events.Observation) -> None:
        self._observe(observation)

    async def submit(
        self, transactions: Sequence[Transaction], *, wait: bool, timeout_s: float
    ) -> tuple[list[SubmitResult], list[CertifiedHeader]]:
        """Submit and, if asked, wait for the outcomes; what is not known in time is said to be unknown."""
        if self._stopped:
            return [refused(self.core.id_of(tx), Reason.NOT_READY) for tx in transactions], []
        ticket, ids, effects = self.core.submit(transactions, wait)
        ready = self._tickets[ticket] = asyncio.Event()
        try:
            self._step(lambda: effects)
            if not self.core.tickets.is_complete(ticket):
                async with asyncio.timeout(timeout_s):
                    await ready.wait()
        except TimeoutError:
            self.observe(events.Refused("gateway", Reason.NOT_READY, detail="no outcome within the time asked for"))
        finally:
            del self._tickets[ticket]
            answer = self.core.close_ticket(ticket, ids)
        return answer

    async def prune(self, up_to_height: int) -> None:
        """Drop acknowledged usage payloads up to a height, on the ledger's own thread (protocol 7.2)."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._ledger_thread, self._ledger.prune, up_to_height)

    async def next_block(self) -> None:
        """Return when another block certificate has been saved."""
        await self._blocks_seen.wait()

    async def stop(self) -> None:
        """Stop voting at once, then finish the writes that are under way."""
        self._stopped = True
        for handle in self._timers.values():
            handle.cancel()
        if self.transport is not None:
            await self.transport.stop()
        await asyncio.to_thread(self._promise_thread.shutdown)
        await asyncio.to_thread(self._ledger_thread.shutdown)
        self._ledger.close()
        if self._promises is not None:
            self._promises.close()

    # Effects.

    def _step(self, step: Callable[P, Sequence[core.Effect]], *args: P.args, **kwargs: P.kwargs) -> None:
        """Let one thing happen. What the core raises is a broken invariant or its own disk: it must not go on."""
        if self._stopped:
            return
        try:
            self._run(step(*args, **kwargs))
        except BcamiError as error:
            self._end(error)
        except Exception as error:
            self._end(BcamiError(f"a bug in this node: {error!r}", where=traceback.format_exc()))

    def _end(self, error: BcamiError) -> None:
        """Never vote again: stop, say why."""
        if not self._stopped:
            self._stopped = True
            self._on_fatal(error)

    def _run(self, effects: Sequence[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.Persist(puts, deletes):
                    self._open.puts.extend(puts)
                    self._open.deletes.extend(deletes)
                case core.Send() | core.Broadcast():
                    self._send_in_order(effect)
                case core.CommitBlock():
                    self._commit(effect)
                case core.SaveCertificate(certificate):
                    self._certificates.append(certificate)
                case core.StageSnapshot():
                    self._stage(effect)
                case core.InstallSnapshot(header, certificate, lthash):
                    self._write_to_ledger(
                        partial(self._ledger.install, header, certificate, lthash), self._snapshot_installed
                    )
                case core.SetTimer(name, delay_ms):
                    self._set_timer(name, delay_ms)
                case core.CancelTimer(name):
                    self._cancel_timer(name)
                case core.TicketReady(ticket):
                    if ticket in self._tickets:
                        self._tickets[ticket].set()
                case core.Observe(observation):
                    self.observe(observation)
                case core.MoreWork():
                    self._work_soon()
                case _:
                    assert_never(effect)
        if self._certificates:
            self._save_certificates()
        self._write_group()

    def _send_in_order(self, effect: core.Send | core.Broadcast) -> None:
        if self._open.puts:
            self._open.sends.append(effect)
        elif self._writing is not None:
            self._writing.sends.append(effect)
        else:
            self._send(effect)

    def _send(self, effect: core.Send | core.Broadcast) -> None:
        if self.transport is None or self._stopped:
            return
        if isinstance(effect, core.Send):
            self.transport.send(effect.to, effect.message)
        else:
            self.transport.broadcast(effect.message)

    def _write_group(self) -> None:
        group = self._open
        if self._writing is not None or self._stopped or not (group.puts or group.deletes):
            return
        if self._promises is None:
            raise BcamiError("a node that lost its promises made one")
        self._writing, self._open = group, _Group()
        future = asyncio.get_running_loop().run_in_executor(
            self._promise_thread, self._promises.apply, group.puts, group.deletes
        )
        future.add_done_callback(self._group_written)

    def _group_written(self, future: "asyncio.Future[None]") -> None:
        group, self._writing = self._writing, None
        assert group is not None
        if self._failed(future, "the promise store"):
            return
        for effect in group.sends:
            self._send(effect)
        self._write_group()

    def _commit(self, effect: core.CommitBlock) -> None:
        height = effect.commit.block.header.height
        for reason, count in Counter(outcome.reason for outcome in effect.commit.block.outcomes).items():
            if reason is not Reason.VALID:
                self.observe(events.Refused("execution", reason, count=count))

        def write() -> None:
            self._ledger.commit(effect.commit, effect.own_certificates)

        future = asyncio.get_running_loop().run_in_executor(self._ledger_thread, write)
        future.add_done_callback(partial(self._block_written, height))

    def _block_written(self, height: int, future: "asyncio.Future[None]") -> None:
        if not self._failed(future, "the ledger"):
            self._step(self.core.block_durable, height, now_ms())

    def _stage(self, effect: core.StageSnapshot) -> None:
        write = partial(self._ledger.stage, effect.bundles, effect.rows, fresh=effect.fresh)
        self._write_to_ledger(write, lambda: self._step(self.core.snapshot_staged, now_ms()))

    def _snapshot_installed(self) -> None:
        self._step(self.core.snapshot_installed, now_ms())
        self._tell_of_blocks()

    def _write_to_ledger(self, write: Callable[[], None], then: Callable[[], None]) -> None:
        """Write on the ledger's thread, after all that was to be written before, then go on."""

        def written(future: "asyncio.Future[None]") -> None:
            if not self._failed(future, "the ledger"):
                then()

        if not self._stopped:
            asyncio.get_running_loop().run_in_executor(self._ledger_thread, write).add_done_callback(written)

    def _save_certificates(self) -> None:
        certificates, self._certificates = self._certificates, []
        if self._stopped:
            return
        future = asyncio.get_running_loop().run_in_executor(
            self._ledger_thread, self._ledger.put_certificates, certificates
        )
        future.add_done_callback(self._certificates_written)

    def _certificates_written(self, future: "asyncio.Future[None]") -> None:
        if not self._failed(future, "the ledger"):
            self._tell_of_blocks()

    def _tell_of_blocks(self) -> None:
        seen, self._blocks_seen = self._blocks_seen, asyncio.Event()
        seen.set()

    def _failed(self, future: "asyncio.Future[None]", what: str) -> bool:
        """After a failed durable write a node must not vote again: stop, say so (fault F16)."""
        error = None if future.cancelled() else future.exception()
        if error is None:
            return False
        self._end(EnvironmentFault(f"{what} could not be written: {error}", do="free space or repair the disk"))
        return True

    def _work_soon(self) -> None:
        """Work one slice after the event loop has looked at the network: votes do not wait behind bulk data."""
        if not self._is_work_due:
            self._is_work_due = True
            asyncio.get_running_loop().call_soon(self._work)

    def _work(self) -> None:
        self._is_work_due = False
        self._step(self.core.work, now_ms())

    def _set_timer(self, name: str, delay_ms: int) -> None:
        self._cancel_timer(name)
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(delay_ms / 1000, self._fire, name)

    def _cancel_timer(self, name: str) -> None:
        handle = self._timers.pop(name, None)
        if handle is not None:
            handle.cancel()

    def _fire(self, name: str) -> None:
        self._timers.pop(name, None)
        self._step(self.core.timer, name, now_ms())
