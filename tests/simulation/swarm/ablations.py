"""Each safeguard of the protocol, and how it is taken away: the simulator must then find a violation.

An entry says what is removed, the first seed that finds it (all seeds from 0 were tried), and within how many seeds from
there a violation must be found. The same seeds hold with every safeguard in place (test_seeds).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pytest

from bcami.client.reads import Tally
from bcami.contract import guard
from bcami.contract.runtime import Execution, Runtime
from bcami.crypto import verification
from bcami.endorsement.endorser import Endorser
from bcami.faults.simulator.disk import Disk
from bcami.faults.simulator.node import Life
from bcami.faults.simulator.oracles import Oracles
from bcami.ledger import memory
from bcami.ledger.memory import MemoryPromises
from bcami.model.block import BlockCertificate
from bcami.model.quorum import Quorum
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction
from bcami.node.core import core as node_core
from bcami.node.core import execution, reads
from bcami.node.core.catchup import CatchUp
from bcami.node.core.core import NodeCore
from bcami.node.core.dissemination import Dissemination
from bcami.node.core.effects import CommitBlock
from bcami.node.core.fetching import Fetching
from bcami.node.core.gaps import Gaps
from bcami.node.core.snapshots import SnapshotSync
from bcami.pbft import proofs, records, slots, timers, views
from bcami.pbft.checkpoints import Checkpoints
from bcami.pbft.effects import Forget, Outbox
from bcami.pbft.monitor import Monitor
from bcami.pbft.ordering import Ordering
from bcami.pbft.recovery import Recovery
from tests.simulation.swarm import directed

Patch = pytest.MonkeyPatch

SEEDS_MAX = 20

Mode = Literal["swarm", "twins", "byzzfuzz"] | Callable[[], None]
"""What finds it: whole nodes under drawn faults, ordering alone in rounds, or a run laid out by hand."""


@dataclass(frozen=True)
class Ablation:
    """A safeguard, and what is expected without it."""

    remove: Callable[[Patch], None]
    first: int = 0
    seeds: int = SEEDS_MAX
    mode: Mode = "swarm"

    @property
    def name(self) -> str:
        if self.mode == "swarm":
            return self.remove.__name__
        return f"{self.remove.__name__}-{self.mode if isinstance(self.mode, str) else self.mode.__name__}"


# Durability.


def sending_before_the_disk(patch: Patch) -> None:
    patch.setattr(Life, "_send_in_order", Life._send)


def checkpoints_before_their_block(patch: Patch) -> None:
    """The driver says that a block is durable as soon as its write begins."""
    write, durable = Life._write_to_ledger, Life._block_durable
    told: set[tuple[int, int]] = set()

    def once(life: Life, height: int) -> None:
        if (id(life), height) not in told:
            told.add((id(life), height))
            durable(life, height)

    def at_once(life: Life, item: object) -> None:
        write(life, item)
        if isinstance(item, CommitBlock):
            life._events.after(0, life._happen, life._block_durable, item.commit.block.header.height)

    patch.setattr(Life, "_write_to_ledger", at_once)
    patch.setattr(Life, "_block_durable", once)


def accepted_proposals_not_recorded(patch: Patch) -> None:
    patch.setattr(records.VoteLog, "accepted", lambda *_: None)


def a_lost_vote_log_begun_anew(patch: Patch) -> None:
    """Nobody expects silence here: the node has to contradict what it said before, for others to see."""

    def lose_promises(disk: Disk) -> None:
        disk.promises = MemoryPromises()

    patch.setattr(Disk, "lose_promises", lose_promises)
    patch.setattr(Oracles, "silenced", property(lambda _: set(), lambda *_: None), raising=False)


def voting_on_without_the_vote_log(patch: Patch) -> None:
    begin = NodeCore.__init__

    def begin_with_none(node: NodeCore, *args: object) -> None:
        *first, promises, secret = args
        begin(node, *first, () if promises is None else promises, secret)

    patch.setattr(NodeCore, "__init__", begin_with_none)


def prepared_proofs_not_recorded(patch: Patch) -> None:
    patch.setattr(records.VoteLog, "prepared", lambda *_: None)


def votes_not_restored(patch: Patch) -> None:
    patch.setattr("bcami.pbft.replica.read_records", lambda _: records.VoteRecords({}, {}, {}, None, None))


def lane_numbers_not_restored(patch: Patch) -> None:
    patch.setattr("bcami.endorsement.collector.Collector.number_used", lambda *_: None)


def votes_forgotten_too_early(patch: Patch) -> None:
    """The votes of a height go when the one below is certified."""
    forget = records.VoteLog.forget_up_to

    def early(self: records.VoteLog, stable: BlockCertificate) -> None:
        forget(self, stable)
        keys = tuple(self._keys.pop(stable.height + 1, ()))
        if keys:
            self._out.add(Forget(keys))

    patch.setattr(records.VoteLog, "forget_up_to", early)


# Quorums and signatures.


def a_simple_majority_for_strong(patch: Patch) -> None:
    patch.setattr(Quorum, "strong", property(lambda self: self.n // 2 + (self.n == 4)))


def a_weak_quorum_for_strong(patch: Patch) -> None:
    patch.setattr(Quorum, "strong", property(lambda self: self.weak))


def commits_of_a_weak_quorum(patch: Patch) -> None:
    def is_committed(self: slots.Round, quorum: Quorum) -> bool:
        first = self.pre_prepare
        return first is not None and sum(vote.digest == first.digest for vote in self.commits.values()) >= quorum.weak

    patch.setattr(slots.Round, "is_committed", is_committed)


def votes_counted_for_any_digest(patch: Patch) -> None:
    def proof(self: slots.Round, quorum: Quorum) -> object:
        if self.pre_prepare is None or len(self.prepares) < quorum.strong - 1:
            return None
        return slots.PreparedProof(self.pre_prepare, ())

    patch.setattr(slots.Round, "proof", proof)
    patch.setattr(
        slots.Round, "is_committed", lambda self, quorum: self.prepared and len(self.commits) >= quorum.strong
    )


def repeated_signers_counted(patch: Patch) -> None:
    def check(votes: Sequence[object], roster: object) -> Reason | None:
        return None if len(votes) >= roster.quorum.strong else Reason.BAD_CERTIFICATE

    patch.setattr(verification, "_check_voters", check)


def block_certificates_not_checked(patch: Patch) -> None:
    for place in (
        "bcami.crypto.verification",
        "bcami.pbft.proofs",
        "bcami.pbft.checkpoints",
        "bcami.endorsement.endorser",
    ):
        patch.setattr(f"{place}.verify_block_certificate", lambda *_: None)


def batch_certificates_not_checked(patch: Patch) -> None:
    patch.setattr(node_core, "verify_batch_certificate", lambda *_: None)


# Ordering and views.


def hashes_taken_from_the_sender(patch: Patch) -> None:
    check = Ordering._check_proposal

    def lenient(self: Ordering, message: object) -> Reason | None:
        reason = check(self, message)
        return None if reason is Reason.BAD_DIGEST else reason

    patch.setattr(Ordering, "_check_proposal", lenient)


def the_clock_of_a_proposal_not_checked(patch: Patch) -> None:
    patch.setattr(Ordering, "_check_clock", lambda *_: True)


def an_empty_prepared_set(patch: Patch) -> None:
    patch.setattr(Ordering, "proofs", lambda _: [])


def the_lowest_view_winning(patch: Patch) -> None:
    patch.setattr(proofs, "_rank", lambda first: (-first.view, first.digest))


def prepared_proofs_not_checked(patch: Patch) -> None:
    patch.setattr(proofs, "check_proof", lambda *_: None)


def new_views_not_recomputed(patch: Patch) -> None:
    patch.setattr(proofs, "_is_order", lambda *_: True)


def never_joining_a_view_change(patch: Patch) -> None:
    patch.setattr(views.ViewChanges, "view_to_join", lambda _: None)


def joining_on_one_vote(patch: Patch) -> None:
    def highest(self: views.ViewChanges) -> int | None:
        own = self.statements.replica
        higher = [item.view for at, item in self.latest.items() if at != own and item.view > self.state.target]
        return max(higher, default=None)

    patch.setattr(views.ViewChanges, "view_to_join", highest)


def waiting_times_without_a_cap(patch: Patch) -> None:
    patch.setattr(timers.Backoff, "delay_ms", property(lambda self: self._base_ms << (2 * self._failures)))


def no_view_timer(patch: Patch) -> None:
    keep = timers.Timers.keep
    patch.setattr(timers.Timers, "keep", lambda self, name, wanted, ms: keep(self, name, wanted and name != "view", ms))
    patch.setattr(timers.Fairness, "watch", lambda *_: [])


def no_fairness_timer(patch: Patch) -> None:
    restart = timers.Timers.restart

    def but_fairness(self: timers.Timers, name: str, delay_ms: int) -> None:
        if not name.startswith(timers.FAIRNESS):
            restart(self, name, delay_ms)

    patch.setattr(timers.Timers, "restart", but_fairness)
    patch.setattr(Monitor, "is_suspicious", property(lambda _: False))  # sees it as well


# Evidence.


def evidence_not_kept(patch: Patch) -> None:
    def convict(self: Outbox, what: str, first: object, second: object) -> None:
        self.refuse(Reason.EQUIVOCATION, first.replica, what)

    patch.setattr(Outbox, "convict", convict)


def evidence_of_half_a_contradiction(patch: Patch) -> None:
    convict = Outbox.convict
    patch.setattr(Outbox, "convict", lambda self, what, first, _: convict(self, what, first, first))


# Bounds.


def the_log_never_cut(patch: Patch) -> None:
    cut = Ordering.on_window_moved

    def keep(self: Ordering, now_ms: int) -> None:
        kept = dict(self.slots)
        cut(self, now_ms)
        self.slots = kept | self.slots

    patch.setattr(Ordering, "on_window_moved", keep)


# Reads.


def reads_labelled_with_what_is_durable(patch: Patch) -> None:
    patch.setattr(reads, "height", lambda node: node.chain.durable)


def one_answer_for_weak(patch: Patch) -> None:
    begin = Tally.__init__
    patch.setattr(Tally, "__init__", lambda self, _, at_least: begin(self, 1, at_least))


def answers_of_any_height_for_weak(patch: Patch) -> None:
    begin = Tally.__init__
    patch.setattr(Tally, "__init__", lambda self, weak, _: begin(self, weak, 0))


# Healing.


def statuses_not_answered(patch: Patch) -> None:
    patch.setattr(Recovery, "answer", lambda *_: [])


def no_catch_up(patch: Patch) -> None:
    patch.setattr(CatchUp, "ask", lambda *_: None)


def missing_batches_not_fetched(patch: Patch) -> None:
    patch.setattr(Fetching, "due", lambda *_: [])


def missing_certificates_not_asked_for(patch: Patch) -> None:
    patch.setattr(Gaps, "ask", lambda *_: [])


def batches_not_sent_again(patch: Patch) -> None:
    patch.setattr(Dissemination, "resend", lambda *_: None)


def late_endorsers_keep_waiting(patch: Patch) -> None:
    patch.setattr(Dissemination, "out_of_patience", lambda *_: None)


def the_first_checkpoint_of_a_liar_counting(patch: Patch) -> None:
    patch.setattr(Checkpoints, "_is_better", lambda *_: False)


def the_state_of_a_snapshot_not_compared(patch: Patch) -> None:
    """Neither when it has come nor when it is installed."""
    check = SnapshotSync._check_rows

    def lenient(self: SnapshotSync, *where: object) -> Reason | None:
        reason = check(self, *where)
        return None if reason is Reason.BAD_DIGEST else reason

    patch.setattr(SnapshotSync, "_check_rows", lenient)
    patch.setattr(memory, "check_installed", lambda *_, **__: None)


# Batches and execution.


def transactions_not_checked(patch: Patch) -> None:
    patch.setattr(NodeCore, "_check", lambda *_: None)


def two_batches_under_one_number(patch: Patch) -> None:
    gate = Endorser.gate

    def lenient(self: Endorser, held: object, height: int) -> Reason | None:
        earlier = self._taken.pop((held.batch.collector, held.batch.number), None)
        reason = gate(self, held, height)
        if reason is not None and earlier is not None:
            self._taken[held.batch.collector, held.batch.number] = earlier
        return reason

    patch.setattr(Endorser, "gate", lenient)


def no_anti_replay_window(patch: Patch) -> None:
    patch.setattr(guard, "refusal", lambda *_: None)


def refusals_not_counted(patch: Patch) -> None:
    for module in (execution, verification):
        patch.setattr(module, "absent_transactions", lambda *_: frozenset())


def one_refusal_is_enough(patch: Patch) -> None:
    def absent(certificate: object, quorum: Quorum) -> frozenset[int]:
        return frozenset(item.index for vote in certificate.votes for item in vote.refusals)

    for module in (execution, verification):
        patch.setattr(module, "absent_transactions", absent)


def executions_that_differ(patch: Patch) -> None:
    """A contract whose outcome depends on how often it has been run: every third node sees another one."""
    execute, runs = Runtime.execute, Counter[bytes]()

    def moody(self: Runtime, tx: Transaction, tx_id: bytes, *where: object) -> Execution:
        done = execute(self, tx, tx_id, *where)
        runs[tx_id] += 1
        return Execution(Reason.CONTRACT_FAULT, {}) if runs[tx_id] == 3 else done

    patch.setattr(Runtime, "execute", moody)


def lanes_out_of_order(patch: Patch) -> None:
    def needed(self: execution.Executor, proposal: object) -> list:
        found = []
        for place, item in enumerate(proposal.certificates):
            if item.collector < len(self.lanes):
                found.append((place, item))
        return found

    patch.setattr(execution.Executor, "needed", needed)


ABLATIONS: tuple[Ablation, ...] = (
    Ablation(sending_before_the_disk, first=0),
    Ablation(checkpoints_before_their_block, first=0),
    Ablation(accepted_proposals_not_recorded, first=0),
    Ablation(prepared_proofs_not_recorded, first=0),
    Ablation(a_lost_vote_log_begun_anew, first=10),
    Ablation(voting_on_without_the_vote_log, first=6),
    Ablation(votes_not_restored, first=3),
    Ablation(lane_numbers_not_restored, first=3),
    Ablation(votes_forgotten_too_early, first=0),
    Ablation(a_simple_majority_for_strong, first=22),
    Ablation(votes_counted_for_any_digest, first=0),
    Ablation(repeated_signers_counted, first=120),
    Ablation(batch_certificates_not_checked, first=55),
    Ablation(hashes_taken_from_the_sender, first=24),
    Ablation(the_clock_of_a_proposal_not_checked, first=105),
    Ablation(an_empty_prepared_set, first=0),
    Ablation(the_lowest_view_winning, first=226),
    Ablation(no_view_timer, first=9),
    Ablation(evidence_not_kept, first=3),
    Ablation(the_log_never_cut),
    Ablation(reads_labelled_with_what_is_durable, first=25),
    Ablation(one_answer_for_weak, first=61),
    Ablation(answers_of_any_height_for_weak, first=10),
    Ablation(statuses_not_answered, first=11),
    Ablation(no_catch_up, first=0),
    Ablation(missing_batches_not_fetched, first=2),
    Ablation(missing_certificates_not_asked_for, first=4),
    Ablation(batches_not_sent_again, first=6),
    Ablation(transactions_not_checked, first=0),
    Ablation(two_batches_under_one_number, first=2),
    Ablation(no_anti_replay_window, first=1),
    Ablation(refusals_not_counted, first=4),
    Ablation(one_refusal_is_enough, first=5),
    Ablation(executions_that_differ),
    Ablation(block_certificates_not_checked, first=125),
    Ablation(a_weak_quorum_for_strong, mode="twins"),
    Ablation(votes_counted_for_any_digest, mode="twins"),
    Ablation(an_empty_prepared_set, first=41, mode="twins"),
    Ablation(commits_of_a_weak_quorum, first=62, mode="twins"),
    Ablation(evidence_not_kept, mode="twins"),
    Ablation(evidence_of_half_a_contradiction, mode="twins"),
    Ablation(evidence_not_kept, first=8, mode="byzzfuzz"),
    Ablation(a_weak_quorum_for_strong, mode="byzzfuzz"),
    Ablation(an_empty_prepared_set, first=10, mode="byzzfuzz"),
    Ablation(block_certificates_not_checked, mode="byzzfuzz"),
    Ablation(new_views_not_recomputed, first=74, mode="byzzfuzz"),
    Ablation(joining_on_one_vote, first=27, mode="byzzfuzz"),
    Ablation(never_joining_a_view_change, mode=directed.two_leave_and_the_third_follows),
    Ablation(prepared_proofs_not_checked, mode=directed.a_forged_proof_of_a_higher_view),
    Ablation(the_first_checkpoint_of_a_liar_counting, mode=directed.a_checkpoint_that_is_a_lie_at_first),
    Ablation(waiting_times_without_a_cap, mode=directed.no_new_view_comes_for_a_while),
    Ablation(no_fairness_timer, mode=directed.a_primary_leaves_one_collector_out),
    Ablation(late_endorsers_keep_waiting, mode=directed.an_endorser_in_turn_is_dead),
    Ablation(the_state_of_a_snapshot_not_compared, mode=directed.a_liar_gives_the_first_snapshot),
    Ablation(lanes_out_of_order, mode=directed.a_primary_orders_batches_again),
)
