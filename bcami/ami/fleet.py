"""Many meters over several nodes (D17): reports go in with backpressure, receipts come out, nothing is lost or doubled.

    submit ─▶ jobs ─▶ seal a group ─▶ outbox (one durable transaction) ─▶ courier ─▶ receipt ─▶ outbox: done
                 ▲        │ no session, no room in the window                 │ rejected or abandoned
                 └─ held ◀┘ (stored as waiting)                               └─▶ job again: a new number or session

A report is durable before it is first sent, sealed or waiting, and stays so until its receipt is proven. A fleet that
is opened again goes on with the same bytes. A report that no effort settles (its meter was revoked, say) stays in the
store, is counted as `stopped`, and is tried again when the fleet is opened the next time.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

from bcami.ami.factory import enrolment_of
from bcami.ami.meter import Meter, SealedReport, report_write
from bcami.ami.outbox import ABOUT, FACTORY, REPORTS, WAITING, Outbox, Write
from bcami.ami.pressure import Pressure
from bcami.ami.records import REPORT_CODEC, WAITING_CODEC, WaitingRecord
from bcami.ami.registrar import FINAL_REASONS, PeriodSource, Registrar, SessionUnavailable
from bcami.ami.shelf import MeterShelf
from bcami.ami.statistics import FleetStatistics
from bcami.ami.writer import GroupWriter
from bcami.client.courier import Courier, CourierLimits, Parcel, Settlement
from bcami.client.nodes import NodeClient
from bcami.client.receipts import ReceiptVerifier
from bcami.client.utility import Utility
from bcami.codec import Codec
from bcami.crypto.roster import Roster
from bcami.errors import EnvironmentFault
from bcami.model.genesis import Genesis
from bcami.model.ids import HASH_BYTES
from bcami.model.reasons import Reason
from bcami.model.report import READING_BYTES, Reading, decode_report, encode_report
from bcami.model.signing import u64
from bcami.model.transaction import TRANSACTION_BYTES_MAX, Transaction
from bcami.units import HALF_HOUR_S

SEAL_GROUP_MAX: Final = 256
"""Reports sealed and stored at a time: about ten milliseconds of work."""
_YIELD_EVERY: Final = 64
_SEALINGS_MAX: Final = 4
"""Numbers that one report may use up before it is left for another day."""
_PERIOD_CHECK_S: Final = 15.0
_SETTLE_BEFORE_RENEWAL_S: Final = 5.0

NEW_SESSION_REASONS: Final = frozenset(
    {
        Reason.SESSION_CLOSED,
        Reason.UNKNOWN_SESSION,
        Reason.PERIOD_EXPIRED,
        Reason.UNKNOWN_PERIOD,
        Reason.REPLAY,
    }
)
"""The session is over, or our store is older than the chain (a number that we never used was used: `replay`)."""

_TRANSACTION: Final[Codec[Transaction]] = Codec(Transaction, TRANSACTION_BYTES_MAX)


class _Job:
    """A report that is to be sealed."""

    __slots__ = ("attempts", "durable", "intended_ms", "meter", "position", "replaces", "report", "waiting_key")

    def __init__(self, meter: Meter, report: bytes, intended_ms: int) -> None:
        self.meter = meter
        self.report = report
        self.intended_ms = intended_ms
        self.position: bytes | None = None
        self.durable: asyncio.Future[None] | None = None
        """Set when somebody waits until the report is in the store."""
        self.replaces: SealedReport | None = None
        """The sealed form that came to nothing; its record goes when the new one is stored."""
        self.waiting_key: bytes | None = None
        """Where it is stored while it waits."""
        self.attempts = 0


class Fleet:
    """Meters and their way to the nodes. Made by `open`, within one event loop."""

    def __init__(
        self,
        outbox: Outbox,
        roster: Roster,
        nodes: Sequence[NodeClient],
        network_key: bytes,
        home: Path,
        *,
        limits: CourierLimits | None = None,
        seed: bytes | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Use `open`. `seed` draws the jitter of retries; `clock_ms` is Unix time."""
        self._outbox = outbox
        self._roster = roster
        self._nodes = nodes
        self._home = home
        self._clock_ms = clock_ms
        self._pressure = Pressure()
        self._shelf = MeterShelf(outbox, roster, network_key)
        self._courier = Courier(
            nodes,
            ReceiptVerifier(roster),
            weak=roster.quorum.weak,
            seed=seed or os.urandom(32),
            limits=limits,
            on_failure=self._pressure.fail,
        )
        self._writer = GroupWriter(outbox)
        self._periods = PeriodSource(nodes, roster)
        self._registrar = Registrar(nodes, self._courier, self._writer, self._periods, roster, clock_ms=clock_ms)
        self._jobs: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._held: dict[Meter, deque[_Job]] = {}
        self._renewing: dict[Meter, asyncio.Task[None]] = {}
        self._arrivals = 0
        self.statistics = FleetStatistics(
            nodes=dict(zip((node.url for node in nodes), self._courier.statistics, strict=True))
        )
        self._tasks = [asyncio.create_task(self._seal_all()), asyncio.create_task(self._watch_period())]

    @classmethod
    async def open(
        cls,
        home: Path,
        genesis: Genesis,
        nodes: Sequence[str],
        network_key: bytes,
        *,
        limits: CourierLimits | None = None,
        seed: bytes | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> Self:
        """Open HOME/fleet and go on with every report in it. `nodes` are addresses; `transport` is for tests.

        Raises InputError or EnvironmentFault when the store cannot be used.
        """
        roster = Roster.from_genesis(genesis)
        outbox = Outbox(home / "fleet", roster.chain)
        clients = [NodeClient(url, chain=roster.chain, transport=transport) for url in nodes]
        fleet = cls(outbox, roster, clients, network_key, home, limits=limits, seed=seed)
        try:
            fleet._resume()
        except BaseException:
            await fleet.close()
            raise
        return fleet

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop; what is not settled stays in the store."""
        tasks = [*self._tasks, *self._renewing.values()]
        for task in tasks:
            task.cancel()
        self._pressure.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._courier.close()
        try:
            await self._writer.close()
        finally:
            for node in self._nodes:
                await node.close()
            self._outbox.close()

    @property
    def pending(self) -> int:
        """Reports that were taken and are neither committed nor stopped."""
        return self._pressure.pending

    @property
    def position(self) -> bytes | None:
        """The last `position` given to `submit` up to which every report is durable here."""
        return self._outbox.get(ABOUT, b"position")

    # What users call.

    async def enrol(self, meter_ids: Iterable[str]) -> None:
        """Make the meters that are not there yet, and have the utility enrol them on the chain."""
        wanted = list(dict.fromkeys(meter_ids))
        writes: list[Write] = []
        for meter_id in wanted:
            if self._shelf.find(meter_id) is None:
                writes += self._shelf.make(meter_id, os.urandom(32))[1]
        await self._writer.write(writes)
        meters = [self._shelf.meter(meter_id) for meter_id in wanted]
        missing = [meter for meter in meters if not meter.progress.is_enrolled]
        if not missing:
            return
        utility = Utility.open(self._home, self._roster)
        enrolments = [enrolment_of(meter.party) for meter in missing]
        await utility.enrol(enrolments, self._courier, self._nodes, self._clock_ms())
        await self._writer.write([write for meter in missing for write in meter.enrolled()])

    async def open_sessions(self, meter_ids: Iterable[str]) -> None:
        """Open a session for each meter that has none for the current MDMS period.

        Raises EnvironmentFault when some get none, saying how many and why.
        """
        period = await self._periods.current()
        meters = [self._shelf.meter(meter_id) for meter_id in dict.fromkeys(meter_ids)]
        stale = [meter for meter in meters if meter.session is None or meter.session.period != period.number]
        for meter in stale:
            meter.stopped = None
            self._renew(meter)
        await asyncio.gather(*(self._renewing[meter] for meter in stale if meter in self._renewing))
        self._pressure.raise_failure()
        failed = [meter for meter in stale if meter.stopped is not None]
        if failed:
            raise EnvironmentFault(
                f"{len(failed)} of {len(meters)} meters got no session; the first: {failed[0].stopped}",
                where=f"meter {failed[0].meter_id}",
                do=f"see `bcami show meter {failed[0].meter_id}` and `bcami status`",
            )

    def meter(self, meter_id: str) -> Meter:
        """Return a meter of this fleet. Raises InputError when there is none of that id."""
        return self._shelf.meter(meter_id)

    async def sessions_settled(self) -> None:
        """Return when no meter is between two sessions."""
        while self._renewing:
            await asyncio.wait(list(self._renewing.values()))

    def in_session(self) -> list[Meter]:
        """Return all meters of this fleet that have an open session."""
        known = (self._shelf.find_hid(hid) for hid, _ in self._outbox.items(FACTORY))
        return [meter for meter in known if meter is not None and meter.session is not None]

    def kept(self, table: bytes, prefix: bytes) -> dict[bytes, bytes]:
        """Return the records of a table under a prefix."""
        return dict(self._outbox.items(table, prefix))

    async def keep(self, writes: Iterable[Write]) -> None:
        """Return when the writes are durable."""
        await self._writer.write(writes)

    async def submit(
        self,
        meter_id: str,
        readings: Sequence[Reading],
        intended_ms: int,
        *,
        interval_s: int = HALF_HOUR_S,
        position: bytes | None = None,
        durable: bool = False,
    ) -> None:
        """Take a report; waits only while too much is pending, and with `durable` until it is in the store.

        `intended_ms` is when it was to be sent (Unix ms): latencies count from there. `position` is any mark of the
        caller's: once all reports up to it are durable, `Fleet.position` returns it, also after a restart.
        Raises InputError for a meter that was not enrolled here, EnvironmentFault when the store failed.
        """
        job = _Job(self._shelf.meter(meter_id), encode_report(readings, interval_s), intended_ms)
        job.position = position
        if self.statistics.taken % _YIELD_EVERY == 0:
            await asyncio.sleep(0)
        await self._pressure.room()
        self.statistics.taken += 1
        self.statistics.readings_taken += len(readings)
        if not durable:
            self._take(job)
            return
        stored = job.durable = self._pressure.promise()
        self._take(job)
        await stored

    def holds(self, meter_id: str, start_s: int) -> bool:
        """Tell whether a report whose first reading starts then is in the store: taken, and without a receipt."""
        meter = self._shelf.find(meter_id)
        if meter is None:
            return False
        hid = meter.party.hid
        stored = [REPORT_CODEC.decode(value).report for _, value in self._outbox.items(REPORTS, hid)]
        stored += [WAITING_CODEC.decode(value).report for _, value in self._outbox.items(WAITING, hid)]
        return any(decode_report(report)[1][0].start_s == start_s for report in stored)

    async def drain(self) -> None:
        """Return when every report is committed or stopped, and the store says so."""
        await self._pressure.nothing_pending()
        await self._writer.write(())

    def _home_of(self, meter: Meter) -> int:
        return int.from_bytes(meter.party.hid[:4], "big") % len(self._nodes)

    def _resume(self) -> None:
        """Go on with all that the store holds: sealed reports as they are, the others as jobs."""
        for key, value in self._outbox.items(REPORTS):
            meter = self._shelf.find_hid(key[:HASH_BYTES])
            if meter is None:
                continue
            record = REPORT_CODEC.decode(value)
            sealed = meter.resume_report(
                int.from_bytes(key[-8:], "big"), record, _TRANSACTION.decode(record.transaction)
            )
            sealed.intended_ms = 0
            self._pressure.take(len(record.report))
            if meter.is_live(sealed):
                self._post(sealed)
            else:
                self._again(sealed)
        for key, value in self._outbox.items(WAITING):
            meter = self._shelf.find_hid(key[:HASH_BYTES])
            self._arrivals = max(self._arrivals, int.from_bytes(key[-8:], "big"))
            if meter is not None:
                job = _Job(meter, WAITING_CODEC.decode(value).report, 0)
                job.waiting_key = key
                self._take(job)

    # Sealing.

    def _take(self, job: _Job) -> None:
        self._pressure.take(len(job.report))
        self._jobs.append(job)
        self._wake.set()

    def _again(self, sealed: SealedReport, attempts: int = 0) -> None:
        """Have a report sealed again under a new number; it stays counted as pending."""
        job = _Job(sealed.meter, sealed.report, sealed.intended_ms)
        job.replaces = sealed
        job.attempts = attempts
        self.statistics.resealed += 1
        self._jobs.append(job)
        self._wake.set()

    async def _seal_all(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._jobs:
                    await self._seal_group()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._pressure.fail(error)

    async def _seal_group(self) -> None:
        """Seal a group of reports, store it in one transaction, then send it."""
        now_ms = self._clock_ms()
        writes: list[Write] = []
        group: list[SealedReport] = []
        reserving: dict[Meter, Write] = {}
        awaited: list[asyncio.Future[None]] = []
        for _ in range(min(SEAL_GROUP_MAX, len(self._jobs))):
            job = self._jobs.popleft()
            meter = job.meter
            if meter.stopped is not None or meter in self._renewing or not meter.has_room:
                self._hold(job, writes)
            else:
                sealed = meter.seal(job.report, job.intended_ms, now_ms, job.attempts)
                writes.append(report_write(sealed))
                if job.replaces is not None:
                    writes.append(meter.forget(job.replaces))
                if job.waiting_key is not None:
                    writes.append(Write(WAITING, job.waiting_key, None))
                group.append(sealed)
            if meter not in reserving and (reservation := meter.reservation()) is not None:
                reserving[meter] = reservation
            if job.durable is not None:
                awaited.append(job.durable)
                job.durable = None
            if job.position is not None:
                writes.append(Write(ABOUT, b"position", job.position))
        writes.extend(reserving.values())
        await self._writer.write(writes)
        for waiter in awaited:
            if not waiter.done():
                waiter.set_result(None)
        for meter, reservation in reserving.items():
            meter.reserved(reservation)
            self._release(meter)
        for sealed in group:
            self._post(sealed)
            self.statistics.sent += 1
            if sealed.attempts == 0:
                self.statistics.readings_sent += len(sealed.report) // READING_BYTES

    def _hold(self, job: _Job, writes: list[Write]) -> None:
        """Keep a report that cannot be sealed now: durably, unless its former sealed form is stored still."""
        meter = job.meter
        if job.waiting_key is None and job.replaces is None:
            self._arrivals += 1
            job.waiting_key = meter.party.hid + u64(self._arrivals)
            record = WaitingRecord(job.report, job.intended_ms)
            writes.append(Write(WAITING, job.waiting_key, WAITING_CODEC.encode(record)))
        if meter.stopped is not None:
            self._pressure.give_back(len(job.report))
            self.statistics.stopped[meter.stopped] += 1
            return
        self._held.setdefault(meter, deque()).append(job)
        if meter.session is None and meter not in self._renewing:
            self._renew(meter)

    def _release(self, meter: Meter) -> None:
        """Take held reports up again, as far as the meter can seal or has to let go."""
        held = self._held.get(meter)
        if held is None or not (meter.stopped is not None or (meter not in self._renewing and meter.has_room)):
            return
        if meter.stopped is not None:
            self._jobs.extend(held)
            held.clear()
        for _ in range(min(len(held), meter.window)):
            self._jobs.append(held.popleft())
        if not held:
            del self._held[meter]
        self._wake.set()

    # Settling.

    def _post(self, sealed: SealedReport) -> None:
        home = self._home_of(sealed.meter)
        self._courier.post(Parcel(sealed.encoded, sealed.transaction_id, home, self._settled, sealed))

    def _settled(self, parcel: Parcel, settlement: Settlement) -> None:
        sealed: SealedReport = parcel.owner
        meter = sealed.meter
        if not meter.is_live(sealed):
            return  # sealed again in a new session meanwhile; the MDMS stores each interval once (protocol 3.5)
        reason = settlement.reason
        if settlement.is_final and reason is Reason.VALID:
            self._writer.add(meter.forget(sealed))
            self._pressure.give_back(len(sealed.report))
            self.statistics.committed += 1
            self.statistics.readings_committed += len(sealed.report) // READING_BYTES
            if sealed.intended_ms:
                self.statistics.latencies.add(self._clock_ms() - sealed.intended_ms)
            self._release(meter)
            return
        (self.statistics.rejected if settlement.is_final else self.statistics.refused)[reason] += 1
        if reason in FINAL_REASONS:
            self._stop(meter, reason)
        elif reason in NEW_SESSION_REASONS:
            self._renew(meter, ask_chain=reason is not Reason.PERIOD_EXPIRED)
        elif sealed.attempts + 1 < _SEALINGS_MAX:
            meter.forget(sealed)
            self._again(sealed, sealed.attempts + 1)
        else:
            meter.forget(sealed)
            self._pressure.give_back(len(sealed.report))
            self.statistics.stopped[reason] += 1

    def _stop(self, meter: Meter, reason: Reason) -> None:
        """Give up on a meter for this run; all its reports stay in the store."""
        meter.stopped = reason
        for sealed in meter.outstanding.values():
            self._pressure.give_back(len(sealed.report))
            self.statistics.stopped[reason] += 1
        meter.outstanding = {}
        self._release(meter)

    # Sessions.

    def _renew(self, meter: Meter, *, ask_chain: bool = False, settle_first: bool = False) -> None:
        """Open a new session in the background; the meter seals nothing meanwhile."""
        if meter not in self._renewing and meter.stopped is None:
            self._renewing[meter] = asyncio.create_task(self._open_session(meter, ask_chain, settle_first))

    async def _open_session(self, meter: Meter, ask_chain: bool, settle_first: bool) -> None:
        try:
            if settle_first:
                await self._settle_outstanding(meter)
            unsettled = await self._registrar.open(meter, self._home_of(meter), ask_chain=ask_chain)
        except SessionUnavailable as unavailable:
            del self._renewing[meter]
            if settle_first and unavailable.reason not in FINAL_REASONS:
                self._release(meter)  # the session of the older period still counts, within its grace
            else:
                self._stop(meter, unavailable.reason)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._pressure.fail(error)
        else:
            del self._renewing[meter]
            self.statistics.sessions_opened += 1
            for sealed in unsettled:
                self._again(sealed)
            self._release(meter)

    async def _settle_outstanding(self, meter: Meter) -> None:
        """Wait a little for the receipts of the old session, so that fewer reports are sealed again."""
        try:
            async with asyncio.timeout(_SETTLE_BEFORE_RENEWAL_S):
                while meter.outstanding:
                    await self._pressure.next_change()
        except TimeoutError:
            return

    async def _watch_period(self) -> None:
        """Renew sessions of older periods (protocol 2.5): within the grace both work."""
        while True:
            await asyncio.sleep(_PERIOD_CHECK_S)
            try:
                await self._periods.refresh()
            except Exception as error:
                self._pressure.fail(error)
                return
            period = self._periods.newest
            for meter in self._shelf:
                if period is not None and meter.session is not None and meter.session.period < period.number:
                    self._renew(meter, settle_first=True)
