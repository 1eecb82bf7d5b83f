"""The bitmap answers exactly what a set of pairs would."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bcami.mdms.presence import Presence
from bcami.mdms.records import START_S_MAX

METERS = st.integers(1, 5)
HALF_HOURS = st.integers(0, START_S_MAX // 1800).map(lambda slot: slot * 1800)
MINUTES = st.integers(0, START_S_MAX // 60).map(lambda slot: slot * 60)
NEAR = st.integers(0, 300).map(lambda slot: slot * 900)
PAIRS = st.lists(st.tuples(METERS, st.one_of(HALF_HOURS, MINUTES, NEAR)), max_size=60)


def columns(pairs):
    return np.array([pair[0] for pair in pairs], np.int64), np.array([pair[1] for pair in pairs], np.int64)


@given(st.lists(PAIRS, max_size=5))
def test_agrees_with_a_set(batches) -> None:
    presence = Presence()
    known: set[tuple[int, int]] = set()
    for pairs in batches:
        expected = []
        for pair in pairs:
            expected.append(pair not in known)
            known.add(pair)
        meter, start_s = columns(pairs)
        first = presence.is_first(meter, start_s)
        assert first.tolist() == expected
        presence.add(meter[first], start_s[first])
        assert presence.count == len(known)


def test_a_meter_year_of_half_hours_is_small() -> None:
    presence = Presence()
    start_s = np.arange(17_520, dtype=np.int64) * 1800 + 1_356_998_400
    for meter in range(100):
        presence.add(np.full(len(start_s), meter, np.int64), start_s)
    assert presence.count == 1_752_000
    assert presence.bytes_used < 100 * 6_000


def test_asking_changes_nothing() -> None:
    presence = Presence()
    meter, start_s = columns([(1, 0), (2, 1800)])
    assert presence.is_first(meter, start_s).all()
    assert presence.is_first(meter, start_s).all()
    assert presence.count == 0
