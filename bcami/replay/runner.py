"""Drives a fleet of meters through a data set: `run_replay`.

Reading, parsing and planning run in one worker thread, a few hundred reports ahead; the event loop only hands
reports over, IN_FLIGHT at a time. `submit` returns when the fleet has the report in its durable outbox and waits
while the network is full, so the whole chain back to the file slows down with it (design D17). Reports of one meter
are begun in order. When all are handed over, `drain` waits for the receipts.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic, time
from typing import Final, Protocol

import msgspec

from bcami.errors import InputError
from bcami.model.report import Reading
from bcami.replay.journal import Journal, journal_path, plan_id
from bcami.replay.options import ReplayOptions
from bcami.replay.plan import PlannedReport, reports_in_file_order, reports_in_time_order
from bcami.replay.readings import ReadingChunk, ReadingStream
from bcami.replay.rejects import RejectLog
from bcami.replay.sources import Source, discover
from bcami.replay.survey import Survey, survey

IN_FLIGHT: Final = 1024
"""Reports whose `submit` has not returned: enough for one group commit of the outbox at several thousand a second."""
_BATCH_REPORTS: Final = 512
_PROGRESS_EVERY_S: Final = 0.25


class Latency(msgspec.Struct, frozen=True):
    """From the intended time of a report to its receipt, milliseconds."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


class FleetTally(msgspec.Struct, frozen=True):
    """What a fleet counted since it was opened."""

    committed: int = 0
    """Reports with a receipt that says `valid`."""
    rejected: Mapping[str, int] = {}
    """Outcomes that say otherwise, by reason."""
    latency_ms: Latency = Latency()


class ReplayFleet(Protocol):
    """What the replay needs of a fleet (bcami.ami.fleet has more)."""

    async def enrol(self, meter_ids: Sequence[str]) -> None:
        """Return when each of these meters can submit; those that can already are left alone."""

    async def submit(self, meter_id: str, readings: Sequence[Reading], intended_ms: int) -> None:
        """Return when the report is durable in the outbox; waits while there is no room."""

    async def holds(self, meter_id: str, start_s: int) -> bool:
        """Tell whether a report whose first reading starts then is in the outbox or has a receipt."""

    async def drain(self) -> None:
        """Return when everything in the outbox has its receipt."""

    def tally(self) -> FleetTally: ...


class Clock(Protocol):
    """Wall and waiting time, so that tests need neither."""

    def now_ms(self) -> int: ...

    async def wait_until_ms(self, moment_ms: int) -> None: ...


class WallClock:
    """The machine's clock; waits are measured on the monotonic one."""

    def __init__(self) -> None:
        self._offset_s = time() - monotonic()

    def now_ms(self) -> int:
        return int((monotonic() + self._offset_s) * 1000)

    async def wait_until_ms(self, moment_ms: int) -> None:
        delay_ms = moment_ms - self.now_ms()
        if delay_ms > 0:
            await asyncio.sleep(delay_ms / 1000)


class ReplayProgress(msgspec.Struct, frozen=True):
    """A snapshot for the live display."""

    phase: str
    """survey, enrol, send, drain, done."""
    fraction: float
    """Of the files on disk that were read, 0 to 1."""
    meters: int
    readings_read: int
    readings_skipped: int
    readings_sent: int
    transactions_sent: int
    transactions_committed: int
    transactions_rejected: int
    readings_per_second: float
    """Sent, since sending began."""
    latency_ms: Latency
    seconds: float


class ReplayResult(msgspec.Struct, frozen=True):
    """The fields of `replay --json` (design 4), and a few more at the end."""

    meters: int
    """With at least one reading in this plan."""
    readings_read: int
    """Sent, resumed or skipped."""
    readings_skipped: Mapping[str, int]
    readings_sent: int
    """By this run."""
    transactions_committed: int
    transactions_rejected: Mapping[str, int]
    seconds: float
    """From the first hand-over to the last receipt."""
    transactions_per_second: float
    latency_ms: Latency
    readings_resumed: int
    """Handed over by an earlier run of the same plan."""
    rejects_file: str
    layout: str
    files: int
    ignored: Mapping[str, str]
    """Files that were not read, and why."""


@dataclass(slots=True)
class _Counters:
    sent: int = 0
    reports: int = 0
    resumed: int = 0
    phase: str = "survey"
    surveyed_bytes: int = 0


