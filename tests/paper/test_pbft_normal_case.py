"""[CL99 4.2] the three phases, one test for each claim; and what protocol.md 5.1, 5.2 add."""

import msgspec
import pytest

from bcami.model.consensus import Commit, Prepare, PrePrepare, Proposal
from bcami.model.signing import u64
from bcami.pbft import Broadcast, Decided, Persist, SendTo
from tests.paper.keys import bad_batch, batch
from tests.paper.lab import Lab, evidence, of, refusals, said

# The primary.


def test_the_primary_assigns_the_next_height_and_multicasts_a_pre_prepare_with_the_proposal() -> None:
    lab = Lab(own=0)
    (first,) = said(lab.ready((2, 1)), PrePrepare)
    assert (first.view, first.height, first.proposal.certificates) == (0, 1, (batch(2, 1),))
    assert first.proposal.time_ms == lab.now_ms


def test_the_primary_sends_no_prepare() -> None:
    lab = Lab(own=0)
    assert said(lab.ready((0, 1)), Prepare) == []


def test_an_idle_primary_proposes_at_once_and_gathers_while_a_proposal_is_in_flight() -> None:
    lab = Lab(own=0)
    assert len(said(lab.ready((0, 1)), PrePrepare)) == 1
    assert said(lab.ready((1, 1), (2, 1), (0, 2)), PrePrepare) == []
    (second,) = said(lab.ready((3, 1)), PrePrepare)
    assert {(item.collector, item.number) for item in second.proposal.certificates} == {(0, 2), (1, 1), (2, 1), (3, 1)}


def test_the_primary_proposes_what_it_gathered_when_the_proposal_in_flight_is_decided() -> None:
    lab = Lab(own=0)
    (first,) = said(lab.ready((0, 1)), PrePrepare)
    lab.ready((1, 1))
    effects = lab.hear(*lab.prepares(first, 1, 2), *lab.commits(first, 1, 2))
    (second,) = said(effects, PrePrepare)
    assert (second.height, second.proposal.certificates) == (2, (batch(1, 1),))


def test_at_most_four_proposals_are_in_flight() -> None:
    lab = Lab(own=0)
    made = said(lab.ready(*[(lane, number) for number in range(1, 11) for lane in range(4)]), PrePrepare)
    assert [message.height for message in made] == [1, 2, 3, 4]


def test_a_lane_is_ordered_without_gaps_even_when_certificates_come_in_any_order() -> None:
    lab = Lab(own=0)
    assert said(lab.ready((1, 2), (1, 3)), PrePrepare) == []
    (first,) = said(lab.ready((1, 1)), PrePrepare)
    assert [item.number for item in first.proposal.certificates] == [1, 2, 3]


def test_a_proposal_holds_at_most_64_certificates() -> None:
    lab = Lab(own=0)
    made = said(lab.ready(*[(1, number) for number in range(200, 0, -1)]), PrePrepare)
    assert [len(message.proposal.certificates) for message in made] == [64, 64, 64, 8]
    assert [item.number for message in made for item in message.proposal.certificates] == list(range(1, 201))


def test_a_proposal_has_the_time_of_the_clock_even_when_the_clock_fell() -> None:
    """Block time never falls by itself (protocol 5.1); a time that was ahead would be refused until it is reached."""
    lab = Lab(own=0)
    (first,) = said(lab.ready((0, 1)), PrePrepare)
    lab.now_ms -= 60_000
    lab.ready((1, 1))
    (second,) = said(lab.hear(*lab.prepares(first, 1, 2), *lab.commits(first, 1, 2)), PrePrepare)
    assert second.proposal.time_ms == lab.now_ms == first.proposal.time_ms - 60_000


# A backup and the pre-prepare.


def test_a_backup_that_accepts_a_pre_prepare_multicasts_a_matching_prepare() -> None:
    lab = Lab()
    first = lab.pre_prepare()
    (vote,) = said(lab.hear(first))
    assert isinstance(vote, Prepare)
    assert (vote.view, vote.height, vote.digest, vote.replica) == (0, 1, first.digest, 1)


