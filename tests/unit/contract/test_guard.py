"""The guard's window, by hand; tests/properties/test_contract_guard.py compares it with a model."""

import pytest

from bcami.contract.guard import consume, guard_key, refusal
from bcami.model.reasons import Reason

W = 64


def after(*numbers, session=1):
    record = None
    for number in numbers:
        assert refusal(record, session, number, W) is None
        record = consume(record, session, number, W)
    return record


def test_keys_of_sessions_and_of_enrolment_are_apart():
    signer = bytes(range(32))
    assert guard_key(signer, 0) == b"guard/" + signer + b"/e"
    assert guard_key(signer, 1) == guard_key(signer, 2**62) == b"guard/" + signer + b"/s"


def test_record_has_a_fixed_width():
    for record in (after(1), after(5, 1, 3), after(1, 2**62), after(2**62, session=2**62)):
        assert len(record) == 16 + W // 8


def test_known_record():
    assert after(5, 3) == (1).to_bytes(8, "big") + (5).to_bytes(8, "big") + (0b101).to_bytes(8, "big")


@pytest.mark.parametrize("number", [5, 3])
def test_used_number_is_a_replay(number):
    assert refusal(after(5, 3), 1, number, W) is Reason.REPLAY


def test_late_number_inside_the_window_is_free_and_below_is_too_old():
    record = after(100)
    assert refusal(record, 1, 100 - W + 1, W) is None
    assert refusal(record, 1, 100 - W, W) is Reason.SEQUENCE_TOO_OLD
    assert refusal(record, 1, 0, W) is Reason.SEQUENCE_TOO_OLD


def test_window_moves_bit_by_bit():
    record = after(10, 12, 10 + W - 1)
    assert refusal(record, 1, 10, W) is Reason.REPLAY
    assert refusal(record, 1, 11, W) is None
    record = consume(record, 1, 10 + W, W)
    assert refusal(record, 1, 10, W) is Reason.SEQUENCE_TOO_OLD
    assert refusal(record, 1, 12, W) is Reason.REPLAY
    record = consume(record, 1, 10_000, W)
    assert refusal(record, 1, 10_000 - 1, W) is None
    assert refusal(record, 1, 10_000, W) is Reason.REPLAY


def test_higher_session_starts_a_new_window_and_closes_the_lower():
    record = consume(after(70, session=4), 5, 2, W)
    assert refusal(record, 4, 71, W) is Reason.SESSION_CLOSED
    assert refusal(record, 5, 2, W) is Reason.REPLAY
    assert refusal(record, 5, 1, W) is None
    assert refusal(record, 6, 0, W) is None
