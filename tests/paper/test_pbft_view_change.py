"""[CL99 4.4] view changes, one test for each claim; B and F numbers are those of the survey of other systems' bugs."""

from collections.abc import Callable

import msgspec
import pytest

from bcami.model.consensus import NULL_PROPOSAL, Commit, NewView, PhaseVote, Prepare, PrePrepare, ViewChange
from bcami.pbft import Broadcast, Decided, NeedBlocks, Persist
from bcami.pbft.proofs import check_new_view, choose
from tests.paper.lab import Lab, evidence, header, of, refusals, said


def entered(lab: Lab, changes: list[ViewChange]) -> NewView:
    new_view = lab.new_view(changes)
    lab.hear(new_view)
    assert (lab.replica.view, lab.replica.in_view_change) == (new_view.view, False)
    return new_view


# Leaving a view.


def test_a_backup_whose_timer_runs_out_multicasts_a_view_change_that_is_durable_first() -> None:
    lab = Lab(own=3)
    lab.hear(lab.pre_prepare())
    effects = lab.fire("view")
    (change,) = said(effects)
    assert isinstance(change, ViewChange)
    assert (change.view, change.stable, change.prepared) == (1, None, ())
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Persist) < kinds.index(Broadcast)
    assert lab.replica.in_view_change


def test_a_view_change_carries_the_stable_certificate_and_what_is_prepared_above_it() -> None:
    lab = Lab(own=3)
    lab.decide(1)
    lab.execute(1)
    lab.hear(*lab.checkpoints(1, 0, 1))
    prepared, unprepared = lab.pre_prepare(height=2), lab.pre_prepare(height=3)
    lab.hear(prepared, *lab.prepares(prepared, 1), unprepared)
    (change,) = said(lab.fire("view"), ViewChange)
    assert change.stable == lab.certificate(1, [0, 1, 3])
    assert [proof.pre_prepare for proof in change.prepared] == [prepared]
    assert [vote.replica for vote in change.prepared[0].prepares] == [1, 3]


def test_no_vote_is_sent_in_the_view_that_was_left() -> None:
    lab = Lab(own=3)
    first = lab.pre_prepare()
    lab.hear(first)
    lab.fire("view")
    second = lab.pre_prepare(height=2)
    assert said(lab.hear(*lab.prepares(first, 1, 2), second, *lab.prepares(second, 1, 2))) == []


def test_what_others_commit_in_the_view_that_was_left_is_still_decided() -> None:
    """B16, F37: a replica that asked for a view change must not stall behind those that stayed."""
    lab = Lab(own=3)
    first = lab.pre_prepare()
    lab.hear(first)
    lab.fire("view")
    effects = lab.hear(*lab.prepares(first, 1, 2), *lab.commits(first, 0, 1, 2))
    assert [effect.height for effect in of(effects, Decided)] == [1]
    assert said(effects) == []


def test_what_was_prepared_after_leaving_goes_into_the_next_view_change() -> None:
    lab = Lab(own=3)
    first = lab.pre_prepare()
    lab.hear(first)
    lab.fire("view")
    lab.hear(*lab.prepares(first, 1, 2))
    lab.hear(lab.view_change(1, 5), lab.view_change(2, 5))
    change = said(lab.log, ViewChange)[-1]
    assert (change.view, [proof.pre_prepare for proof in change.prepared]) == (5, [first])


def test_commits_of_the_view_before_still_decide_after_entering_the_next() -> None:
    lab = Lab(own=3)
    first = lab.pre_prepare()
    lab.hear(first, *lab.prepares(first, 1, 2))
    entered(lab, [lab.view_change(0, 1, None, [lab.proof(first)]), *(lab.view_change(r) for r in (1, 2))])
    assert of(lab.hear(*lab.commits(first, 0, 1, 2)), Decided)


# The new primary.


def test_the_new_primary_multicasts_a_new_view_when_a_strong_quorum_left() -> None:
    lab = Lab(own=1)
    lab.hear(lab.view_change(2))
    assert said(lab.log, NewView) == []
    effects = lab.hear(lab.view_change(3))  # weak others left: it joins, and with it they are strong
    (new_view,) = said(effects, NewView)
    assert [change.replica for change in new_view.view_changes] == [1, 2, 3]
    assert not isinstance(check_new_view(new_view, lab.of[0]), str)
    kinds = [(type(effect), getattr(effect, "key", b"")) for effect in effects]
    stored = kinds.index((Persist, b"vote/new_view"))
    sent = next(i for i, effect in enumerate(effects) if isinstance(effect, Broadcast) and effect.message is new_view)
    assert stored < sent


