"""One PBFT replica as a pure step machine [CL99, CL02] (design D3, D4).

An input goes in with the time, effects come out; there is no clock, thread, disk or network in here. `bcami.pbft` in
one page:

    statements   what is signed and verified             records      the durable votes, and restart
    slots        the message log                         lanes        certificates that wait
    ordering     pre-prepare, prepare, commit, propose   checkpoints  block certificates, watermarks
    proofs       view-change proofs, the choice of O     views        leaving and entering views
    timers       backoff, fairness                       recovery     what a peer lacks
    monitor      a primary that is too slow

What holds after every step:

- Two correct replicas never decide different proposals at one height, whatever f others do.
- A replica never signs two different statements for one (epoch, view, height, phase), restarts included.
- `low_watermark` = min(certified, executed) <= executed <= decided <= high watermark, unless catch-up ran ahead.
- Nothing is sent before a `Persist` of it and of what it rests on.
- A replica whose records are lost never signs, stores or sends anything of its own (protocol 6.3).

Not handled here: fetching batch data and blocks, transport authentication, a change of members (one epoch only).
"""

from dataclasses import dataclass
from typing import assert_never

from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.model.block import BlockCertificate
from bcami.model.consensus import (
    Checkpoint,
    Commit,
    ConsensusMessage,
    NewView,
    Prepare,
    PrePrepare,
    ViewChange,
)
from bcami.model.events import PrimarySuspected
from bcami.model.reasons import Reason
from bcami.model.wire import Status
from bcami.pbft.checkpoints import Checkpoints
from bcami.pbft.effects import Broadcast, Certified, Effect, Observe, Outbox, Relay, SendTo, TellStatus
from bcami.pbft.inputs import (
    BlockCertified,
    CertificateReady,
    Executed,
    Input,
    PeerStatus,
    Received,
    Synced,
    TimerFired,
)
from bcami.pbft.lanes import Lanes, proposal_bytes_max
from bcami.pbft.monitor import MONITOR, Monitor
from bcami.pbft.ordering import CheckCertificate, Ordering
from bcami.pbft.proofs import stable_height
from bcami.pbft.records import Restored, VoteLog, read_records, restored_with, votes_in
from bcami.pbft.recovery import CatchUp, Recovery
from bcami.pbft.statements import Statements
from bcami.pbft.timers import (
    CATCH_UP,
    CERTIFY,
    FAIRNESS,
    RELAY,
    RELAY_DIVISOR,
    VIEW,
    VIEW_CHANGE,
    Backoff,
    Fairness,
    Timers,
)
from bcami.pbft.views import Entry, ViewChanges, ViewState


