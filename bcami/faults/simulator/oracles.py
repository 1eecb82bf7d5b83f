"""The invariants, as far as one event shows them: checked after every step (notes on the anchors, 2.4).

    I1 agreement     honest nodes decide one proposal at each height
    I2 prefix        honest nodes execute one header at each height
    I5 discipline    no honest node ever signs two statements for one place, restarts included
    I6 carry-over    what an honest node decided is in every later NEW-VIEW that an honest node enters
    I8 certificates  each certificate that is saved or executed has a strong quorum of distinct, valid signers, counted
                     anew here
    I9 durability    what leaves an honest node rests on what it has on disk; stored views never fall
    I12 evidence     never names an honest node, and proves what it says (that none is lacking: `evidence`)
    I13 stability    votes are deleted only below a block certificate, and below the node's own durable blocks
    I15 receipts     an answer "committed" agrees with the chain, for ever
    time             no block is later than the clock of every honest node and the allowed skew, nor before its parent
    amnesia          a node that lost its vote log says nothing of its own any more (protocol 6.3)
    alive            an honest node neither halts nor breaks, whatever f others send

What holds for whole chains and nodes (I3, I4, I7, I10, I11, I14) is in `replay`, `reads` and `cluster`.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from bcami.codec import Codec, encode
from bcami.crypto.roster import Roster
from bcami.faults.simulator.agreement import Agreement, Decided, Violation
from bcami.faults.simulator.disk import Disk
from bcami.faults.simulator.evidence import Contradictions
from bcami.ledger.store import LedgerCommit
from bcami.model.api import COMMITTED, CertifiedHeader, SubmitResult
from bcami.model.batch import Batch, BatchCertificate, Endorsement, endorsement_digest
from bcami.model.block import BlockCertificate, Header, checkpoint_digest, header_hash
from bcami.model.consensus import Checkpoint, Commit, NewView, Prepare, PrePrepare, ViewChange
from bcami.model.events import EquivocationSeen, Halted, Observation
from bcami.model.signing import u64
from bcami.model.wire import PeerMessage
from bcami.node.core.dissemination import endorsed_key
from bcami.node.core.execution import lane_key
from bcami.pbft import records

_NEW_VIEW: Final[Codec[NewView]] = Codec(NewView, records.RECORD_BYTES_MAX)
_VIEW_CHANGE: Final[Codec[ViewChange]] = Codec(ViewChange, records.RECORD_BYTES_MAX)
_CHECKPOINT: Final[Codec[Checkpoint]] = Codec(Checkpoint, records.RECORD_BYTES_MAX)
_FLOOR: Final[Codec[BlockCertificate]] = Codec(BlockCertificate, records.RECORD_BYTES_MAX)
_HEIGHT_PREFIXES: Final = (records.ACCEPTED, records.PREPARED, records.CHECKPOINT)


class Oracles:
    """Watches the honest nodes of one run."""

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self.excused: set[int] = set()
        """Byzantine nodes, and those whose vote log went back in time."""
        self.silenced: set[int] = set()
        """Nodes that lost their vote log: they sign nothing more."""
        self.headers: dict[int, bytes] = {}
        self.agreement = Agreement()
        self.receipts: dict[bytes, SubmitResult] = {}
        self.contradictions = Contradictions(roster, self.excused)
        self._said: dict[tuple[object, ...], bytes] = {}
        self._certified = 0
        self._executed: dict[int, int] = {}
        """The highest number of each collector's batches that an honest node has executed."""
        self.latest_clock_ms = 0
        """The latest time that any honest node's clock has shown."""
        self._times: dict[int, int] = {}
        self._counted: set[tuple[int, bytes, tuple[bytes, ...]]] = set()
        self._first_places: dict[bytes, tuple[int, int, str]] = {}

    # Votes.

    def leaves(self, node: int, disk: Disk, message: PeerMessage) -> None:
        """Check I5 and I9 of what a node says itself; what it passes on for others is theirs."""
        if node in self.excused:
            return
        if node in self.silenced:
            self._stays_silent(node, message)
            return
        match message:
            case PrePrepare() | Prepare() | Commit() | Checkpoint() | ViewChange() | NewView():
                if message.replica == node:
                    self._vote_leaves(node, disk, message)
            case Endorsement() if message.replica == node:
                place = ("endorsement", message.collector, message.number)
                self._once(node, place, message.batch_digest + message.signature)
                key = endorsed_key(message.collector, message.number)
                if not self._is_executed(disk, message.collector, message.number):
                    self._rests_on(node, disk, key, place, message.signature)
            case Batch() if message.collector == node:
                leaves = ("batch", node, message.number)
                self._once(node, leaves, encode(message.transactions))
                # Peers give one that has executed back to a node that is rebuilt, and its promise is gone by right.
                has_ended = message.number <= self._executed.get(node, 0)
                if not has_ended and not self._is_executed(disk, node, message.number):
                    self._rests_on(node, disk, endorsed_key(node, message.number), leaves, b"")
            case _:
                pass

    def _stays_silent(self, node: int, message: PeerMessage) -> None:
        """Check that a message does not bind its sender; an own batch of before is data that peers may fetch."""
        match message:
            case PrePrepare() | Prepare() | Commit() | Checkpoint() | ViewChange() | NewView() | Endorsement():
                is_own = message.replica == node
            case Batch() if message.collector == node:
                is_own = self._said.get((node, "batch", node, message.number)) != encode(message.transactions)
            case _:
                is_own = False
        if is_own:
            raise Violation("amnesia", f"node {node} lost its vote log and sends a {type(message).__name__} of its own")

    def contributed(self, node: int) -> None:
        """Check that a key share is of a node that may sign."""
        if node in self.silenced and node not in self.excused:
            raise Violation("amnesia", f"node {node} lost its vote log and signs a contribution")

    def _vote_leaves(
        self, node: int, disk: Disk, message: PrePrepare | Prepare | Commit | Checkpoint | ViewChange | NewView
    ) -> None:
        match message:
            case PrePrepare() | Prepare() | Commit():
                kind = records.PREPARED if isinstance(message, Commit) else records.ACCEPTED
                place: tuple[object, ...] = (type(message).__name__, message.view, message.height)
                self._once(node, place, message.digest)
                key = kind + u64(message.height) + u64(message.view)
                if not self._is_settled(disk, message.height):
                    self._rests_on(node, disk, key, place, message.signature)
            case Checkpoint():
                place = ("Checkpoint", message.height)
                self._once(node, place, message.header_hash)
                in_floor = message.signature in (disk.promises.get(records.FLOOR) or b"")
                if not in_floor and not self._is_settled(disk, message.height):
                    self._rests_on(node, disk, records.CHECKPOINT + u64(message.height), place, message.signature)
            case ViewChange():
                place = ("ViewChange", message.view)
                self._once(node, place, message.signature)
                stored = disk.promises.get(records.VIEW_CHANGE)
                if stored is None or _VIEW_CHANGE.decode(stored).view < message.view:
                    raise Violation("I9", f"node {node} sends {place} before its disk knows the view")
            case NewView():
                place = ("NewView", message.view)
                self._once(node, place, message.signature)
                stored = disk.promises.get(records.NEW_VIEW)
                if stored is None or _NEW_VIEW.decode(stored).view < message.view:
                    raise Violation("I9", f"node {node} sends {place} before its disk knows the view")

    def _once(self, node: int, place: tuple[object, ...], statement: bytes) -> None:
        if self._said.setdefault((node, *place), statement) != statement:
            raise Violation("I5", f"node {node} contradicts its own {place}")

    def _rests_on(self, node: int, disk: Disk, key: bytes, place: tuple[object, ...], signature: bytes) -> None:
        stored = disk.promises.get(key)
        if stored is None or signature not in stored:
            raise Violation("I9", f"node {node} sends {place} before it is durable")

    def _is_executed(self, disk: Disk, collector: int, number: int) -> bool:
        """Tell whether a batch has durably executed: then its promise may be gone."""
        entry = disk.ledger.state(lane_key(collector))
        return entry is not None and int.from_bytes(entry.value, "big") >= number

    def _is_settled(self, disk: Disk, height: int) -> bool:
        """Tell whether a height is certified and durably executed here: then its votes may be gone (protocol 5.2)."""
        return height <= min(self._certified, disk.ledger.height)

    def persisted(self, node: int, disk: Disk, puts: Iterable[tuple[bytes, bytes]], deletes: Iterable[bytes]) -> None:
        """Check I9 (stored views never fall) and I13 (what is deleted)."""
        if node in self.excused:
            return
        if node in self.silenced:
            raise Violation("amnesia", f"node {node} lost its vote log and begins a new one")
        for key, value in puts:
            if key == records.FLOOR:
                self.certified(node, _FLOOR.decode(value))
            elif key == records.NEW_VIEW:
                self._entered(node, disk, _NEW_VIEW.decode(value))
            elif key == records.VIEW_CHANGE:
                before = disk.promises.get(key)
                view = _VIEW_CHANGE.decode(value).view
                if before is not None and _VIEW_CHANGE.decode(before).view >= view:
                    raise Violation("I9", f"node {node} stores view {view} over a view not below it")
            elif key.startswith(records.CHECKPOINT):
                vote = _CHECKPOINT.decode(value)
                header = disk.ledger.header(vote.height)
                if header is None or header_hash(header) != vote.header_hash:
                    raise Violation("I9", f"node {node} vouches for height {vote.height}, which is not on its disk")
        for key in deletes:
            prefix = next((item for item in _HEIGHT_PREFIXES if key.startswith(item)), None)
            if prefix is not None:
                height = int.from_bytes(key[len(prefix) :][:8], "big")
                if not self._is_settled(disk, height):
                    raise Violation("I13", f"node {node} deletes votes of height {height}, certified {self._certified}")

    def _entered(self, node: int, disk: Disk, new_view: NewView) -> None:
        before = disk.promises.get(records.NEW_VIEW)
        if before is not None and _NEW_VIEW.decode(before).view >= new_view.view:
            raise Violation("I9", f"node {node} enters view {new_view.view} after one not below it")

    def durable(self, node: int, puts: Iterable[tuple[bytes, bytes]]) -> None:
        """Check I6 (views entered): one that a crash or the disk took back before was never entered for anybody."""
        if node in self.excused:
            return
        for key, value in puts:
            if key == records.NEW_VIEW:
                self.agreement.enters(_NEW_VIEW.decode(value))

    # Blocks.

    def began(self, commit: LedgerCommit, certificate: BlockCertificate) -> None:
        """Take a block of the prelude as given."""
        header = commit.block.header
        self.headers[header.height] = header_hash(header)
        self._times[header.height] = header.time_ms
        self.agreement.decided[header.height] = Decided(header.proposal_digest, -1)
        self._certified = certificate.height

    def executed(self, node: int, commit: LedgerCommit, view: int | None) -> None:
        """Check I1, I2 and I6; `view` is None for a block from catch-up."""
        if node in self.excused:
            return
        header = commit.block.header
        height = header.height
        self.agreement.decides(node, height, header.proposal_digest, view)
        self._check_time(header)
        for place in commit.block.executed:
            certificate = commit.block.proposal.certificates[place]
            self._check_batch_certificate(certificate, node)
            collector = certificate.collector
            self._executed[collector] = max(certificate.number, self._executed.get(collector, 0))
        hash_of = header_hash(header)
        if self.headers.setdefault(height, hash_of) != hash_of:
            raise Violation("I2", f"node {node} executes another block at height {height}")
        for index, outcome in enumerate(commit.block.outcomes):
            self._first_places.setdefault(outcome.transaction_id, (height, index, outcome.reason.value))

    def _check_time(self, header: Header) -> None:
        before = self._times.setdefault(header.height - 1, 0)
        self._times[header.height] = header.time_ms
        skew_ms = self.roster.genesis.parameters.clock_skew_ms
        if header.time_ms < before:
            raise Violation("time", f"block {header.height} is before its parent")
        if header.time_ms > self.latest_clock_ms + skew_ms:
            ahead_ms = header.time_ms - self.latest_clock_ms
            raise Violation("time", f"block {header.height} is {ahead_ms} ms ahead of every honest clock")

    def _check_batch_certificate(self, certificate: BatchCertificate, node: int) -> None:
        """Count the distinct members whose endorsement of this very batch the certificate holds."""
        seen = (certificate.number, certificate.batch_digest, tuple(vote.signature for vote in certificate.votes))
        if seen in self._counted:
            return
        chain, epoch = self.roster.chain, certificate.epoch
        fields = (certificate.collector, certificate.number, certificate.batch_digest, certificate.count)
        signers = {
            vote.replica
            for vote in certificate.votes
            if self.roster.verify_by(
                vote.replica,
                vote.signature,
                endorsement_digest(chain, epoch, *fields, vote.replica, vote.refusals),
            )
        }
        if epoch != self.roster.epoch or len(signers) < self.roster.quorum.strong:
            raise Violation("I8", f"node {node} executes a batch with {len(signers)} endorsers")
        self._counted.add(seen)

    def certified(self, node: int, certificate: BlockCertificate) -> None:
        """Check I8: count the signers of a certificate that an honest node relies on."""
        if node in self.excused:
            return
        self.check_certificate(certificate, f"node {node}")
        known = self.headers.get(certificate.height)
        if known is not None and known != certificate.header_hash:
            raise Violation("I8", f"node {node} has a certificate of another block at height {certificate.height}")
        self._certified = max(self._certified, certificate.height)

    def check_certificate(self, certificate: BlockCertificate, where: str) -> None:
        """Count distinct members with a valid signature."""
        signatures = tuple(vote.signature for vote in certificate.votes)
        seen = (certificate.height, certificate.header_hash, signatures)
        if seen in self._counted:
            return
        signed = checkpoint_digest(self.roster.chain, self.roster.epoch, certificate.height, certificate.header_hash)
        signers = {
            vote.replica for vote in certificate.votes if self.roster.verify_by(vote.replica, vote.signature, signed)
        }
        if certificate.epoch != self.roster.epoch or len(signers) < self.roster.quorum.strong:
            raise Violation("I8", f"{where}: the certificate of height {certificate.height} has {len(signers)} signers")
        self._counted.add(seen)

    # What is said to people.

    def observed(self, node: int, observation: Observation) -> None:
        """Check I12, and that honest nodes do not halt."""
        if node in self.excused:
            return
        if isinstance(observation, Halted):
            raise Violation("alive", f"node {node} halts: {observation.reason}")
        if isinstance(observation, EquivocationSeen):
            self.contradictions.observed(node, observation)

    def answered(self, node: int, results: Sequence[SubmitResult], blocks: Sequence[CertifiedHeader]) -> None:
        """Check I15: "committed" is final, and comes with its certificate."""
        if node in self.excused:
            return
        certified = {block.header.height: block for block in blocks}
        for result in results:
            if result.status != COMMITTED:
                continue
            block = certified.get(result.height)
            if block is None:
                raise Violation("I15", f"node {node} says committed at {result.height} without a certificate")
            self.check_certificate(block.certificate, f"answer of node {node}")
            if block.certificate.header_hash != header_hash(block.header):
                raise Violation("I15", f"node {node} answers with a certificate of another header")
            reason = None if result.reason is None else result.reason.value
            place = (result.height, result.index, reason)
            if self._first_places.get(result.transaction_id) != place:
                raise Violation("I15", f"node {node} answers {place}, not the first outcome")
            self.receipts[result.transaction_id] = result

    def ended(self, node: int, why: str) -> None:
        if node not in self.excused:
            raise Violation("alive", f"node {node} ended: {why}")
