"""Heights whose block stands here and whose own certificate never came.

The newest certificate moves the watermarks over them, after which nobody sends their votes again. But their receipts
need it, and so does the MDMS, which reads block after block. So it is asked for: a peer answers with the certified
block, or, where it lacks the certificate itself, with its own CHECKPOINT, signed again: its ledger is its word.
"""

from typing import Final

from bcami.crypto.roster import Roster
from bcami.model.block import BlockCertificate, CheckpointVote, checkpoint_digest
from bcami.model.consensus import Checkpoint

ASKED_AT_ONCE: Final = 4


class Gaps:
    """Collects certificates, or the votes for them, below the newest certified height."""

    def __init__(self, roster: Roster, replica: int) -> None:
        self._roster = roster
        self._replica = replica
        self._seen: set[int] = set()
        self._votes: dict[int, dict[int, CheckpointVote]] = {}
        self._turn = 0

    def ask(self, heights: list[int]) -> list[tuple[int, int]]:
        """Return (peer, height) of requests, given the heights that lack their certificate now; called now and then.

        A height is asked for when it was missing the last time too; peers take turns.
        """
        peers = [peer for peer in range(self._roster.quorum.n) if peer != self._replica]
        due = sorted(self._seen.intersection(heights))[:ASKED_AT_ONCE]
        self._seen = set(heights)
        self._votes = {height: votes for height, votes in self._votes.items() if height in self._seen}
        if not peers or not due:
            return []
        self._turn += 1
        return [(peers[(self._turn + height) % len(peers)], height) for height in due]

    def vote(self, vote: Checkpoint, own: CheckpointVote | None, header_hash: bytes) -> BlockCertificate | None:
        """Count a peer's CHECKPOINT of a missing height; returns the certificate when it is complete.

        `own` is None at a node that never signs again.
        """
        if vote.epoch != self._roster.epoch or vote.header_hash != header_hash or vote.height not in self._seen:
            return None
        signed = checkpoint_digest(self._roster.chain, self._roster.epoch, vote.height, header_hash)
        votes = self._votes.setdefault(vote.height, {} if own is None else {own.replica: own})
        if vote.replica in votes or not self._roster.verify_by(vote.replica, vote.signature, signed):
            return None
        votes[vote.replica] = CheckpointVote(vote.replica, vote.signature)
        if len(votes) < self._roster.quorum.strong:
            return None
        listed = tuple(votes[replica] for replica in sorted(votes))
        return BlockCertificate(self._roster.epoch, vote.height, header_hash, listed)
