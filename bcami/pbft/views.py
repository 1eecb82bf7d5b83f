"""Which view a replica is in, and how it gets to the next one [CL99 4.4, 4.5.2].

A replica is *active* in the view it entered last, and *changing* when it has sent a VIEW-CHANGE for a higher one, its
*target*. While it changes it votes in no view. It still collects what others say in the active view, because a
proposal that they commit there is decided whatever comes next.
"""

from dataclasses import dataclass, field

import msgspec

from bcami.model.block import BlockCertificate
from bcami.model.consensus import NewView, PreparedProof, PrePrepare, ViewChange
from bcami.model.events import ViewChangeStarted, ViewEntered
from bcami.model.reasons import Reason
from bcami.pbft.effects import Broadcast, Observe, Outbox
from bcami.pbft.proofs import Choice, check_new_view, check_view_change, choose
from bcami.pbft.records import VoteLog, VoteRecords
from bcami.pbft.statements import Statements


@dataclass(slots=True)
class ViewState:
    """Where a replica stands. Restored from the records of its own VIEW-CHANGE and of the last NEW-VIEW."""

    active: int = 0
    target: int = 0
    previous: int = 0
    """The view that was active before; a commit quorum there still decides."""
    base: int = 0
    """max_s of the active view: its heights up to here are those of the NEW-VIEW, proposed without a clock check."""
    new_view: NewView | None = None
    """Proof of the active view; None in view 0."""
    own_change: ViewChange | None = None
    """The newest VIEW-CHANGE of this replica."""
    is_muted: bool = False
    """The ledger is below the height up to which own votes were given up: it was lost, and must be rebuilt first.

    Or the votes themselves are lost, which mutes for good (protocol 6.3).
    """

    @property
    def is_changing(self) -> bool:
        return self.target > self.active

    @classmethod
    def restore(cls, records: VoteRecords, statements: Statements) -> "ViewState":
        """Return the state that never acts in a lower view than any that was left (protocol 5.2)."""
        state = cls()
        if records.new_view is not None:
            state.new_view = records.new_view
            state.active = records.new_view.view
            state.base = choose(records.new_view.view_changes, statements).max_s
        lower = [view for _, view in records.accepted if view < state.active]
        state.previous = max(lower, default=state.active)
        state.target = state.active
        if records.view_change is not None:
            state.own_change = records.view_change
            state.target = max(state.active, records.view_change.view)
        return state


class Entry(msgspec.Struct, frozen=True):
    """A new view that may be entered: it is proved, and recomputed."""

    new_view: NewView
    choice: Choice


@dataclass(slots=True)
class ViewChanges:
    """Collects VIEW-CHANGE messages, one for each replica: the one of its highest view.

    So a replica that floods others with views costs one message of memory, and moves nobody alone.
    """

    statements: Statements
    out: Outbox
    votes: VoteLog
    state: ViewState
    latest: dict[int, ViewChange] = field(default_factory=dict)

    def start(self, view: int, cause: str, stable: BlockCertificate | None, proofs: list[PreparedProof]) -> None:
        """Leave for `view`: the VIEW-CHANGE is durable before it is sent [CL99 4.4]."""
        change = self.statements.view_change(view, stable, proofs)
        self.state.target = view
        self.state.own_change = change
        self.latest[self.statements.replica] = change
        self.votes.view_change(change)
        self.out.add(Observe(ViewChangeStarted(view, cause)))
        self.out.add(Broadcast(change))

    def on_view_change(self, message: ViewChange) -> bool:
        """Keep a valid VIEW-CHANGE of a view above the active one; answers whether it was kept."""
        sender = message.replica
        known = self.latest.get(sender)
        if message.view <= self.state.active or (known is not None and message.view < known.view):
            self.out.refuse(Reason.STALE, sender)
            return False
        if known is not None and message.view == known.view:
            self._compare(known, message)
            return False
        reason = check_view_change(message, self.statements)
        if reason is not None:
            self.out.refuse(reason, sender, "view_change")
            return False
        self.latest[sender] = message
        return True

    def _compare(self, known: ViewChange, message: ViewChange) -> None:
        digest = self.statements.digest_of(message)
        if digest == self.statements.digest_of(known):
            self.out.refuse(Reason.DUPLICATE, message.replica)
        elif self.statements.is_signed(message):
            self.out.convict("view_change", known, message)
        else:
            self.out.refuse(Reason.BAD_SIGNATURE, message.replica)

    def view_to_join(self) -> int | None:
        """Return the view to leave for because weak others left for higher ones, or None.

        [CL99 4.5.2] the smallest of their views, even if the own timer has not run out. One of them is correct, so
        faulty replicas alone move nobody.
        """
        own = self.statements.replica
        if self.state.is_muted or not self.latest:
            return None
        higher = [item.view for sender, item in self.latest.items() if sender != own and item.view > self.state.target]
        return min(higher) if len(higher) >= self.statements.quorum.weak else None

    def is_timed(self) -> bool:
        """Tell whether the view-change timer runs: a strong quorum has left for the target or beyond.

        [CL99 4.5.2] waits for 2f+1 messages of just the target. Deviates from it: one that has gone further has left
        as well; else two replicas at the target, one beyond and one dead wait for each other for ever.
        """
        if not self.state.is_changing:
            return False
        left = sum(item.view >= self.state.target for item in self.latest.values())
        return left >= self.statements.quorum.strong

    def build(self) -> Entry | None:
        """As the primary of the target, build its NEW-VIEW when a strong quorum has left for it [CL99 4.4]."""
        state, statements = self.state, self.statements
        if not state.is_changing or state.is_muted or not statements.is_own(state.target):
            return None
        changes = [item for _, item in sorted(self.latest.items()) if item.view == state.target]
        if len(changes) < statements.quorum.strong:
            return None
        choice = choose(changes, statements)
        orders: list[PrePrepare] = [
            statements.pre_prepare(state.target, item.height, item.proposal) for item in choice.orders
        ]
        new_view = statements.new_view(state.target, changes, orders)
        return Entry(new_view, choice)

    def on_new_view(self, message: NewView) -> Entry | None:
        """Return what to enter when the NEW-VIEW is valid and not below the target (protocol 5.2)."""
        state = self.state
        if state.new_view is not None and message.view == state.active:
            self._compare_new_view(state.new_view, message)
            return None
        if message.view < state.target or message.view <= state.active:
            self.out.refuse(Reason.STALE, message.replica)
            return None
        found = check_new_view(message, self.statements)
        if isinstance(found, Reason):
            self.out.refuse(found, message.replica, "new_view")
            return None
        return Entry(message, found)

    def _compare_new_view(self, known: NewView, message: NewView) -> None:
        if self.statements.digest_of(message) == self.statements.digest_of(known):
            self.out.refuse(Reason.DUPLICATE, message.replica)
        elif message.replica == known.replica and self.statements.is_signed(message):
            self.out.convict("new_view", known, message)
        else:
            self.out.refuse(Reason.BAD_SIGNATURE, message.replica)

    def enter(self, entry: Entry) -> None:
        """Become active in the view; its NEW-VIEW is durable before any vote in it."""
        state = self.state
        view = entry.new_view.view
        self.votes.new_view(entry.new_view)
        if entry.new_view.replica == self.statements.replica:
            self.out.add(Broadcast(entry.new_view))
        state.previous, state.active = state.active, view
        state.target = view
        state.base = entry.choice.max_s
        state.new_view = entry.new_view
        self.latest = {sender: item for sender, item in self.latest.items() if item.view > view}
        self.out.add(Observe(ViewEntered(view, self.statements.primary(view))))
