"""The run: counts, pacing, resume after a crash at any report, and errors before anything is sent. No real clock."""

import asyncio
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from bcami.ami.statistics import FleetStatistics
from bcami.errors import InputError
from bcami.model.report import Reading
from bcami.replay.options import Filters, ReplayOptions, parse_moment, parse_speed
from bcami.replay.runner import ReplayProgress, ReplayResult, run_replay
from tests.unit.replay.files import HALFHOURLY, halfhour, write

DAY = parse_moment("2013-01-01", "")


class CrashError(Exception):
    pass


class MemoryFleet:
    """Keeps what it takes; like the real one it makes position and report durable together."""

    def __init__(self, durable: list[tuple[str, tuple[Reading, ...], int]] | None = None) -> None:
        self.taken = [] if durable is None else durable
        self.statistics = FleetStatistics()
        self.position: bytes | None = None
        self.enrolled: list[str] = []
        self.crash_at: int | None = None

    async def enrol(self, meter_ids: Iterable[str]) -> None:
        self.enrolled = list(meter_ids)

    async def submit(
        self, meter_id: str, readings: Sequence[Reading], intended_ms: int, *, position: bytes | None
    ) -> None:
        if self.crash_at == len(self.taken):
            self.crash_at = None
            raise CrashError
        self.taken.append((meter_id, tuple(readings), intended_ms))
        self.position = position

    async def drain(self) -> None:
        if self.enrolled[0] == "A":
            self.statistics.rejected["spike"] += 1
        self.statistics.committed += len(self.taken) - 1
        self.statistics.latencies.add(7)


class StepClock:
    """Time passes only by waiting."""

    def __init__(self) -> None:
        self.ms = 1_000_000
        self.waits: list[int] = []

    def now_ms(self) -> int:
        return self.ms

    async def wait_until_ms(self, moment_ms: int) -> None:
        self.waits.append(moment_ms - self.ms)
        self.ms = moment_ms


def run(
    options: ReplayOptions, fleet: MemoryFleet, folder: Path, seen: list[ReplayProgress] | None = None
) -> ReplayResult:
    clock = StepClock()
    return asyncio.run(
        run_replay(options, fleet, (seen if seen is not None else []).append, folder=folder, clock=clock)
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        halfhour(meter, f"2013-01-01 {slot // 2:02d}:{slot % 2 * 30:02d}:00", f"0.{slot + 1}")
        for meter in ("C", "A", "B")
        for slot in range(5)
    ]
    return write(tmp_path / "set" / "block_0.csv", HALFHOURLY, *rows, rows[0], "A,2013-01-01 09:00:00,Null", "x")


def test_every_reading_goes_out_once_and_is_counted(data: Path, tmp_path: Path) -> None:
    fleet, seen = MemoryFleet(), []
    result = run(ReplayOptions(data, readings_per_report=2), fleet, tmp_path / "run", seen)
    assert fleet.enrolled == ["A", "B", "C"]
    assert [len(readings) for _, readings, _ in fleet.taken] == [2, 2, 2, 2, 2, 2, 1, 1, 1]
    assert {(meter, *reading) for meter, readings, _ in fleet.taken for reading in readings} == {
        (meter, DAY + slot * 1800, (slot + 1) * 1_000_000) for meter in "ABC" for slot in range(5)
    }
    assert (result.meters, result.readings_read, result.readings_sent) == (3, 18, 15)
    assert result.readings_skipped == {"bad_row": 1, "duplicate": 1, "null": 1}
    assert (result.transactions_committed, result.transactions_rejected) == (8, {"spike": 1})
    assert result.latency_ms == {"p50": 7, "p95": 7, "p99": 7}
    assert result.is_complete
    assert Path(result.rejects_file).read_text().count("\n") == 4
    assert seen[-1].phase == "done"
    assert (seen[-1].fraction, seen[-1].readings_sent) == (1.0, 15)


def test_filters(data: Path, tmp_path: Path) -> None:
    fleet = MemoryFleet()
    filters = Filters(2, DAY + 1800, DAY + 3 * 1800)
    result = run(ReplayOptions(data, filters), fleet, tmp_path)
    assert fleet.enrolled == ["A", "B"]
    assert (result.meters, result.readings_sent, result.readings_skipped) == (2, 4, {"bad_row": 1})