class Replay:
    """One run; `run_replay` is the usual way to it."""

    def __init__(
        self, options: ReplayOptions, fleet: ReplayFleet, folder: Path, *, clock: Clock, scratch: Path | None
    ) -> None:
        self.options = options
        self.fleet = fleet
        self.folder = folder
        self.clock = clock
        self.scratch = scratch
        self.source: Source = discover(options.path, options.layout)
        self.counters = _Counters()
        self._stream: ReadingStream | None = None
        self._before = fleet.tally()
        self._meters: set[str] = set()
        self._started_ms = clock.now_ms()
        self._stopping = False

    async def run(self, on_progress: Callable[[ReplayProgress], None]) -> ReplayResult:
        """Return when every accepted reading is committed or rejected with a receipt.

        Raises InputError for data that cannot be read, before anything is sent wherever a first pass can tell.
        """
        worker = ThreadPoolExecutor(1, thread_name_prefix="replay")
        ticker = asyncio.create_task(self._tick(on_progress))
        try:
            found = await asyncio.get_running_loop().run_in_executor(worker, survey, self.source, self._note_survey)
            if not found.meters:
                raise InputError(
                    "no row of the data set is a reading",
                    where=str(self.options.path),
                    likely="every row was rejected",
                    do="look at the times and values of the first rows",
                )
            return await self._send_all(found, worker, on_progress)
        except ExceptionGroup as group:
            # The first failure ended the others; it is the one that a user can do something about.
            raise group.exceptions[0] from group
        finally:
            self._stopping = True
            ticker.cancel()
            worker.shutdown(wait=True)

    async def _send_all(
        self, found: Survey, worker: ThreadPoolExecutor, on_progress: Callable[[ReplayProgress], None]
    ) -> ReplayResult:
        chosen = found.first(self.options.filters.meters)
        ids = found.meters if chosen is None else tuple(sorted(chosen))
        self.counters.phase = "enrol"
        await self.fleet.enrol(ids)
        plan = plan_id(self.source, self.options, ids)
        self.folder.mkdir(parents=True, exist_ok=True)
        rejects_path = self.folder / f"rejects-{plan.hex()[:16]}.csv"
        journal = Journal(journal_path(self.folder, plan), plan, ids, resume=self.options.resume)
        try:
            with RejectLog(rejects_path) as rejects:
                stream = ReadingStream(self.source, self.options.filters, rejects, chosen, self.scratch)
                self._stream = stream
                self._started_ms = self.clock.now_ms()
                self.counters.phase = "send"
                await self._hand_over(stream, journal, worker)
                self.counters.phase = "drain"
                await self.fleet.drain()
        finally:
            journal.close()
        self.counters.phase = "done"
        on_progress(self.progress())
        return self._result(stream, rejects_path)

    async def _hand_over(self, stream: ReadingStream, journal: Journal, worker: ThreadPoolExecutor) -> None:
        room = asyncio.Semaphore(IN_FLIGHT)
        pace = _Pace(self.options.speed, self.clock)
        async with asyncio.TaskGroup() as group, aclosing(self._planned(stream, worker)) as planned:
            async for report in planned:
                meter = stream.meters.ids[report.meter]
                self._meters.add(meter)
                if await self._is_handed(journal, meter, report):
                    self.counters.resumed += len(report.readings)
                    continue
                intended_ms = await pace.reach(report.due_s)
                await room.acquire()
                journal.begin(meter, report.ordinal)
                group.create_task(self._submit(journal, meter, report, intended_ms, room))

    async def _is_handed(self, journal: Journal, meter: str, report: PlannedReport) -> bool:
        if not journal.resumed or report.ordinal >= journal.begun(meter):
            return False
        if report.ordinal < journal.handed(meter):
            return True
        if await self.fleet.holds(meter, report.readings[0].start_s):
            journal.finish(meter, report.ordinal)
            return True
        return False

    async def _submit(
        self, journal: Journal, meter: str, report: PlannedReport, intended_ms: int, room: asyncio.Semaphore
    ) -> None:
        try:
            await self.fleet.submit(meter, report.readings, intended_ms)
        finally:
            room.release()
        journal.finish(meter, report.ordinal)
        self.counters.sent += len(report.readings)
        self.counters.reports += 1

    async def _planned(self, stream: ReadingStream, worker: ThreadPoolExecutor) -> AsyncGenerator[PlannedReport, None]:
        """Yield the plan, made one batch ahead in the worker thread."""
        loop = asyncio.get_running_loop()
        size, chunks = self.options.readings_per_report, self._until_stopped(stream)
        if self.options.speed is None:
            reports = reports_in_file_order(chunks, size)
        else:
            reports = reports_in_time_order(chunks, size, stream.meters.ids, self.scratch)

        def batch() -> list[PlannedReport]:
            return list(islice(reports, _BATCH_REPORTS))

        ahead: asyncio.Future[list[PlannedReport]] = loop.run_in_executor(worker, batch)
        try:
            while fresh := await ahead:
                ahead = loop.run_in_executor(worker, batch)
                for report in fresh:
                    yield report
        finally:
            ahead.cancel()
            worker.submit(reports.close)

    def progress(self) -> ReplayProgress:
        counters, stream, now = self.counters, self._stream, self.clock.now_ms()
        tally = self.fleet.tally()
        seconds = max(now - self._started_ms, 1) / 1000
        total = max(self.source.bytes_packed, 1)
        done = counters.surveyed_bytes if stream is None else stream.bytes_read
        return ReplayProgress(
            counters.phase,
            min(done / total, 1.0),
            len(self._meters),
            0 if stream is None else stream.readings_read,
            0 if stream is None else stream.rejects.total,
            counters.sent,
            counters.reports,
            tally.committed - self._before.committed,
            sum(_less(tally.rejected, self._before.rejected).values()),
            counters.sent / seconds if stream is not None else 0.0,
            tally.latency_ms,
            seconds,
        )

    def _result(self, stream: ReadingStream, rejects_path: Path) -> ReplayResult:
        tally = self.fleet.tally()
        committed = tally.committed - self._before.committed
        rejected = _less(tally.rejected, self._before.rejected)
        seconds = max(self.clock.now_ms() - self._started_ms, 1) / 1000
        return ReplayResult(
            meters=len(self._meters),
            readings_read=stream.readings_read,
            readings_skipped={reason.value: count for reason, count in sorted(stream.rejects.counts.items())},
            readings_sent=self.counters.sent,
            transactions_committed=committed,
            transactions_rejected=rejected,
            seconds=round(seconds, 3),
            transactions_per_second=round((committed + sum(rejected.values())) / seconds, 1),
            latency_ms=tally.latency_ms,
            readings_resumed=self.counters.resumed,
            rejects_file=str(rejects_path),
            layout=self.source.layout.value,
            files=len(self.source.files),
            ignored={item.name: item.why for item in self.source.ignored},
        )

    def _note_survey(self, bytes_read: int) -> None:
        self.counters.surveyed_bytes = bytes_read
        if self._stopping:
            raise _StoppedError

    def _until_stopped(self, stream: ReadingStream) -> Iterator[ReadingChunk]:
        """Yield the stream's chunks; ends the worker thread's work soon after the run was cancelled."""
        for chunk in stream:
            if self._stopping:
                raise _StoppedError
            yield chunk

    async def _tick(self, on_progress: Callable[[ReplayProgress], None]) -> None:
        while True:
            on_progress(self.progress())
            await asyncio.sleep(_PROGRESS_EVERY_S)


