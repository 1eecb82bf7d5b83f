"""F21: a primary that stays under every timer and takes its time all the same is replaced, and a correct one is not.

Throughput is what a closed loop of clients commits, against the same seed without the fault.
"""

from functools import cache
from random import Random

import pytest

from bcami.faults.behaviour import AnyBehaviour
from bcami.faults.catalogue import make_behaviour
from bcami.faults.simulator.disk import DiskPlan
from bcami.faults.simulator.network import NetworkPlan
from bcami.pbft.monitor import Monitor
from tests.simulation.pace import Makers, Pace, quiet_plan, run_pace

RUN_MS = 60_000
LINE = NetworkPlan(delay_ms=(30, 40))
LOSS_MAX = 0.10
TOO_SLOW = "the primary is too slow"
Patch = pytest.MonkeyPatch


def showing(name: str, **options: object) -> AnyBehaviour:
    return make_behaviour(name, options, 1)


@cache
def undisturbed() -> tuple[int, ...]:
    """When the same clients, at the same nodes, of the same seed have their receipts when nobody misbehaves."""
    pace = run_pace(quiet_plan(7, 4, (0,), network=LINE), RUN_MS)
    assert not pace.leaves_seen
    return tuple(pace.committed_ms)


def disturbed(makers: Makers, run_ms: int = RUN_MS) -> tuple[Pace, float]:
    """Return the run, and the share of throughput that it lost."""
    pace = run_pace(quiet_plan(7, 4, (0,), network=LINE), run_ms, makers)
    return pace, 1 - len(pace.committed_ms) / sum(at_ms < run_ms for at_ms in undisturbed())


def without_the_monitor(patch: Patch) -> None:
    patch.setattr(Monitor, "is_suspicious", property(lambda self: False))


SLOW: dict[str, dict[str, object]] = {"slow_primary": {"share": 0.8}, "throttling_primary": {"every_ms": 400}}


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_primary_is_replaced_and_costs_at_most_a_tenth(name: str) -> None:
    pace, loss = disturbed({0: lambda: showing(name, **SLOW[name])})
    assert {item.cause for item in pace.honest_leaves} <= {TOO_SLOW, "others left"}
    assert set(pace.views) == {1}
    assert loss <= LOSS_MAX


@pytest.mark.parametrize("name", SLOW)
def test_without_the_monitor_it_stays_and_costs_more_than_half(name: str, monkeypatch: Patch) -> None:
    without_the_monitor(monkeypatch)
    pace, loss = disturbed({0: lambda: showing(name, **SLOW[name])}, 15_000)
    assert set(pace.views) == {0}
    assert loss > 0.5


def test_f_slow_primaries_in_a_row_are_left_one_after_the_other() -> None:
    makers: Makers = {i: lambda: showing("slow_primary", share=0.8) for i in range(2)}
    pace = run_pace(quiet_plan(7, 7, (0, 1), network=LINE), 15_000, makers)
    assert set(pace.views) == {2}
    assert max(item.at_ms for item in pace.honest_leaves) < 10_000
    assert pace.committed_between(10_000, 15_000) > 3 * pace.committed_between(0, 5_000)


def late(share: float) -> Pace:
    """Let the primary order the certificates of collector 2 late, by a share of the fairness time."""
    makers: Makers = {0: lambda: showing("late_collector", collector=2, share=share)}
    return run_pace(quiet_plan(7, 4, (0,), network=LINE), 12_000, makers)


def test_a_primary_that_lets_one_collector_wait_is_replaced(monkeypatch: Patch) -> None:
    pace = late(0.8)
    assert {item.cause for item in pace.honest_leaves} <= {TOO_SLOW, "others left"}
    assert set(pace.views) == {1}
    without_the_monitor(monkeypatch)
    assert not late(0.8).honest_leaves


def test_the_fairness_timer_of_a_collector_replaces_it_at_the_latest(monkeypatch: Patch) -> None:
    without_the_monitor(monkeypatch)
    pace = late(1.5)
    assert "collector 2 kept waiting" in {item.cause for item in pace.honest_leaves}
    assert 0 not in pace.views[1:]


