"""What a view-change must prove, and what a new-view must therefore propose [CL99 4.4].

All of it is computed from the messages alone, so that every backup reaches the same choice as an honest new primary
and refuses any other. Nothing carried is trusted: digests are recomputed, inner signers are checked against the role
they claim, repeated signers do not count twice.
"""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from bcami.crypto.verification import verify_block_certificate
from bcami.model.block import BlockCertificate
from bcami.model.consensus import NULL_PROPOSAL, NewView, PreparedProof, PrePrepare, Proposal, ViewChange
from bcami.model.reasons import Reason
from bcami.pbft.statements import Statements


class Order(msgspec.Struct, frozen=True):
    """What a new view proposes again at one height."""

    height: int
    digest: bytes
    proposal: Proposal


class Choice(msgspec.Struct, frozen=True):
    """The outcome of a strong quorum of view-changes: where the new view starts and what it proposes again."""

    stable: BlockCertificate | None
    """Certificate of min_s; None stands for genesis."""
    orders: tuple[Order, ...]
    """One for each height in (min_s, max_s]."""

    @property
    def min_s(self) -> int:
        return stable_height(self.stable)

    @property
    def max_s(self) -> int:
        return self.min_s + len(self.orders)


def stable_height(stable: BlockCertificate | None) -> int:
    return 0 if stable is None else stable.height


def check_proof(proof: PreparedProof, below_view: int, statements: Statements) -> Reason | None:
    """Check one entry of P: prepared in a view below `below_view` [CL99 4.4]."""
    first = proof.pre_prepare
    quorum = statements.quorum
    if first.epoch != statements.epoch:
        return Reason.WRONG_EPOCH
    if first.view >= below_view:
        return Reason.BAD_PROOF
    primary = quorum.primary(first.view)
    if first.replica != primary:
        return Reason.BAD_PROOF
    backups = [vote.replica for vote in proof.prepares]
    if any(left >= right for left, right in pairwise(backups)) or primary in backups:
        return Reason.BAD_PROOF
    if not quorum.strong - 1 <= len(backups) <= quorum.n:
        return Reason.BAD_PROOF
    if statements.digest_of_proposal(first.proposal) != first.digest:
        return Reason.BAD_DIGEST
    if not statements.is_signed(first):
        return Reason.BAD_SIGNATURE
    for vote in proof.prepares:
        if not statements.is_prepare(vote.replica, vote.signature, first):
            return Reason.BAD_SIGNATURE
    return None


def check_view_change(change: ViewChange, statements: Statements) -> Reason | None:
    """Check a VIEW-CHANGE whole: its sender, its stable checkpoint and each entry of P."""
    if change.epoch != statements.epoch:
        return Reason.WRONG_EPOCH
    if change.view < 1:
        return Reason.WRONG_VIEW
    if not statements.is_signed(change):
        return Reason.BAD_SIGNATURE
    if change.stable is not None and verify_block_certificate(change.stable, statements.roster) is not None:
        return Reason.BAD_CERTIFICATE
    low = stable_height(change.stable)
    high = low + statements.window
    heights = [proof.pre_prepare.height for proof in change.prepared]
    if any(left >= right for left, right in pairwise(heights)):
        return Reason.BAD_PROOF
    if heights and not low < heights[0] <= heights[-1] <= high:
        return Reason.OUTSIDE_WATERMARKS
    for proof in change.prepared:
        if (reason := check_proof(proof, change.view, statements)) is not None:
            return reason
    return None


def choose(changes: Sequence[ViewChange], statements: Statements) -> Choice:
    """Compute what the new view proposes from checked view-changes [CL99 4.4].

    min_s is the highest stable checkpoint that any of them proves (not the most common one), max_s the highest
    height in any P. At each height between, the proof of the highest view wins; a gap becomes the null proposal.
    """
    stable = max((change.stable for change in changes), key=stable_height, default=None)
    low = stable_height(stable)
    best: dict[int, PrePrepare] = {}
    for change in changes:
        for proof in change.prepared:
            first = proof.pre_prepare
            known = best.get(first.height)
            if first.height > low and (known is None or _rank(first) > _rank(known)):
                best[first.height] = first
    orders = [
        Order(height, best[height].digest, best[height].proposal)
        if height in best
        else Order(height, statements.null_digest, NULL_PROPOSAL)
        for height in range(low + 1, max(best, default=low) + 1)
    ]
    return Choice(stable, tuple(orders))


def _rank(first: PrePrepare) -> tuple[int, bytes]:
    """Order proofs of one height; of two in one view (more than f faulty) all choose the same."""
    return first.view, first.digest


def check_new_view(new_view: NewView, statements: Statements) -> Choice | Reason:
    """Check a NEW-VIEW whole and return the recomputed choice, or why it is refused [CL99 4.4]."""
    view = new_view.view
    if view < 1:
        return Reason.WRONG_VIEW
    if new_view.replica != statements.primary(view):
        return Reason.NOT_PRIMARY
    if not statements.is_signed(new_view):
        return Reason.BAD_SIGNATURE
    senders = [change.replica for change in new_view.view_changes]
    if any(left >= right for left, right in pairwise(senders)) or len(senders) < statements.quorum.strong:
        return Reason.BAD_PROOF
    for change in new_view.view_changes:
        if change.view != view or check_view_change(change, statements) is not None:
            return Reason.BAD_PROOF
    choice = choose(new_view.view_changes, statements)
    if len(new_view.pre_prepares) != len(choice.orders):
        return Reason.BAD_PROOF
    for item, order in zip(new_view.pre_prepares, choice.orders, strict=True):
        if not _is_order(item, order, new_view, statements):
            return Reason.BAD_PROOF
    return choice


def _is_order(item: PrePrepare, order: Order, new_view: NewView, statements: Statements) -> bool:
    return (
        item.epoch == statements.epoch
        and (item.view, item.height, item.replica) == (new_view.view, order.height, new_view.replica)
        and item.digest == order.digest
        and item.proposal == order.proposal
        and statements.is_signed(item)
    )