def test_the_new_primary_counts_each_replica_once() -> None:
    lab = Lab(own=1)
    change = lab.view_change(2)
    assert refusals(lab.hear(change, change)) == ["duplicate"]
    assert said(lab.log, NewView) == []


def test_o_proposes_the_prepared_again_and_fills_gaps_with_null() -> None:
    lab = Lab(own=1)
    third = lab.pre_prepare(height=3)
    effects = lab.hear(lab.view_change(2, proofs=[lab.proof(third)]), lab.view_change(3))
    (new_view,) = said(effects, NewView)
    assert [(item.height, item.view) for item in new_view.pre_prepares] == [(1, 1), (2, 1), (3, 1)]
    assert [item.proposal for item in new_view.pre_prepares] == [NULL_PROPOSAL, NULL_PROPOSAL, third.proposal]
    assert said(effects, Prepare) == [], "the primary sends no prepare"


def test_the_new_primary_goes_on_above_what_it_proposed_again() -> None:
    lab = Lab(own=1)
    first = lab.pre_prepare(height=2)
    lab.hear(lab.view_change(2, proofs=[lab.proof(first)]), lab.view_change(3))
    effects = lab.ready((1, 1), (2, 1), (3, 1), (0, 1))
    assert [message.height for message in said(effects, PrePrepare)] == [3]


# Choosing O.


def test_of_two_proofs_at_one_height_the_higher_view_wins() -> None:
    """F28: a lower view that wins over a higher one loses what was committed."""
    lab = Lab(own=3)
    low, high = lab.pre_prepare(view=0), lab.pre_prepare(view=2, proposal=lab.proposal((2, 1)))
    changes = [
        lab.view_change(0, 4, proofs=[lab.proof(low)]),
        lab.view_change(1, 4, proofs=[lab.proof(high)]),
        lab.view_change(2, 4, proofs=[lab.proof(low)]),
    ]
    for order in (changes, changes[::-1]):
        assert [item.proposal for item in choose(order, lab.of[0]).orders] == [high.proposal]


def test_min_s_is_the_highest_stable_checkpoint_of_all_not_the_common_one() -> None:
    """B1: a test on matching checkpoints made the view change never end."""
    lab = Lab(own=3)
    tenth, twelfth = lab.pre_prepare(height=10), lab.pre_prepare(height=12)
    changes = [
        lab.view_change(0, stable=lab.certificate(3)),
        lab.view_change(1, stable=lab.certificate(10), proofs=[lab.proof(twelfth)]),
        lab.view_change(2, stable=lab.certificate(7), proofs=[lab.proof(tenth)]),
    ]
    choice = choose(changes, lab.of[0])
    assert (choice.min_s, choice.max_s) == (10, 12)
    assert [item.proposal for item in choice.orders] == [NULL_PROPOSAL, twelfth.proposal]


def test_without_anything_prepared_o_is_empty() -> None:
    lab = Lab(own=3)
    choice = choose([lab.view_change(r, stable=lab.certificate(4)) for r in (0, 1, 2)], lab.of[0])
    assert (choice.min_s, choice.max_s, choice.orders) == (4, 4, ())


# A backup and the new-view.


def test_a_backup_enters_the_view_and_prepares_what_is_proposed_again() -> None:
    lab = Lab(own=3)
    first = lab.pre_prepare()
    changes = [lab.view_change(r, proofs=[lab.proof(first)] if r == 0 else ()) for r in (0, 1, 2)]
    effects = lab.hear(lab.new_view(changes))
    (vote,) = said(effects, Prepare)
    assert (vote.view, vote.height, vote.digest) == (1, 1, first.digest)
    keys = [effect.key for effect in effects if isinstance(effect, Persist)]
    assert keys[0] == b"vote/new_view"


def test_a_proposal_of_an_old_view_is_accepted_without_a_clock_check() -> None:
    """Protocol 5.1: else a proposal prepared in an old view can be carried but never accepted. Also B8."""
    lab = Lab(own=3)
    first = lab.pre_prepare(proposal=lab.proposal(time_ms=lab.now_ms - 10_000_000))
    effects = lab.hear(lab.new_view([lab.view_change(r, proofs=[lab.proof(first)]) for r in (0, 1, 2)]))
    assert len(said(effects, Prepare)) == 1


