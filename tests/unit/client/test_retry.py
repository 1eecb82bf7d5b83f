"""The retry rules, one by one (protocol 3.1, 3.4, 3.5)."""

import pytest

from bcami.client.retry import LAGGING_MS, Backoff, NodePool, Retry, Send, Verdict, common_reason
from bcami.model.reasons import BUSY_REASONS, Reason


def test_backoff_grows_to_its_cap_and_is_drawn_from_the_seed() -> None:
    backoff = Backoff(first_ms=100, cap_ms=1000)
    for failures, full in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (50, 1000), (10**6, 1000)]:
        delay = backoff.delay_ms(failures, b"seed")
        assert full // 2 <= delay <= full
        assert delay == backoff.delay_ms(failures, b"seed")
    assert len({backoff.delay_ms(5, bytes((seed,))) for seed in range(50)}) > 10


def test_the_preferred_node_is_asked_unless_it_failed() -> None:
    pool = NodePool(4, b"seed", Backoff(100, 1000))
    assert pool.choose(2, 0) == Send(2, 0)
    pool.failed(2, now_ms=0)
    assert pool.choose(2, 0) == Send(3, 0)
    assert pool.choose(2, 100) == Send(2, 100)
    assert pool.is_suspect(2)
    pool.succeeded(2)
    assert not pool.is_suspect(2)


def test_when_all_failed_the_soonest_is_waited_for() -> None:
    pool = NodePool(2, b"seed", Backoff(100, 1000))
    pool.failed(0, now_ms=0, retry_after_ms=5000)
    pool.failed(1, now_ms=0, retry_after_ms=3000)
    assert pool.choose(0, 10) == Send(1, 3000)


def test_retry_after_is_kept_to() -> None:
    pool = NodePool(1, b"seed", Backoff(100, 1000))
    pool.failed(0, now_ms=0, retry_after_ms=7000)
    assert pool.available_at_ms(0) == 7000
    pool.failed(0, now_ms=10, retry_after_ms=9000)
    assert pool.available_at_ms(0) == 9010


def test_failures_of_requests_that_ran_together_count_once() -> None:
    pool = NodePool(1, b"seed", Backoff(100, 100_000))
    for _ in range(8):
        pool.failed(0, now_ms=0)
    assert pool.available_at_ms(0) <= 100


def test_weak_refusals_of_different_nodes_abandon() -> None:
    retry = Retry(home=0, weak=2, seed=b"seed")
    assert retry.refused(0, Reason.BAD_SIGNATURE, 0, signer=0) is Verdict.AGAIN
    assert retry.refused(0, Reason.BAD_SIGNATURE, 0, signer=0) is Verdict.AGAIN, "one node is one voice"
    assert retry.refused(1, Reason.SEQUENCE_TOO_OLD, 0, signer=1) is Verdict.ABANDON


def test_an_unsigned_refusal_is_nobodys_word() -> None:
    retry = Retry(home=0, weak=2, seed=b"seed")
    for node in range(4):
        assert retry.refused(node, Reason.BAD_SIGNATURE, 0) is Verdict.AGAIN
    assert not retry.refusals


def test_two_nodes_that_hand_on_one_signature_are_one_voice() -> None:
    retry = Retry(home=0, weak=2, seed=b"seed")
    assert retry.refused(0, Reason.BAD_SIGNATURE, 0, signer=0) is Verdict.AGAIN
    assert retry.refused(1, Reason.BAD_SIGNATURE, 0, signer=0) is Verdict.AGAIN


@pytest.mark.parametrize("reason", sorted(BUSY_REASONS - {Reason.AMNESIA}))
def test_a_busy_node_says_nothing_about_the_transaction(reason: Reason) -> None:
    retry = Retry(home=0, weak=1, seed=b"seed")
    for node in range(4):
        assert retry.refused(node, reason, 0, retry_after_ms=2000, signer=node) is Verdict.AGAIN
    assert retry.next(NodePool(4, b"seed"), 0).at_ms >= 2000


def test_a_node_without_its_vote_log_costs_no_time_and_no_number() -> None:
    retry, pool = Retry(home=1, weak=1, seed=b"seed"), NodePool(4, b"seed")
    assert retry.refused(1, Reason.AMNESIA, 100) is Verdict.AGAIN
    assert retry.next(pool, 100) == Send(2, 100), "the next node is asked at once"
    assert retry.refusals == {}


def test_nodes_that_lag_have_time_to_catch_up() -> None:
    retry = Retry(home=0, weak=2, seed=b"seed")
    for node, now_ms in [(0, 1000), (1, 1200), (2, 999 + LAGGING_MS)]:
        assert retry.refused(node, Reason.UNKNOWN_SESSION, now_ms, signer=node) is Verdict.AGAIN
    assert retry.refused(0, Reason.UNKNOWN_SESSION, 1000 + LAGGING_MS, signer=0) is Verdict.AGAIN
    assert retry.refused(1, Reason.UNKNOWN_SESSION, 1001 + LAGGING_MS, signer=1) is Verdict.ABANDON


def test_unknown_asks_the_same_node_again_and_then_another() -> None:
    pool = NodePool(4, b"seed")
    retry = Retry(home=1, weak=2, seed=b"seed")
    retry.unknown(1, 0)
    assert retry.next(pool, 0).node == 1
    retry.unknown(1, 0)
    assert retry.next(pool, 0).node == 2
    assert retry.next(pool, 0).at_ms > 0, "a node that says it at once is not asked in a hot loop"


def test_refusing_nodes_are_avoided_while_there_are_others() -> None:
    pool = NodePool(3, b"seed")
    retry = Retry(home=0, weak=3, seed=b"seed")
    retry.refused(0, Reason.BAD_SIGNATURE, 0, signer=0)
    retry.refused(1, Reason.BAD_SIGNATURE, 0, signer=1)
    assert retry.next(pool, 10_000).node == 2


def test_the_reason_is_what_most_say() -> None:
    assert common_reason([Reason.REPLAY, Reason.BAD_SIGNATURE, Reason.REPLAY]) is Reason.REPLAY
    assert common_reason([Reason.REPLAY, Reason.BAD_SIGNATURE]) is Reason.BAD_SIGNATURE
