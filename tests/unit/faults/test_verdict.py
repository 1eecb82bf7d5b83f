"""Judging a run: what passes, what fails, and what proves nothing."""

from typing import Any

import msgspec
import pytest

from bcami.faults.scenario import Scenario
from bcami.faults.verdict import (
    History,
    Ledgers,
    Sample,
    Shown,
    Verdict,
    figures,
    judge,
    longest_pause,
    next_commit,
    overall,
    rate,
)

NAMES = ("node1", "node2", "node3", "node4")


def scenario(kind: str = "mute", **expect: Any) -> Scenario:
    return Scenario.model_validate(
        {
            "title": "t",
            "claim": "c",
            "load": {"rate_per_s": 100, "for_s": 20},
            "fault": [{"at_s": 5, "for_s": 5, "kind": kind, "on": "node1"}],
            "expect": expect,
        }
    )


def samples(pause: tuple[float, float] = (5.0, 6.0), per_s: float = 100, end_s: float = 20.0) -> list[Sample]:
    """A load that stands, but for a pause; the backlog is worked off at once."""
    found = []
    for tick in range(int(end_s * 20) + 1):
        at_s = tick / 20
        moved_s = pause[0] if pause[0] < at_s < pause[1] else at_s
        found.append(Sample(at_s, int(moved_s * per_s), int(at_s * per_s)))
    return found


def history(**changes: Any) -> History:
    good = History(
        samples=samples(),
        shown=[Shown("mute", ["node1"], True, 5.0, 10.0, 7)],
        load_end_s=20.0,
        sent=2_000,
        committed=2_000,
        views=[0, 1],
        views_s=[0.2, 7.5],
        ledgers=Ledgers(9, dict.fromkeys(NAMES, "aa"), {}, 0, 0, 0),
    )
    return msgspec.structs.replace(good, **changes)


def failed(plan: Scenario, seen: History) -> dict[str, Verdict]:
    return {item.expectation: item.verdict for item in judge(plan, seen) if item.verdict is not Verdict.PASS}


def test_a_good_run_passes() -> None:
    plan = scenario(pause_s_max=1.5, resume_s_max=1, during_percent_min=90, after_percent_min=90, view_changes_min=1)
    assert failed(plan, history()) == {}
    assert overall(judge(plan, history())) is Verdict.PASS


def test_figures_come_from_the_samples() -> None:
    seen = figures(scenario(), history())
    assert seen.before_per_s == pytest.approx(100, abs=1)
    assert seen.during_percent == pytest.approx(100, abs=1)
    assert seen.pause_s == pytest.approx(1.0, abs=0.1)
    assert seen.pause_at_s == pytest.approx(5.0, abs=0.1)
    assert seen.view_changes == 1
    assert seen.view_changed_s == pytest.approx(2.5)
    assert figures(scenario(), history(views=[0], views_s=[0.2])).view_changed_s is None


def test_a_pause_that_never_ends_counts_to_the_end_of_the_load() -> None:
    dead = samples(pause=(5.0, 99.0))
    assert longest_pause(dead, 5.0, 20.0)[0] == pytest.approx(15.0, abs=0.1)
    assert next_commit(dead, 10.0) is None
    assert rate(dead, 6.0, 20.0) == 0.0
    assert failed(scenario(resume_s_max=3), history(samples=dead)) == {
        "commits resume after the last fault": Verdict.FAIL
    }


@pytest.mark.parametrize(
    ("expect", "expectation"),
    [
        ({"pause_s_max": 0.5}, "longest time without commits"),
        ({"view_changed_s_max": 2}, "the view is changed after the first fault"),
        ({"view_changes_max": 0}, "view changes"),
        ({"view_changes_min": 2}, "view changes"),
        ({"evidence": ["faulty"]}, "evidence against node1"),
        ({"evidence": ["node1"]}, "evidence against node1"),
        ({"after_percent_min": 150}, "throughput after the faults"),
    ],
)
def test_an_expectation_that_does_not_hold_fails(expect: dict[str, Any], expectation: str) -> None:
    assert failed(scenario(**expect), history()) == {expectation: Verdict.FAIL}


@pytest.mark.parametrize(
    ("changes", "expectation"),
    [
        ({"committed": 1_999}, "every report is settled"),
        ({"stopped": {"revoked_hid": 1}}, "every report is settled"),
        ({"dead": {"node2": "halted"}}, "no honest node halts"),
        ({"evidence": {"node2": ["prepare"]}}, "no honest node is accused"),
        ({"recorded": {"node2": 1}}, "no honest node is accused"),
        ({"ledgers": Ledgers(9, {**dict.fromkeys(NAMES, "aa"), "node3": "bb"}, {}, 0, 0, 0)}, "no fork"),
        ({"ledgers": Ledgers(9, {"node1": "aa", "node2": "aa", "node3": "aa"}, {}, 0, 0, 0)}, "no fork"),
        ({"ledgers": Ledgers(9, dict.fromkeys(NAMES, "aa"), {"node2": "bad"}, 0, 0, 0)}, "ledgers verify"),
        ({"ledgers": Ledgers(9, dict.fromkeys(NAMES, "aa"), {}, 0, 1, 0)}, "readings reconcile"),
    ],
)
def test_what_always_must_hold_is_judged_without_being_asked(changes: dict[str, Any], expectation: str) -> None:
    assert failed(scenario(), history(**changes)) == {expectation: Verdict.FAIL}


