"""Checkpoints, block certificates and the watermarks [CL99 4.3].

Every block is a checkpoint (design D4). A strong quorum of CHECKPOINTs of one header hash is the block certificate.
The low watermark is min(certified, durably executed): a certificate moves it only when the block stands here as well.
"""

from collections import Counter

from bcami.crypto.verification import verify_block_certificate
from bcami.model.block import BlockCertificate, CheckpointVote
from bcami.model.consensus import Checkpoint
from bcami.model.reasons import Reason
from bcami.pbft.effects import Broadcast, Certified, Outbox
from bcami.pbft.proofs import stable_height
from bcami.pbft.records import Restored, VoteLog
from bcami.pbft.statements import Statements


class Checkpoints:
    """The checkpoint votes and certificates of one replica."""

    def __init__(self, statements: Statements, out: Outbox, votes: VoteLog, restored: Restored) -> None:
        self._statements = statements
        self._out = out
        self._votes = votes
        self._is_amnesiac = restored.is_amnesiac
        self.executed = restored.executed
        self.stable = restored.stable
        """Certificate of the low watermark; None stands for genesis."""
        self.low = stable_height(self.stable)
        """The low watermark: the height of `stable`."""
        self._headers: dict[int, bytes] = {}
        """Own header hashes above the low watermark and at gaps."""
        self.collected: dict[int, dict[int, Checkpoint]] = {}
        """Votes by height and replica, for the window and for gaps."""
        self._beyond: dict[int, Checkpoint] = {}
        """The highest vote of each replica above the high watermark."""
        self._known: dict[int, BlockCertificate] = {}
        """Certificates above the low watermark."""
        self._gaps: set[int] = set()
        """Heights that the low watermark jumped over and whose own certificate is still missing."""

    @property
    def high(self) -> int:
        return self.low + self._statements.window

    @property
    def certified(self) -> int:
        """Highest height that others are proved to have executed."""
        return max(self._known) if self._known else self.low

    def far_target(self) -> int:
        """Return a height above the high watermark that a correct replica has executed, or 0.

        Weak replicas signed checkpoints at it or above, so one of them is correct.
        """
        weak = self._statements.quorum.weak
        if len(self._beyond) < weak:
            return 0
        height = sorted((vote.height for vote in self._beyond.values()), reverse=True)[weak - 1]
        return height if height > self.high else 0

    def restore(self, vote: Checkpoint) -> None:
        """Take back an own CHECKPOINT from its record, so that it is never contradicted."""
        if vote.height > self.low:
            self._headers[vote.height] = vote.header_hash
            self.collected.setdefault(vote.height, {})[vote.replica] = vote

    def own_votes(self) -> list[Checkpoint]:
        own = self._statements.replica
        return [votes[own] for _, votes in sorted(self.collected.items()) if own in votes]

    def on_executed(self, height: int, header_hash: bytes) -> None:
        """Vote for the block that stands in the ledger [CL99 4.3]; halt when it contradicts what is known of it."""
        self.executed = max(self.executed, height)
        if height <= self.low:
            return
        known = self._headers.setdefault(height, header_hash)
        certificate = self._known.get(height)
        if known != header_hash:
            self._out.halt(f"executing height {height} again gave another header")
        elif certificate is not None:
            self._check_header(certificate)
        elif not self._is_amnesiac and self._statements.replica not in self.collected.get(height, {}):
            vote = self._statements.checkpoint(height, header_hash)
            self._votes.checkpoint(vote)
            self._out.add(Broadcast(vote))
            self._collect(vote)
        self._raise_low()

    def on_synced(self, height: int, header_hash: bytes, certificate: BlockCertificate) -> None:
        """Take note that catch-up executed certified blocks up to `height`, each with its own certificate."""
        jumped = height > self.executed + 1
        if height > self.executed:
            self.executed = height
            self._headers[height] = header_hash
        self.learn(certificate)
        self._raise_low()
        if jumped:
            self._close_gaps(height)

    def recount(self) -> None:
        """Count the restored votes: alone, a replica has its certificate from its own vote."""
        for height, votes in sorted(self.collected.items()):
            self._count(height, votes)

    def on_checkpoint(self, vote: Checkpoint) -> None:
        """Collect a CHECKPOINT of another replica."""
        height, sender = vote.height, vote.replica
        if height <= self.low and height not in self._gaps:
            self._out.refuse(Reason.STALE, sender)
            return
        beyond = self._beyond.get(sender)
        known = beyond if height > self.high else self.collected.get(height, {}).get(sender)
        if known is not None and known.height > height:
            self._out.refuse(Reason.STALE, sender)
        elif known is not None and known.height == height and known.header_hash == vote.header_hash:
            self._out.refuse(Reason.DUPLICATE, sender)
        elif not self._statements.is_signed(vote):
            self._out.refuse(Reason.BAD_SIGNATURE, sender)
        elif known is not None and known.height == height:
            self._out.convict("checkpoint", known, vote)
            if height <= self.high and self._is_better(known, vote):
                self._collect(vote)
        elif height > self.high:
            self._beyond[sender] = vote
            self._count(height, self._beyond)
        else:
            self._collect(vote)

    def _is_better(self, known: Checkpoint, vote: Checkpoint) -> bool:
        """Tell whether the second of two contradicting votes counts in place of the first.

        Else a faulty replica whose true vote is in the certificate of others, and which sent a false one here first,
        keeps this replica from ever certifying the height.
        """
        if vote.header_hash == self._headers.get(vote.height):
            return True
        others = Counter(
            item.header_hash for item in self.collected[vote.height].values() if item.replica != vote.replica
        )
        return others[vote.header_hash] > others[known.header_hash]

    def learn(self, certificate: BlockCertificate) -> None:
        """Take a certificate from somewhere else: verified, and compared with the own header."""
        height = certificate.height
        if height in self._known or (height <= self.low and height not in self._gaps):
            return
        reason = verify_block_certificate(certificate, self._statements.roster)
        if reason is not None:
            self._out.refuse(Reason.BAD_CERTIFICATE, detail=reason.value)
            return
        self._certify(certificate)

    def _collect(self, vote: Checkpoint) -> None:
        votes = self.collected.setdefault(vote.height, {})
        votes[vote.replica] = vote
        self._count(vote.height, votes)

    def _count(self, height: int, votes: dict[int, Checkpoint]) -> None:
        """Make the certificate when a strong quorum agrees; halt when none can agree any more (protocol 5.4)."""
        quorum = self._statements.quorum
        here = {sender: vote for sender, vote in votes.items() if vote.height == height}
        header_hash, most = Counter(vote.header_hash for vote in here.values()).most_common(1)[0]
        if most >= quorum.strong:
            agreed = [
                CheckpointVote(sender, vote.signature)
                for sender, vote in sorted(here.items())
                if vote.header_hash == header_hash
            ]
            self._certify(BlockCertificate(self._statements.epoch, height, header_hash, tuple(agreed)))
        elif most + quorum.n - len(here) < quorum.strong:
            self._out.halt(f"no header of height {height} can reach a strong quorum: executions differ")

    def _certify(self, certificate: BlockCertificate) -> None:
        height = certificate.height
        if height in self._known or (height <= self.low and height not in self._gaps):
            return
        if not self._check_header(certificate):
            return
        self._gaps.discard(height)
        if height > self.high:
            for far in [item for item in self._known if item > self.high]:
                del self._known[far]
        if height > self.low:
            self._known[height] = certificate
        else:
            self.collected.pop(height, None)
            self._headers.pop(height, None)
        self._out.add(Certified(certificate))
        self._raise_low()

    def _check_header(self, certificate: BlockCertificate) -> bool:
        own = self._headers.get(certificate.height)
        if own is None or own == certificate.header_hash:
            return True
        self._out.halt(f"the block certificate of height {certificate.height} contradicts the own header")
        return False

    def _raise_low(self) -> None:
        """Move the low watermark to the highest certified height that is durably executed (protocol 5.2)."""
        height = max((item for item in self._known if item <= self.executed), default=0)
        if height <= self.low:
            return
        before = self.low
        self.stable, self.low = self._known[height], height
        first = max(before, height - self._statements.window) + 1
        self._gaps |= {item for item in range(first, height) if item not in self._known}
        self._close_gaps(height - self._statements.window)
        for old in [item for item in self._known if item <= height]:
            del self._known[old]
        for vote in [item for item in self._beyond.values() if item.height <= self.high]:
            if self._beyond.pop(vote.replica, None) is not None and vote.height > self.low:
                self._collect(vote)

    def _close_gaps(self, height: int) -> None:
        """Wait no longer for certificates up to `height`; drop what is kept for nothing now."""
        self._gaps = {item for item in self._gaps if item > height}
        for table in (self._headers, self.collected):
            for old in [item for item in table if item <= self.low and item not in self._gaps]:
                del table[old]
