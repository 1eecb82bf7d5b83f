"""`NodeCore`: the composition, and the only way in."""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from bcami.contract.issuance import answer_contribution
from bcami.contract.runtime import Runtime
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.crypto.verification import verify_batch_certificate, verify_bundle
from bcami.endorsement.collector import GATHER_MS, QUEUE_BYTES_MAX
from bcami.endorsement.pool import hold
from bcami.ledger.store import Ledger
from bcami.model import events
from bcami.model.api import CertifiedHeader, SubmitResult
from bcami.model.batch import Batch, BatchCertificate, Endorsement
from bcami.model.block import BlockCertificate, header_hash
from bcami.model.chain import BlockBundle
from bcami.model.consensus import Checkpoint, Commit, NewView, Prepare, PrePrepare, Proposal, ViewChange
from bcami.model.reasons import Reason
from bcami.model.registration import ContributionAnswer, ContributionRequest
from bcami.model.transaction import Transaction, transaction_id
from bcami.model.wire import FetchBatch, FetchBlocks, PeerMessage, Status
from bcami.node.core import effects as out
from bcami.node.core.admission import Tickets, committed, refused, unknown
from bcami.node.core.catchup import CatchUp
from bcami.node.core.dissemination import ENDORSED_PREFIX, SLICE_TRANSACTIONS, Dissemination
from bcami.node.core.execution import ExecutedBlock, Executor, MissingBatches
from bcami.node.core.world import WorldState
from bcami.pbft import effects as pbft_out
from bcami.pbft import inputs as pbft_in
from bcami.pbft.records import Restored
from bcami.pbft.replica import Replica

STATUS_MS: Final = 500
BUNDLES_BYTES_MAX: Final = 8 * 1024 * 1024
"""One answer to a request for blocks stops here; the asker asks again."""
RETRY_AFTER_MS: Final = 250
_TRANSACTION_OVERHEAD_BYTES: Final = 320


@dataclass(frozen=True, slots=True)
class Decision:
    """What ordering or catch-up says about a height."""

    proposal: Proposal
    certificate: BlockCertificate | None
    view: int


@dataclass(slots=True)
class _Admitting:
    """A submission whose transactions are being checked."""

    ticket: int
    transactions: Sequence[Transaction]
    ids: Sequence[bytes]
    wait: bool
    size_bytes: int
    next: int = 0