def test_a_lost_reading_is_a_lost_acknowledgement() -> None:
    lost = Ledgers(9, dict.fromkeys(NAMES, "aa"), {}, 1, 0, 0)
    assert failed(scenario(), history(ledgers=lost)) == {
        "nothing acknowledged is lost": Verdict.FAIL,
        "readings reconcile": Verdict.FAIL,
    }


def test_a_liar_may_be_accused_and_have_a_bad_ledger() -> None:
    ledgers = Ledgers(9, {**dict.fromkeys(NAMES, "aa"), "node1": "bb"}, {"node1": "bad"}, 0, 0, 0)
    seen = history(evidence={"node1": ["prepare"]}, dead={"node1": "halted"}, ledgers=ledgers)
    assert failed(scenario(evidence=["faulty"]), seen) == {"evidence against node1": Verdict.FAIL}, "not on the chain"
    assert failed(scenario(evidence=["faulty"]), msgspec.structs.replace(seen, recorded={"node1": 1})) == {}


def test_a_dead_node_is_honest() -> None:
    killed = [Shown("kill", ["node1"], False, 5.0, 10.0)]
    seen = history(shown=killed, evidence={"node1": ["prepare"]})
    assert failed(scenario("kill"), seen) == {"no honest node is accused": Verdict.FAIL}


def test_a_restarted_node_must_be_in_step() -> None:
    plan = scenario("kill", in_step_s_max=2)
    shown = [Shown("kill", ["node1"], False, 5.0, 10.0)]
    assert failed(plan, history(shown=shown, in_step_s={"node1": 1.5})) == {}
    late = {"node1 is in step after its first answer": Verdict.FAIL}
    assert failed(plan, history(shown=shown, in_step_s={"node1": 2.5})) == late
    assert failed(plan, history(shown=shown, in_step_s={"node1": None})) == late


def test_a_machine_that_is_too_slow_proves_nothing_about_speed() -> None:
    slow = history(samples=samples(per_s=50))
    assert failed(scenario(pause_s_max=0.5), slow) == {
        "longest time without commits": Verdict.INCONCLUSIVE,
        "the load stood before the first fault": Verdict.INCONCLUSIVE,
    }
    forked = Ledgers(9, {**dict.fromkeys(NAMES, "aa"), "node3": "bb"}, {}, 0, 0, 0)
    assert failed(scenario(), msgspec.structs.replace(slow, ledgers=forked))["no fork"] is Verdict.FAIL


def test_speed_cannot_fail_on_a_machine_that_others_use_up() -> None:
    busy = history(others_percent=60.0)
    assert failed(scenario(pause_s_max=1.5), busy) == {}, "what holds, holds"
    assert failed(scenario(pause_s_max=0.5), busy) == {
        "longest time without commits": Verdict.INCONCLUSIVE,
        "the machine was free for speed to be judged": Verdict.INCONCLUSIVE,
    }
    assert failed(scenario(pause_s_max=0.5), history(others_percent=10.0)) == {
        "longest time without commits": Verdict.FAIL
    }


def test_a_fault_that_never_acted_proves_nothing() -> None:
    idle = [Shown("mute", ["node1"], True, 5.0, 10.0, 0)]
    assert failed(scenario(), history(shown=idle)) == {"the faults really happened": Verdict.INCONCLUSIVE}


def test_more_liars_than_are_tolerated_prove_nothing() -> None:
    two = [Shown("mute", ["node1", "node2"], True, 5.0, 10.0, 7)]
    seen = history(shown=two)
    assert failed(scenario(), seen) == {"within the fault model": Verdict.INCONCLUSIVE}
    assert overall(judge(scenario(), seen)) is Verdict.INCONCLUSIVE


def test_a_run_without_an_audit_is_open() -> None:
    found = failed(scenario(), history(ledgers=None, trouble=["the MDMS stands"]))
    assert set(found.values()) == {Verdict.INCONCLUSIVE}
    assert len(found) == 2


def test_one_failure_outweighs_any_doubt() -> None:
    seen = history(committed=1, shown=[Shown("mute", ["node1"], True, 5.0, 10.0, 0)])
    assert overall(judge(scenario(), seen)) is Verdict.FAIL
