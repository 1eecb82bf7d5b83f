"""[CL99 4.5.2] timers and joining; protocol 4.4 (fairness) and 6.2 (capped timers)."""

import pytest

from bcami.endorsement.endorser import LANE_AHEAD_MAX
from bcami.model.consensus import NewView, PrePrepare, ViewChange
from bcami.model.genesis import Parameters
from bcami.model.wire import Status
from bcami.pbft import CancelTimer, PeerStatus, Relay, SetTimer, Synced, TellStatus, TimerFired
from tests.paper.driver import Cluster
from tests.paper.keys import batch
from tests.paper.lab import NOW_MS, Lab, header, of, refusals, said

REPORT_BYTES_MIN = 190
"""No usage transaction on the wire is shorter."""


def test_the_timer_starts_when_something_waits_and_stops_when_nothing_does() -> None:
    lab = Lab()
    assert lab.timers == {}
    lab.ready((0, 1))
    assert lab.timers["view"] == 500
    lab.decide(1)
    assert "view" not in lab.timers


def test_progress_restarts_the_timer_while_something_waits() -> None:
    lab = Lab()
    lab.ready((0, 1), (2, 1))
    lab.relay(2)
    lab.log.clear()
    lab.decide(1)
    assert [effect.name for effect in of(lab.log, SetTimer) if effect.name == "view"] == ["view"]


def test_a_certificate_that_cannot_be_ordered_yet_is_no_reason_to_leave() -> None:
    lab = Lab()
    lab.ready((0, 2))
    assert lab.timers == {}


def test_a_backup_that_holds_a_certificate_and_sees_no_progress_leaves() -> None:
    lab = Lab(own=3)
    lab.ready((0, 1))
    assert [change.view for change in said(lab.fire("view"), ViewChange)] == [1]


def test_the_view_change_timer_waits_for_a_strong_quorum() -> None:
    lab = Lab(own=3)
    lab.ready((0, 1))
    lab.fire("view")
    assert lab.timers == {}
    lab.hear(lab.view_change(0))
    assert lab.timers == {}
    lab.hear(lab.view_change(2))
    assert set(lab.timers) == {"view_change"}


def test_one_that_has_gone_further_counts_as_having_left() -> None:
    """Deviates from [CL99 4.5.2], or two at the target, one beyond it and one dead wait for ever."""
    lab = Lab(own=3)
    lab.ready((0, 1))
    lab.fire("view")
    lab.hear(lab.view_change(0), lab.view_change(2, 2))
    assert set(lab.timers) == {"view_change"}
    assert [change.view for change in said(lab.fire("view_change"), ViewChange)] == [2]


def test_the_time_doubles_with_each_failed_view_up_to_the_cap() -> None:
    """B7: an uncapped timer leaves replicas hours apart."""
    lab = Lab(own=9, n=10, view_timer_cap_ms=3_000)
    lab.ready((0, 1))
    lab.fire("view")
    delays = []
    for view in range(1, 8):
        lab.hear(*[lab.view_change(replica, view) for replica in range(6)])
        delays.append(lab.timers["view_change"])
        lab.fire("view_change")
    assert delays == [500, 1_000, 2_000, 3_000, 3_000, 3_000, 3_000]


def test_progress_brings_the_timer_back() -> None:
    lab = Lab(own=3)
    lab.ready((0, 1))
    lab.fire("view")
    for view in (1, 2):
        lab.hear(*[lab.view_change(replica, view) for replica in (0, 1, 2)])
        lab.fire("view_change")
    lab.hear(lab.new_view([lab.view_change(replica, 5) for replica in (0, 1, 2)]))
    assert lab.timers["view"] > 500
    lab.decide(1, view=5)
    lab.ready((1, 1))
    assert lab.timers["view"] == 500


