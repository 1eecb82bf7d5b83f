"""The normal case: pre-prepare, prepare, commit, and the one commit point [CL99 4.2].

A proposal names no parent, and nothing that depends on state is checked before PREPARE (protocol 5.1), so that a
proposal prepared in one view can be accepted in any later one. Whatever decides a height (a commit quorum of the
active view or of the one before it, or catch-up) passes `deliver`, which hands heights on in order, each once.
"""

from collections.abc import Callable
from typing import Final

from bcami.model.batch import BatchCertificate
from bcami.model.consensus import Commit, Prepare, PreparedProof, PrePrepare, Proposal
from bcami.model.reasons import Reason
from bcami.pbft.checkpoints import Checkpoints
from bcami.pbft.effects import Broadcast, Decided, Outbox, SendTo
from bcami.pbft.lanes import Lanes, certificates_bytes, lanes_after, proposal_bytes_max
from bcami.pbft.records import VoteLog, VoteRecords
from bcami.pbft.slots import Ahead, Decision, Round, Slot, Vote
from bcami.pbft.statements import Statements
from bcami.pbft.views import ViewState

PIPELINE: Final = 4
"""Proposals of the primary that may be undecided at once; while one is, the next waits to gather more."""

CheckCertificate = Callable[[BatchCertificate], Reason | None]