def test_null_proposals_are_carried_from_view_to_view_like_any_other() -> None:
    lab = Lab(own=3)
    null = lab.primary(1).pre_prepare(1, 1, NULL_PROPOSAL)
    effects = lab.hear(lab.new_view([lab.view_change(r, 2, proofs=[lab.proof(null)]) for r in (0, 1, 2)]))
    assert [message.digest for message in said(effects, Prepare)] == [null.digest]


def test_a_backup_that_is_behind_min_s_asks_for_blocks_and_votes_above() -> None:
    """B17, F38: and it is in the new view, not stuck in the change."""
    lab = Lab(own=3)
    sixth = lab.pre_prepare(height=6)
    changes = [lab.view_change(r, stable=lab.certificate(5), proofs=[lab.proof(sixth)]) for r in (0, 1, 2)]
    effects = lab.hear(lab.new_view(changes))
    assert [effect.target_height for effect in of(effects, NeedBlocks)] == [5]
    assert [message.height for message in said(effects, Prepare)] == [6]
    assert not lab.replica.in_view_change


def test_what_the_new_view_proposes_beyond_the_own_window_is_voted_on_when_the_window_moves() -> None:
    from bcami.pbft import Synced

    lab = Lab(own=3, window=2)
    seventh = lab.pre_prepare(height=7)
    changes = [lab.view_change(r, stable=lab.certificate(6), proofs=[lab.proof(seventh)]) for r in (0, 1, 2)]
    assert said(lab.hear(lab.new_view(changes)), Prepare) == []
    effects = lab.step(Synced(6, header(6), lab.certificate(6), (0, 0, 0, 0)))
    assert [message.height for message in said(effects, Prepare)] == [7]


def test_a_first_hand_proposal_in_the_range_of_the_new_view_is_refused() -> None:
    lab = Lab(own=3)
    entered(lab, [lab.view_change(r, stable=lab.certificate(5)) for r in (0, 1, 2)])
    effects = lab.hear(lab.pre_prepare(view=1, height=4))
    assert (refusals(effects), said(effects)) == (["outside_watermarks"], [])


def test_messages_that_come_before_their_new_view_are_not_lost() -> None:
    """B15."""
    lab = Lab(own=3)
    first = lab.pre_prepare(view=1)
    assert said(lab.hear(first, *lab.prepares(first, 0, 2), *lab.commits(first, 0, 1, 2))) == []
    effects = lab.hear(lab.new_view([lab.view_change(r) for r in (0, 1, 2)]))
    assert [type(message) for message in said(effects)] == [Prepare, Commit]
    assert of(effects, Decided)


def test_a_view_that_was_left_is_never_entered() -> None:
    lab = Lab(own=3)
    lab.hear(lab.view_change(1, 2), lab.view_change(2, 2))
    assert lab.replica.view == 2
    effects = lab.hear(lab.new_view([lab.view_change(r, 1) for r in (0, 1, 2)]))
    assert refusals(effects) == ["stale"]
    assert lab.replica.in_view_change


def test_a_proved_new_view_is_entered_without_having_asked_for_it() -> None:
    lab = Lab(own=3)
    entered(lab, [lab.view_change(r, 9) for r in (0, 1, 2)])


def test_a_second_view_change_after_an_in_flight_proposal_was_decided_does_no_harm() -> None:
    """B11, F39."""
    lab = Lab(own=3)
    first = lab.pre_prepare()
    lab.hear(first)
    lab.fire("view")
    lab.hear(*lab.prepares(first, 1, 2), *lab.commits(first, 0, 1, 2))
    lab.execute(1)
    lab.hear(lab.view_change(0, 2, proofs=[lab.proof(first)]), lab.view_change(1, 5, proofs=[lab.proof(first)]))
    entered(lab, [lab.view_change(r, 5, proofs=[lab.proof(first)]) for r in (0, 1, 2)])
    assert [effect.height for effect in of(lab.log, Decided)] == [1]


def test_the_same_height_decided_again_in_the_next_view_is_handed_on_once() -> None:
    """B10."""
    lab = Lab(own=3)
    first = lab.decide(1)
    again = entered(lab, [lab.view_change(r, proofs=[lab.proof(first)]) for r in (0, 1, 2)]).pre_prepares[0]
    lab.hear(*lab.prepares(again, 0, 2), *lab.commits(again, 0, 1, 2))
    assert len(of(lab.log, Decided)) == 1


# Forged proofs. Each of these is one field away from what is accepted.


