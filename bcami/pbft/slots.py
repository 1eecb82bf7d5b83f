"""The message log: what was seen of each height in each view [CL99 4.2]."""

from dataclasses import dataclass, field
from typing import Final

from bcami.model.consensus import Commit, PhaseVote, Prepare, PreparedProof, PrePrepare, Proposal
from bcami.model.quorum import Quorum

Vote = Prepare | Commit


@dataclass(slots=True)
class Round:
    """One height in one view, one vote of each replica. A second, different vote is evidence; it takes the place of the
    first only when it is for the pre-prepared digest: quorums of correct replicas never rest on which one came first.
    """

    pre_prepare: PrePrepare | None = None
    prepares: dict[int, Prepare] = field(default_factory=dict)
    commits: dict[int, Commit] = field(default_factory=dict)
    prepared: bool = False
    """[CL99 4.2] the predicate prepared(m, v, n, i)."""
    recorded: bool = False
    """The pre-prepare is in the durable vote log."""

    def votes_for(self, vote: Vote) -> dict[int, Prepare] | dict[int, Commit]:
        return self.prepares if isinstance(vote, Prepare) else self.commits

    def add(self, vote: Vote) -> None:
        if isinstance(vote, Prepare):
            self.prepares[vote.replica] = vote
        else:
            self.commits[vote.replica] = vote

    def prepares_for(self, digest: bytes) -> int:
        return sum(vote.digest == digest for vote in self.prepares.values())

    def proof(self, quorum: Quorum) -> PreparedProof | None:
        """Return the proof of prepared(m, v, n, i), or None.

        [CL99 4.2] the pre-prepare and 2f matching prepares of different backups: here strong − 1, which together with
        the primary make a strong quorum for every n.
        """
        first = self.pre_prepare
        if first is None:
            return None
        primary = quorum.primary(first.view)
        votes = [
            PhaseVote(replica, vote.signature)
            for replica, vote in sorted(self.prepares.items())
            if vote.digest == first.digest and replica != primary
        ]
        needed = quorum.strong - 1
        return PreparedProof(first, tuple(votes[:needed])) if len(votes) >= needed else None

    def is_committed(self, quorum: Quorum) -> bool:
        """[CL99 4.2] committed-local: prepared, and matching commits of a strong quorum of replicas."""
        first = self.pre_prepare
        if first is None or not self.prepared:
            return False
        matching = sum(vote.digest == first.digest for vote in self.commits.values())
        return matching >= quorum.strong


@dataclass(frozen=True, slots=True)
class Decision:
    """What a height is decided to be, and the view that decided it."""

    digest: bytes
    proposal: Proposal
    view: int


@dataclass(slots=True)
class Slot:
    """One height above the low watermark."""

    rounds: dict[int, Round] = field(default_factory=dict)
    """By view; only the view entered last and the one before it."""
    proof: PreparedProof | None = None
    """Of the highest view in which the height was prepared here: the entry of P [CL99 4.4]."""
    decision: Decision | None = None

    def round(self, view: int) -> Round:
        return self.rounds.setdefault(view, Round())


AHEAD_PER_REPLICA_MAX: Final = 128
"""Messages kept for each replica that are of a later view or above the window: two windows of three phases fit."""

AheadKey = tuple[int, int, str]


class Ahead:
    """Verified messages of a later view or above the window, bounded for each replica.

    Without it an honest message that comes before the NEW-VIEW it belongs to is lost, and the view stalls until a
    status heals it. When a replica's share is full, its message of the lowest view and height goes.
    """

    def __init__(self) -> None:
        self._kept: dict[int, dict[AheadKey, PrePrepare | Vote]] = {}

    def contradicted(self, message: PrePrepare | Vote) -> PrePrepare | Vote | None:
        """Return what is kept for the same place and says something else."""
        known = self._kept.get(message.replica, {}).get((message.view, message.height, type(message).__name__))
        return None if known is None or known.digest == message.digest else known

    def add(self, message: PrePrepare | Vote) -> bool:
        """Keep the message, or answer False when it is older than all that fill its sender's share."""
        kept = self._kept.setdefault(message.replica, {})
        key = (message.view, message.height, type(message).__name__)
        if key in kept:
            return False
        kept[key] = message
        if len(kept) > AHEAD_PER_REPLICA_MAX:
            oldest = min(kept)
            del kept[oldest]
            return oldest != key
        return True

    def take(self, view: int, high: int) -> list[PrePrepare | Vote]:
        """Remove and return what is of this view or an earlier one and not above `high`, pre-prepares first."""
        taken: list[PrePrepare | Vote] = []
        for kept in self._kept.values():
            due = [key for key in kept if key[0] <= view and key[1] <= high]
            taken += [kept.pop(key) for key in due]
        return sorted(taken, key=lambda item: (not isinstance(item, PrePrepare), item.height))

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())