class NodeCore:
    """One node. Every method returns the effects of one thing that happened."""

    def __init__(
        self,
        roster: Roster,
        replica: int,
        signer: Signer,
        runtime: Runtime,
        ledger: Ledger,
        promises: Iterable[tuple[bytes, bytes]],
        contribution_secret: bytes,
    ) -> None:
        self.roster = roster
        self.replica = replica
        self.ledger = ledger
        self.runtime = runtime
        self.world = WorldState(ledger)
        self.executor = Executor(roster, runtime, self.world, ledger)
        self.tickets = Tickets()
        self.halted: str | None = None
        self.catchup = CatchUp(replica)
        self._signer = signer
        self._contribution_secret = contribution_secret
        self._out: list[out.Effect] = []
        self._lanes = Dissemination(roster, replica, signer, self.executor.lanes, self._check)
        self._pool = self._lanes.pool
        self._admitting: deque[_Admitting] = deque()
        self._admitting_bytes = 0
        self._decided: dict[int, Decision] = {}
        self._blocks: OrderedDict[int, ExecutedBlock] = OrderedDict()
        self._certificates: dict[int, BlockCertificate] = {}
        self._placed: dict[bytes, tuple[int, int]] = {}
        self._durable = ledger.height
        self._contributions: dict[bytes, list[int]] = {}
        votes = self._restore(promises)
        stable = ledger.certificate(ledger.certified_height) if ledger.certified_height else None
        self.pbft = Replica(
            roster,
            replica,
            signer,
            lambda certificate: verify_batch_certificate(certificate, roster),
            Restored(votes, ledger.certified_height, stable, self.executor.lanes),
        )

    # What happened.

    def start(self, now_ms: int) -> list[out.Effect]:
        """Begin, or go on after a restart: own votes are sent again, own batches go out again."""
        self._ordered(self.pbft.start(now_ms), now_ms)
        for height in range(self.ledger.certified_height + 1, self.ledger.height + 1):
            header = self.ledger.header(height)
            block = self.ledger.block(height)
            assert header is not None
            assert block is not None
            self._ordered(
                self.pbft.step(pbft_in.Executed(height, header_hash(header), self.executor.lanes), now_ms), now_ms
            )
        self._out.append(out.SetTimer("status", STATUS_MS))
        self._send_status(None)
        self._settle_lanes(now_ms)
        return self._take()

    def timer(self, name: str, now_ms: int) -> list[out.Effect]:
        """A timer that was set has fired."""
        if name == "status":
            self._on_status_timer(now_ms)
        elif name == "gather":
            self._cut(now_ms)
        elif name == "patience":
            self._lanes.out_of_patience(now_ms)
            self._settle_lanes(now_ms)
        elif not self.halted:
            self._ordered(self.pbft.step(pbft_in.TimerFired(name.removeprefix("pbft/")), now_ms), now_ms)
        return self._take()

    def connected(self, peer: int) -> list[out.Effect]:
        """A peer is there (again): tell it where this node stands (protocol 6.1)."""
        self._send_status(peer)
        return self._take()

    def disconnected(self, peer: int) -> list[out.Effect]:
        self.catchup.gone(peer)
        return self._take()

    def receive(self, peer: int, message: PeerMessage, now_ms: int) -> list[out.Effect]:
        """One message of an authenticated peer."""
        match message:
            case PrePrepare() | Prepare() | Commit() | Checkpoint() | ViewChange() | NewView():
                self._on_consensus(message, now_ms)
            case Batch():
                self._on_batch(peer, message, now_ms)
            case Endorsement():
                self._on_endorsement(message, now_ms)
            case BatchCertificate():
                self._on_batch_certificate(peer, message, now_ms)
            case Status():
                self._on_status(peer, message, now_ms)
            case FetchBatch():
                self._on_fetch_batch(peer, message)
            case FetchBlocks():
                self._on_fetch_blocks(peer, message)
            case BlockBundle():
                self._on_bundle(peer, message, now_ms)
            case _:
                assert_never(message)
        return self._take()

    def submit(self, transactions: Sequence[Transaction], wait: bool) -> tuple[int, list[bytes], list[out.Effect]]:
        """Take transactions of a client. Returns (ticket, transaction ids, effects); see `close_ticket`."""
        ids = [self.id_of(tx) for tx in transactions]
        ticket = self.tickets.open(len(ids))
        size = sum(len(tx.argument) + _TRANSACTION_OVERHEAD_BYTES for tx in transactions)
        if self._admitting_bytes + self._lanes.queue_bytes >= QUEUE_BYTES_MAX:
            for place, tx_id in enumerate(ids):
                self._refuse(ticket, place, tx_id, Reason.QUEUE_FULL)
            return ticket, ids, self._take()
        self._admitting.append(_Admitting(ticket, transactions, ids, wait, size))
        self._admitting_bytes += size
        self._out.append(out.MoreWork())
        return ticket, ids, self._take()

    def work(self, now_ms: int) -> list[out.Effect]:
        """Check one slice of a submission and one of a batch: what costs time is done in small portions."""
        if self._admitting:
            self._admit_slice(self._admitting[0], now_ms)
        if not self.halted:
            self._lanes.work(now_ms)
            self._settle_lanes(now_ms)
        if self._admitting or (self._lanes.has_work and not self.halted):
            self._out.append(out.MoreWork())
        return self._take()

    def block_durable(self, height: int, now_ms: int) -> list[out.Effect]:
        """The ledger has the block on disk: only now may a checkpoint say so."""
        block = self._blocks[height]
        self._durable = height
        self.world.durable(height, [key for key, _ in block.commit.writes])
        self._lanes.executed(block.digests, block.lanes)
        certificate = self._certificates.get(height)
        step: pbft_in.Input = pbft_in.Executed(height, block.header_hash, block.lanes)
        if certificate is not None:
            step = pbft_in.Synced(height, block.header_hash, certificate, block.lanes)
        if not self.halted:
            self._ordered(self.pbft.step(step, now_ms), now_ms)
        self._answer_certified(height)
        if not self.halted:
            self._lanes.retry_behind(self._durable, now_ms)
        self._cut(now_ms)
        return self._take()

    def contribute(self, request: ContributionRequest, now_ms: int) -> ContributionAnswer | Reason:
        """Answer a request for a key share (protocol 2.1); changes no state."""
        recent = [at for at in self._contributions.get(request.hid, []) if now_ms - at < 60_000]
        if len(recent) >= self.roster.genesis.parameters.contribution_rate_per_minute:
            return Reason.RATE_LIMITED
        answer = answer_contribution(
            request, self.runtime, self.world.read, self.roster, self.replica, self._signer, self._contribution_secret
        )
        if isinstance(answer, Reason):
            return answer
        if len(self._contributions) > 50_000:
            self._contributions.clear()
        self._contributions[request.hid] = [*recent, now_ms]
        return answer

    def close_ticket(self, ticket: int, ids: Sequence[bytes]) -> tuple[list[SubmitResult], list[CertifiedHeader]]:
        """Return the results of a submission; what has none yet is unknown."""
        return self.tickets.close(ticket, ids)

    # What a gateway shows.

    def id_of(self, tx: Transaction) -> bytes:
        return transaction_id(tx, self.roster.chain, self.roster.epoch)

    @property
    def height(self) -> int:
        return self._durable

    @property
    def certified_height(self) -> int:
        return self.ledger.certified_height

    @property
    def view(self) -> int:
        return self.pbft.view

    @property
    def queued(self) -> int:
        return self._lanes.queued + sum(len(item.ids) - item.next for item in self._admitting)

    # Ordering.

    def _on_consensus(
        self, message: PrePrepare | Prepare | Commit | Checkpoint | ViewChange | NewView, now_ms: int
    ) -> None:
        if not self.halted:
            self._ordered(self.pbft.step(pbft_in.Received(message), now_ms), now_ms)

    def _ordered(self, effects: Sequence[pbft_out.Effect], now_ms: int) -> None:
        """Carry out what ordering asks for, in its order."""
        for effect in effects:
            match effect:
                case pbft_out.Persist(key, value):
                    self._out.append(out.Persist(((key, value),)))
                case pbft_out.Forget(keys):
                    self._out.append(out.Persist((), keys))
                case pbft_out.Broadcast(message):
                    self._out.append(out.Broadcast(message))
                case pbft_out.SendTo(replica, message):
                    self._out.append(out.Send(replica, message))
                case pbft_out.SetTimer(name, delay_ms):
                    self._out.append(out.SetTimer("pbft/" + name, delay_ms))
                case pbft_out.CancelTimer(name):
                    self._out.append(out.CancelTimer("pbft/" + name))
                case pbft_out.Decided(height, proposal, view):
                    self._decide(height, Decision(proposal, None, view))
                case pbft_out.Certified(certificate):
                    self._on_certified(certificate)
                case pbft_out.NeedBlocks(target_height):
                    self.catchup.want(target_height)
                    self._ask_for_blocks(now_ms)
                case pbft_out.Observe(observation):
                    self._out.append(out.Observe(observation))
                case pbft_out.Halt(reason):
                    self._halt(reason)
                case _:
                    assert_never(effect)

    def _halt(self, reason: str) -> None:
        if self.halted is None:
            self.halted = reason
            self._out.append(out.Observe(events.Halted(reason)))

    def _decide(self, height: int, decision: Decision) -> None:
        if height > self.executor.height:
            self._decided.setdefault(height, decision)
            self._execute_ready()

    def _execute_ready(self) -> None:
        """Execute decided heights in order, as far as their batches are here."""
        while not self.halted:
            decision = self._decided.get(self.executor.height + 1)
            if decision is None:
                return
            result = self.executor.execute(decision.proposal, self._pool.get)
            if isinstance(result, MissingBatches):
                self._fetch(result.certificates)
                return
            del self._decided[result.height]
            self._adopt(result, decision)

    def _adopt(self, block: ExecutedBlock, decision: Decision) -> None:
        if decision.certificate is not None:
            self._certificates[block.height] = decision.certificate
        self._blocks[block.height] = block
        rejected = 0
        for index, outcome in enumerate(block.commit.block.outcomes):
            if outcome.reason is not Reason.VALID:
                rejected += 1
                if self.ledger.place(outcome.transaction_id) is not None:
                    continue  # a later occurrence changes nothing (protocol 3.5)
            self._placed.setdefault(outcome.transaction_id, (block.height, index))
        for tx_id, reason in block.absent:
            self._ready(self.tickets.resolve(tx_id, refused(tx_id, reason)))
        count = block.header.transaction_count
        self._out.append(out.Observe(events.BlockExecuted(block.height, decision.view, count, rejected)))
        self._out.append(out.CommitBlock(block.commit, decision.certificate))

    def _on_certified(self, certificate: BlockCertificate) -> None:
        """A block certificate is known: answer who waits once the block is durable here too."""
        self._certificates.setdefault(certificate.height, certificate)
        self._out.append(out.Observe(events.BlockCertified(certificate.height)))
        if certificate.height <= self._durable:
            self._answer_certified(certificate.height)

    def _answer_certified(self, height: int) -> None:
        certificate = self._certificates.get(height)
        block = self._blocks.get(height)
        if certificate is None or height > self._durable:
            return
        self._certificates.pop(height)
        self._out.append(out.SaveCertificate(certificate))
        if block is None:
            return
        if certificate.header_hash != block.header_hash:
            self._halt(f"the certificate of height {height} contradicts this node's own block")
            return
        certified = CertifiedHeader(block.header, certificate)
        for index, outcome in enumerate(block.commit.block.outcomes):
            tx_id = outcome.transaction_id
            if self._placed.get(tx_id) != (height, index):
                continue
            del self._placed[tx_id]
            if self.tickets.is_pending(tx_id):
                result = committed(tx_id, outcome.reason, height, index, block.results.path(index))
                self._ready(self.tickets.resolve(tx_id, result, certified))
        del self._blocks[height]

    def _ready(self, tickets: Iterable[int]) -> None:
        self._out.extend(out.TicketReady(ticket) for ticket in tickets)

    # Clients.

    def _admit(self, ticket: int, place: int, tx: Transaction, tx_id: bytes, wait: bool, now_ms: int) -> None:
        """Answer from what is known, wait for what is pending, refuse, or take in."""
        if self.tickets.is_pending(tx_id) or tx_id in self._placed:
            self._await(ticket, place, tx_id, wait)
            return
        known = self._known_result(tx_id)
        if known is not None:
            self._settle(ticket, place, known[0], known[1])
            return
        reason = Reason.NOT_READY if self.halted else self._check(tx, tx_id, now_ms)
        if reason is None:
            reason = self._lanes.admit(tx, tx_id, len(tx.argument) + _TRANSACTION_OVERHEAD_BYTES, now_ms)
        if reason is not None:
            self._refuse(ticket, place, tx_id, reason)
            return
        self.tickets.expect(tx_id)
        self._await(ticket, place, tx_id, wait)

    def _admit_slice(self, job: _Admitting, now_ms: int) -> None:
        end = min(job.next + SLICE_TRANSACTIONS, len(job.ids))
        for place in range(job.next, end):
            self._admit(job.ticket, place, job.transactions[place], job.ids[place], job.wait, now_ms)
        job.next = end
        if end == len(job.ids):
            self._admitting.popleft()
            self._admitting_bytes -= job.size_bytes
        self._cut(now_ms)

    def _check(self, tx: Transaction, tx_id: bytes, now_ms: int) -> Reason | None:
        return self.runtime.check(tx, tx_id, self.world.read, now_ms)

    def _refuse(self, ticket: int, place: int, tx_id: bytes, reason: Reason) -> None:
        retry = RETRY_AFTER_MS if reason in (Reason.QUEUE_FULL, Reason.NOT_READY) else 0
        self._out.append(out.Observe(events.Refused("admission", reason)))
        self._settle(ticket, place, refused(tx_id, reason, retry))

    def _await(self, ticket: int, place: int, tx_id: bytes, wait: bool) -> None:
        if wait:
            self.tickets.wait(tx_id, ticket, place)
        else:
            self._settle(ticket, place, unknown(tx_id))

    def _settle(self, ticket: int, place: int, result: SubmitResult, block: CertifiedHeader | None = None) -> None:
        if self.tickets.settle(ticket, place, result, block):
            self._ready((ticket,))

    def known_result(self, tx_id: bytes) -> tuple[SubmitResult, CertifiedHeader] | None:
        """Return the certified outcome of a transaction that this node's ledger holds."""
        return self._known_result(tx_id)

    def _known_result(self, tx_id: bytes) -> tuple[SubmitResult, CertifiedHeader] | None:
        receipt = self.ledger.receipt(tx_id)
        if receipt is None:
            return None
        result = committed(tx_id, receipt.outcome.reason, receipt.header.height, receipt.index, receipt.path)
        return result, CertifiedHeader(receipt.header, receipt.certificate)

    # Batches.

    def _cut(self, now_ms: int) -> None:
        if not self.halted:
            certified = self.ledger.certified_height
            self._lanes.cut(self.ledger.certificate(certified) if certified else None, now_ms)
        self._settle_lanes(now_ms)
        if self._lanes.queued:
            self._out.append(out.SetTimer("gather", GATHER_MS))

    def _settle_lanes(self, now_ms: int) -> None:
        """Carry out what the lanes ask for, in their order."""
        lanes = self._lanes
        self._out += lanes.out
        lanes.out.clear()
        while lanes.anchors:
            anchor = lanes.anchors.pop()
            self.catchup.want(anchor.height)
            self._ordered(self.pbft.step(pbft_in.BlockCertified(anchor), now_ms), now_ms)
        while lanes.certified:
            self._on_batch_certificate(self.replica, lanes.certified.pop(0), now_ms)
        if lanes.has_work:
            self._out.append(out.MoreWork())

    def _on_batch(self, peer: int, batch: Batch, now_ms: int) -> None:
        """A collector's batch to endorse, or an answer to a fetch."""
        if self.halted:
            return
        held = hold(batch, self.roster.chain)
        if peer == batch.collector:
            self._lanes.consider(held, self._durable, now_ms)
            self._settle_lanes(now_ms)
        elif held.digest in self._wanted():
            self._pool.add(held)
        self._execute_ready()

    def _on_endorsement(self, endorsement: Endorsement, now_ms: int) -> None:
        if not self.halted:
            self._lanes.vote(endorsement)
            self._settle_lanes(now_ms)

    def _on_batch_certificate(self, peer: int, certificate: BatchCertificate, now_ms: int) -> None:
        if self.halted:
            return
        if (
            certificate.collector < self.roster.quorum.n
            and certificate.number <= self.executor.lanes[certificate.collector]
        ):
            return
        reason = verify_batch_certificate(certificate, self.roster)
        if reason is not None:
            self._out.append(out.Observe(events.Refused("certificate", reason, peer)))
            return
        self._lanes.certificate_seen(certificate)
        observation = events.BatchCertified(certificate.collector, certificate.number, certificate.count)
        self._out.append(out.Observe(observation))
        self._ordered(self.pbft.step(pbft_in.CertificateReady(certificate), now_ms), now_ms)

    def _wanted(self) -> dict[bytes, BatchCertificate]:
        """Return the batches that the next height lacks, by digest."""
        decision = self._decided.get(self.executor.height + 1)
        if decision is None:
            return {}
        needed = self.executor.needed(decision.proposal)
        return {item.batch_digest: item for _, item in needed if self._pool.get(item.batch_digest) is None}

    def _fetch(self, certificates: Iterable[BatchCertificate]) -> None:
        """Ask endorsers of the certificate: at least f+1 honest ones hold the data (design D2)."""
        for item in certificates:
            for vote in item.votes:
                if vote.replica != self.replica:
                    request = FetchBatch(item.collector, item.number, item.batch_digest)
                    self._out.append(out.Send(vote.replica, request))

    def _on_fetch_batch(self, peer: int, request: FetchBatch) -> None:
        held = self._pool.get(request.batch_digest)
        if held is not None:
            self._out.append(out.Send(peer, held.batch))

    # Catch-up.

    def _on_status_timer(self, now_ms: int) -> None:
        self._out.append(out.SetTimer("status", STATUS_MS))
        self._send_status(None)
        if not self.halted:
            self._lanes.resend(now_ms)
            self._settle_lanes(now_ms)
        wanted = self._wanted()
        if wanted:
            self._fetch(wanted.values())
        self._ask_for_blocks(now_ms)

    def _send_status(self, peer: int | None) -> None:
        status = Status(
            self.roster.epoch,
            self.replica,
            self.pbft.view,
            self.pbft.in_view_change,
            self._durable,
            self.ledger.certified_height,
            self.executor.lanes,
        )
        self._out.append(out.Broadcast(status) if peer is None else out.Send(peer, status))

    def _on_status(self, peer: int, status: Status, now_ms: int) -> None:
        if status.replica != peer or status.epoch != self.roster.epoch:
            self._out.append(out.Observe(events.Refused("status", Reason.UNKNOWN_REPLICA, peer)))
            return
        self.catchup.heard(status)
        if not self.halted:
            self._ordered(self.pbft.step(pbft_in.PeerStatus(status), now_ms), now_ms)
        self._ask_for_blocks(now_ms)

    def _ask_for_blocks(self, now_ms: int) -> None:
        if self.halted:
            return
        request = self.catchup.ask(self.executor.height, now_ms)
        if request is not None:
            peer, first, last = request
            self._out.append(out.Observe(events.SyncProgress(self.executor.height, self.catchup.target, peer)))
            self._out.append(out.Send(peer, FetchBlocks(first, last)))

    def _on_fetch_blocks(self, peer: int, request: FetchBlocks) -> None:
        sent = 0
        last = min(request.last, request.first + 64, self.ledger.certified_height)
        for height in range(max(1, request.first), last + 1):
            bundle = self.ledger.bundle(height)
            if bundle is None or sent > BUNDLES_BYTES_MAX:
                return
            sent += sum(
                len(tx.argument) + _TRANSACTION_OVERHEAD_BYTES for b in bundle.batches for tx in b.batch.transactions
            )
            self._out.append(out.Send(peer, bundle))

    def _on_bundle(self, peer: int, bundle: BlockBundle, now_ms: int) -> None:
        """A certified block from a peer: checked against the certificate, then executed like any other."""
        height = bundle.block.header.height
        if height != self.executor.height + 1 or self.halted:
            return
        reason = verify_bundle(bundle, self.roster, self.executor.parent_hash)
        if reason is not None:
            self._out.append(out.Observe(events.Refused("sync", reason, peer)))
            return
        if any(stored.leaves for stored in bundle.batches):
            self._out.append(out.Observe(events.Refused("sync", Reason.STALE, peer, detail="payloads are pruned")))
            return
        held = {item.digest: item for item in (hold(stored.batch, self.roster.chain) for stored in bundle.batches)}
        result = self.executor.execute(bundle.block.proposal, held.get)
        if isinstance(result, MissingBatches):
            self._out.append(out.Observe(events.Refused("sync", Reason.MALFORMED, peer)))
            return
        if result.header_hash != bundle.certificate.header_hash:
            self._halt(
                f"executing height {height} gives another block than its certificate: this node's state is wrong"
            )
            return
        self._decided.pop(height, None)
        self._adopt(result, Decision(bundle.block.proposal, bundle.certificate, self.pbft.view))
        self.catchup.answered()
        self._execute_ready()
        if height % 16 == 0 or height >= self.catchup.target:
            self._ask_for_blocks(now_ms)

    # Restart.

    def _restore(self, promises: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Take back endorsed batches; return the vote records for ordering."""
        votes = []
        for key, value in promises:
            if not key.startswith(ENDORSED_PREFIX):
                votes.append((key, value))
                continue
            for tx_id in self._lanes.restore(key, value, self.executor.lanes):
                self.tickets.expect(tx_id)
        return votes

    def _take(self) -> list[out.Effect]:
        taken, self._out = self._out, []
        return taken