def honest(lab: Lab) -> NewView:
    first = lab.pre_prepare()
    return lab.new_view([lab.view_change(r, proofs=[lab.proof(first)] if r == 2 else ()) for r in (0, 1, 2)])


def resigned(lab: Lab, new_view: NewView, **changes: object) -> NewView:
    changed = msgspec.structs.replace(new_view, **changes)
    return lab.primary(1).new_view(changed.view, changed.view_changes, changed.pre_prepares)


def with_change(lab: Lab, new_view: NewView, change: ViewChange) -> NewView:
    return resigned(lab, new_view, view_changes=(*new_view.view_changes[:2], change))


FORGERIES: dict[str, Callable[[Lab, NewView], NewView]] = {
    "another sender": lambda lab, it: msgspec.structs.replace(it, replica=2),
    "not signed": lambda lab, it: msgspec.structs.replace(it, signature=bytes(64)),
    "altered after signing": lambda lab, it: msgspec.structs.replace(it, pre_prepares=()),
    "view zero": lambda lab, it: msgspec.structs.replace(it, view=0),
    "too few view-changes": lambda lab, it: resigned(lab, it, view_changes=it.view_changes[1:]),
    "one replica twice": lambda lab, it: resigned(lab, it, view_changes=(*it.view_changes[:2], it.view_changes[1])),
    "unsorted": lambda lab, it: resigned(lab, it, view_changes=it.view_changes[::-1]),
    "a view-change of another view": lambda lab, it: with_change(lab, it, lab.view_change(2, 2)),
    "a view-change of another epoch": lambda lab, it: with_change(
        lab, it, msgspec.structs.replace(it.view_changes[2], epoch=2)
    ),
    "a view-change not signed": lambda lab, it: with_change(
        lab, it, msgspec.structs.replace(it.view_changes[2], signature=bytes(64))
    ),
    "a proof left out": lambda lab, it: with_change(lab, it, msgspec.structs.replace(it.view_changes[2], prepared=())),
    "a proposal left out of O": lambda lab, it: resigned(lab, it, pre_prepares=()),
    "a null in place of the prepared": lambda lab, it: resigned(
        lab, it, pre_prepares=(lab.primary(1).pre_prepare(1, 1, NULL_PROPOSAL),)
    ),
    "a proposal too many": lambda lab, it: resigned(
        lab, it, pre_prepares=(*it.pre_prepares, lab.primary(1).pre_prepare(1, 2, lab.proposal((3, 1))))
    ),
    "another proposal under the digest": lambda lab, it: resigned(
        lab, it, pre_prepares=(msgspec.structs.replace(it.pre_prepares[0], proposal=lab.proposal((3, 1))),)
    ),
    "an order not signed": lambda lab, it: resigned(
        lab, it, pre_prepares=(msgspec.structs.replace(it.pre_prepares[0], signature=bytes(64)),)
    ),
    "an order of the old view": lambda lab, it: resigned(
        lab, it, pre_prepares=(msgspec.structs.replace(it.pre_prepares[0], view=0),)
    ),
}


@pytest.mark.parametrize("name", sorted(FORGERIES))
def test_a_new_view_that_differs_from_the_recomputed_one_is_refused(name: str) -> None:
    """B3, B5, F30: everything carried is recomputed."""
    lab = Lab(own=3)
    effects = lab.hear(FORGERIES[name](lab, honest(lab)))
    assert len(refusals(effects)) == 1
    assert said(effects) == []
    assert lab.replica.view == 0


def test_the_honest_new_view_of_the_forgeries_is_accepted() -> None:
    lab = Lab(own=3)
    entered(lab, list(honest(lab).view_changes))


def votes(lab: Lab, first: PrePrepare, *senders: int) -> tuple[PhaseVote, ...]:
    return tuple(PhaseVote(vote.replica, vote.signature) for vote in lab.prepares(first, *senders))


