"""Drives a fleet of meters through a data set: `run_replay`.

Reading, parsing and planning run in one worker thread, one batch of reports ahead; the event loop only hands reports
over, in the order of the plan. `submit` waits while too much is pending, so the whole chain back to the file slows
down with the network (design D17). When all are handed over, `drain` waits for the receipts. How a replay is taken
up again is in `resume`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic, time
from typing import Final, Protocol

import msgspec

from bcami.ami.statistics import FleetStatistics
from bcami.errors import InputError
from bcami.model.report import Reading
from bcami.replay.options import ReplayOptions
from bcami.replay.plan import PlannedReport, reports_in_file_order, reports_in_time_order
from bcami.replay.readings import ReadingChunk, ReadingStream
from bcami.replay.rejects import RejectLog
from bcami.replay.resume import plan_id, position_at, reports_taken
from bcami.replay.sources import discover
from bcami.replay.survey import Survey, survey

_BATCH_REPORTS: Final = 1024
_PROGRESS_EVERY_S: Final = 0.25


class ReplayFleet(Protocol):
    """What the replay needs of a fleet: `bcami.ami.fleet.Fleet` has it."""

    @property
    def statistics(self) -> FleetStatistics: ...

    @property
    def position(self) -> bytes | None:
        """The last position up to which every report is durable in the outbox, also of an earlier process."""

    async def enrol(self, meter_ids: Iterable[str]) -> None:
        """Return when each of these meters is enrolled on the chain."""

    async def submit(
        self, meter_id: str, readings: Sequence[Reading], intended_ms: int, *, position: bytes | None
    ) -> None:
        """Take a report; waits while too much is pending."""

    async def drain(self) -> None:
        """Return when every report is committed or given up."""


class Clock(Protocol):
    """Wall time and waiting, so that tests need neither."""

    def now_ms(self) -> int: ...

    async def wait_until_ms(self, moment_ms: int) -> None: ...


class WallClock:
    """The machine's clock at the start, from then on the monotonic one."""

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
    """Of the files on disk that were read in this phase, 0 to 1."""
    meters: int
    readings_read: int
    readings_skipped: int
    readings_sent: int
    transactions_committed: int
    transactions_rejected: int
    readings_per_second: float
    """Sent, since sending began."""
    latency_ms: Mapping[str, int | None]
    """p50, p95, p99, from the intended time of a report to its receipt; None while there is none."""
    seconds: float


class ReplayResult(msgspec.Struct, frozen=True):
    """The fields of `replay --json` (design 4), and a few more behind them."""

    meters: int
    """With at least one reading in this plan."""
    readings_read: int
    """readings_sent + readings_resumed + all of readings_skipped."""
    readings_skipped: Mapping[str, int]
    readings_sent: int
    """Handed over by this run."""
    transactions_committed: int
    """Of this run, and of an earlier one whose receipts were still outstanding."""
    transactions_rejected: Mapping[str, int]
    seconds: float
    """From the first hand-over to the last receipt."""
    transactions_per_second: float
    latency_ms: Mapping[str, int | None]
    readings_resumed: int
    """Handed over by an earlier run of the same plan."""
    transactions_refused: Mapping[str, int]
    """Refused before ordering and sealed again under another number, by reason (protocol 3.4)."""
    transactions_stopped: Mapping[str, int]
    """Given up for now and kept in the outbox, by reason: a revoked meter, no session to be had."""
    rejects_file: str
    layout: str
    files: int
    ignored: Mapping[str, str]
    """Files that were not read, and why."""

    @property
    def is_complete(self) -> bool:
        """Every accepted reading was committed."""
        return not self.transactions_stopped


@dataclass(slots=True)
class _Counters:
    sent: int = 0
    resumed: int = 0
    phase: str = "survey"
    surveyed_bytes: int = 0


class _StoppedError(Exception):
    """The run was cancelled; nobody waits for what this thread was making."""


