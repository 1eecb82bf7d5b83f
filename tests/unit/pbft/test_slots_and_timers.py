from bcami.model.consensus import Commit
from bcami.pbft import CancelTimer, SetTimer
from bcami.pbft.effects import EVIDENCE_PER_REPLICA_MAX, Observe, Outbox
from bcami.pbft.slots import AHEAD_PER_REPLICA_MAX, Ahead
from bcami.pbft.timers import Backoff, Fairness, Timers
from tests.paper.lab import Lab, evidence

LAB = Lab()


def test_each_replica_has_its_own_share_of_messages_ahead() -> None:
    ahead = Ahead()
    for view in range(1, 1000):
        ahead.add(LAB.of[2].commit(view, 1, bytes(32)))
    assert ahead.add(LAB.of[3].commit(7, 1, bytes(32)))
    assert len(ahead) == AHEAD_PER_REPLICA_MAX + 1
    taken = ahead.take(999, 1)
    assert min(item.view for item in taken if item.replica == 2) == 1000 - AHEAD_PER_REPLICA_MAX


def test_a_message_older_than_all_that_is_kept_is_dropped_and_a_repeated_one_too() -> None:
    ahead = Ahead()
    for view in range(100, 100 + AHEAD_PER_REPLICA_MAX):
        assert ahead.add(LAB.of[2].commit(view, 1, bytes(32)))
    assert not ahead.add(LAB.of[2].commit(99, 1, bytes(32)))
    assert not ahead.add(LAB.of[2].commit(150, 1, bytes(32)))


def test_taking_leaves_what_is_still_ahead_and_gives_pre_prepares_first() -> None:
    ahead = Ahead()
    first = LAB.pre_prepare(view=1, height=2)
    for message in (
        *LAB.commits(first, 2),
        first,
        *LAB.commits(LAB.pre_prepare(view=2), 2),
        *LAB.commits(LAB.pre_prepare(1, 40), 2),
    ):
        ahead.add(message)
    assert [type(item) for item in ahead.take(1, 16)] == [type(first), Commit]
    assert len(ahead) == 2


def test_the_backoff_doubles_to_its_cap_and_comes_back() -> None:
    backoff = Backoff(500, 1_500)
    delays = [backoff.delay_ms]
    for _ in range(4):
        backoff.failed()
        delays.append(backoff.delay_ms)
    assert delays == [500, 500, 1_000, 1_500, 1_500]
    for _ in range(10_000):
        backoff.failed()
    assert backoff.delay_ms == 1_500
    backoff.progressed()
    assert backoff.delay_ms == 500


def test_a_timer_is_set_once_and_cancelled_once() -> None:
    out = Outbox()
    timers = Timers(out)
    timers.keep("view", True, 5)
    timers.keep("view", True, 5)
    timers.keep("view", False, 5)
    timers.keep("view", False, 5)
    assert out.take() == [SetTimer("view", 5), CancelTimer("view")]


def test_a_pause_keeps_the_time_that_is_left_even_when_the_clock_falls() -> None:
    out = Outbox()
    fairness = Fairness(Timers(out), 1_000, 50)
    for paused, now_ms in ((False, 50_000), (True, 10), (False, 20)):
        assert fairness.watch({2: 1}, lambda _: True, paused, now_ms) == []
    assert out.take() == [SetTimer("fairness/2", 1_000), CancelTimer("fairness/2"), SetTimer("fairness/2", 1_000)]


def test_evidence_against_one_replica_is_bounded() -> None:
    out = Outbox()
    vote = LAB.of[2].commit(0, 1, bytes(32))
    for _ in range(1_000):
        out.convict("commit", vote, vote)
    effects = out.take()
    assert len(evidence(effects)) == EVIDENCE_PER_REPLICA_MAX
    assert sum(isinstance(effect, Observe) for effect in effects) == 1_000 + EVIDENCE_PER_REPLICA_MAX
