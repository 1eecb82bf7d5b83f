"""Protocol 5.2 (never contradict), 6.1 (statuses heal what was lost), and whole-cluster recovery."""

import pytest

from bcami.errors import MalformedError
from bcami.model.consensus import Checkpoint, Commit, NewView, Prepare, PrePrepare, ViewChange
from bcami.model.wire import Status
from bcami.pbft import Decided, PeerStatus, Restored
from bcami.pbft.replica import Replica
from tests.paper.driver import Cluster
from tests.paper.keys import ToySigner, batch, check
from tests.paper.lab import Lab, of, refusals, said


def status(replica: int, certified: int = 0, view: int = 0, changing: bool = False, executed: int = 0) -> PeerStatus:
    return PeerStatus(Status(1, replica, view, changing, executed, certified, (0, 0, 0, 0)))


def sent_to(lab: Lab, event: PeerStatus) -> list[object]:
    from bcami.pbft import SendTo

    effects = of(lab.step(event), SendTo)
    assert all(effect.replica == event.status.replica for effect in effects)
    return [effect.message for effect in effects]


# Restart.


def test_a_restarted_backup_sends_its_stored_votes_again() -> None:
    lab = Lab()
    first = lab.pre_prepare()
    before = said(lab.hear(first, *lab.prepares(first, 2)))
    assert [type(message) for message in before] == [Prepare, Commit]
    assert said(lab.restart()) == before


def test_a_restarted_backup_does_not_contradict_its_prepare() -> None:
    lab = Lab()
    lab.hear(lab.pre_prepare())
    lab.restart()
    assert said(lab.hear(lab.pre_prepare(proposal=lab.proposal((3, 1))))) == []


def test_a_restarted_replica_decides_from_its_stored_proof_and_the_commits_of_others() -> None:
    """B21: prepared certificates that live in memory only are forgotten."""
    lab = Lab()
    first = lab.pre_prepare()
    lab.hear(first, *lab.prepares(first, 2))
    lab.restart()
    assert [effect.height for effect in of(lab.hear(*lab.commits(first, 0, 2)), Decided)] == [1]


def test_a_restarted_replica_proves_in_a_view_change_what_it_prepared_before() -> None:
    lab = Lab(own=3)
    first = lab.pre_prepare()
    lab.hear(first, *lab.prepares(first, 2))
    lab.restart()
    (change,) = said(lab.hear(lab.view_change(0), lab.view_change(1)), ViewChange)
    assert change.prepared == (lab.proof(first, [2, 3]),)


def test_a_restarted_primary_goes_on_above_its_own_pre_prepares() -> None:
    """B14: and it finishes what was in flight without waiting for anything new."""
    lab = Lab(own=0)
    (first,) = said(lab.ready((0, 1)), PrePrepare)
    assert said(lab.restart()) == [first]
    effects = lab.hear(*lab.prepares(first, 1, 2), *lab.commits(first, 1, 2))
    assert of(effects, Decided)
    lab.execute(1, first.proposal)
    (second,) = said(lab.ready((0, 2)), PrePrepare)
    assert second.height == 2


def test_a_restarted_replica_stays_out_of_the_view_it_left() -> None:
    lab = Lab(own=3)
    lab.hear(lab.pre_prepare())
    (change,) = said(lab.fire("view"), ViewChange)
    assert change in said(lab.restart())
    assert (lab.replica.view, lab.replica.in_view_change) == (1, True)
    assert said(lab.hear(lab.pre_prepare(height=2))) == []


def test_a_restarted_replica_is_in_the_view_it_entered_and_keeps_its_votes_there() -> None:
    lab = Lab(own=3)
    first = lab.pre_prepare()
    lab.hear(lab.new_view([lab.view_change(r, proofs=[lab.proof(first)]) for r in (0, 1, 2)]))
    votes = said(lab.log, Prepare)
    assert said(lab.restart()) == votes
    assert (lab.replica.view, lab.replica.in_view_change) == (1, False)
    assert lab.timers["view"]


def test_a_restarted_new_primary_sends_the_same_new_view() -> None:
    lab = Lab(own=1)
    lab.hear(lab.view_change(2), lab.view_change(3))
    (new_view,) = said(lab.log, NewView)
    assert said(lab.restart(), NewView) == [new_view]
    lab.hear(lab.view_change(0))
    assert said(lab.log, NewView) == [new_view, new_view]


def test_a_restarted_replica_sends_the_checkpoint_of_an_uncertified_block_again() -> None:
    lab = Lab()
    lab.decide(1)
    vote = said(lab.execute(1), Checkpoint)
    assert said(lab.restart(), Checkpoint) == vote