class _StoppedError(Exception):
    """The run was cancelled; nobody waits for what this thread was making."""


class _Pace:
    """Turns the data's time into the time at which a report is meant to be sent."""

    def __init__(self, speed: float | None, clock: Clock) -> None:
        self._speed = speed
        self._clock = clock
        self._start: tuple[int, int] | None = None

    async def reach(self, due_s: int) -> int:
        """Return the intended time in Unix ms, once it has come."""
        now_ms = self._clock.now_ms()
        if self._speed is None:
            return now_ms
        if self._start is None:
            self._start = (now_ms, due_s)
        intended_ms = self._start[0] + int((due_s - self._start[1]) * 1000 / self._speed)
        if intended_ms > now_ms:
            await self._clock.wait_until_ms(intended_ms)
        return intended_ms


async def run_replay(
    options: ReplayOptions,
    fleet: ReplayFleet,
    on_progress: Callable[[ReplayProgress], None],
    *,
    folder: Path,
    clock: Clock | None = None,
    scratch: Path | None = None,
) -> ReplayResult:
    """Send a data set through a fleet and return what came of it.

    `folder` keeps the journal and the rejects file (HOME/fleet or a run's folder; the same one for `--resume`).
    `scratch` is where temporary files go. Raises InputError, EnvironmentFault, and whatever the fleet raises.
    """
    replay = Replay(options, fleet, folder, clock=clock or WallClock(), scratch=scratch)
    return await replay.run(on_progress)


def _less(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    left = {reason: count - before.get(reason, 0) for reason, count in now.items()}
    return {reason: count for reason, count in sorted(left.items()) if count}
