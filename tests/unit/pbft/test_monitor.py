"""The monitor alone: its clock, its demand, its budget, and what it remembers of primaries."""

from bcami.pbft.monitor import Monitor, Owed, Pace

VIEW_TIMER_MS = 1_000
WEAK = 2


class Bench:
    """A monitor and a wall clock; collector 2's certificates come one after another."""

    def __init__(self) -> None:
        self.monitor = Monitor(VIEW_TIMER_MS, WEAK)
        self.now_ms = 1_700_000_000_000
        self.number = 1
        self.height = 0

    def look(self, *, waits: bool = True, sent: bool = True, excused: bool = False, proposed: bool = False) -> None:
        owed = {2: Owed(self.number, sent)} if waits else {}
        heights = [self.height + 1] if proposed else []
        self.monitor.observe(self.now_ms, owed, heights, self.height, excused)

    def wait(self, wait_ms: int, *, sent: bool = True, excused: bool = False) -> None:
        """Let a certificate wait, with a look at each tick."""
        self.look(sent=sent, excused=excused)
        for passed_ms in range(0, wait_ms, 50):
            self.now_ms += min(50, wait_ms - passed_ms)
            self.look(sent=sent, excused=excused)

    def order(self, wait_ms: int, times: int = 1) -> None:
        """Let certificates wait so long, one after another, and be ordered."""
        for _ in range(times):
            self.wait(wait_ms)
            self.number += 1
        self.look(waits=False)

    def decide(self, round_ms: int, times: int = 8) -> None:
        for _ in range(times):
            self.look(waits=False, proposed=True)
            self.now_ms += round_ms
            self.height += 1
            self.look(waits=False)

    def reign(self, primary: int, wait_ms: int) -> None:
        """Let a primary make each certificate wait so long, and its view end."""
        self.monitor.enter(primary)
        self.order(wait_ms, 8_000 // wait_ms)
        self.monitor.leave()


def test_a_primary_in_time_is_never_suspected() -> None:
    bench = Bench()
    bench.order(120, 500)
    assert not bench.monitor.is_suspicious


def test_time_beyond_the_demand_uses_up_the_budget_of_one_and_a_half_view_timers() -> None:
    bench = Bench()
    bench.wait(125 + 1_450)
    assert not bench.monitor.is_suspicious
    bench.wait(100)
    assert bench.monitor.is_suspicious


def test_a_tenth_of_the_time_may_be_lost_for_ever_and_a_sixth_may_not() -> None:
    within, beyond = Bench(), Bench()
    for _ in range(60):
        within.order(125, 8)
        within.order(200)  # 75 ms of 1.2 s too long
        assert not within.monitor.is_suspicious
    for cycle in range(60):
        beyond.order(125, 8)
        beyond.order(350)  # 225 ms of 1.35 s
        if beyond.monitor.is_suspicious:
            assert cycle > 10
            return
    raise AssertionError("it was never found too slow")


def test_slow_rounds_allow_slow_primaries_up_to_half_the_view_timer() -> None:
    bench = Bench()
    assert bench.monitor.demand_ms() == 125
    bench.decide(60)
    assert bench.monitor.demand_ms() == 240
    bench.decide(200)
    assert bench.monitor.demand_ms() == 500


def test_the_best_of_weak_other_primaries_is_the_measure_however_slow() -> None:
    bench = Bench()
    bench.reign(0, 1_600)
    bench.monitor.enter(1)
    assert bench.monitor.demand_ms() == 125, "one alone could be faulty, and set the measure for the next"
    bench.reign(1, 900)
    bench.monitor.enter(2)
    assert 1_350 <= bench.monitor.demand_ms() < 1_800
    bench.reign(2, 100)
    bench.monitor.enter(3)
    assert bench.monitor.demand_ms() < 200


def test_what_a_primary_did_itself_is_not_its_measure() -> None:
    bench = Bench()
    bench.reign(0, 1_600)
    bench.reign(1, 1_600)
    bench.monitor.enter(0)
    assert bench.monitor.demand_ms() == 125


def test_a_view_in_which_hardly_anything_waited_says_nothing() -> None:
    bench = Bench()
    for primary in (0, 1):
        bench.monitor.enter(primary)
        bench.order(900)
        bench.monitor.leave()
    bench.monitor.enter(2)
    assert bench.monitor.demand_ms() == 125


def test_a_suspicion_that_nobody_shares_is_given_up() -> None:
    bench = Bench()
    bench.order(1_600, 3)
    assert bench.monitor.is_suspicious
    bench.order(1_600, 10)
    assert not bench.monitor.is_suspicious
    bench.order(1_600, 100)
    assert not bench.monitor.is_suspicious


def test_time_does_not_count_while_the_primary_is_excused_nor_before_it_has_the_certificate() -> None:
    bench = Bench()
    bench.wait(60_000, excused=True)
    assert bench.monitor.longest_wait_ms <= 50
    bench.number += 1
    bench.wait(60_000, sent=False)
    assert bench.monitor.longest_wait_ms == 0
    assert not bench.monitor.is_suspicious


def test_a_process_that_stood_still_and_a_clock_that_jumped_blame_nobody() -> None:
    bench = Bench()
    for jump_ms in (60_000, -86_400_000, 86_400_000, 5_000):
        bench.wait(100)
        bench.now_ms += jump_ms
        bench.look()
    assert bench.monitor.longest_wait_ms < 2_000
    assert not bench.monitor.is_suspicious


def test_the_pace_is_what_was_kept_up_nine_tenths_of_the_time() -> None:
    pace = Pace(VIEW_TIMER_MS)
    assert pace.kept_ms() is None
    pace.spend(4_600, 60)
    pace.spend(400, 5_000)
    kept_ms = pace.kept_ms()
    assert kept_ms is not None
    assert 60 <= kept_ms < 80
    pace.spend(400, 5_000)
    assert (pace.kept_ms() or 0) >= 5_000


def test_old_paces_are_forgotten_and_nothing_grows() -> None:
    pace = Pace(VIEW_TIMER_MS)
    for _ in range(10_000):
        pace.spend(1_000, 10**9)
    assert (pace.kept_ms() or 0) >= 16_000
    for _ in range(200):
        pace.spend(1_000, 70)
    assert (pace.kept_ms() or 0) < 100