def test_a_crash_between_the_block_and_its_checkpoint_loses_no_vote() -> None:
    lab = Lab()
    restored = Restored((), 1, None, (0, 0, 0, 0), ((1, bytes(32)),))
    replica = Replica(lab.roster, 1, ToySigner(1), check, restored)
    assert [message.height for message in said(replica.start(lab.now_ms), Checkpoint)] == [1]


def test_what_was_executed_is_not_decided_again_after_a_restart() -> None:
    lab = Lab()
    first = lab.decide(1)
    lab.execute(1)
    lab.log.clear()
    lab.restart()
    lab.hear(*lab.commits(first, 0, 2, 3))
    assert not of(lab.log, Decided)


@pytest.mark.parametrize("key", [b"vote/accepted/", b"vote/prepared/"])
def test_a_damaged_vote_record_stops_the_replica_from_starting(key: bytes) -> None:
    lab = Lab()
    first = lab.pre_prepare()
    lab.hear(first, *lab.prepares(first, 2))
    (damaged,) = [name for name in lab.disk if name.startswith(key)]
    lab.disk[damaged] = lab.disk[damaged][:-1]
    with pytest.raises(MalformedError):
        lab.restart()


def test_keys_are_short_and_share_a_prefix() -> None:
    lab = Lab(own=3)
    lab.decide(1)
    lab.execute(1)
    lab.hear(*[lab.view_change(r) for r in (0, 1, 2)], lab.new_view([lab.view_change(r) for r in (0, 1, 2)]))
    assert len(lab.disk) == 5
    assert all(key.startswith(b"vote/") and len(key) < 100 for key in lab.disk)


# Statuses.


def test_a_peer_that_stands_still_gets_own_and_others_votes_again() -> None:
    lab = Lab()
    first = lab.pre_prepare()
    own = said(lab.hear(first, *lab.prepares(first, 2)))
    again = sent_to(lab, status(3))
    assert again == [first, own[0], *lab.prepares(first, 2), own[1]]


def test_a_peer_that_moves_gets_nothing() -> None:
    lab = Lab()
    lab.decide(1)
    lab.execute(1)
    sent_to(lab, status(3))
    lab.hear(*lab.checkpoints(1, 0, 2))
    lab.decide(2)
    assert sent_to(lab, status(3, certified=1, executed=1)) == []
    assert sent_to(lab, status(3, certified=1, executed=1)) != []


def test_a_peer_below_the_low_watermark_gets_the_checkpoints_that_prove_it() -> None:
    """Protocol 6.1: a lost last CHECKPOINT on an idle chain heals."""
    lab = Lab()
    lab.decide(1)
    lab.execute(1)
    lab.hear(*lab.checkpoints(1, 0, 2))
    assert sent_to(lab, status(3, certified=0, executed=1)) == lab.checkpoints(1, 0, 1, 2)


def test_a_peer_in_a_lower_view_gets_the_new_view() -> None:
    lab = Lab(own=3)
    new_view = lab.new_view([lab.view_change(r) for r in (0, 1, 2)])
    lab.hear(new_view)
    assert sent_to(lab, status(0)) == [new_view]
    assert sent_to(lab, status(0, view=1, changing=True)) == [new_view]
    assert sent_to(lab, status(0, view=1)) == []
    assert sent_to(lab, status(0, view=2, changing=True)) == []


def test_a_peer_gets_the_own_view_change_while_this_replica_changes() -> None:
    lab = Lab(own=3)
    lab.ready((0, 1))
    (change,) = said(lab.fire("view"))
    assert sent_to(lab, status(0)) == [change]
    assert sent_to(lab, status(0, view=1, changing=True)) == [change]


def test_a_peer_does_not_get_its_own_messages_back() -> None:
    lab = Lab()
    first = lab.pre_prepare()
    lab.hear(first)
    assert first not in sent_to(lab, status(0))


def test_a_status_of_nobody_is_refused() -> None:
    lab = Lab()
    assert refusals(lab.step(PeerStatus(Status(2, 0, 0, False, 0, 0, ())))) == ["wrong_epoch"]
    assert refusals(lab.step(PeerStatus(Status(1, 9, 0, False, 0, 0, ())))) == ["unknown_replica"]


def test_the_own_messages_are_refused_when_they_come_from_outside() -> None:
    lab = Lab()
    assert refusals(lab.hear(lab.of[1].prepare(0, 1, bytes(32)))) == ["duplicate"]


# Whole clusters.


def loaded(cluster: Cluster, rounds: int = 5, first: int = 1) -> Cluster:
    for number in range(first, first + rounds):
        cluster.gossip(*[batch(collector, number) for collector in range(cluster.n)])
        cluster.run(60)
    return cluster


def test_all_crash_at_once_and_the_chain_goes_on_where_it_was() -> None:
    """F8, I15."""
    cluster = loaded(Cluster(seed=3).start())
    before = dict(cluster.chain)
    for index in range(4):
        cluster.crash(index)
    cluster.start()
    loaded(cluster, first=6)
    cluster.run_until(cluster.all_executed)
    assert before.items() <= cluster.chain.items()