def test_the_proposal_and_the_prepare_are_durable_before_the_prepare_leaves() -> None:
    lab = Lab()
    effects = lab.hear(lab.pre_prepare())
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Persist) < kinds.index(Broadcast)
    assert b"vote/accepted/" + u64(1) + u64(0) in lab.disk


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"epoch": 2}, "wrong_epoch"),
        ({"replica": 2}, "not_primary"),
        ({"replica": 9}, "unknown_replica"),
        ({"signature": bytes(64)}, "bad_signature"),
        ({"digest": bytes(32)}, "bad_signature"),
        ({"height": 2}, "bad_signature"),
        ({"height": 0}, "stale"),
        ({"height": 33}, "outside_watermarks"),
        ({"proposal": Proposal((batch(0, 9),), 0)}, "bad_digest"),
    ],
)
def test_a_pre_prepare_that_is_not_what_the_primary_signed_gets_no_vote(change: dict[str, object], reason: str) -> None:
    lab = Lab()
    effects = lab.hear(msgspec.structs.replace(lab.pre_prepare(), **change))
    assert refusals(effects) == [reason]
    assert said(effects) == []
    assert lab.disk == {}


@pytest.mark.parametrize(
    ("proposal", "reason"),
    [
        (Proposal((batch(0, 1), bad_batch(1, 1)), 0), "bad_certificate"),
        (Proposal((), 0), "malformed"),
    ],
)
def test_a_proposal_is_checked_before_the_vote(proposal: Proposal, reason: str) -> None:
    lab = Lab()
    proposal = msgspec.structs.replace(proposal, time_ms=lab.now_ms)
    effects = lab.hear(lab.pre_prepare(proposal=proposal))
    assert (refusals(effects), said(effects)) == ([reason], [])


@pytest.mark.parametrize(
    ("offset_ms", "is_accepted"), [(5_000, True), (5_001, False), (-13_000, True), (-13_001, False)]
)
def test_the_time_is_bounded_by_the_skew_and_the_timer_cap(offset_ms: int, is_accepted: bool) -> None:
    lab = Lab(clock_skew_ms=5_000, view_timer_cap_ms=8_000)
    effects = lab.hear(lab.pre_prepare(proposal=lab.proposal(time_ms=lab.now_ms + offset_ms)))
    assert bool(said(effects, Prepare)) == is_accepted
    assert refusals(effects) == ([] if is_accepted else ["bad_time"])


def test_a_proposal_from_the_future_gets_its_vote_when_it_comes_again_in_time() -> None:
    lab = Lab()
    first = lab.pre_prepare(proposal=lab.proposal(time_ms=lab.now_ms + 6_000))
    assert said(lab.hear(first)) == []
    lab.now_ms += 2_000
    assert len(said(lab.hear(first), Prepare)) == 1


def test_a_replica_whose_clock_is_wrong_still_commits_what_others_prepared() -> None:
    lab = Lab(own=3)
    first = lab.pre_prepare(proposal=lab.proposal(time_ms=lab.now_ms - 90_000))
    effects = lab.hear(first, *lab.prepares(first, 1, 2))
    assert [type(message) for message in said(effects)] == [Commit]
    assert of(lab.hear(*lab.commits(first, 0, 1)), Decided)


def test_a_backup_prepares_one_digest_for_each_view_and_height() -> None:
    lab = Lab()
    first, second = lab.pre_prepare(), lab.pre_prepare(proposal=lab.proposal((2, 1)))
    lab.hear(first)
    effects = lab.hear(second)
    assert said(effects) == []
    assert refusals(effects) == ["equivocation"]
    assert [item.what for item in evidence(effects)] == ["pre_prepare"]


def test_a_proposal_above_the_window_waits_for_it() -> None:
    lab = Lab(window=1)
    second = lab.pre_prepare(height=2)
    assert said(lab.hear(second)) == []
    lab.decide(1)
    lab.execute(1)
    assert [message.height for message in said(lab.hear(*lab.checkpoints(1, 0, 2)), Prepare)] == [2]


# Prepared, committed, decided.


def test_prepared_takes_strong_minus_one_matching_prepares_of_different_backups() -> None:
    lab = Lab(own=1, n=7)
    first = lab.pre_prepare()
    assert said(lab.hear(first, *lab.prepares(first, 2, 2, 3, 3)), Commit) == []
    (commit,) = said(lab.hear(*lab.prepares(first, 4)), Commit)
    assert (commit.view, commit.height, commit.digest) == (0, 1, first.digest)


