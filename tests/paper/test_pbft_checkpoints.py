"""[CL99 4.3] checkpoints and watermarks, with a checkpoint for every block (design D4, protocol 5.2, 5.4)."""

import msgspec

from bcami.codec import encode
from bcami.model.consensus import Checkpoint, PrePrepare, ViewChange
from bcami.model.signing import u64
from bcami.pbft import (
    BlockCertified,
    Certified,
    Decided,
    Executed,
    Forget,
    Halt,
    NeedBlocks,
    Persist,
    Synced,
    lanes_after,
)
from tests.paper.lab import Lab, evidence, header, of, refusals, said


def decided(lab: Lab, *heights: int) -> None:
    for height in heights:
        lab.decide(height)
        lab.execute(height)


def test_a_checkpoint_is_multicast_only_when_the_block_is_durably_executed() -> None:
    lab = Lab()
    lab.decide(1)
    assert said(lab.log, Checkpoint) == []
    effects = lab.execute(1)
    (vote,) = said(effects, Checkpoint)
    assert (vote.height, vote.header_hash) == (1, header(1))
    assert isinstance(effects[0], Persist)
    assert b"vote/checkpoint/" + u64(1) in lab.disk


def test_a_strong_quorum_of_matching_checkpoints_is_the_block_certificate() -> None:
    lab = Lab()
    decided(lab, 1)
    assert not of(lab.hear(*lab.checkpoints(1, 3)), Certified)
    (made,) = of(lab.hear(*lab.checkpoints(1, 0)), Certified)
    assert made.certificate == lab.certificate(1, [0, 1, 3])


def test_the_low_watermark_is_the_minimum_of_certified_and_executed() -> None:
    lab = Lab()
    lab.decide(1)
    assert of(lab.hear(*lab.checkpoints(1, 0, 2, 3)), Certified)
    assert lab.replica.low_watermark == 0
    lab.execute(1)
    assert lab.replica.low_watermark == 1
    decided(lab, 2)
    assert lab.replica.low_watermark == 1


def test_the_log_and_the_records_go_when_the_low_watermark_passes_them_and_not_before() -> None:
    lab = Lab()
    decided(lab, 1)
    assert len(lab.disk) == 3
    (forgotten,) = of(lab.hear(*lab.checkpoints(1, 0, 2)), Forget)
    assert len(forgotten.keys) == 3
    assert list(lab.disk) == [b"vote/floor"]
    assert refusals(lab.hear(lab.pre_prepare(height=1))) == ["stale"]


def test_what_was_given_up_is_proved_after_a_loss_of_power_although_the_ledger_lost_the_certificate() -> None:
    """Protocol 5.2: votes and certificate are in two stores. With neither, the height could be proposed anew.

    The certificate is written with the deletion of the votes that it makes needless.
    """
    lab = Lab()
    decided(lab, 1)
    lab.hear(*lab.checkpoints(1, 0, 2))
    lab.stable = None
    restored = lab.restart()
    assert [item.certificate.height for item in of(restored, Certified)] == [1], "the ledger gets it again"
    left = lab.hear(*(lab.view_change(sender, 2) for sender in (0, 3)))
    (change,) = said(left, ViewChange)
    assert change.stable == lab.certificate(1, [0, 1, 2])


def test_a_view_that_is_left_as_the_watermark_rises_proves_nothing_below_it() -> None:
    """Seed 1986: catch-up ended and others had left; P held a height below the new watermark, and all refused it."""
    lab = Lab()
    first = lab.pre_prepare(height=1)
    lab.hear(first, *lab.prepares(first, 2, 3))
    lab.disk[b"vote/floor"] = encode(lab.certificate(2))
    lab.restart()
    assert not said(lab.hear(*(lab.view_change(sender, 2) for sender in (0, 3))), ViewChange), "muted below its floor"
    left = lab.step(Synced(2, header(2), lab.certificate(2), (0,) * 4))
    (change,) = said(left, ViewChange)
    assert (change.stable.height, change.prepared) == (2, ())