class Replica:
    """Wires the parts together; each owns its own state."""

    def __init__(
        self,
        roster: Roster,
        replica: int,
        signer: Signer,
        check_certificate: CheckCertificate,
        restored: Restored,
    ) -> None:
        """Raises MalformedError when a vote record is damaged."""
        records = read_records(restored.records)
        parameters = roster.genesis.parameters
        self._is_amnesiac = restored.is_amnesiac
        restored = restored_with(records.floor, restored)
        self._out = Outbox(dumb=replica if restored.is_amnesiac else None)
        self._statements = Statements(roster, replica, signer)
        votes = VoteLog(self._out, records)
        self._views = ViewState.restore(records, self._statements)
        self._checkpoints = Checkpoints(self._statements, self._out, votes, restored)
        lanes = Lanes(restored.lanes, proposal_bytes_max(roster.quorum.n, parameters.window))
        self._ordering = Ordering(
            self._statements, self._out, votes, self._views, self._checkpoints, lanes, check_certificate
        )
        self._changes = ViewChanges(self._statements, self._out, votes, self._views)
        self._recovery = Recovery(self._views, self._checkpoints, self._ordering)
        self._timers = Timers(self._out)
        self._backoff = Backoff(parameters.view_timer_ms, parameters.view_timer_cap_ms)
        self._fairness_ms = parameters.fairness_ms
        relay_ms = max(1, parameters.view_timer_ms // RELAY_DIVISOR)
        self._fairness = Fairness(self._timers, parameters.fairness_ms, relay_ms)
        self._monitor = Monitor(parameters.view_timer_ms, roster.quorum.weak)
        self._monitor.enter(self.primary)
        self._suspicions: dict[int, int] = {}
        """By replica, the view whose primary it suspects."""
        self._is_suspicious = False
        self._catch_up = CatchUp(self._timers, self._out, parameters.view_timer_ms)
        self._progress = _Progress(self._checkpoints.low, self._ordering.decided)
        self._headers = restored.headers
        self._floor = stable_height(records.floor)
        self._mute()
        for _, vote in sorted(records.checkpoints.items()):
            self._checkpoints.restore(vote)
        for vote in votes_in(records.floor):  # a ledger that is rebuilt lost the certificate, which others may lack
            self._checkpoints.restore(vote)
        self._ordering.restore(records)

    # What the shell may read between steps.

    @property
    def view(self) -> int:
        """The view that the replica is in, or moves to."""
        return self._views.target

    @property
    def in_view_change(self) -> bool:
        return self._views.is_changing

    @property
    def primary(self) -> int:
        return self._statements.primary(self._views.target)

    @property
    def executed(self) -> int:
        return self._checkpoints.executed

    @property
    def decided(self) -> int:
        return self._ordering.decided

    @property
    def low_watermark(self) -> int:
        return self._checkpoints.low

    @property
    def stable(self) -> BlockCertificate | None:
        """Certificate of the low watermark; None stands for genesis."""
        return self._checkpoints.stable

    @property
    def is_halted(self) -> bool:
        return self._out.halted

    def status(self) -> Status:
        """Return what this replica tells its peers periodically and on reconnect (protocol 6.1)."""
        return Status(
            self._statements.epoch,
            self._statements.replica,
            self.view,
            self.in_view_change,
            self.executed,
            self.low_watermark,
            self._ordering.lanes.executed,
            self._is_suspicious and not self.in_view_change,
        )

    @property
    def is_suspicious(self) -> bool:
        """Tell whether this replica finds the primary too slow."""
        return self._is_suspicious

    # Steps.

    def start(self, now_ms: int) -> list[Effect]:
        """Resume after construction: send the own stored statements again, vote for executed blocks, set timers."""
        own = self._statements.replica
        if self._views.new_view is not None and self._views.new_view.replica == own:
            self._out.add(Broadcast(self._views.new_view))
        if self._views.own_change is not None and self._views.is_changing:
            self._changes.latest[own] = self._views.own_change
            self._out.add(Broadcast(self._views.own_change))
        self._ordering.resume(now_ms)
        for vote in self._checkpoints.own_votes():
            self._out.add(Broadcast(vote))
        if self._checkpoints.stable is not None:
            self._out.add(Certified(self._checkpoints.stable))  # the ledger may have lost it with the power
        self._checkpoints.recount()
        for height, header_hash in self._headers:
            self._checkpoints.on_executed(height, header_hash)
        return self._finish(now_ms)

    def step(self, event: Input, now_ms: int) -> list[Effect]:
        """Advance by one input at wall-clock time `now_ms`; never raises on what a peer sent."""
        if self._out.halted:
            return []
        match event:
            case Received():
                self._on_message(event.message, now_ms)
            case TimerFired():
                self._on_timer(event.name)
            case CertificateReady():
                self._on_certificate_ready(event)
            case Executed():
                self._checkpoints.on_executed(event.height, event.header_hash)
                self._ordering.on_executed(event.lanes)
            case BlockCertified():
                self._checkpoints.learn(event.certificate)
            case Synced():
                self._checkpoints.on_synced(event.height, event.header_hash, event.certificate)
                self._ordering.on_executed(event.lanes)
            case PeerStatus():
                self._on_status(event.status)
            case _:
                assert_never(event)
        return self._finish(now_ms)

    def _on_message(self, message: ConsensusMessage, now_ms: int) -> None:
        sender = message.replica
        if message.epoch != self._statements.epoch:
            self._out.refuse(Reason.WRONG_EPOCH, sender)
            return
        if sender >= self._statements.quorum.n:
            self._out.refuse(Reason.UNKNOWN_REPLICA, sender)
            return
        if sender == self._statements.replica:
            self._out.refuse(Reason.DUPLICATE, sender, "own message")
            return
        match message:
            case PrePrepare():
                self._ordering.on_pre_prepare(message, now_ms)
            case Prepare() | Commit():
                self._ordering.on_vote(message)
            case Checkpoint():
                self._checkpoints.on_checkpoint(message)
            case ViewChange():
                if self._changes.on_view_change(message) and message.stable is not None:
                    self._checkpoints.learn(message.stable)
            case NewView():
                if (entry := self._changes.on_new_view(message)) is not None:
                    self._enter(entry, now_ms)
            case _:
                assert_never(message)

    def _on_certificate_ready(self, event: CertificateReady) -> None:
        certificate = event.certificate
        if certificate.epoch != self._statements.epoch:
            self._out.refuse(Reason.WRONG_EPOCH, certificate.collector)
        elif certificate.collector >= self._statements.quorum.n:
            self._out.refuse(Reason.UNKNOWN_REPLICA, certificate.collector)
        elif not self._ordering.lanes.add(certificate):
            self._out.refuse(Reason.OVER_QUOTA, certificate.collector)

    def _on_status(self, status: Status) -> None:
        if status.epoch != self._statements.epoch:
            self._out.refuse(Reason.WRONG_EPOCH, status.replica)
        elif status.replica >= self._statements.quorum.n:
            self._out.refuse(Reason.UNKNOWN_REPLICA, status.replica)
        else:
            self._suspicions.pop(status.replica, None)
            if status.suspects and not status.in_view_change:
                self._suspicions[status.replica] = status.view
            for message in self._recovery.answer(status):
                self._out.add(SendTo(status.replica, message))

    def _on_timer(self, name: str) -> None:
        if not self._timers.has_fired(name):
            return
        if name == CATCH_UP:
            self._catch_up.ask_again()
        elif name == VIEW_CHANGE:
            self._leave(self._views.target + 1, "no new-view in time")
        elif name == VIEW:
            self._leave(self._views.target + 1, "no progress in time")
        elif name == CERTIFY:
            self._leave(self._views.target + 1, "no certificate in time")
        elif name.startswith(RELAY):
            collector = int(name.removeprefix(RELAY))
            if self._fairness.relay(collector):
                self._relay(collector)
        elif name.startswith(FAIRNESS):
            self._leave(self._views.target + 1, f"collector {name.removeprefix(FAIRNESS)} kept waiting")

    # Views.

    def _leave(self, view: int, cause: str) -> None:
        """Leave for a higher view: stop all that belongs to the one before.

        A replica whose ledger is being rebuilt stays: what it could prove is not what it once voted for.
        """
        if self._views.is_muted:
            return
        self._backoff.failed()
        self._monitor.leave()
        self._stop_view_timers()
        self._changes.start(view, cause, self._checkpoints.stable, self._ordering.proofs())

    def _enter(self, entry: Entry, now_ms: int) -> None:
        """Enter a proved view, and take its stable checkpoint as known."""
        self._stop_view_timers()
        if not self._views.is_changing:
            self._monitor.leave()
        self._changes.enter(entry)
        self._monitor.enter(self.primary)
        if entry.choice.stable is not None:
            self._checkpoints.learn(entry.choice.stable)
        self._catch_up.need(entry.choice.min_s)  # [CL99 4.4] fetch what the new view starts from
        self._ordering.on_view_entered(now_ms)

    def _stop_view_timers(self) -> None:
        for name in (VIEW, VIEW_CHANGE, CERTIFY, MONITOR):
            self._timers.cancel(name)
        self._fairness.reset()
        self._is_suspicious = False

    def _relay(self, collector: int) -> None:
        """Send the primary a certificate that it could order (protocol 4.4)."""
        certificate = self._ordering.lanes.next(collector)
        if certificate is not None and not self._statements.is_own(self._views.active):
            self._out.add(Relay(self.primary, certificate))

    def _is_at_primary(self, collector: int) -> bool:
        """Tell whether the primary has a lane's certificates already: its own, and those that this replica sent."""
        own = self._statements.replica
        return own in (collector, self.primary) or collector == self.primary

    def _watch_primary(self, now_ms: int, proposed: list[int], is_excused: bool) -> None:
        """Judge the primary; leave the view when weak replicas, this one among them, find it too slow."""
        monitor, view = self._monitor, self._views.active
        if self._statements.is_own(view):
            return
        monitor.observe(now_ms, self._fairness.owed(), proposed, self._ordering.decided, is_excused)
        was_suspicious, self._is_suspicious = self._is_suspicious, monitor.is_suspicious
        if self._is_suspicious and not was_suspicious:
            found = PrimarySuspected(view, self.primary, monitor.longest_wait_ms, monitor.demand_ms())
            self._out.add(Observe(found))
            self._out.add(TellStatus())
        others = sum(suspected == view for suspected in self._suspicions.values())
        if self._is_suspicious and 1 + others >= self._statements.quorum.weak:
            self._leave(view + 1, "the primary is too slow")

    # After each input.

    def _finish(self, now_ms: int) -> list[Effect]:
        """Draw all conclusions of the input, then bring the timers in line."""
        self._mute()
        while not self._out.halted and (view := self._changes.view_to_join()) is not None:
            self._leave(view, "others left")
        if not self._out.halted and (entry := self._changes.build()) is not None:
            self._enter(entry, now_ms)
        if not self._out.halted and self._checkpoints.low > self._progress.low:
            self._progress.low = self._checkpoints.low
            self._timers.cancel(CERTIFY)
            self._ordering.on_window_moved(now_ms)
        if not self._out.halted:
            self._ordering.propose(now_ms)
        if self._out.halted:
            self._timers.cancel_all()
        else:
            self._catch_up.check(self._checkpoints, self._ordering.decided)
            self._set_timers(now_ms)
        return self._out.take()

    def _mute(self) -> None:
        self._views.is_muted = self._is_amnesiac or self._checkpoints.low < self._floor

    def _set_timers(self, now_ms: int) -> None:
        """Let each timer run exactly while what it waits for is missing; one that never leaves a view needs none."""
        if self._is_amnesiac:
            return
        ordering, timers = self._ordering, self._timers
        if ordering.decided > self._progress.decided:
            self._progress.decided = ordering.decided
            self._backoff.progressed()
            timers.cancel(VIEW)
        changing, is_excused, proposed = self._views.is_changing, ordering.is_excused(), ordering.proposed()
        if not changing:
            for collector in self._fairness.watch(ordering.lanes.owed(), self._is_at_primary, is_excused, now_ms):
                self._relay(collector)
            self._watch_primary(now_ms, proposed, is_excused)
            changing = self._views.is_changing
        wait_ms, is_timed = self._backoff.delay_ms, not changing and not is_excused
        timers.keep(VIEW, is_timed and (bool(proposed) or self._fairness.is_owed), wait_ms)
        timers.keep(MONITOR, is_timed and self._monitor.is_watching, self._monitor.tick_ms)
        timers.keep(VIEW_CHANGE, self._changes.is_timed(), wait_ms)
        timers.keep(CERTIFY, not changing and ordering.is_uncertified(), max(self._fairness_ms, wait_ms))


@dataclass(slots=True)
class _Progress:
    """What the step before left behind, to see what moved."""

    low: int
    decided: int
