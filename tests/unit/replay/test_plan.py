"""The plan is the same each time, gives each meter ceil(n / K) reports in order, and merges by time for a finite speed."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from bcami.model.report import Reading
from bcami.replay.plan import PlannedReport, reports_in_file_order, reports_in_time_order
from bcami.replay.readings import ReadingChunk


def chunk(*readings: tuple[int, int]) -> ReadingChunk:
    meter = np.array([one for one, _ in readings], dtype=np.int32)
    start_s = np.array([slot * 1800 for _, slot in readings], dtype=np.int64)
    return ReadingChunk(meter, start_s, start_s + meter)


CHUNKS = [
    chunk(*((0, slot) for slot in range(7)), *((1, slot) for slot in range(5, 9))),
    chunk(*((1, slot) for slot in range(9, 60)), (2, 3)),
    chunk(*((2, slot) for slot in range(100, 110))),
]
COUNTS = {0: 7, 1: 55, 2: 11}


def by_meter(reports: list[PlannedReport]) -> dict[int, list[PlannedReport]]:
    found = defaultdict(list)
    for report in reports:
        found[report.meter].append(report)
    return found


def check_whole(reports: list[PlannedReport], size: int) -> None:
    for meter, own in by_meter(reports).items():
        assert [report.ordinal for report in own] == list(range(-(-COUNTS[meter] // size)))
        assert all(len(report.readings) == size for report in own[:-1])
        flat = [reading for report in own for reading in report.readings]
        wanted = [int(start) for part in CHUNKS for one, start in zip(part.meter, part.start_s) if one == meter]
        assert flat == [Reading(start, start + meter) for start in wanted]


@pytest.mark.parametrize("size", [1, 2, 3, 48])
@pytest.mark.parametrize("round_readings", [1, 10, 1000])
def test_file_order(size: int, round_readings: int) -> None:
    reports = list(reports_in_file_order(CHUNKS, size, round_readings))
    check_whole(reports, size)
    assert reports == list(reports_in_file_order(iter(CHUNKS), size, round_readings))


def test_meters_take_turns_within_a_round() -> None:
    reports = list(reports_in_file_order(CHUNKS, 1))
    assert [report.meter for report in reports[:9]] == [0, 1, 2] * 3


@pytest.mark.parametrize("size", [1, 2, 3, 48])
def test_time_order(size: int, tmp_path: Path) -> None:
    reports = list(reports_in_time_order(CHUNKS, size, ["c", "b", "a"], tmp_path))
    check_whole(reports, size)
    assert [report.due_s for report in reports] == sorted(report.due_s for report in reports)
    assert not list(tmp_path.iterdir())


def test_equal_times_come_by_id() -> None:
    reports = list(reports_in_time_order(CHUNKS, 1, ["c", "b", "a"]))
    assert [(report.meter, report.due_s) for report in reports[3:5]] == [(2, 4 * 1800), (0, 4 * 1800)]


def test_nothing_to_plan() -> None:
    assert list(reports_in_file_order([], 3)) == []
    assert list(reports_in_time_order([], 3, [])) == []