PROOFS: dict[str, Callable[[Lab], ViewChange]] = {
    "too few prepares": lambda lab: lab.view_change(2, proofs=[lab.proof(lab.pre_prepare(), [1])]),
    "one backup twice": lambda lab: lab.view_change(2, proofs=[lab.proof(lab.pre_prepare(), [1, 1])]),
    "the primary among the backups": lambda lab: lab.view_change(2, proofs=[lab.proof(lab.pre_prepare(), [0, 1])]),
    "prepares of another digest": lambda lab: lab.view_change(
        2,
        proofs=[
            msgspec.structs.replace(
                lab.proof(lab.pre_prepare()),
                prepares=votes(lab, lab.pre_prepare(proposal=lab.proposal((3, 1))), 1, 2),
            )
        ],
    ),
    "prepares of another view": lambda lab: lab.view_change(
        2,
        5,
        proofs=[
            msgspec.structs.replace(lab.proof(lab.pre_prepare(view=4)), prepares=votes(lab, lab.pre_prepare(), 1, 2))
        ],
    ),
    "a pre-prepare of no primary": lambda lab: lab.view_change(
        2, proofs=[lab.proof(msgspec.structs.replace(lab.of[1].pre_prepare(0, 1, lab.proposal())))]
    ),
    "a pre-prepare not signed": lambda lab: lab.view_change(
        2, proofs=[lab.proof(msgspec.structs.replace(lab.pre_prepare(), signature=bytes(64)))]
    ),
    "a pre-prepare of another epoch": lambda lab: lab.view_change(
        2, proofs=[lab.proof(msgspec.structs.replace(lab.pre_prepare(), epoch=2))]
    ),
    "another proposal under the digest": lambda lab: lab.view_change(
        2, proofs=[lab.proof(msgspec.structs.replace(lab.pre_prepare(), proposal=lab.proposal((3, 1))))]
    ),
    "a view that is not below": lambda lab: lab.view_change(2, 4, proofs=[lab.proof(lab.pre_prepare(view=4))]),
    "one height twice": lambda lab: lab.view_change(2, proofs=[lab.proof(lab.pre_prepare())] * 2),
    "heights falling": lambda lab: lab.view_change(
        2, proofs=[lab.proof(lab.pre_prepare(height=2)), lab.proof(lab.pre_prepare(height=1))]
    ),
    "above the window": lambda lab: lab.view_change(2, proofs=[lab.proof(lab.pre_prepare(height=17))]),
    "at the stable checkpoint": lambda lab: lab.view_change(
        2, stable=lab.certificate(5), proofs=[lab.proof(lab.pre_prepare(height=5))]
    ),
    "a stable checkpoint of too few": lambda lab: lab.view_change(2, stable=lab.certificate(5, [0, 1])),
    "a stable checkpoint of repeated signers": lambda lab: lab.view_change(2, stable=lab.certificate(5, [0, 0, 1])),
    "not signed": lambda lab: msgspec.structs.replace(lab.view_change(2), signature=bytes(64)),
    "signed by another": lambda lab: msgspec.structs.replace(lab.view_change(2), replica=3),
    "altered after signing": lambda lab: msgspec.structs.replace(lab.view_change(2), view=2),
}


@pytest.mark.parametrize("name", sorted(PROOFS))
def test_a_view_change_with_a_forged_proof_does_not_count(name: str) -> None:
    """F28, F29, F30."""
    lab = Lab(own=1)
    forged = PROOFS[name](lab)
    lab.hear(lab.view_change(0, forged.view))
    effects = lab.hear(forged)
    assert len(refusals(effects)) == 1
    assert said(lab.log) == [], "it would have joined"


def test_a_second_view_change_for_the_same_view_is_evidence() -> None:
    lab = Lab(own=1)
    effects = lab.hear(lab.view_change(2), lab.view_change(2, stable=lab.certificate(3)))
    assert [(item.replica, item.what) for item in evidence(effects)] == [(2, "view_change")]


def test_a_second_new_view_for_the_same_view_is_evidence() -> None:
    lab = Lab(own=3)
    entered(lab, [lab.view_change(r) for r in (0, 1, 2)])
    effects = lab.hear(lab.new_view([lab.view_change(r, stable=lab.certificate(2)) for r in (0, 1, 2)]))
    assert [(item.replica, item.what) for item in evidence(effects)] == [(1, "new_view")]


def test_two_statements_that_come_before_their_view_are_evidence_too() -> None:
    """A primary that equivocates in its new view, to a backup that has not got the NEW-VIEW yet."""
    lab = Lab(own=3)
    first, second = lab.pre_prepare(view=1), lab.pre_prepare(view=1, proposal=lab.proposal((0, 1), time_ms=7))
    effects = lab.hear(first, second, *lab.prepares(first, 2), *lab.prepares(second, 2), second)
    assert [(item.replica, item.what) for item in evidence(effects)] == [(1, "pre_prepare"), (2, "prepare")] + [
        (1, "pre_prepare")
    ]
    effects = lab.hear(lab.new_view([lab.view_change(r) for r in (0, 1, 2)]))
    assert [message.digest for message in said(effects) if isinstance(message, Prepare)] == [first.digest]