def test_the_floor_rises_before_any_vote_above_it_although_no_vote_was_given_up() -> None:
    """A node that caught up without voting, voted, and lost its ledger would begin within a window of long ago."""
    lab = Lab()
    lab.step(Synced(3, header(3), lab.certificate(3), (0,) * 4))
    assert b"vote/floor" not in lab.disk, "catching up alone costs no promise"
    lab.hear(lab.pre_prepare(height=4))
    assert lab.disk[b"vote/floor"] == encode(lab.certificate(3))


def test_the_primary_stops_at_the_high_watermark_and_goes_on_when_it_moves() -> None:
    lab = Lab(own=0, window=2)
    for height in (1, 2):
        (first,) = said(lab.ready((0, height)), PrePrepare)
        lab.hear(*lab.prepares(first, 1, 2), *lab.commits(first, 1, 2))
        lab.execute(height, first.proposal)
    assert said(lab.ready((0, 3)), PrePrepare) == []
    (third,) = said(lab.hear(*lab.checkpoints(1, 1, 2)), PrePrepare)
    assert third.height == 3


def test_a_certificate_of_an_unsigned_or_made_up_header_does_not_count() -> None:
    lab = Lab()
    decided(lab, 1)
    good = lab.certificate(1)
    for forged in (
        msgspec.structs.replace(good, votes=good.votes[:2]),
        msgspec.structs.replace(good, votes=(good.votes[0],) * 3),
        msgspec.structs.replace(good, header_hash=header(1, "other")),
        msgspec.structs.replace(good, epoch=2),
        msgspec.structs.replace(good, height=9),
    ):
        assert refusals(lab.step(BlockCertified(forged))) == ["bad_certificate"]
    assert lab.replica.low_watermark == 0
    assert of(lab.step(BlockCertified(good)), Certified)
    assert lab.replica.low_watermark == 1


def test_a_certificate_is_told_once_whatever_way_it_comes() -> None:
    lab = Lab()
    decided(lab, 1)
    lab.hear(*lab.checkpoints(1, 0, 2))
    assert not of(lab.step(BlockCertified(lab.certificate(1))), Certified)
    assert not of(lab.hear(*lab.checkpoints(1, 3)), Certified)


def test_checkpoints_of_f_replicas_at_a_made_up_height_move_nothing() -> None:
    lab = Lab()
    effects = lab.hear(*lab.checkpoints(900, 3))
    assert not of(effects, NeedBlocks)
    assert lab.replica.low_watermark == 0


def test_weak_checkpoints_beyond_the_window_start_catch_up_at_the_height_a_correct_replica_has() -> None:
    lab = Lab()
    lab.hear(*lab.checkpoints(900, 3))
    (need,) = of(lab.hear(*lab.checkpoints(40, 0)), NeedBlocks)
    assert need.target_height == 40


def test_a_certificate_above_what_is_decided_starts_catch_up_after_a_while() -> None:
    lab = Lab()
    assert not of(lab.hear(*lab.checkpoints(3, 0, 2, 3)), NeedBlocks), "the votes may be on their way"
    (need,) = of(lab.fire("catch_up"), NeedBlocks)
    assert need.target_height == 3
    assert lab.timers["catch_up"], "asks again"


def test_catch_up_moves_everything_and_hands_on_what_was_decided_above() -> None:
    lab = Lab()
    for height in (4, 5):
        lab.decide(height)
    assert not of(lab.log, Decided)
    effects = lab.step(Synced(3, header(3), lab.certificate(3), (3, 0, 0, 0)))
    assert lab.replica.low_watermark == 3
    assert [effect.height for effect in of(effects, Decided)] == [4, 5]


def test_what_catch_up_executed_is_not_decided_again() -> None:
    lab = Lab()
    lab.step(Synced(3, header(3), lab.certificate(3), (3, 0, 0, 0)))
    lab.decide(2)
    lab.decide(3)
    assert not of(lab.log, Decided)


def test_a_replica_halts_when_a_certificate_contradicts_its_own_header() -> None:
    lab = Lab()
    decided(lab, 1)
    (halt,) = of(lab.step(BlockCertified(lab.certificate(1, salt="other"))), Halt)
    assert "height 1" in halt.reason
    assert lab.replica.is_halted
    assert lab.hear(lab.pre_prepare(height=2)) == []