def test_weak_view_changes_for_higher_views_are_joined_at_the_smallest() -> None:
    lab = Lab(own=3, n=7)
    assert said(lab.hear(lab.view_change(0, 9), lab.view_change(1, 5))) == []
    (change,) = said(lab.hear(lab.view_change(2, 7)), ViewChange)
    assert change.view == 5


def test_f_replicas_with_huge_or_alternating_views_move_nobody() -> None:
    """B2, B20, F27."""
    lab = Lab(own=3)
    lab.ready((0, 1))
    for view in (2**62, 7, 2**62 - 1, 1, 2**62 + 1, 3):
        lab.hear(lab.view_change(2, view))
    assert said(lab.log) == []
    assert lab.replica.view == 0
    assert len(lab.replica._changes.latest) == 1


def test_the_own_view_change_does_not_count_towards_joining() -> None:
    lab = Lab(own=3)
    lab.ready((0, 1))
    lab.fire("view")
    lab.log.clear()
    lab.hear(lab.view_change(0, 5))
    assert said(lab.log) == []


def test_a_timer_that_was_cancelled_does_nothing() -> None:
    lab = Lab()
    assert lab.step(TimerFired("view")) == []
    assert lab.step(TimerFired("nonsense")) == []


# Fairness (protocol 4.4).


def test_each_next_numbered_certificate_has_its_timer() -> None:
    lab = Lab(own=3)
    lab.ready((0, 1), (0, 2), (2, 1), (1, 2))
    lab.relay(2)
    assert {name: delay for name, delay in lab.timers.items() if name.startswith("fairness")} == {
        "fairness/0": 4_000,
        "fairness/2": 4_000,
    }


def test_the_fairness_timer_starts_when_the_replica_has_sent_the_certificate_to_the_primary() -> None:
    """A faulty collector that tells all but the primary would else have it replaced."""
    lab = Lab(own=3)
    assert of(lab.ready((2, 1)), Relay) == []
    assert lab.timers == {"relay/2": 50, "monitor": 62}
    assert of(lab.relay(2), Relay) == [Relay(0, batch(2, 1))]
    assert (lab.timers["fairness/2"], lab.timers["view"]) == (4_000, 500)


def test_what_the_collector_certainly_sent_to_the_primary_is_not_sent_again() -> None:
    lab = Lab(own=3)
    lab.ready((0, 1), (3, 1))
    assert {"fairness/0", "fairness/3"} <= set(lab.timers)
    assert not [name for name in lab.timers if name.startswith("relay")]


def test_a_certificate_that_is_ordered_soon_is_not_sent_again() -> None:
    lab = Lab(own=3)
    lab.ready((2, 1))
    lab.decide(1, proposal=lab.proposal((2, 1)))
    assert not [name for name in lab.timers if name.startswith(("relay", "fairness"))]
    assert of(lab.log, Relay) == []


def test_a_new_primary_is_sent_at_once_all_that_it_could_order() -> None:
    lab = Lab(own=3)
    lab.ready((0, 1), (2, 1), (2, 2), (3, 1))
    lab.hear(*[lab.view_change(replica) for replica in (0, 1, 2)])
    effects = lab.hear(lab.new_view([lab.view_change(replica) for replica in (0, 1, 2)]))
    assert of(effects, Relay) == [Relay(1, batch(0, 1)), Relay(1, batch(2, 1)), Relay(1, batch(3, 1))]
    assert {lab.timers[f"fairness/{collector}"] for collector in (0, 2, 3)} == {4_000}


def test_what_waits_to_be_sent_is_not_sent_while_the_window_is_full() -> None:
    lab = Lab(own=3, window=1)
    lab.ready((2, 1))
    lab.decide(1)
    assert not [name for name in lab.timers if name.startswith(("relay", "fairness"))]
    lab.execute(1)
    lab.hear(*lab.checkpoints(1, 0, 1))
    assert lab.timers["relay/2"] == 50


