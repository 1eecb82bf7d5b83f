"""Validation rules: each finding, its edges, and that the order of arrival does not matter."""

import numpy as np
import pytest

from bcami.mdms.vee import Flag, compute_flags, flag_names

T0 = 1_356_998_400  # 2013-01-01T00:00Z


def flags(energies, *, meter=1, start=T0, step=1800, starts=None):
    starts = np.array(starts if starts is not None else [start + place * step for place in range(len(energies))])
    count = len(starts)
    return compute_flags(
        np.full(count, meter, np.int64),
        starts.astype(np.int64),
        np.array(energies, np.int64),
        np.full(count, step, np.int64),
    )


def found(result, flag):
    return np.flatnonzero(result & flag).tolist()


def test_a_plain_day_has_no_findings() -> None:
    assert not flags([1000 + place % 7 for place in range(48)]).any()
    assert not flags([]).any()


def test_negative() -> None:
    assert found(flags([5, -1, 0, -(2**63)]), Flag.NEGATIVE) == [1, 3]


def test_after_gap() -> None:
    starts = [T0, T0 + 1800, T0 + 3 * 1800, T0 + 100 * 1800]
    assert found(flags([1, 1, 1, 1], starts=starts), Flag.AFTER_GAP) == [2, 3]


def test_a_gap_does_not_reach_into_the_next_meter() -> None:
    meter = np.array([1, 2], np.int64)
    result = compute_flags(meter, np.array([T0, T0 + 9000], np.int64), np.ones(2, np.int64), np.full(2, 1800, np.int64))
    assert not result.any()


@pytest.mark.parametrize(("zeros", "expected"), [(47, 0), (48, 48), (60, 60)])
def test_zero_run_lasts_a_day(zeros: int, expected: int) -> None:
    result = flags([3, *([0] * zeros), 3])
    assert len(found(result, Flag.ZERO_RUN)) == expected
    assert 0 not in found(result, Flag.ZERO_RUN)


def test_a_gap_breaks_a_zero_run() -> None:
    starts = [T0 + place * 1800 for place in range(60) if place != 30]
    assert found(flags([0] * 59, starts=starts), Flag.ZERO_RUN) == []


def test_zero_run_by_time_not_by_count() -> None:
    assert len(found(flags([0] * 24, step=3600), Flag.ZERO_RUN)) == 24


def test_spike_is_above_2_8_times_the_third_highest() -> None:
    day = [100] * 48
    day[10] = 280
    assert found(flags(day), Flag.SPIKE) == []
    day[10] = 281
    assert found(flags(day), Flag.SPIKE) == [10]
    day[20] = 300
    assert found(flags(day), Flag.SPIKE) == [10, 20]
    day[30] = 200  # now the third highest
    assert found(flags(day), Flag.SPIKE) == []


def test_spike_needs_half_a_day_and_some_consumption() -> None:
    assert found(flags([1] * 22 + [900]), Flag.SPIKE) == []
    assert found(flags([1] * 23 + [900]), Flag.SPIKE) == [23]
    assert found(flags([0] * 46 + [5, 900]), Flag.SPIKE) == []


def test_spike_is_judged_day_by_day_and_survives_huge_values() -> None:
    quiet, loud = [10] * 48, [10] * 48
    loud[3] = 2**63 - 1
    loud[4] = -(2**63)
    assert found(flags(quiet + loud), Flag.SPIKE) == [48 + 3]


def test_names() -> None:
    assert flag_names(Flag.NEGATIVE | Flag.AFTER_GAP) == ["negative", "after_gap"]
    assert flag_names(0) == []
