"""Each safeguard of the protocol, and how it is taken away: the simulator must then find a violation.

An entry says what is removed, the seed to begin with (near one that finds it, to save time), within how many seeds a
violation must be found, and which invariants may show it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from bcami.contract import guard
from bcami.crypto import verification
from bcami.endorsement.endorser import Endorser
from bcami.faults.simulator.node import Life
from bcami.model.quorum import Quorum
from bcami.model.reasons import Reason
from bcami.node.core import core as node_core
from bcami.node.core import execution
from bcami.node.core.catchup import CatchUp
from bcami.node.core.core import NodeCore
from bcami.node.core.dissemination import Dissemination
from bcami.node.core.fetching import Fetching
from bcami.node.core.gaps import Gaps
from bcami.pbft import proofs, records, slots, timers, views
from bcami.pbft.checkpoints import Checkpoints
from bcami.pbft.ordering import Ordering
from bcami.pbft.recovery import Recovery

Patch = pytest.MonkeyPatch

SEEDS_MAX = 150


@dataclass(frozen=True)
class Ablation:
    """A safeguard, and what is expected without it."""

    remove: Callable[[Patch], None]
    first: int = 0
    seeds: int = SEEDS_MAX

    @property
    def name(self) -> str:
        return self.remove.__name__


# Durability.


def sending_before_the_disk(patch: Patch) -> None:
    patch.setattr(Life, "_send_in_order", Life._send)


def checkpoints_before_their_block(patch: Patch) -> None:
    write = Life._write_to_ledger

    def at_once(life: Life, item: object) -> None:
        write(life, item)
        if not isinstance(item, tuple):
            life._events.after(0, life._happen, life._block_durable, item.block.header.height)

    patch.setattr(Life, "_write_to_ledger", at_once)
    patch.setattr(NodeCore, "block_durable", _once(NodeCore.block_durable))


def _once(step: Callable[..., list]) -> Callable[..., list]:
    def durable(self: NodeCore, height: int, now_ms: int) -> list:
        return step(self, height, now_ms) if height in self._writing else []

    return durable


def accepted_proposals_not_recorded(patch: Patch) -> None:
    patch.setattr(records.VoteLog, "accepted", lambda *_: None)


def prepared_proofs_not_recorded(patch: Patch) -> None:
    patch.setattr(records.VoteLog, "prepared", lambda *_: None)


def votes_not_restored(patch: Patch) -> None:
    patch.setattr("bcami.pbft.replica.read_records", lambda _: records.VoteRecords({}, {}, {}, None, None))


def lane_numbers_not_restored(patch: Patch) -> None:
    patch.setattr("bcami.endorsement.collector.Collector.number_used", lambda *_: None)


def votes_forgotten_too_early(patch: Patch) -> None:
    forget = records.VoteLog.forget_up_to
    patch.setattr(records.VoteLog, "forget_up_to", lambda self, low: forget(self, low + 1))


# Quorums and signatures.


def a_simple_majority_for_strong(patch: Patch) -> None:
    patch.setattr(Quorum, "strong", property(lambda self: self.n // 2 + (self.n == 4)))


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
    patch.setattr(timers.Fairness, "watch", lambda *_: None)


def no_fairness_timer(patch: Patch) -> None:
    patch.setattr(timers.Fairness, "watch", lambda *_: None)


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
    patch.setattr(execution, "absent_transactions", lambda *_: frozenset())


def one_refusal_is_enough(patch: Patch) -> None:
    def absent(certificate: object, quorum: Quorum) -> frozenset[int]:
        return frozenset(item.index for vote in certificate.votes for item in vote.refusals)

    patch.setattr(execution, "absent_transactions", absent)


def lanes_out_of_order(patch: Patch) -> None:
    def needed(self: execution.Executor, proposal: object) -> list:
        found = []
        for place, item in enumerate(proposal.certificates):
            if item.collector < len(self.lanes):
                found.append((place, item))
        return found

    patch.setattr(execution.Executor, "needed", needed)


ABLATIONS: tuple[Ablation, ...] = (
    Ablation(sending_before_the_disk),
    Ablation(checkpoints_before_their_block),
    Ablation(accepted_proposals_not_recorded),
    Ablation(prepared_proofs_not_recorded),
    Ablation(votes_not_restored),
    Ablation(lane_numbers_not_restored),
    Ablation(votes_forgotten_too_early),
    Ablation(a_simple_majority_for_strong),
    Ablation(commits_of_a_weak_quorum),
    Ablation(votes_counted_for_any_digest),
    Ablation(repeated_signers_counted),
    Ablation(block_certificates_not_checked),
    Ablation(batch_certificates_not_checked),
    Ablation(hashes_taken_from_the_sender),
    Ablation(the_clock_of_a_proposal_not_checked),
    Ablation(an_empty_prepared_set),
    Ablation(the_lowest_view_winning),
    Ablation(prepared_proofs_not_checked),
    Ablation(new_views_not_recomputed),
    Ablation(never_joining_a_view_change),
    Ablation(joining_on_one_vote),
    Ablation(waiting_times_without_a_cap),
    Ablation(no_view_timer),
    Ablation(no_fairness_timer),
    Ablation(statuses_not_answered),
    Ablation(no_catch_up),
    Ablation(missing_batches_not_fetched),
    Ablation(missing_certificates_not_asked_for),
    Ablation(batches_not_sent_again),
    Ablation(late_endorsers_keep_waiting),
    Ablation(the_first_checkpoint_of_a_liar_counting),
    Ablation(transactions_not_checked),
    Ablation(two_batches_under_one_number),
    Ablation(no_anti_replay_window),
    Ablation(refusals_not_counted),
    Ablation(one_refusal_is_enough),
    Ablation(lanes_out_of_order),
)