def test_the_fairness_timer_is_not_restarted_by_what_others_get() -> None:
    """F22: a primary that orders everybody but one is left all the same."""
    lab = Lab(own=3)
    lab.ready((0, 1), (2, 1))
    lab.relay(2)
    lab.log.clear()
    for height in (1, 2, 3):
        lab.decide(height)
        lab.execute(height, lab.proposal((0, height)))
    assert "fairness/2" not in [effect.name for effect in of(lab.log, SetTimer)]
    (change,) = said(lab.fire("fairness/2"), ViewChange)
    assert change.view == 1


def test_the_fairness_timer_restarts_for_the_next_number_when_its_number_is_ordered() -> None:
    lab = Lab(own=3)
    lab.ready((0, 1), (0, 2))
    lab.now_ms += 3_000
    lab.log.clear()
    lab.decide(1)
    assert [(effect.name, effect.delay_ms) for effect in of(lab.log, SetTimer) if "fair" in effect.name] == [
        ("fairness/0", 4_000)
    ]


def test_the_fairness_timer_pauses_while_the_window_is_full_and_goes_on_with_what_is_left() -> None:
    lab = Lab(own=3, window=1)
    lab.ready((2, 1))
    lab.relay(2)
    lab.now_ms += 1_000
    lab.decide(1)
    assert "fairness/2" not in lab.timers
    assert "view" not in lab.timers
    lab.now_ms += 60_000
    lab.execute(1)
    lab.hear(*lab.checkpoints(1, 0, 1))
    assert lab.timers["fairness/2"] == 3_000


def test_the_fairness_timer_starts_anew_in_a_new_view() -> None:
    lab = Lab(own=3)
    lab.ready((2, 1))
    lab.now_ms += 3_500
    lab.hear(*[lab.view_change(replica) for replica in (0, 1, 2)])
    assert not [name for name in lab.timers if name.startswith("fairness")]
    lab.hear(lab.new_view([lab.view_change(replica) for replica in (0, 1, 2)]))
    assert lab.timers["fairness/2"] == 4_000


def test_a_number_that_was_a_no_op_is_still_owed() -> None:
    """Protocol 4.2: a certificate counts only if its number is the next one."""
    lab = Lab(own=3)
    lab.ready((2, 1), (2, 2))
    lab.relay(2)
    lab.decide(1, proposal=lab.proposal((2, 2)))
    assert "fairness/2" in lab.timers
    assert CancelTimer("fairness/2") not in lab.log


def test_the_primary_orders_again_what_a_view_change_filled_with_null() -> None:
    lab = Lab(own=1)
    second = lab.pre_prepare(height=2, proposal=lab.proposal((0, 2)))
    lab.ready((0, 1), (0, 2))
    lab.hear(lab.view_change(2, proofs=[lab.proof(second)]), lab.view_change(3))
    (new_view,) = said(lab.log, NewView)
    null, again = new_view.pre_prepares
    for order in (null, again):
        lab.hear(*lab.prepares(order, 2, 3), *lab.commits(order, 2, 3))
    third = said(lab.log, PrePrepare)[-1]
    assert (third.height, third.proposal.certificates) == (3, (batch(0, 1), batch(0, 2)))


def test_a_primary_that_is_behind_does_not_propose() -> None:
    """B9: no building on a state that is missing."""
    lab = Lab(own=1)
    lab.hear(lab.view_change(2, stable=lab.certificate(9)), lab.view_change(3, stable=lab.certificate(9)))
    assert said(lab.ready((1, 1)), PrePrepare) == []
    effects = lab.step(Synced(9, header(9), lab.certificate(9), (0, 0, 0, 0)))
    assert [message.height for message in said(effects, PrePrepare)] == [10]


def test_a_certificate_far_ahead_of_its_lane_is_refused_and_one_executed_ignored() -> None:
    lab = Lab(own=3)
    assert refusals(lab.ready((0, 1_025))) == ["over_quota"]
    assert refusals(lab.ready((9, 1))) == ["unknown_replica"]
    lab.step(Synced(3, header(3), lab.certificate(3), (5, 0, 0, 0)))
    lab.ready((0, 5))
    assert "view" not in lab.timers