class Ordering:
    """The log of one replica above the low watermark, and the rules that fill it."""

    def __init__(
        self,
        statements: Statements,
        out: Outbox,
        votes: VoteLog,
        views: ViewState,
        checkpoints: Checkpoints,
        lanes: Lanes,
        check_certificate: CheckCertificate,
    ) -> None:
        self._statements = statements
        self._out = out
        self._votes = votes
        self._views = views
        self._checkpoints = checkpoints
        self._check_certificate = check_certificate
        self.lanes = lanes
        self.slots: dict[int, Slot] = {}
        self._ahead = Ahead()
        self.decided = checkpoints.executed
        """Highest height handed on, all below it included."""

    # Restart.

    def restore(self, records: VoteRecords) -> None:
        """Take back what the vote records hold of heights above the low watermark."""
        for (height, view), record in sorted(records.accepted.items()):
            if height <= self._checkpoints.low:
                continue
            slot = self.slots.setdefault(height, Slot())
            kept = slot.round(view) if view in (self._views.active, self._views.previous) else Round()
            kept.pre_prepare = record.pre_prepare
            kept.recorded = True
            if record.prepare is not None:
                kept.add(record.prepare)
            proved = records.prepared.get((height, view))
            if proved is None:
                continue
            slot.proof = PreparedProof(record.pre_prepare, proved.prepares)  # views ascend: the highest stays
            kept.prepared = True
            for vote in proved.prepares:
                if vote.replica not in kept.prepares:
                    first = record.pre_prepare
                    kept.add(Prepare(first.epoch, first.view, first.height, first.digest, vote.replica, vote.signature))
            if proved.commit is not None:
                kept.add(proved.commit)

    def resume(self, now_ms: int) -> None:
        """After a restart, send the own stored votes of the active view again and go on from them."""
        own = self._statements.replica
        self._carry(now_ms)
        for message in self.held(above=self._checkpoints.low):
            if message.replica == own:
                self._out.add(Broadcast(message))
        for height in sorted(self.slots):
            for view in sorted(self.slots[height].rounds):
                self._advance(height, view)

    # What arrives.

    def on_pre_prepare(self, message: PrePrepare, now_ms: int) -> None:
        """Take a first-hand pre-prepare [CL99 4.2]; vote for it when all that protocol 5.1 lists holds."""
        sender = message.replica
        if sender != self._statements.primary(message.view):
            self._out.refuse(Reason.NOT_PRIMARY, sender)
            return
        if not self._is_current(message):
            return
        current = self.slots.setdefault(message.height, Slot()).round(message.view)
        known = current.pre_prepare
        if known is not None and known.digest == message.digest:
            self._out.refuse(Reason.DUPLICATE, sender)
            self._vote(current, now_ms)  # the clock may have come round to it
            return
        if not self._statements.is_signed(message):
            self._out.refuse(Reason.BAD_SIGNATURE, sender)
            return
        if known is not None:
            self._out.convict("pre_prepare", known, message)
            if current.prepared or current.prepares_for(message.digest) < self._statements.quorum.weak:
                return
        reason = self._check_proposal(message)
        if reason is not None:
            self._out.refuse(reason, sender)
            return
        # The second of two contradicting pre-prepares takes the place of the first when a correct backup voted for it,
        # else a primary can hide from this replica what others decide. The own PREPARE, if sent, stays as it is.
        current.pre_prepare = message
        current.recorded = False
        if known is None:
            for vote in current.prepares.values():
                self._tell(message, vote)
        self._vote(current, now_ms)
        self._advance(message.height, message.view)

    def on_vote(self, message: Vote) -> None:
        """Count a PREPARE or COMMIT [CL99 4.2]: one vote for each replica, first come."""
        sender = message.replica
        if isinstance(message, Prepare) and sender == self._statements.primary(message.view):
            self._out.refuse(Reason.NOT_AUTHORIZED, sender, "the primary sends no prepare")
            return
        if not self._is_current(message):
            return
        current = self.slots.setdefault(message.height, Slot()).round(message.view)
        known = current.votes_for(message).get(sender)
        if known is not None and known.digest == message.digest:
            self._out.refuse(Reason.DUPLICATE, sender)
        elif not self._statements.is_signed(message):
            self._out.refuse(Reason.BAD_SIGNATURE, sender)
        elif known is not None:
            self._out.convict(type(message).__name__.lower(), known, message)
            first = current.pre_prepare
            if first is not None and message.digest == first.digest:
                current.add(message)  # it counts once for what others saw it say
                self._advance(message.height, message.view)
        else:
            current.add(message)
            if isinstance(message, Prepare) and current.pre_prepare is not None:
                self._tell(current.pre_prepare, message)
            self._advance(message.height, message.view)

    def _tell(self, first: PrePrepare, vote: Prepare) -> None:
        """Answer a PREPARE for another proposal with the pre-prepare that was heard here, once for each voter.

        A voter that heard the primary say something else then holds both of its signatures, which is evidence, and so
        does this replica by the voter's answer. A correct primary has one proposal, and this costs nothing.
        """
        if vote.digest != first.digest and vote.replica != self._statements.replica:
            self._out.add(SendTo(vote.replica, first))

    def _is_current(self, message: PrePrepare | Vote) -> bool:
        """Tell whether the message belongs to the log now; else drop it with its reason, or keep it for later."""
        view, height, sender = message.view, message.height, message.replica
        low, high = self._checkpoints.low, self._checkpoints.high
        if height <= low:
            self._out.refuse(Reason.STALE, sender)
        elif view < self._views.active and not self._is_kept(view, height):
            self._out.refuse(Reason.WRONG_VIEW, sender)
        elif height > high + self._statements.window:
            self._out.refuse(Reason.OUTSIDE_WATERMARKS, sender)
        elif view <= self._views.active and height <= high:
            return True
        elif not self._statements.is_signed(message):
            self._out.refuse(Reason.BAD_SIGNATURE, sender)
        elif (known := self._ahead.contradicted(message)) is not None:
            self._out.convict(
                "pre_prepare" if isinstance(message, PrePrepare) else type(message).__name__.lower(), known, message
            )
        elif not self._ahead.add(message):
            self._out.refuse(Reason.OVER_QUOTA, sender, "ahead")
        return False

    def _is_kept(self, view: int, height: int) -> bool:
        """Tell whether a vote of an earlier view may still decide: of the one before, where its proposal is known."""
        slot = self.slots.get(height)
        return view == self._views.previous and slot is not None and view in slot.rounds

    def _check_proposal(self, message: PrePrepare) -> Reason | None:
        """Check what a first-hand proposal is made of; nothing here depends on state or clock (protocol 5.1)."""
        proposal = message.proposal
        if message.height <= self._views.base:
            return Reason.OUTSIDE_WATERMARKS
        if not proposal.certificates:
            return Reason.MALFORMED
        if self._statements.digest_of_proposal(proposal) != message.digest:
            return Reason.BAD_DIGEST
        limit = proposal_bytes_max(self._statements.quorum.n, self._statements.window)
        if len(proposal.certificates) > 1 and certificates_bytes(proposal) > limit:
            return Reason.TOO_LARGE
        if any(self._check_certificate(item) is not None for item in proposal.certificates):
            return Reason.BAD_CERTIFICATE
        return None

    def _check_clock(self, proposal: Proposal, now_ms: int) -> bool:
        """Bound the time of a first-hand proposal: at most δ ahead, δ + the timer cap behind (protocol 5.1)."""
        parameters = self._statements.roster.genesis.parameters
        skew = parameters.clock_skew_ms
        return now_ms - skew - parameters.view_timer_cap_ms <= proposal.time_ms <= now_ms + skew

    # The three phases.

    def _vote(self, current: Round, now_ms: int) -> None:
        """Send PREPARE, once, as a backup that is active in the view; durable with its proposal (protocol 5.2)."""
        first = current.pre_prepare
        own = self._statements.replica
        if first is None or self._views.is_changing or self._views.is_muted or first.view != self._views.active:
            return
        if first.replica == own or own in current.prepares:
            return
        carried = first.height <= self._views.base
        if not carried and not self._check_clock(first.proposal, now_ms):
            self._out.refuse(Reason.BAD_TIME, first.replica)
            return
        prepare = self._statements.prepare(first.view, first.height, first.digest)
        self._record(current, first, prepare)
        current.add(prepare)
        self._out.add(Broadcast(prepare))

    def _record(self, current: Round, first: PrePrepare, prepare: Prepare | None) -> None:
        self._votes.accepted(first, prepare)
        current.recorded = True

    def _advance(self, height: int, view: int) -> None:
        """Go from pre-prepared to prepared to committed as far as the votes reach."""
        slot = self.slots[height]
        current = slot.round(view)
        first = current.pre_prepare
        if first is None:
            return
        if not current.prepared and (proof := current.proof(self._statements.quorum)) is not None:
            self._prepared(slot, current, proof)
        if slot.decision is None and current.is_committed(self._statements.quorum):
            slot.decision = Decision(first.digest, first.proposal, view)
            self.deliver()

    def _prepared(self, slot: Slot, current: Round, proof: PreparedProof) -> None:
        """Keep the proof, and COMMIT when active in its view: durable with its strong prepares (protocol 5.2)."""
        first = proof.pre_prepare
        current.prepared = True
        if slot.proof is None or slot.proof.pre_prepare.view < first.view:
            slot.proof = proof
        if not current.recorded:
            self._record(current, first, current.prepares.get(self._statements.replica))
        commit: Commit | None = None
        if not self._views.is_changing and not self._views.is_muted and first.view == self._views.active:
            commit = self._statements.commit(first.view, first.height, first.digest)
            current.add(commit)
        self._votes.prepared(first, proof.prepares, commit)
        if commit is not None:
            self._out.add(Broadcast(commit))

    def deliver(self) -> None:
        """Hand on decided heights in order: the one commit point (design D3)."""
        while (slot := self.slots.get(self.decided + 1)) is not None and slot.decision is not None:
            self.decided += 1
            decision = slot.decision
            self.lanes.order(decision.proposal)
            self._out.add(Decided(self.decided, decision.proposal, decision.view))

    def on_executed(self, lanes: tuple[int, ...]) -> None:
        """Take note that the ledger moved, by execution or by catch-up."""
        executed = self._checkpoints.executed
        self.decided = max(self.decided, executed)
        above = [self.slots[height].decision for height in range(executed + 1, self.decided + 1)]
        self.lanes.execute(lanes, [item.proposal for item in above if item is not None])
        self.deliver()

    # Watermarks and views.

    def on_window_moved(self, now_ms: int) -> None:
        """Give up the log up to the low watermark, and take what waited above the high one [CL99 4.3]."""
        low = self._checkpoints.low
        for old in [height for height in self.slots if height <= low]:
            del self.slots[old]
        if self._checkpoints.stable is not None:
            self._votes.forget_up_to(self._checkpoints.stable)
        self._carry(now_ms)
        self._take_ahead(now_ms)

    def on_view_entered(self, now_ms: int) -> None:
        """Start the log of the new view with the proposals of its NEW-VIEW [CL99 4.4]."""
        for slot in self.slots.values():
            for old in [view for view in slot.rounds if view < self._views.previous]:
                del slot.rounds[old]
        self._carry(now_ms)
        self._take_ahead(now_ms)

    def _carry(self, now_ms: int) -> None:
        """Accept the pre-prepares of the active NEW-VIEW that are in the window: proved, so without a clock check."""
        new_view = self._views.new_view
        if new_view is None:
            return
        for message in new_view.pre_prepares:
            if not self._checkpoints.low < message.height <= self._checkpoints.high:
                continue
            slot = self.slots.setdefault(message.height, Slot())
            current = slot.round(message.view)
            if current.pre_prepare is not None:
                continue
            if slot.decision is not None and slot.decision.digest != message.digest:
                self._out.halt(f"view {message.view} proposes another proposal at the decided height {message.height}")
                return
            current.pre_prepare = message
            if message.replica == self._statements.replica:
                self._record(current, message, None)
            self._vote(current, now_ms)
            self._advance(message.height, message.view)

    def _take_ahead(self, now_ms: int) -> None:
        for message in self._ahead.take(self._views.active, self._checkpoints.high):
            if isinstance(message, PrePrepare):
                self.on_pre_prepare(message, now_ms)
            else:
                self.on_vote(message)

    def proofs(self) -> list[PreparedProof]:
        """Return P: for each height above the low watermark its proof of the highest view [CL99 4.4]."""
        low = self._checkpoints.low  # it may have moved in this very step, before the log is cut
        return [slot.proof for height, slot in sorted(self.slots.items()) if slot.proof is not None and height > low]

    # The primary.

    def propose(self, now_ms: int) -> None:
        """As the active primary, order what waits: at once when idle, else gather while others are in flight."""
        view = self._views.active
        if self._views.is_changing or self._views.is_muted or not self._statements.is_own(view):
            return
        while (height := self._next_height()) <= self._checkpoints.high:
            in_flight = height - 1 - self.decided
            after = self._lanes_before(height)
            if in_flight >= PIPELINE or after is None:
                return
            chosen = self.lanes.gather(after, height)
            if not chosen or (in_flight and len(chosen) < self._statements.quorum.n):
                return
            message = self._statements.pre_prepare(view, height, Proposal(chosen, now_ms))
            current = self.slots.setdefault(height, Slot()).round(view)
            current.pre_prepare = message
            self._record(current, message, None)
            self._out.add(Broadcast(message))
            self._advance(height, view)

    def _next_height(self) -> int:
        """Return the height above all that is decided, certified, or pre-prepared in the active view."""
        active = self._views.active
        ordered = [
            height
            for height, slot in self.slots.items()
            if (current := slot.rounds.get(active)) is not None and current.pre_prepare is not None
        ]
        return 1 + max(self.decided, self._views.base, self._checkpoints.certified, *ordered, 0)

    def _lanes_before(self, height: int) -> tuple[int, ...] | None:
        """Return the lanes once everything below `height` executed, or None while something of it is unknown here."""
        lanes = self.lanes.ordered
        for below in range(self.decided + 1, height):
            slot = self.slots.get(below)
            current = slot.rounds.get(self._views.active) if slot is not None else None
            if current is None or current.pre_prepare is None:
                return None
            lanes = lanes_after(lanes, current.pre_prepare.proposal)
        return lanes

    # What waits.

    def proposed(self) -> list[int]:
        """Return the undecided heights with a pre-prepare of the active view."""
        active = self._views.active
        return [
            height
            for height, slot in self.slots.items()
            if height > self.decided
            and (current := slot.rounds.get(active)) is not None
            and current.pre_prepare is not None
        ]

    def is_excused(self) -> bool:
        """Tell whether the primary is not to blame for what waits here.

        All of the window is decided, and nothing can be proposed before a checkpoint; or others are certified above
        what is decided here, and it is this replica that is late.
        """
        return self.decided >= self._checkpoints.high or self._checkpoints.certified > self.decided

    def is_uncertified(self) -> bool:
        """Tell whether a block that stands here has no certificate yet, nor one above it."""
        return self._checkpoints.executed > self._checkpoints.low

    def held(self, above: int) -> list[PrePrepare | Vote]:
        """Return the pre-prepares and votes of the active view above a height, own and others', for a peer."""
        found: list[PrePrepare | Vote] = []
        for height, slot in sorted(self.slots.items()):
            current = slot.rounds.get(self._views.active)
            if height > above and current is not None:
                found += [current.pre_prepare] if current.pre_prepare is not None else []
                found += [vote for _, vote in sorted(current.prepares.items())]
                found += [vote for _, vote in sorted(current.commits.items())]
        return found
