"""Every attack of `bcami report security`, one test each: what it reaches here, and against the paper's protocol."""

import pytest

from bcami.report.security.attack import Verdict, carry_out
from bcami.report.security.catalogue import ATTACKS
from bcami.report.security.properties import PROPERTIES

IN_PART = {
    "F1.2",  # the context of the open session
    "F1.3",  # the period key while it lives
    "F1.4",  # the readings in the store
    "F1.6",  # a symmetric key until its next change
    "F7.1",  # numbers of the session
    "F7.2",  # enrolment keys are the meter
    "F9.7",  # liveness above f
    "F10.2",  # 2f + 1 keys
    "F10.4",  # a majority
    "DICTIONARY.2",  # who has the network key knows
    "DICTIONARY.3",  # a HID is a pseudonym
    "LEDGER.2",  # an older ledger is a node behind
}
PAPER_HOLDS = {"F3.1", "F4.1"}
BY_KEY = {attack.key: attack for attack in ATTACKS}


@pytest.mark.parametrize("key", BY_KEY)
def test_an_attack_reaches_nothing_but_what_is_said_not_to_be_prevented(key):
    finding = carry_out(BY_KEY[key], seed=0)
    expected = Verdict.PARTLY if key in IN_PART else Verdict.HOLDS
    assert finding.ours.verdict is expected, finding.ours
    if finding.papers is not None:
        papers = Verdict.HOLDS if key in PAPER_HOLDS else Verdict.FALLS
        assert finding.papers.verdict is papers, finding.papers


@pytest.mark.parametrize("key", ["F2.7", "F3.2", "F6.1", "F8.5", "F9.1", "F9.6", "WITHHOLD.3", "DESYNC.3"])
def test_verdicts_do_not_hang_on_the_seed(key):
    verdicts = {carry_out(BY_KEY[key], seed).ours.verdict for seed in (1, 2)}
    assert verdicts == {Verdict.HOLDS}


def test_two_runs_with_one_seed_give_one_transcript():
    for key in ("F2.1", "F9.4", "DESYNC.2"):
        first, second = (carry_out(BY_KEY[key], 5) for _ in range(2))
        assert first == second


def test_each_property_is_attacked_and_each_attack_is_about_one():
    known = {item.key for item in PROPERTIES}
    about = {item for attack in ATTACKS for item in attack.properties}
    assert about == known
    assert len(BY_KEY) == len(ATTACKS)
    for number in range(1, 11):
        several = [attack for attack in ATTACKS if f"F{number}" in attack.properties]
        assert len(several) >= 3, f"F{number}"