def test_a_replica_that_is_late_itself_does_not_blame_the_primary() -> None:
    """Else each restarted node leaves the view on its own and votes no more until all leave it."""
    lab = Lab(own=3)
    lab.ready((0, 1))
    assert {"view", "fairness/0"} <= set(lab.timers)
    lab.hear(*lab.checkpoints(2, 0, 1, 2))
    assert set(lab.timers) == {"catch_up"}
    lab.step(Synced(2, header(2), lab.certificate(2), (0, 0, 0, 0)))
    assert {"view", "fairness/0"} <= set(lab.timers)


# The monitor (fault F21).


def suspicion(replica: int, view: int = 0, changing: bool = False) -> PeerStatus:
    return PeerStatus(Status(1, replica, view, changing, 0, 0, (0,) * 4, suspects=True))


def suspicious(own: int = 3) -> Lab:
    """Return a replica whose certificate the primary keeps for long, while others of its lane move on."""
    lab = Lab(own=own)
    lab.ready((own, 1))
    while not lab.replica.is_suspicious:
        lab.now_ms += 62
        lab.fire("monitor")
        assert lab.now_ms - NOW_MS < 3_000
    return lab


def test_one_replica_that_finds_the_primary_slow_says_so_and_stays() -> None:
    lab = suspicious()
    assert len(of(lab.log, TellStatus)) == 1
    assert lab.replica.status().suspects
    assert said(lab.log, ViewChange) == []


def test_weak_replicas_that_find_it_slow_leave() -> None:
    lab = suspicious()
    (change,) = said(lab.step(suspicion(2)), ViewChange)
    assert change.view == 1
    assert not lab.replica.status().suspects


def test_others_move_nobody_who_does_not_find_it_slow() -> None:
    lab = Lab(own=3)
    lab.ready((3, 1))
    for replica in (0, 1, 2):
        lab.step(suspicion(replica))
    assert said(lab.log, ViewChange) == []


def test_a_suspicion_of_another_view_or_of_one_who_left_does_not_count() -> None:
    lab = suspicious()
    assert said(lab.step(suspicion(2, view=1)) + lab.step(suspicion(1, changing=True)), ViewChange) == []
    lab.step(suspicion(2))
    assert lab.replica.in_view_change


def test_a_suspicion_that_was_taken_back_does_not_count() -> None:
    lab = Lab(own=3)
    lab.step(suspicion(2))
    lab.step(PeerStatus(Status(1, 2, 0, False, 0, 0, (0,) * 4)))
    lab.ready((3, 1))
    for _ in range(60):
        lab.now_ms += 62
        lab.fire("monitor")
    assert said(lab.log, ViewChange) == []


def test_a_primary_does_not_suspect_itself() -> None:
    lab = Lab(own=0)
    lab.ready((0, 1), (2, 1))
    assert "monitor" not in lab.timers


@pytest.mark.parametrize("n", [4, 10])
def test_the_quotas_of_all_collectors_are_ordered_in_half_the_fairness_time(n: int) -> None:
    """Protocol 4.4, last sentence: all that endorsers keep of all lanes, at once; nobody has a reason to leave."""
    fairness_ms = Parameters().fairness_ms
    per_lane = Parameters().lane_quota_bytes // REPORT_BYTES_MIN // LANE_AHEAD_MAX
    cluster = Cluster(n, fairness_ms=fairness_ms, view_timer_ms=1_000, execution_ms=20).start()
    full = [
        batch(collector, number, count=per_lane) for collector in range(n) for number in range(1, LANE_AHEAD_MAX + 1)
    ]
    cluster.gossip(*full)
    cluster.run_until(cluster.all_executed, fairness_ms // 2)
    assert {node.replica.view for node in cluster.live() if node.replica is not None} == {0}