class Replay:
    """One run; `run_replay` is the usual way to it."""

    def __init__(
        self, options: ReplayOptions, fleet: ReplayFleet, folder: Path, *, clock: Clock, scratch: Path | None
    ) -> None:
        self.options = options
        self.source = discover(options.path, options.layout)
        self._fleet = fleet
        self._folder = folder
        self._clock = clock
        self._scratch = scratch
        self._counters = _Counters()
        self._stream: ReadingStream | None = None
        self._before = _Counts.of(fleet.statistics)
        self._meters: set[int] = set()
        self._started_ms = clock.now_ms()
        self._stopping = False

    async def run(self, on_progress: Callable[[ReplayProgress], None]) -> ReplayResult:
        """Return when every accepted reading is committed, rejected with a receipt, or given up.

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
                    likely="every row is rejected, or there are none",
                    do="look at the times and values of the first rows",
                )
            result = await self._send_all(found, worker)
            on_progress(self.progress())
            return result
        finally:
            self._stopping = True
            ticker.cancel()
            worker.shutdown(wait=True)

    async def _send_all(self, found: Survey, worker: ThreadPoolExecutor) -> ReplayResult:
        chosen = found.first(self.options.filters.meters)
        ids = found.meters if chosen is None else tuple(sorted(chosen))
        plan = plan_id(self.source, self.options, ids)
        skip = reports_taken(self._fleet.position, plan) if self.options.resume else 0
        self._counters.phase = "enrol"
        await self._fleet.enrol(ids)
        self._folder.mkdir(parents=True, exist_ok=True)
        rejects_path = self._folder / "rejects.csv"
        with RejectLog(rejects_path) as rejects:
            stream = ReadingStream(self.source, self.options.filters, rejects, chosen, self._scratch)
            self._stream = stream
            self._started_ms = self._clock.now_ms()
            self._counters.phase = "send"
            await self._hand_over(stream, plan, skip, worker)
        self._counters.phase = "drain"
        await self._fleet.drain()
        self._counters.phase = "done"
        return self._result(stream, rejects_path)

    async def _hand_over(self, stream: ReadingStream, plan: bytes, skip: int, worker: ThreadPoolExecutor) -> None:
        pace = _Pace(self.options.speed, self._clock)
        number = 0
        async with aclosing(self._batches(stream, worker)) as batches:
            async for batch in batches:
                for report in batch:
                    number += 1
                    self._meters.add(report.meter)
                    if number <= skip:
                        self._counters.resumed += len(report.readings)
                        continue
                    intended_ms = await pace.reach(report.due_s)
                    meter_id = stream.meters.ids[report.meter]
                    await self._fleet.submit(meter_id, report.readings, intended_ms, position=position_at(plan, number))
                    self._counters.sent += len(report.readings)

    async def _batches(
        self, stream: ReadingStream, worker: ThreadPoolExecutor
    ) -> AsyncGenerator[list[PlannedReport], None]:
        """Yield the plan in order, made one batch ahead in the worker thread."""
        loop = asyncio.get_running_loop()
        size, chunks = self.options.readings_per_report, self._until_stopped(stream)
        if self.options.speed is None:
            reports = reports_in_file_order(chunks, size)
        else:
            reports = reports_in_time_order(chunks, size, stream.meters.ids, self._scratch)

        def batch() -> list[PlannedReport]:
            return list(islice(reports, _BATCH_REPORTS))

        ahead = loop.run_in_executor(worker, batch)
        try:
            while fresh := await ahead:
                ahead = loop.run_in_executor(worker, batch)
                yield fresh
        finally:
            ahead.cancel()
            worker.submit(reports.close)

    def progress(self) -> ReplayProgress:
        counters, stream = self._counters, self._stream
        done = _Counts.of(self._fleet.statistics).less(self._before)
        seconds = max(self._clock.now_ms() - self._started_ms, 1) / 1000
        bytes_read = counters.surveyed_bytes if stream is None else stream.bytes_read
        return ReplayProgress(
            phase=counters.phase,
            fraction=min(bytes_read / max(self.source.bytes_packed, 1), 1.0),
            meters=len(self._meters),
            readings_read=0 if stream is None else stream.readings_read,
            readings_skipped=0 if stream is None else stream.rejects.total,
            readings_sent=counters.sent,
            transactions_committed=done.committed,
            transactions_rejected=sum(done.rejected.values()),
            readings_per_second=counters.sent / seconds if stream is not None else 0.0,
            latency_ms=self._fleet.statistics.latencies.summary(),
            seconds=seconds,
        )

    def _result(self, stream: ReadingStream, rejects_path: Path) -> ReplayResult:
        done = _Counts.of(self._fleet.statistics).less(self._before)
        seconds = max(self._clock.now_ms() - self._started_ms, 1) / 1000
        return ReplayResult(
            meters=len(self._meters),
            readings_read=stream.readings_read,
            readings_skipped={reason.value: count for reason, count in sorted(stream.rejects.counts.items())},
            readings_sent=self._counters.sent,
            transactions_committed=done.committed,
            transactions_rejected=done.rejected,
            seconds=round(seconds, 3),
            transactions_per_second=round((done.committed + sum(done.rejected.values())) / seconds, 1),
            latency_ms=self._fleet.statistics.latencies.summary(),
            readings_resumed=self._counters.resumed,
            transactions_refused=done.refused,
            transactions_stopped=done.stopped,
            rejects_file=str(rejects_path),
            layout=self.source.layout.value,
            files=len(self.source.files),
            ignored={item.name: item.why for item in self.source.ignored},
        )

    def _note_survey(self, bytes_read: int) -> None:
        self._counters.surveyed_bytes = bytes_read
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


class _Pace:
    """Turns the data's time into the time at which a report is meant to be sent."""

    def __init__(self, speed: float | None, clock: Clock) -> None:
        self._speed = speed
        self._clock = clock
        self._start: tuple[int, int] | None = None

    async def reach(self, due_s: int) -> int:
        """Return the intended time in Unix ms, once it has come. The first report is due at once."""
        now_ms = self._clock.now_ms()
        if self._speed is None:
            return now_ms
        if self._start is None:
            self._start = (now_ms, due_s)
        intended_ms = self._start[0] + int((due_s - self._start[1]) * 1000 / self._speed)
        if intended_ms > now_ms:
            await self._clock.wait_until_ms(intended_ms)
        return intended_ms


@dataclass(frozen=True, slots=True)
class _Counts:
    """What a fleet had counted at one moment; a fleet may have worked before this run."""

    committed: int
    rejected: dict[str, int]
    refused: dict[str, int]
    stopped: dict[str, int]

    @classmethod
    def of(cls, statistics: FleetStatistics) -> "_Counts":
        return cls(
            statistics.committed,
            {str(reason): count for reason, count in statistics.rejected.items()},
            {str(reason): count for reason, count in statistics.refused.items()},
            {str(reason): count for reason, count in statistics.stopped.items()},
        )

    def less(self, before: "_Counts") -> "_Counts":
        return _Counts(
            self.committed - before.committed,
            _less(self.rejected, before.rejected),
            _less(self.refused, before.refused),
            _less(self.stopped, before.stopped),
        )


def _less(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    left = {reason: count - before.get(reason, 0) for reason, count in sorted(now.items())}
    return {reason: count for reason, count in left.items() if count}


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

    `folder` gets the rejects file (a run's folder); `scratch` is where temporary files go, the system's place when
    None. Raises InputError, EnvironmentFault, and whatever the fleet raises.
    """
    return await Replay(options, fleet, folder, clock=clock or WallClock(), scratch=scratch).run(on_progress)