def test_a_replica_halts_when_execution_contradicts_a_certificate_it_knows() -> None:
    lab = Lab()
    lab.decide(1)
    lab.hear(*lab.checkpoints(1, 0, 2, 3))
    assert of(lab.execute(1, salt="other"), Halt)


def test_all_halt_without_a_view_change_when_no_header_can_reach_a_strong_quorum() -> None:
    lab = Lab()
    decided(lab, 1)
    lab.hear(*lab.checkpoints(1, 0))
    effects = lab.hear(*lab.checkpoints(1, 2, 3, salt="other"))
    assert of(effects, Halt)
    assert said(effects) == []


def test_one_other_header_halts_nobody() -> None:
    lab = Lab()
    decided(lab, 1)
    assert not of(lab.hear(*lab.checkpoints(1, 3, salt="other")), Halt)
    assert of(lab.hear(*lab.checkpoints(1, 0, 2)), Certified)


def test_a_second_checkpoint_of_another_header_is_evidence() -> None:
    lab = Lab()
    decided(lab, 1)
    effects = lab.hear(*lab.checkpoints(1, 3), *lab.checkpoints(1, 3, salt="other"))
    assert [(item.replica, item.what) for item in evidence(effects)] == [(3, "checkpoint")]


def test_a_replica_that_lied_here_first_cannot_withhold_a_certificate_that_others_have() -> None:
    lab = Lab()
    lab.decide(1)
    lab.hear(*lab.checkpoints(1, 3, salt="other"))
    effects = lab.hear(*lab.checkpoints(1, 0), *lab.checkpoints(1, 2), *lab.checkpoints(1, 3))
    assert of(effects, Certified)


def test_a_height_that_the_low_watermark_jumped_over_still_gets_its_certificate() -> None:
    lab = Lab()
    decided(lab, 1, 2)
    lab.hear(*lab.checkpoints(1, 0), *lab.checkpoints(2, 0, 2))
    assert lab.replica.low_watermark == 2
    (made,) = of(lab.hear(*lab.checkpoints(1, 2)), Certified)
    assert made.certificate.height == 1
    assert lab.replica.low_watermark == 2


def test_executing_again_after_a_restart_does_no_harm_and_a_different_result_halts() -> None:
    lab = Lab()
    decided(lab, 1)
    assert said(lab.step(Executed(1, header(1), (0, 0, 0, 0)))) == []
    assert of(lab.step(Executed(1, header(1, "other"), (0, 0, 0, 0))), Halt)


def test_a_replica_that_executes_late_does_not_vote_for_what_is_certified() -> None:
    lab = Lab()
    lab.decide(1)
    lab.hear(*lab.checkpoints(1, 0, 2, 3))
    assert said(lab.execute(1), Checkpoint) == []


def test_an_executed_block_without_certificate_is_a_reason_to_leave_the_view() -> None:
    lab = Lab()
    decided(lab, 1)
    assert "certify" in lab.timers
    lab.hear(*lab.checkpoints(1, 0, 2))
    assert "certify" not in lab.timers


def test_the_votes_of_a_certificate_that_a_lost_ledger_held_are_sent_again() -> None:
    """Protocol 6.3; seed 155635: it was the only certificate, and without its votes no other node could make one."""
    lab = Lab()
    for height in (1, 2):
        first = lab.decide(height)
        lab.execute(height, first.proposal)
        lab.hear(*lab.checkpoints(height, 0, 2))
    lab.executed.pop()
    lab.stable = lab.certificate(1)
    effects = lab.restart()
    assert [(vote.height, vote.replica) for vote in said(effects, Checkpoint)] == [(2, 1)]
    assert [item.certificate.height for item in of(effects, Certified)] == [1, 2]
    assert {vote.replica for vote in lab.replica._checkpoints.collected[2].values()} == {0, 1, 2}
    lab.executed.append((header(2), lanes_after(lab.executed[0][1], first.proposal)))
    lab.step(Executed(2, header(2), lab.executed[1][1]))
    assert lab.replica.low_watermark == 2