def test_a_prepare_of_the_primary_does_not_count() -> None:
    lab = Lab(own=1)
    first = lab.pre_prepare()
    effects = lab.hear(first, *lab.prepares(first, 0))
    assert said(effects, Commit) == []
    assert refusals(effects) == ["not_authorized"]


def test_prepares_for_another_digest_do_not_count() -> None:
    lab = Lab()
    first, other = lab.pre_prepare(), lab.pre_prepare(proposal=lab.proposal((3, 1)))
    assert said(lab.hear(first, *lab.prepares(other, 2, 3)), Commit) == []


@pytest.mark.parametrize("vote_first", [False, True])
def test_who_prepares_another_proposal_is_told_what_was_heard_here(vote_first: bool) -> None:
    """I12: the primary says one thing here and another there; the two that talk about it both hold its signatures."""
    here, there = Lab(), Lab(own=2)
    first, other = here.pre_prepare(), here.pre_prepare(proposal=here.proposal((2, 1)))
    (vote,) = said(there.hear(other), Prepare)
    effects = here.hear(vote, first) if vote_first else here.hear(first, vote)
    assert of(effects, SendTo) == [SendTo(2, first)]
    assert [item.what for item in evidence(there.hear(first))] == ["pre_prepare"]
    assert not of(here.hear(vote, *here.prepares(other, 2)), SendTo), "once"


def test_who_prepares_the_same_proposal_is_told_nothing() -> None:
    lab = Lab()
    first = lab.pre_prepare()
    assert not of(lab.hear(first, *lab.prepares(first, 2, 3), *lab.commits(first, 0, 2, 3)), SendTo)


def test_prepares_that_come_before_the_pre_prepare_count() -> None:
    lab = Lab()
    first = lab.pre_prepare()
    lab.hear(*lab.prepares(first, 2, 3))
    assert [type(message) for message in said(lab.hear(first))] == [Prepare, Commit]


def test_the_strong_prepares_are_durable_before_the_commit_leaves() -> None:
    lab = Lab()
    first = lab.pre_prepare()
    lab.hear(first)
    effects = lab.hear(*lab.prepares(first, 2))
    assert [type(effect) for effect in effects] == [Persist, Broadcast]
    assert b"vote/prepared/" + u64(1) + u64(0) in lab.disk


def test_committed_takes_a_strong_quorum_of_commits_and_prepared() -> None:
    lab = Lab()
    first = lab.pre_prepare()
    assert not of(lab.hear(first, *lab.commits(first, 0, 2, 3)), Decided), "not prepared yet"
    (decided,) = of(lab.hear(*lab.prepares(first, 2)), Decided)
    assert (decided.height, decided.proposal, decided.view) == (1, first.proposal, 0)


def test_repeated_commits_count_once() -> None:
    lab = Lab()
    first = lab.pre_prepare()
    lab.hear(first, *lab.prepares(first, 2))
    effects = lab.hear(*lab.commits(first, 0, 0, 0))
    assert not of(effects, Decided)
    assert refusals(effects) == ["duplicate", "duplicate"]


def test_heights_are_decided_in_order() -> None:
    lab = Lab()
    lab.decide(2)
    assert not of(lab.log, Decided)
    lab.decide(1)
    assert [effect.height for effect in of(lab.log, Decided)] == [1, 2]


def test_a_single_replica_decides_alone() -> None:
    lab = Lab(own=0, n=1)
    assert [effect.height for effect in of(lab.ready((0, 1)), Decided)] == [1]
    lab.execute(1, lab.proposal((0, 1)))
    assert lab.replica.low_watermark == 1


def test_thresholds_hold_where_n_is_not_3f_plus_1() -> None:
    lab = Lab(own=1, n=6)  # f = 1, strong = 4: with 2f+1 = 3 two quorums of six need not meet
    first = lab.pre_prepare()
    assert said(lab.hear(first, *lab.prepares(first, 2)), Commit) == []
    assert said(lab.hear(*lab.prepares(first, 3)), Commit)
    assert not of(lab.hear(*lab.commits(first, 0, 2)), Decided)
    assert of(lab.hear(*lab.commits(first, 3)), Decided)
