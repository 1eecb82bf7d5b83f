"""The head-end's side of a masked round: a step machine (protocol 9). It is trusted with nothing.

    begin ─▶ Call everybody ─▶ contributions ─▶ settle (wave 0) ──┬─ nobody is missing: final ─▶ shares ─▶ tally, finish
                                                                  └─ somebody is: pairwise seeds ─▶ settle again

Each wave that asks for seeds waits for every contributor that borders on somebody who is gone; whoever stays silent is
gone too, and the next wave begins. When all that is needed is there, the set is settled as final and self masks
come off, for which the threshold is enough. The round ends with sums that open the contributors' commitments on the
chain, or as void with a reason that is recorded there too.

The driver carries out effects in order, tells what became of submitted transactions with `recorded`, and when a wait is
over with `timed_out`. Whatever a meter sends that does not hold is counted under its reason and dropped.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple

from bcami.aggregation.bounds import DEFAULT_POLICY, Plan, Policy
from bcami.aggregation.graph import Graph, Ranks, draw_plan, ranks_of
from bcami.aggregation.masks import (
    SEED_BYTES,
    MaskSum,
    round_context,
    self_commitment,
    signed,
    values_from_bytes,
)
from bcami.aggregation.meter import contribution_statement
from bcami.aggregation.records import (
    ChainReader,
    Contribution,
    Declined,
    Reveal,
    RevealCall,
    RosterNotice,
    RoundCall,
    RoundVoid,
    ToHeadEnd,
    ToMeter,
)
from bcami.aggregation.shamir import combine
from bcami.crypto.commitments import ORDER, opens
from bcami.crypto.points import point_sum
from bcami.crypto.signatures import is_valid_public_key, verify
from bcami.model.aggregation import (
    MEMBERS_PER_PART,
    REVEALED,
    FinishArgument,
    RosterMember,
    SettleArgument,
    StartArgument,
    TallyArgument,
    TallyEntry,
    VoidArgument,
    bitmap,
    body_hash,
    reveal_digest,
)
from bcami.model.api import TransactionProof
from bcami.model.reasons import Reason

UNPROVEN: Final = frozenset({"tally", "finish"})
WAVES_MAX: Final = 6
"""Sets of contributors that are tried before the round is void."""
_AGAIN_PERCENT: Final = 95
"""Of those who are there, that an earlier set has to hold to be taken again."""
_SUBSETS_MAX: Final = 16
"""Choices of shares that are tried when some are wrong."""


@dataclass(frozen=True, slots=True)
class Call:
    """Send a message to a member."""

    member: int
    message: ToMeter


@dataclass(frozen=True, slots=True)
class Submit:
    """Have the utility sign and submit a transaction of the contract, and tell `recorded` its outcome."""

    function: str
    argument: Any


@dataclass(frozen=True, slots=True)
class Wait:
    """Call `timed_out` with this name when the phase's time is over; a new wait replaces the one before."""

    phase: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The round is over and recorded."""

    reason: Reason
    sums: tuple[int, ...]
    contributors: frozenset[int]


Effect = Call | Submit | Wait | Ended


@dataclass(frozen=True, slots=True)
class Group:
    """A fixed roster and its graph."""

    digest: bytes
    members: tuple[RosterMember, ...]
    plan: Plan
    graph: Graph
    ranks: Ranks
    group_min: int


def group_of(digest: bytes, members: tuple[RosterMember, ...], seed: bytes, policy: Policy = DEFAULT_POLICY) -> Group:
    """Return a group as its members see it; `seed` is the hash of the block after the one that fixed the roster."""
    plan, graph = draw_plan(seed, len(members), policy)
    return Group(digest, members, plan, graph, ranks_of(graph), policy.group_min)


@dataclass(frozen=True, slots=True)
class Past:
    """A sum within a day of this one, of any roster."""

    round: int
    contributors: frozenset[int]
    """Members of this roster by their numbers; others by negative ones."""


class Alike(NamedTuple):
    """Why no set of contributors can be used."""

    earlier: int
    """Round of the earlier sum."""
    differ: int
    """How many contributors are in one of the two only."""


@dataclass(slots=True)
class _Progress:
    """What came in so far."""

    contributions: dict[int, Contribution] = field(default_factory=dict)
    contributors: frozenset[int] = frozenset()
    wave: int = -1
    is_final: bool = False
    is_certified: bool = False
    """The final set stands in a block: self masks may come off from now on."""
    asked: frozenset[int] = frozenset()
    """Members whose answer to this wave is awaited."""
    answered: set[int] = field(default_factory=set)
    seeds: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """(who revealed it, who is gone) → pairwise seed."""
    shares: dict[int, dict[int, int]] = field(default_factory=dict)
    """Contributor → rank of the neighbour that revealed a share → share."""
    tallied: int = 0
    result: tuple[tuple[int, ...], int] | None = None


class MaskedRound:
    """One round of one group."""

    def __init__(
        self,
        group: Group,
        start: StartArgument,
        reader: ChainReader,
        notice: RosterNotice | None,
        past: Sequence[Past] = (),
        informed: Collection[int] = frozenset(),
    ) -> None:
        """With `notice` the roster goes first to every member that is not `informed`, as far as the head-end knows.

        `past` are the sums within a day: members insist on sets that are equal or differ enough (`rules`).
        """
        self._past = tuple({item.contributors: item for item in past}.values())
        self._group = group
        self._start = start
        self._reader = reader
        self._notice = notice
        self._informed = informed
        self._context = round_context(reader.chain, reader.epoch, start.round, group.digest)
        self._progress = _Progress()
        self._phase = "contributions"
        self._proof: TransactionProof | None = None
        self._void: Reason | None = None
        self.refused: Counter[Reason] = Counter()
        """What meters sent and was dropped."""
        self.declined: Counter[Reason] = Counter()
        """Meters' own noes."""
        self.alike: Alike | None = None
        """Set when the round is void for GROUP_TOO_ALIKE."""
        self._noes: dict[int, Declined] = {}
        self._left: dict[int, Reason] = {}

    @property
    def final_contributors(self) -> frozenset[int] | None:
        """The set whose self masks may have come off, also when the round then ended without a sum."""
        return self._progress.contributors if self._progress.is_final else None

    def left_out(self) -> dict[int, Declined]:
        """Return, of each member that is not in the sum, its own no or why the head-end went on without it.

        `timed_out` stands for silence. Of a void round, members that would have been in the sum are not named.
        """
        progress, number = self._progress, self._start.round
        counted = progress.contributors or frozenset(progress.contributions)
        missing = [member for member in range(len(self._group.members)) if member not in counted]
        return {
            member: self._noes.get(member) or Declined(number, self._left.get(member, Reason.TIMED_OUT))
            for member in missing
        }

    def informed(self) -> frozenset[int]:
        """Return the members that know the roster, for the next round: they gave a contribution or any other no."""
        lacking = {member for member, no in self._noes.items() if no.reason is Reason.UNKNOWN_ROSTER}
        return frozenset({*self._informed, *self._progress.contributions, *self._noes} - lacking)

    @property
    def noes(self) -> Collection[Declined]:
        """The members' noes, the first of each."""
        return self._noes.values()

    def begin(self, proof: TransactionProof) -> list[Effect]:
        """Ask everybody; `proof` is the receipt of the round's start."""
        effects: list[Effect] = []
        call = RoundCall(proof)
        for member in range(len(self._group.members)):
            if self._notice is not None and member not in self._informed:
                effects.append(Call(member, self._notice))
            effects.append(Call(member, call))
        return [*effects, Wait(self._phase)]

    def receive(self, member: int, message: ToHeadEnd) -> list[Effect]:
        """Take one message that came from a member's address."""
        match message:
            case Contribution():
                return self._contribution(member, message)
            case Reveal():
                return self._reveal(member, message)
            case Declined():
                self.declined[message.reason] += 1
                self._noes.setdefault(member, message)
                return []

    def timed_out(self, phase: str) -> list[Effect]:
        """Go on with what there is; a name that is not the present phase's means nothing."""
        if phase != self._phase:
            return []
        if phase == "contributions":
            return self._settle(frozenset(self._progress.contributions))
        if phase.startswith("seeds"):
            silent = self._progress.asked - self._progress.answered
            return self._settle(self._progress.contributors - silent)
        if phase == "shares":
            return self._unmask()
        return []

    def recorded(self, function: str, outcome: TransactionProof | Reason) -> list[Effect]:
        """Take the outcome of a submitted transaction: its proof, or why it was rejected or refused.

        Of those in `UNPROVEN` VALID is enough: no meter is shown their proofs.
        """
        if function == "void":
            proof = [] if isinstance(outcome, Reason) else self._tell_all(RoundVoid(outcome))
            self._phase = "ended"
            return [*proof, Ended(self._void or Reason.TIMED_OUT, (), frozenset())]
        if self._phase == "voiding":
            return []
        if function == "settle" and not isinstance(outcome, Reason):
            return self._ask(outcome)
        if isinstance(outcome, Reason) and outcome is not Reason.VALID:
            return self._end_void(outcome)
        if function == "tally":
            self._progress.tallied += 1
            return self._finish() if self._progress.tallied == self._part_count else []
        assert self._progress.result is not None
        self._phase = "ended"
        return [Ended(Reason.VALID, self._progress.result[0], self._progress.contributors)]

    # Contributions.

    def _contribution(self, member: int, item: Contribution) -> list[Effect]:
        known = self._progress.contributions.get(member)
        reason = self._refuse_contribution(member, item)
        if reason is None and known is not None:
            reason = Reason.DUPLICATE if known == item else Reason.CONTRIBUTED_TWICE
        if reason is None and self._phase != "contributions":
            reason = Reason.TIMED_OUT
        if reason is not None:
            self.refused[reason] += 1
            return []
        self._progress.contributions[member] = item
        if len(self._progress.contributions) == len(self._group.members):
            return self._settle(frozenset(self._progress.contributions))
        return []

    def _refuse_contribution(self, member: int, item: Contribution) -> Reason | None:
        if item.round != self._start.round:
            return Reason.STALE
        if item.member != member:
            return Reason.NOT_A_MEMBER
        if len(item.masked) != 8 * self._start.slots or len(item.shares) != len(self._group.graph[member]):
            return Reason.MALFORMED
        statement = contribution_statement(self._reader, self._group.digest, self._group.members[member].hid, item)
        if not verify(self._group.members[member].public_key, item.signature, statement):
            return Reason.BAD_SIGNATURE
        return None if is_valid_public_key(item.commitment) else Reason.BAD_ARGUMENT

    def _settle(self, contributors: frozenset[int]) -> list[Effect]:
        """Settle a set from which nobody is cut off; it is final when no seed is missing."""
        progress, plan = self._progress, self._group.plan
        while True:
            cut = {
                member
                for member in contributors
                if len(contributors.intersection(self._group.graph[member])) < plan.threshold
            }
            if not cut:
                break
            contributors -= cut
            self._left |= dict.fromkeys(cut, Reason.CUT_OFF)
        if len(contributors) < plan.contributors_min:
            return self._end_void(Reason.GROUP_TOO_SMALL)
        evened = self._evened(contributors)
        if evened is None:
            differ = {item.round: len(item.contributors ^ contributors) for item in self._past}
            earlier = min(differ, key=lambda number: (differ[number] == 0, differ[number]))
            self.alike = Alike(earlier, differ[earlier])
            return self._end_void(Reason.GROUP_TOO_ALIKE)
        self._left |= dict.fromkeys(contributors - evened, Reason.GROUP_TOO_ALIKE)
        contributors = evened
        progress.wave += 1
        if progress.wave >= WAVES_MAX:
            return self._end_void(Reason.TIMED_OUT)
        progress.contributors = contributors
        progress.is_final = not self._lacking()
        self._phase = f"settling {progress.wave}"
        members = bitmap(contributors, len(self._group.members))
        return [Submit("settle", SettleArgument(self._start.round, progress.wave, members, progress.is_final))]

    def _evened(self, contributors: frozenset[int]) -> frozenset[int] | None:
        """Leave out as few as make the set fit the earlier ones of the day (`rules`); None when that is too many.

        An earlier set is taken again when hardly more are there, but not all: the fewer sets, the fewer differences;
        and who came back a moment ago may be gone the next.
        """
        least, past = self._group.plan.contributors_min, [item.contributors for item in self._past]
        enough = max(least, len(contributors) * _AGAIN_PERCENT // 100)
        again = [known for known in past if known <= contributors and len(known) >= enough]
        if again and len(contributors) < len(self._group.members):
            return max(again, key=len)
        kept = frozenset().union(*(self._kept(part, is_new, contributors) for part, is_new in self._day_parts(past)))
        return kept if len(kept) >= least else None

    def _day_parts(self, past: Sequence[frozenset[int]]) -> Iterator[tuple[frozenset[int], bool]]:
        """Yield the members who were in the same of the day's sets, and whether that is none of them."""
        parts: dict[int, set[int]] = {}
        for member in frozenset(range(len(self._group.members))).union(*past):
            pattern = sum(1 << place for place, known in enumerate(past) if member in known)
            parts.setdefault(pattern, set()).add(member)
        for pattern, members in parts.items():
            yield frozenset(members), pattern == 0

    def _kept(self, part: frozenset[int], is_new: bool, contributors: frozenset[int]) -> Collection[int]:
        """Return whom of a part the set can have: all of it, or so many that neither they nor the rest are few."""
        there, alike_min = part & contributors, self._group.group_min
        count = len(there)
        if not is_new and count < len(part):
            count = len(part) - max(alike_min, len(part) - count)
        if count < alike_min and not (count == len(part) and not is_new):
            return ()
        # Whoever is left out is drawn from the round's name, not chosen.
        order = sorted(there, key=lambda member: sha256(self._context + member.to_bytes(4, "big")).digest())
        return order[:count]

    def _lacking(self) -> frozenset[int]:
        """Return the contributors whose seeds with neighbours who are gone are still needed."""
        contributors, seeds = self._progress.contributors, self._progress.seeds
        return frozenset(
            member
            for member in contributors
            if any((member, other) not in seeds for other in self._group.ranks[member].keys() - contributors)
        )

    # Reveals.

    def _ask(self, proof: TransactionProof) -> list[Effect]:
        progress = self._progress
        self._proof = proof
        progress.answered = set()
        if not progress.is_final:
            progress.asked = self._lacking()
            self._phase = f"seeds {progress.wave}"
            calls: list[Effect] = [Call(member, RevealCall(proof, ())) for member in sorted(progress.asked)]
            return [*calls, Wait(self._phase)]
        progress.is_certified = True
        progress.asked = progress.contributors
        progress.shares = {member: {} for member in progress.contributors}
        self._phase = "shares"
        sealed: dict[int, list[tuple[int, bytes]]] = {member: [] for member in progress.contributors}
        for sender in sorted(progress.contributors):
            shares = progress.contributions[sender].shares
            for receiver, share in zip(self._group.graph[sender], shares, strict=True):
                if receiver in sealed:
                    sealed[receiver].append((sender, share))
        return [
            *(Call(member, RevealCall(proof, tuple(listed))) for member, listed in sealed.items()),
            Wait(self._phase),
        ]

    def _reveal(self, member: int, item: Reveal) -> list[Effect]:
        progress = self._progress
        reason = self._refuse_reveal(member, item)
        if reason is not None:
            self.refused[reason] += 1
            return []
        progress.answered.add(member)
        near, ranks, shares = self._group.ranks[member], self._group.ranks, progress.shares
        for other, secret in item.secrets:
            if other not in near:
                self.refused[Reason.NOT_A_MEMBER] += 1
            elif not progress.is_final and other not in progress.contributors:
                progress.seeds[member, other] = secret
            elif progress.is_final and other in shares:
                shares[other][ranks[other][member]] = int.from_bytes(secret, "big")
        if progress.answered < progress.asked:
            return []
        if progress.is_final:
            return self._unmask()
        return self._settle(progress.contributors - self._lacking())

    def _refuse_reveal(self, member: int, item: Reveal) -> Reason | None:
        progress, reader = self._progress, self._reader
        is_asking = self._phase == "shares" or self._phase.startswith("seeds")
        if item.round != self._start.round or item.wave != progress.wave or not is_asking:
            return Reason.STALE
        if item.member != member or member not in progress.asked:
            return Reason.NOT_A_MEMBER
        if member in progress.answered:
            return Reason.DUPLICATE
        statement = reveal_digest(
            reader.chain, reader.epoch, item.round, item.wave, self._group.members[member].hid, item.secrets
        )
        if not verify(self._group.members[member].public_key, item.signature, statement):
            return Reason.BAD_SIGNATURE
        return None

    # The sum.

    def _unmask(self) -> list[Effect]:
        progress = self._progress
        total = MaskSum(self._start.slots)
        for member in sorted(progress.contributors):
            item = progress.contributions[member]
            total.add_values(values_from_bytes(item.masked), int.from_bytes(item.blinding, "big"))
            seed = self._self_seed(member)
            if seed is None:
                return self._end_void(Reason.TOO_FEW_SHARES)
            total.add(seed, is_added=False)
        for (member, gone), seed in progress.seeds.items():
            if member in progress.contributors:
                total.add(seed, is_added=member > gone)
        values, blinding = total.total()
        sums = signed(values)
        commitments = tuple(progress.contributions[member].commitment for member in sorted(progress.contributors))
        committed = point_sum(commitments)
        if committed is None or not opens(committed, sums, blinding):
            return self._end_void(Reason.SUM_MISMATCH)
        progress.result = (sums, blinding)
        self._phase = "recording"
        return [Submit("tally", argument) for argument in self._parts()]

    def _self_seed(self, member: int) -> bytes | None:
        """Return a contributor's self-mask seed; wrong shares are found by the commitment and left out."""
        shares = sorted(self._progress.shares[member].items())  # the lowest places: their weights are known often
        threshold = self._group.plan.threshold
        commitment = self._progress.contributions[member].self_commitment
        for first in range(min(_SUBSETS_MAX, len(shares) - threshold + 1)):
            secret = combine(dict(shares[first : first + threshold]))
            if secret.bit_length() <= 8 * SEED_BYTES:
                seed = secret.to_bytes(SEED_BYTES, "big")
                if self_commitment(self._context, member, seed) == commitment:
                    return seed
        return None

    @property
    def _part_count(self) -> int:
        return (len(self._group.members) + MEMBERS_PER_PART - 1) // MEMBERS_PER_PART

    def _parts(self) -> Iterator[TallyArgument]:
        count = len(self._group.members)
        for part in range(self._part_count):
            members = range(part * MEMBERS_PER_PART, min(count, (part + 1) * MEMBERS_PER_PART))
            entries = []
            for member in members:
                if member in self._progress.contributors:
                    item = self._progress.contributions[member]
                    body = body_hash(item.masked, item.blinding, item.self_commitment, item.shares)
                    entries.append(TallyEntry(body, item.commitment, item.signature))
            yield TallyArgument(self._start.round, part, tuple(entries))

    def _finish(self) -> list[Effect]:
        assert self._progress.result is not None
        sums, blinding = self._progress.result
        argument = FinishArgument(self._start.round, sums, (blinding % ORDER).to_bytes(32, "big"))
        return [Submit("finish", argument)]

    def _end_void(self, reason: Reason) -> list[Effect]:
        if self._progress.is_certified and reason not in REVEALED:
            reason = Reason.ALREADY_REVEALED
        self._void = reason
        self._phase = "voiding"
        return [Submit("void", VoidArgument(self._start.round, reason))]

    def _tell_all(self, message: ToMeter) -> list[Effect]:
        return [Call(member, message) for member in range(len(self._group.members))]
