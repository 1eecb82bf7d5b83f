"""`NodeCore`: the composition, and the only way in.

    dissemination  batches and endorsements        submissions  what clients ask to be taken in
    chain          decided, executed, written      answers      outcomes, certificates, who waits
    execution      a proposal into a block         world        the state that execution reads
    sync           blocks, or a snapshot           fetching     batches that this node lacks
    gaps           certificates that never came    serving      what peers may ask for

Ordering is `bcami.pbft`. In here is only who tells whom.
"""

from collections.abc import Iterable, Sequence
from typing import Final, assert_never

from bcami.contract.issuance import answer_contribution
from bcami.contract.runtime import Runtime
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import DeadSigner, Signer
from bcami.crypto.verification import verify_batch_certificate, verify_block_certificate
from bcami.endorsement.collector import GATHER_MS
from bcami.endorsement.pool import hold
from bcami.ledger.store import Ledger
from bcami.model import events
from bcami.model.api import CertifiedHeader, SubmitResult
from bcami.model.batch import BATCH_BYTES_MAX, Batch, BatchCertificate, Endorsement
from bcami.model.block import BlockCertificate, header_hash
from bcami.model.chain import BlockBundle
from bcami.model.consensus import Checkpoint, Commit, NewView, Prepare, PrePrepare, ViewChange
from bcami.model.reasons import Reason, explain
from bcami.model.registration import ContributionAnswer, ContributionRequest
from bcami.model.transaction import Transaction, transaction_id
from bcami.model.wire import FetchBatch, FetchBlocks, FetchSnapshot, PeerMessage, SnapshotPart, Status
from bcami.node.core import effects as out
from bcami.node.core.admission import Tickets
from bcami.node.core.answers import Answers
from bcami.node.core.catchup import CatchUp
from bcami.node.core.chain import Chain, Decision
from bcami.node.core.contributions import ContributionRate
from bcami.node.core.dissemination import Dissemination
from bcami.node.core.elapsed import Elapsed
from bcami.node.core.execution import Executor
from bcami.node.core.fetching import FETCH_AGAIN_MS, Fetching
from bcami.node.core.gaps import Gaps
from bcami.node.core.refusals import Refusals
from bcami.node.core.serving import Serving, batch_bytes
from bcami.node.core.submissions import Submissions
from bcami.node.core.sync import Sync
from bcami.node.core.world import WorldState
from bcami.pbft import effects as pbft_out
from bcami.pbft import inputs as pbft_in
from bcami.pbft.records import Restored
from bcami.pbft.replica import Replica

STATUS_MS: Final = 500

ConsensusMessage = PrePrepare | Prepare | Commit | Checkpoint | ViewChange | NewView