@pytest.mark.parametrize("speed", [None, 3600.0])
@pytest.mark.parametrize("size", [1, 2, 48])
def test_a_replay_resumes_where_it_crashed(data: Path, tmp_path: Path, speed: float | None, size: int) -> None:
    options = ReplayOptions(data, speed=speed, readings_per_report=size)
    whole = MemoryFleet()
    run(options, whole, tmp_path)
    expected = [(meter, readings) for meter, readings, _ in whole.taken]
    resuming = ReplayOptions(data, speed=speed, readings_per_report=size, resume=True)
    for crash_at in range(len(expected) + 1):
        fleet = MemoryFleet()
        fleet.crash_at = crash_at
        if crash_at < len(expected):
            with pytest.raises(CrashError):
                run(options, fleet, tmp_path)
        else:
            run(options, fleet, tmp_path)
        result = run(resuming, fleet, tmp_path)
        assert [(meter, readings) for meter, readings, _ in fleet.taken] == expected
        assert result.readings_sent + result.readings_resumed == 15
        assert result.readings_read == 18


def test_another_plan_is_not_resumed(data: Path, tmp_path: Path) -> None:
    fleet = MemoryFleet()
    run(ReplayOptions(data), fleet, tmp_path)
    with pytest.raises(InputError, match="cannot be resumed"):
        run(ReplayOptions(data, readings_per_report=2, resume=True), fleet, tmp_path)
    with pytest.raises(InputError, match="cannot be resumed"):
        run(ReplayOptions(data, Filters(meters=1), resume=True), fleet, tmp_path)
    assert len(fleet.taken) == 15
    # The folder or its only file, and any finite speed against another, are the same plan or not by what is sent.
    assert run(ReplayOptions(data.parent, resume=True), fleet, tmp_path).readings_sent == 0


def test_a_finite_speed_paces_by_the_time_of_the_data(data: Path, tmp_path: Path) -> None:
    fleet = MemoryFleet()
    run(ReplayOptions(data, speed=60.0), fleet, tmp_path)
    assert [meter for meter, _, _ in fleet.taken[:6]] == ["A", "B", "C"] * 2
    first = fleet.taken[0][2]
    assert [intended - first for _, _, intended in fleet.taken] == [slot * 30_000 for slot in range(5) for _ in "ABC"]


def test_a_broken_file_stops_before_anything_is_sent(data: Path, tmp_path: Path) -> None:
    whole = gzip.compress(data.read_bytes() * 100)
    (data.parent / "block_1.csv.gz").write_bytes(whole[:-20])
    fleet = MemoryFleet()
    with pytest.raises(InputError, match="breaks off"):
        run(ReplayOptions(data.parent), fleet, tmp_path)
    assert (fleet.enrolled, fleet.taken) == ([], [])


def test_a_set_without_a_reading_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HALFHOURLY, "A,never, 1 ")
    with pytest.raises(InputError, match="no row of the data set is a reading"):
        run(ReplayOptions(path), MemoryFleet(), tmp_path)


def test_a_cancelled_run_leaves_no_thread_behind(data: Path, tmp_path: Path) -> None:
    import threading

    class StuckFleet(MemoryFleet):
        async def submit(self, *_: object, **__: object) -> None:
            stuck.set()
            await asyncio.Event().wait()

    async def cancel() -> None:
        task = asyncio.create_task(
            run_replay(ReplayOptions(data), StuckFleet(), lambda _: None, folder=tmp_path, clock=StepClock())
        )
        await stuck.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    stuck = asyncio.Event()
    asyncio.run(cancel())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("replay")]


@pytest.mark.parametrize(
    ("text", "speed"), [("max", None), ("realtime", 1.0), ("60", 60.0), ("2.5x", 2.5), (" MAX ", None)]
)
def test_speeds(text: str, speed: float | None) -> None:
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "nan", "inf", "1e400", "x"])
def test_no_speeds(text: str) -> None:
    with pytest.raises(InputError, match="no speed"):
        parse_speed(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2013-01-01", DAY),
        ("2013-01-01T00:30", DAY + 1800),
        ("2013-01-01 01:00:00", DAY + 3600),
        ("2013-01-01T01:00:00+01:00", DAY),
        ("2013-01-01T00:00:00Z", DAY),
    ],
)
def test_moments(text: str, moment: int) -> None:
    assert parse_moment(text, "--from") == moment


def test_options_are_checked() -> None:
    for wrong in ("2013-02-30", "yesterday", ""):
        with pytest.raises(InputError, match="no date or time") as caught:
            parse_moment(wrong, "--from")
        assert "--from" in str(caught.value)
    for build in (
        lambda: Filters(meters=0),
        lambda: Filters(from_s=5, to_s=5),
        lambda: ReplayOptions(Path(), readings_per_report=0),
        lambda: ReplayOptions(Path(), readings_per_report=337),
        lambda: ReplayOptions(Path(), speed=float("nan")),
    ):
        with pytest.raises(InputError):
            build()