# No churn.


@pytest.mark.parametrize("seed", range(8))
def test_a_correct_primary_stays_under_bursts_pauses_and_jitter(seed: int) -> None:
    pace = varied(seed, 8_000)
    assert not pace.leaves_seen
    assert not pace.suspicions
    assert len(pace.committed_ms) > 10


def varied(seed: int, run_ms: int) -> Pace:
    """Run a correct cluster under drawn load, lines, disks and pauses."""
    draw = Random(f"varied/{seed}")
    lines = draw.choice(((1, 3), (1, 20), (5, 80), (20, 40), (60, 90)))
    network = NetworkPlan(delay_ms=lines, straggle=draw.choice((0.0, 0.02)), straggle_ms=draw.choice((100, 300)))
    disk = DiskPlan(write_ms=draw.choice(((0, 2), (1, 8), (5, 60))))
    nodes = draw.choice((4, 4, 7))

    def disturb(pace: Pace) -> None:
        at_ms = 0
        while at_ms < run_ms:
            at_ms += draw.randint(300, 3_000)
            node = draw.randrange(nodes)
            if draw.random() < 0.6:
                pace.events.after(at_ms, pace.burst, draw.randint(1, 120), node)
            else:
                pace.events.after(at_ms, pace.pause, node, draw.randint(20, 250))

    return run_pace(
        quiet_plan(seed, nodes, network=network, disk=disk), run_ms, meters=draw.choice((2, 6)), prepare=disturb
    )


def test_a_liar_that_suspects_everybody_moves_nobody() -> None:
    pace = run_pace(quiet_plan(3, 4, (3,), network=LINE), 10_000, {3: lambda: showing("false_suspicion")})
    assert not pace.honest_leaves


def test_a_bad_line_of_one_replica_moves_nobody_even_beside_a_liar() -> None:
    """The replica finds every primary slow; it is taken seriously once, and demands no more than it gets from then."""

    def spoil(pace: Pace) -> None:
        for other in range(3):
            pace.lines.longer_ms[other, 2] = pace.lines.longer_ms[2, other] = 400

    alone = run_pace(quiet_plan(3, network=LINE), 20_000, prepare=spoil)
    assert not alone.leaves_seen
    plan = quiet_plan(3, 4, (3,), network=LINE)
    beside_a_liar = run_pace(plan, 40_000, {3: lambda: showing("false_suspicion")}, prepare=spoil)
    assert max(beside_a_liar.views) <= 3
    assert max((item.at_ms for item in beside_a_liar.honest_leaves), default=0) < 25_000


def test_when_everything_gets_slower_each_primary_is_left_at_most_once() -> None:
    def slow_down(pace: Pace) -> None:
        pace.network.plan = NetworkPlan(delay_ms=(150, 250))

    pace = run_pace(
        quiet_plan(3, network=LINE), 60_000, prepare=lambda pace: pace.events.after(10_000, slow_down, pace)
    )
    assert max(pace.views) <= 4
    assert max((item.at_ms for item in pace.leaves_seen), default=0) < 45_000
    assert pace.committed_between(50_000, 60_000) > 20


def test_a_primary_with_a_slow_disk_is_left_once_for_a_better_one() -> None:
    def slow_disk(pace: Pace) -> None:
        for other in range(1, 4):
            pace.lines.longer_ms[0, other] = 600  # all that it says waits for its disk

    pace = run_pace(quiet_plan(3, network=LINE), 20_000, prepare=slow_disk)
    assert set(pace.views) == {1}
    assert max(item.at_ms for item in pace.leaves_seen) < 10_000


def test_an_idle_cluster_suspects_nobody_when_work_comes() -> None:
    def rest(pace: Pace) -> None:
        pace.events.after(3_000, pace.rest, True)
        pace.events.after(63_000, pace.rest, False)
        pace.events.after(63_001, pace.load, 6)

    pace = run_pace(quiet_plan(3, network=LINE), 66_000, prepare=rest)
    assert not pace.suspicions
    assert pace.committed_between(63_000, 66_000) > 50