class NodeCore:
    """One node. Every method returns the effects of one thing that happened."""

    def __init__(
        self,
        roster: Roster,
        replica: int,
        signer: Signer,
        runtime: Runtime,
        ledger: Ledger,
        promises: Iterable[tuple[bytes, bytes]] | None,
        contribution_secret: bytes,
    ) -> None:
        """`promises` is None when they are lost: the node follows and serves, and never signs again (protocol 6.3).

        Raises MalformedError when a promise does not decode: a node that may have forgotten one must not vote.
        """
        self.is_amnesiac = promises is None
        if promises is None:
            signer = DeadSigner(signer.public_key)
        self.roster = roster
        self.replica = replica
        self.ledger = ledger
        self.runtime = runtime
        self.world = WorldState(ledger)
        self.executor = Executor(roster, runtime, self.world, ledger)
        self.catchup = CatchUp(roster.quorum.weak)
        self.refusals = Refusals(roster, replica, None if self.is_amnesiac else signer)
        self._signer = signer
        self._contribution_secret = contribution_secret
        self._contributions = ContributionRate(roster.genesis.parameters.contribution_rate_per_minute)
        self._elapsed = Elapsed()
        self._out = out.Outbox()
        self._lanes = Dissemination(
            roster, replica, signer, self.executor.lanes, self._check, self._out, is_amnesiac=self.is_amnesiac
        )
        self._pool = self._lanes.pool
        self._answers = Answers(ledger)
        self._submissions = Submissions(self._answers, self._lanes, self._check, self._out)
        self._fetching = Fetching(replica)
        self._gaps = Gaps(roster, replica)
        self._serving = Serving(roster, replica, signer, ledger, self._pool, self._answers, self._out)
        self.chain = Chain(roster, replica, ledger, self.executor, self._pool, self._answers, self._out)
        self._sync = Sync(roster, self.catchup, self.chain, self.executor, self._out)
        self.pbft = self._make_replica(self._restore(promises or ()))

    def _restore(self, promises: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Take back the promises of the lanes; returns the vote records, which are ordering's."""
        votes = []
        for key, value in promises:
            if not self._lanes.is_promise(key):
                votes.append((key, value))
                continue
            for tx_id in self._lanes.restore(key, value, self.executor.lanes):
                self.tickets.expect(tx_id)
        return votes

    def _make_replica(self, votes: list[tuple[bytes, bytes]]) -> Replica:
        """Return ordering where the ledger stands; blocks above the last certificate are vouched for again."""
        ledger, roster = self.ledger, self.roster
        certified = ledger.certified_height
        headers = []
        for height in range(certified + 1, ledger.height + 1):
            header = ledger.header(height)
            assert header is not None
            headers.append((height, header_hash(header)))
        stable = ledger.certificate(certified) if certified else None
        lanes = self.executor.lanes
        restored = Restored(votes, ledger.height, stable, lanes, tuple(headers), self.is_amnesiac)
        return Replica(
            roster, self.replica, self._signer, lambda item: verify_batch_certificate(item, roster), restored
        )

    # What happened.

    def start(self, now_ms: int) -> list[out.Effect]:
        """Begin, or go on after a restart: own votes are sent again, own batches go out again."""
        self._elapsed.advance(now_ms)
        if self.is_amnesiac:
            self._out.observe(events.Amnesia(explain(Reason.AMNESIA)))
        self._ordered(self.pbft.start(now_ms))
        self._out.add(out.SetTimer("status", STATUS_MS))
        self._send_status(None)
        self._settle_lanes(now_ms)
        return self._out.take()

    def timer(self, name: str, now_ms: int) -> list[out.Effect]:
        """A timer that was set has fired."""
        elapsed_ms = self._elapsed.advance(now_ms)
        if name == "status":
            self._on_status_timer(now_ms)
        elif self.halted:
            return self._out.take()
        elif name == "gather":
            self._cut(now_ms)
        elif name == "patience":
            self._lanes.out_of_patience(elapsed_ms)
            self._settle_lanes(now_ms)
        elif name == "fetch":
            self._fetch_missing()
        else:
            self._ordered(self.pbft.step(pbft_in.TimerFired(name.removeprefix("pbft/")), now_ms))
        return self._out.take()

    def connected(self, peer: int) -> list[out.Effect]:
        """A peer is there (again): tell it where this node stands (protocol 6.1)."""
        self._send_status(peer)
        return self._out.take()

    def disconnected(self, peer: int) -> list[out.Effect]:
        self._sync.gone(peer)
        return self._out.take()

    def receive(self, peer: int, message: PeerMessage, now_ms: int) -> list[out.Effect]:
        """One message of an authenticated peer; nothing that a peer can say makes this raise."""
        self._elapsed.advance(now_ms)
        match message:
            case PrePrepare() | Prepare() | Commit() | Checkpoint() | ViewChange() | NewView():
                self._on_consensus(message, now_ms)
            case Batch():
                self._on_batch(peer, message, now_ms)
            case Endorsement():
                self._on_endorsement(peer, message, now_ms)
            case BatchCertificate():
                self._on_batch_certificate(peer, message, now_ms)
            case Status():
                self._on_status(peer, message, now_ms)
            case FetchBatch():
                self._serving.on_fetch_batch(peer, message, self._elapsed.ms)
            case FetchBlocks():
                if self._serving.on_fetch_blocks(peer, message, self._elapsed.ms, may_sign=self._may_sign):
                    self._send_status(peer)  # what has come since: who catches up need not wait for the next round
            case BlockBundle():
                self._on_bundle(peer, message, now_ms)
            case FetchSnapshot():
                self._serving.on_fetch_snapshot(peer, message, self._elapsed.ms)
            case SnapshotPart():
                self._on_snapshot_part(peer, message)
            case _:
                assert_never(message)
        return self._out.take()

    def submit(self, transactions: Sequence[Transaction], wait: bool) -> tuple[int, list[bytes], list[out.Effect]]:
        """Take transactions of a client. Returns (ticket, transaction ids, effects); see `close_ticket`."""
        ids = [self.id_of(tx) for tx in transactions]
        ticket = self._submissions.add(transactions, ids, wait)
        if self._submissions.has_work:
            self._out.add(out.MoreWork())
        return ticket, ids, self._out.take()

    def work(self, now_ms: int) -> list[out.Effect]:
        """Check one slice of a submission and one of a batch: what costs time is done in small portions."""
        elapsed_ms = self._elapsed.advance(now_ms)
        if self._submissions.has_work:
            self._submissions.work(now_ms, elapsed_ms, self._closed)
            self._cut(now_ms)
        if not self.halted:
            self._lanes.work(now_ms)
            self._settle_lanes(now_ms)
        if self._submissions.has_work or (self._lanes.has_work and not self.halted):
            self._out.add(out.MoreWork())
        return self._out.take()

    def block_durable(self, height: int, now_ms: int) -> list[out.Effect]:
        """The ledger has the block on disk: only now may a checkpoint say so."""
        elapsed_ms = self._elapsed.advance(now_ms)
        block, certificate = self.chain.written(height)
        self.world.durable(height, [key for key, _ in block.commit.writes])
        self._lanes.executed(block.digests, block.lanes)
        step: pbft_in.Input = pbft_in.Executed(height, block.header_hash, block.lanes)
        if certificate is not None:
            step = pbft_in.Synced(height, block.header_hash, certificate, block.lanes)
        if not self.halted:
            self._ordered(self.pbft.step(step, now_ms))
        if certificate is not None:
            self.chain.answer(certificate)
        if not self.halted:
            self._lanes.retry_behind(self.chain.durable, elapsed_ms)
            self._ask_for_blocks()
        self._cut(now_ms)
        return self._out.take()

    def snapshot_staged(self, now_ms: int) -> list[out.Effect]:
        """One `StageSnapshot` is on disk."""
        self._elapsed.advance(now_ms)
        self._sync.snapshots.written()
        self._ask_for_blocks()
        return self._out.take()

    def snapshot_installed(self, now_ms: int) -> list[out.Effect]:
        """The ledger stands at the snapshot: everything that knows where this node stands goes on from there."""
        elapsed_ms = self._elapsed.advance(now_ms)
        self.world.restart()
        self.executor.restart(self.ledger)
        height, lanes = self.executor.height, self.executor.lanes
        certificate = self.ledger.certificate(height)
        assert certificate is not None
        self.chain.installed(height, self._lanes.jumped(lanes))
        self._sync.installed()
        if not self.halted:
            synced = pbft_in.Synced(height, certificate.header_hash, certificate, lanes)
            self._ordered(self.pbft.step(synced, now_ms))
            self.chain.execute_ready()
            self._lanes.retry_behind(height, elapsed_ms)
            self._fetch_missing()
        self._ask_for_blocks()
        self._send_status(None)
        self._cut(now_ms)
        return self._out.take()

    def contribute(self, request: ContributionRequest, now_ms: int) -> ContributionAnswer | Reason:
        """Answer a request for a key share (protocol 2.1); changes no state."""
        elapsed_ms = self._elapsed.advance(now_ms)
        if self.is_amnesiac:
            return Reason.AMNESIA
        if not self._contributions.allows(request.hid, elapsed_ms):
            return Reason.RATE_LIMITED
        answer = answer_contribution(
            request, self.runtime, self.world.read, self.roster, self.replica, self._signer, self._contribution_secret
        )
        if not isinstance(answer, Reason):
            self._contributions.give(request.hid, elapsed_ms)
        return answer

    def close_ticket(self, ticket: int, ids: Sequence[bytes]) -> tuple[list[SubmitResult], list[CertifiedHeader]]:
        """Return the results of a submission; what has none yet is unknown."""
        return self.tickets.close(ticket, ids)

    # What a gateway shows.

    @property
    def tickets(self) -> Tickets:
        return self._answers.tickets

    def id_of(self, tx: Transaction) -> bytes:
        return transaction_id(tx, self.roster.chain, self.roster.epoch)

    @property
    def halted(self) -> str | None:
        """Why this node stopped ordering (protocol 5.4); None while it works."""
        return self.chain.halted

    @property
    def _closed(self) -> Reason | None:
        """Why this node takes nothing in now; what is known it answers all the same."""
        if self.is_amnesiac:
            return Reason.AMNESIA
        return Reason.NOT_READY if self.halted or self._is_far_behind else None

    @property
    def _may_sign(self) -> bool:
        return not self.halted and not self.is_amnesiac

    @property
    def height(self) -> int:
        return self.chain.durable

    @property
    def certified_height(self) -> int:
        return self.ledger.certified_height

    @property
    def view(self) -> int:
        return self.pbft.view

    @property
    def queued(self) -> int:
        return self._lanes.queued + self._submissions.queued

    def known_result(self, tx_id: bytes) -> tuple[SubmitResult, CertifiedHeader] | None:
        """Return the certified outcome of a transaction that this node's chain holds."""
        return self._answers.known(tx_id)

    # Ordering.

    def _on_consensus(self, message: ConsensusMessage, now_ms: int) -> None:
        if self.halted:
            return
        if isinstance(message, Checkpoint) and self._answers.is_gap(message.height):
            self._on_gap_vote(message)
        self._ordered(self.pbft.step(pbft_in.Received(message), now_ms))

    def _ordered(self, effects: Sequence[pbft_out.Effect]) -> None:
        """Carry out what ordering asks for, in its order."""
        for effect in effects:
            match effect:
                case pbft_out.Persist(key, value):
                    self._out.add(out.Persist(((key, value),)))
                case pbft_out.Forget(keys):
                    self._out.add(out.Persist((), keys))
                case pbft_out.Broadcast(message):
                    self._out.add(out.Broadcast(message))
                case pbft_out.SendTo(replica, message):
                    self._out.add(out.Send(replica, message))
                case pbft_out.Relay(replica, waiting):
                    self._out.add(out.Send(replica, waiting))
                case pbft_out.TellStatus():
                    self._send_status(None)
                case pbft_out.SetTimer(name, delay_ms):
                    self._out.add(out.SetTimer("pbft/" + name, delay_ms))
                case pbft_out.CancelTimer(name):
                    self._out.add(out.CancelTimer("pbft/" + name))
                case pbft_out.Decided(height, proposal, view):
                    self.chain.decide(height, Decision(proposal, view))
                    self._fetch_missing()
                case pbft_out.Certified(certificate):
                    self.chain.certified(certificate)
                    if certificate.height > self.executor.height:
                        self.catchup.certified(certificate)
                        self._ask_for_blocks()
                case pbft_out.NeedBlocks(target_height):
                    self.catchup.want(target_height)
                    self._ask_for_blocks()
                case pbft_out.Observe(observation):
                    self._out.observe(observation)
                case pbft_out.Halt(reason):
                    self.chain.halted = self.chain.halted or reason  # ordering has said so itself
                case _:
                    assert_never(effect)

    # Batches.

    def _check(self, tx: Transaction, tx_id: bytes, now_ms: int) -> Reason | None:
        return self.runtime.check(tx, tx_id, self.world.read, now_ms)

    def _cut(self, now_ms: int) -> None:
        if self.halted:
            return
        certified = self.ledger.certified_height
        self._lanes.cut(self.ledger.certificate(certified) if certified else None, self._elapsed.ms)
        self._settle_lanes(now_ms)
        if self._lanes.queued:
            self._out.add(out.SetTimer("gather", GATHER_MS))

    def _settle_lanes(self, now_ms: int) -> None:
        """Take what the lanes found out: certificates of heights that this node lacks, and of own batches."""
        lanes = self._lanes
        while lanes.anchors:
            anchor = lanes.anchors.pop()
            self.catchup.want(anchor.height)
            self._ordered(self.pbft.step(pbft_in.BlockCertified(anchor), now_ms))
        while lanes.certified:
            self._on_batch_certificate(self.replica, lanes.certified.pop(0), now_ms)
        if lanes.has_work:
            self._out.add(out.MoreWork())

    def _on_batch(self, peer: int, batch: Batch, now_ms: int) -> None:
        """A collector's batch to endorse, or an answer to a fetch."""
        if self.halted:
            return
        if batch_bytes(batch) > 2 * BATCH_BYTES_MAX:
            self._out.refuse("endorsement", Reason.OVERSIZED, peer)
            return
        held = hold(batch, self.roster.chain)
        if held.digest in self.chain.wanted():
            self._pool.add(held)
            self.chain.execute_ready()
            self._fetch_missing()
        elif peer == batch.collector:
            self._lanes.consider(held, self.chain.durable, self._elapsed.ms)
            self._settle_lanes(now_ms)

    def _on_endorsement(self, peer: int, endorsement: Endorsement, now_ms: int) -> None:
        if not self.halted:
            self._lanes.vote(endorsement, peer)
            self._settle_lanes(now_ms)

    def _on_batch_certificate(self, peer: int, certificate: BatchCertificate, now_ms: int) -> None:
        if self.halted:
            return
        lanes = self.executor.lanes
        if certificate.collector < len(lanes) and certificate.number <= lanes[certificate.collector]:
            return
        reason = verify_batch_certificate(certificate, self.roster)
        if reason is not None:
            self._out.refuse("certificate", reason, peer)
            return
        self._lanes.certificate_seen(certificate, self._elapsed.ms)
        self._out.observe(events.BatchCertified(certificate.collector, certificate.number, certificate.count))
        self._ordered(self.pbft.step(pbft_in.CertificateReady(certificate), now_ms))

    def _fetch_missing(self) -> None:
        """Ask endorsers for the batches that the next height lacks, one after another."""
        due = self._fetching.due(self.chain.wanted(), self._elapsed.ms)
        for peer, item in due:
            self._out.add(out.Send(peer, FetchBatch(item.collector, item.number, item.batch_digest)))
        if due:
            self._out.add(out.SetTimer("fetch", FETCH_AGAIN_MS))

    # Catch-up.

    @property
    def _is_far_behind(self) -> bool:
        """Tell whether this node's state is too old to judge a transaction by."""
        return self.catchup.best_certified > self.executor.height + self.roster.genesis.parameters.window

    def _on_status_timer(self, now_ms: int) -> None:
        self._out.add(out.SetTimer("status", STATUS_MS))
        self._send_status(None)
        self._serving.upkeep(self._elapsed.ms)
        if self.halted:
            return
        self._lanes.resend(self._elapsed.ms)
        self._lanes.forward(self.pbft.primary, self._elapsed.ms)
        self._settle_lanes(now_ms)
        self._fetch_missing()
        self._ask_for_blocks()
        for peer, height in self._gaps.ask(self._answers.gaps()):
            self._out.add(out.Send(peer, FetchBlocks(height, height)))

    def _send_status(self, peer: int | None) -> None:
        status = Status(
            self.roster.epoch,
            self.replica,
            self.pbft.view,
            self.pbft.in_view_change,
            self.chain.durable,
            self.ledger.certified_height,
            self.executor.lanes,
            self.pbft.is_suspicious,
        )
        self._out.add(out.Broadcast(status) if peer is None else out.Send(peer, status))

    def _on_status(self, peer: int, status: Status, now_ms: int) -> None:
        if status.replica != peer or status.epoch != self.roster.epoch:
            self._out.refuse("status", Reason.UNKNOWN_REPLICA, peer)
            return
        self.catchup.heard(status)
        if not self.halted and self._serving.allows_status(peer, self._elapsed.ms):
            self._ordered(self.pbft.step(pbft_in.PeerStatus(status), now_ms))
        self._ask_for_blocks()

    def _ask_for_blocks(self) -> None:
        if not self.halted:
            self._sync.go_on(self._elapsed.ms)

    def _on_gap_vote(self, vote: Checkpoint) -> None:
        own = self._answers.hash_of(vote.height)
        assert own is not None
        vouched = None if self.is_amnesiac else self._serving.vouch(vote.height, own)
        certificate = self._gaps.vote(vote, vouched, own)
        if certificate is not None:
            self.chain.certified(certificate)

    def _on_bundle(self, peer: int, bundle: BlockBundle, now_ms: int) -> None:
        """A certified block from a peer: checked against the certificate, then executed like any other."""
        height = bundle.block.header.height
        if self.halted:
            return
        if self._answers.is_gap(height):
            self._on_gap_bundle(peer, height, bundle.certificate)
            return
        while not self.halted and self._sync.take_block(peer, bundle, self.pbft.view, self._elapsed.ms):
            if bundle.certificate.height > bundle.block.header.height:
                self._ordered(self.pbft.step(pbft_in.BlockCertified(bundle.certificate), now_ms))
            early = self._sync.take_early()
            if early is None:
                break
            peer, bundle = early
        self._fetch_missing()
        self._ask_for_blocks()

    def _on_snapshot_part(self, peer: int, part: SnapshotPart) -> None:
        if not self.halted:
            self._sync.take_part(peer, part, self._elapsed.ms)
            self._ask_for_blocks()

    def _on_gap_bundle(self, peer: int, height: int, certificate: BlockCertificate) -> None:
        """Take the certificate that was missing; the block itself stands here already.

        One of a later block is known already, or comes with its own; what is missing then are votes.
        """
        if certificate.height != height:
            return
        if certificate.header_hash != self._answers.hash_of(certificate.height):
            self._out.refuse("sync", Reason.BAD_CERTIFICATE, peer)
            return
        reason = verify_block_certificate(certificate, self.roster)
        if reason is not None:
            self._out.refuse("sync", reason, peer)
            return
        self.chain.certified(certificate)
