"""The guard against a model that keeps every number it ever consumed (protocol 3.4)."""

from hypothesis import given, settings
from hypothesis import strategies as st

from bcami.contract.guard import consume, refusal
from bcami.model.reasons import Reason

WINDOWS = st.sampled_from([64, 72, 1024])
SESSIONS = st.integers(1, 3)
NUMBERS = st.one_of(st.integers(0, 200), st.integers(0, 3000), st.integers(2**63 - 100, 2**63 - 1))


class Model:
    """The rule in sets: a number is free when it is in an open session, inside the window and never used."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.session: int | None = None
        self.used: set[int] = set()

    def refusal(self, session: int, number: int) -> Reason | None:
        if self.session is None or session > self.session:
            return None
        if session < self.session:
            return Reason.SESSION_CLOSED
        if number <= max(self.used) - self.window:
            return Reason.SEQUENCE_TOO_OLD
        return Reason.REPLAY if number in self.used else None

    def consume(self, session: int, number: int) -> None:
        if session != self.session:
            self.session, self.used = session, set()
        self.used.add(number)


@settings(max_examples=300)
@given(WINDOWS, st.lists(st.tuples(SESSIONS, NUMBERS), max_size=60))
def test_guard_is_the_model(window, steps):
    model, record = Model(window), None
    for session, number in steps:
        expected = model.refusal(session, number)
        assert refusal(record, session, number, window) is expected
        if expected is None:
            model.consume(session, number)
            record = consume(record, session, number, window)
            assert len(record) == 16 + window // 8
            assert refusal(record, session, number, window) is Reason.REPLAY


@settings(max_examples=100)
@given(st.permutations(range(64)))
def test_every_order_inside_the_window_is_accepted_once(numbers):
    record = None
    for number in numbers:
        assert refusal(record, 1, number, 64) is None
        record = consume(record, 1, number, 64)
    assert all(refusal(record, 1, number, 64) is Reason.REPLAY for number in numbers)