def test_the_primary_dies_and_the_others_go_on() -> None:
    cluster = loaded(Cluster(seed=4).start())
    cluster.crash(0)
    loaded(cluster, first=6)
    cluster.run_until(cluster.all_executed, 5_000)
    cluster.restart(0)
    cluster.run_until(cluster.all_executed, 5_000)


def test_f_primaries_in_a_row_are_dead() -> None:
    """F35."""
    cluster = Cluster(n=7, seed=5).start(2, 3, 4, 5, 6)
    loaded(cluster)
    cluster.run_until(cluster.all_executed, 10_000)
    assert {node.replica.view for node in cluster.live() if node.replica} == {2}


def test_a_node_far_behind_catches_up() -> None:
    """F38."""
    cluster = loaded(Cluster(seed=6, window=4).start(0, 1, 2), rounds=12)
    cluster.run_until(cluster.all_executed)
    cluster.restart(3)
    cluster.run_until(cluster.all_executed, 5_000)


def test_a_lost_last_checkpoint_on_an_idle_chain_heals() -> None:
    cluster = Cluster(seed=7).start()
    cluster.gossip(batch(0, 1))
    cluster.run_until(lambda: all(node.height == 1 for node in cluster.nodes))
    assert not cluster.all_executed()
    for left in range(4):
        cluster.network.isolate(left, 4)
    cluster.run(40)
    cluster.network.heal()
    cluster.run_until(cluster.all_executed, 2_000)


def test_a_cluster_without_a_quorum_does_not_run_through_views() -> None:
    cluster = Cluster(seed=8).start(2, 3)
    cluster.gossip(batch(2, 1))
    cluster.run(600_000)
    assert {node.replica.view for node in cluster.live() if node.replica} == {1}
    cluster.start(0, 1)
    cluster.run_until(cluster.all_executed, 10_000)


def test_a_primary_that_shows_a_proposal_to_a_quorum_only_cannot_stop_the_others() -> None:
    """The byzantine replica helps to decide, then keeps its checkpoint back and shows replica 3 another proposal."""
    cluster = Cluster(seed=9, fairness_ms=1_000)
    cluster.byzantine = {0}
    from tests.paper.chaos import equivocating
    from tests.paper.keys import statements_of

    own = statements_of(cluster.roster, 0)

    def tamper(sender: int, receiver: int, message: object) -> list[object]:
        if isinstance(message, Checkpoint):
            return []
        return list(equivocating(cluster.random, own, 1 if receiver == 3 else 2, message))  # type: ignore[arg-type]

    cluster.tamper = tamper  # type: ignore[assignment]
    cluster.start()
    cluster.gossip(batch(1, 1))
    cluster.run_until(cluster.all_executed, 10_000)
    assert {item.replica for item in cluster.convictions()} <= {0}


def test_diverging_executions_halt_everybody_and_change_no_view() -> None:
    """F41."""
    lab = Lab()
    lab.decide(1)
    lab.execute(1)
    lab.hear(*lab.checkpoints(1, 0), *lab.checkpoints(1, 2, 3, salt="other"))
    assert lab.replica.is_halted
    assert lab.timers == {}


# A lost ledger: the records of what was certified went with their heights, and the heights come back.


def certified(own: int = 1) -> Lab:
    """Return a replica whose height 1 is certified, so that it holds no vote of it any more."""
    lab = Lab(own=own)
    if own == 0:
        (first,) = said(lab.ready((0, 1)), PrePrepare)
        lab.hear(*lab.prepares(first, 1, 2), *lab.commits(first, 1, 2))
    else:
        first = lab.decide(1)
    lab.execute(1, first.proposal)
    lab.hear(*lab.checkpoints(1, *lab.others()))
    assert lab.replica.low_watermark == 1
    return lab


def lose_ledger(lab: Lab) -> None:
    lab.executed.clear()
    lab.stable = None
    lab.restart()
    assert lab.replica.low_watermark == 0


def test_a_lost_ledger_lets_no_backup_contradict_its_votes() -> None:
    """Else a faulty primary proposes something else for an old height, and has evidence against an honest replica."""
    lab = certified()
    lose_ledger(lab)
    other = lab.pre_prepare(proposal=lab.proposal((3, 1)))
    votes = (*lab.prepares(other, 2, 3), *lab.commits(other, 0, 2, 3))
    assert said(lab.hear(other, *votes)) == []


def test_a_lost_ledger_lets_no_primary_propose_an_old_height_again() -> None:
    lab = certified(own=0)
    lose_ledger(lab)
    assert [message.height for message in said(lab.ready((0, 1), (3, 1)), PrePrepare) if message.height <= 1] == []
