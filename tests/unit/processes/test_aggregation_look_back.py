"""What a run reads from the chain before it asks: what its meters would object to is said at once, and why."""

import asyncio
from types import SimpleNamespace

import pytest

from bcami.ami.aggregation_history import LATER_MAX, AggregationHistory
from bcami.errors import InputError
from bcami.model.aggregation import (
    MASKED,
    NO_NOISE,
    RING,
    AggregationHeads,
    Mode,
    RoundResult,
    RoundView,
    Settlement,
    StartArgument,
)
from bcami.model.ids import HASH_BYTES, NO_HASH
from bcami.model.reasons import Reason
from bcami.processes.aggregation_place import AggregateOptions, Ahead, look_back

FIRST_S = 1_800 * 720_000
DAY_S = 86_400
MEMBERS = [bytes([number]) * HASH_BYTES for number in range(1, 10)]


class History(AggregationHistory):
    """Reads rounds that are listed here, all over one roster."""

    def __init__(self, *rounds: tuple[Mode, int, Reason]) -> None:
        chain = SimpleNamespace(heads=self.heads, round=self.round)
        super().__init__(chain, nodes=[], roster=None)
        self._rounds = rounds
        self.looked_at = 0

    async def heads(self) -> AggregationHeads:
        return AggregationHeads(1, len(self._rounds))

    async def round(self, number: int) -> RoundView:
        self.looked_at += 1
        mode, first_s, reason = self._rounds[number - 1]
        start = StartArgument(number, 1, NO_HASH, mode, first_s, 1, 1, NO_NOISE)
        is_valid = reason is Reason.VALID
        settled = Settlement(0, b"\xff\x01", True) if mode == MASKED and is_valid else None
        return RoundView(start, "street", settled, RoundResult(reason, (7,) if is_valid else (), 9, False, 0))

    async def _hint(self, number: int) -> StartArgument:
        mode, first_s, _ = self._rounds[number - 1]
        return StartArgument(number, 1, NO_HASH, mode, first_s, 1, 1, NO_NOISE)

    async def _hids(self, roster: int) -> list[bytes]:
        return MEMBERS

    async def ending(self, number: int) -> None:
        return None


def ahead_of(history: History, mode: Mode, *intervals: int) -> Ahead:
    ids = {hid: str(place) for place, hid in enumerate(MEMBERS)}
    options = AggregateOptions("street", mode, intervals, 0.0, NO_NOISE)
    return asyncio.run(look_back(SimpleNamespace(options=options, meter_ids=ids, history=history), 0))


def test_a_void_ring_stands_against_masked_sums_of_its_day() -> None:
    """Its members do not know what the supplier has heard."""
    history = History((RING, FIRST_S, Reason.RING_BROKEN))
    with pytest.raises(InputError, match="within a day of round 1 of street, ring"):
        ahead_of(history, MASKED, FIRST_S + 1800)
    assert ahead_of(history, RING, FIRST_S).intervals == (FIRST_S,)
    assert ahead_of(history, MASKED, FIRST_S + 2 * DAY_S).intervals == (FIRST_S + 2 * DAY_S,)


@pytest.mark.parametrize(
    ("earlier", "mode", "is_refused"),
    [(MASKED, MASKED, True), (MASKED, RING, True), (RING, MASKED, True), (RING, RING, False)],
)
def test_what_meters_have_forgotten(earlier: Mode, mode: Mode, is_refused: bool) -> None:
    late_s = FIRST_S + 41 * DAY_S
    history = History((earlier, late_s, Reason.VALID))
    if is_refused:
        with pytest.raises(InputError, match="more than 40 days before round 1 of street"):
            ahead_of(history, mode, FIRST_S)
    else:
        assert ahead_of(history, mode, FIRST_S).intervals == (FIRST_S,)
    assert ahead_of(history, mode, late_s - 40 * DAY_S).intervals == (late_s - 40 * DAY_S,)


def test_a_void_masked_round_makes_meters_forget_nothing() -> None:
    history = History((MASKED, FIRST_S + 41 * DAY_S, Reason.TIMED_OUT))
    assert ahead_of(history, MASKED, FIRST_S).intervals == (FIRST_S,)


def test_of_much_later_rounds_only_the_latest_are_read() -> None:
    late = [(RING, FIRST_S + 41 * DAY_S + 1800 * number, Reason.VALID) for number in range(LATER_MAX + 50)]
    history = History(*late)
    with pytest.raises(InputError, match=f"before round {LATER_MAX + 50} of street"):
        ahead_of(history, MASKED, FIRST_S)
    assert history.looked_at == LATER_MAX
