"""A meter's side of masked rounds: a step machine without clock, randomness or I/O (protocol 9).

`receive` takes one message and returns an `Answer`: what to make durable, and what to send after that. What the meter
reveals rests on receipts that it checks from genesis, and on its own memory:

* It answers a round number once. The same question gets the same bytes again, also after a restart.
* About each peer and round it reveals the pairwise seed or its share of the self mask, never both: seeds of members
  outside of the settled contributors, shares of those inside a final set; sets only shrink, and after a final one none
  follows, both by the contract and by this memory.
* It reveals nothing unless enough members, and enough of its own neighbours, contributed (`bounds`, `rules`).

Nothing durable is secret. The self-mask seed lives for one call; what others need of it is in their sealed shares. A
meter that restarts needs the roster again; until then it declines.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from bcami.aggregation import rules
from bcami.aggregation.bounds import DEFAULT_POLICY, Plan, Policy
from bcami.aggregation.dice import Dice
from bcami.aggregation.graph import draw_plan
from bcami.aggregation.masks import (
    BLINDING_BYTES,
    SEED_BYTES,
    MaskSum,
    PairKey,
    RoundKeys,
    round_context,
    self_commitment,
    values_of,
    values_to_bytes,
)
from bcami.aggregation.noise import is_drawable, noise_share, rounded
from bcami.aggregation.records import (
    MEMORY_CODEC,
    SET_CODEC,
    ChainReader,
    Contribution,
    Declined,
    MemorySet,
    MeterMemory,
    OpenRound,
    Reveal,
    RevealCall,
    RosterNotice,
    RoundCall,
    RoundVoid,
    ToHeadEnd,
    ToMeter,
)
from bcami.aggregation.rules import Contributors, contributors_of, set_digest
from bcami.aggregation.shamir import SECRET_BITS, split
from bcami.crypto import hkdf
from bcami.crypto.commitments import ORDER, commit
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.signatures import Signer
from bcami.model.aggregation import (
    MASKED,
    REVEALED,
    FixRosterArgument,
    RosterMember,
    SettleArgument,
    StartArgument,
    VoidArgument,
    body_hash,
    contribution_digest,
    members_of,
    reveal_digest,
    whole_roster_digest,
)
from bcami.model.reasons import Reason
from bcami.units import HALF_HOUR_S

Readings = Callable[[int], int | None]
"""The reading of the interval that starts then, energy units; None when there is none."""

MEMORY: Final = b""
"""Key of the meter's memory; every other key is the digest of a set of contributors."""
_NO_SIGNATURE: Final = bytes(64)


class Keep(NamedTuple):
    """One durable record; None deletes."""

    key: bytes
    value: bytes | None


class Answer(NamedTuple):
    """Make `writes` durable, then send `message`."""

    writes: tuple[Keep, ...]
    message: ToHeadEnd | None


@dataclass(frozen=True, slots=True)
class MeterKeys:
    """Whom a meter is in its session, and what it can do."""

    hid: bytes
    session: int
    signer: Signer
    """Pr: signs."""
    kem: KemSecretKey
    """The session's KEM key: agrees with peers, and never leaves."""


@dataclass(frozen=True, slots=True)
class _Roster:
    """Members under the digest that names them, which the chain has."""

    digest: bytes
    members: tuple[RosterMember, ...] = field(compare=False, repr=False)


@lru_cache(maxsize=64)
def _contributors(roster: _Roster, bitmap: bytes) -> Contributors:
    members = roster.members
    return contributors_of(tuple([members[place].hid for place in sorted(members_of(bitmap))]))


@lru_cache(maxsize=16)
def _group(roster: _Roster) -> bytes:
    """Return the digest of all members' HIDs: the same for each roster of the same meters."""
    return set_digest(tuple([member.hid for member in roster.members]))


@dataclass(slots=True)
class _Known:
    """The roster that this meter works with."""

    number: int
    roster: _Roster
    place: int
    neighbours: tuple[int, ...]
    plan: Plan
    pairs: dict[int, PairKey]
    context: bytes = b""
    round_keys: dict[int, RoundKeys] = field(default_factory=dict)
    """Of the round that `context` names."""


class MaskedMeter:
    """One meter. `memory` and `sets` are what it kept."""

    def __init__(
        self,
        keys: MeterKeys,
        reader: ChainReader,
        policy: Policy = DEFAULT_POLICY,
        memory: MeterMemory | None = None,
        sets: Mapping[bytes, tuple[bytes, ...]] | None = None,
    ) -> None:
        self._keys = keys
        self._reader = reader
        self._policy = policy
        self.memory = memory or MeterMemory()
        self._sets = {digest: contributors_of(hids) for digest, hids in (sets or {}).items()}
        self._known: _Known | None = None

    def receive(self, message: ToMeter, readings: Readings, entropy: bytes) -> Answer:
        """Answer one message. `entropy` is at least 32 fresh bytes of the machine's generator."""
        match message:
            case RosterNotice():
                reason = self._take_roster(message)
                return Answer((), None if reason is None else Declined(0, reason))
            case RoundCall():
                return self._contribute(message, readings, entropy)
            case RevealCall():
                return self._reveal(message)
            case RoundVoid():
                return self._void(message)

    # The roster, once.

    def _take_roster(self, notice: RosterNotice) -> Reason | None:
        reader, members = self._reader, notice.members
        fixed = reader.read(notice.proof)
        if isinstance(fixed, Reason):
            return fixed
        argument = fixed.argument
        if not isinstance(argument, FixRosterArgument):
            return Reason.BAD_PROOF
        if self._known is not None and self._known.roster.digest == argument.digest:
            return None
        block = reader.block_hash(notice.beacon)
        if isinstance(block, Reason):
            return block
        height, seed = block
        if height != fixed.height + 1:
            return Reason.BAD_PROOF
        if len(members) != argument.count:
            return Reason.ROSTER_MISMATCH
        if whole_roster_digest(reader.chain, argument.roster, members) != argument.digest:
            return Reason.ROSTER_MISMATCH
        name = (self._keys.hid, self._keys.session)
        own = next((place for place, member in enumerate(members) if (member.hid, member.session) == name), None)
        if own is None or members[own].kem_key != self._keys.kem.public_key:
            return Reason.NOT_A_MEMBER
        if len(members) < self._policy.group_min:
            return Reason.GROUP_TOO_SMALL
        plan, graph = draw_plan(seed, len(members), self._policy)
        # Keys are agreed on now, so that the first round costs what the others do.
        pairs = {other: PairKey(self._keys.kem, members[other].kem_key, reader.chain) for other in graph[own]}
        self._known = _Known(argument.roster, _Roster(argument.digest, members), own, graph[own], plan, pairs)
        return None

    def _round_keys(self, known: _Known, context: bytes) -> dict[int, RoundKeys]:
        """Return the keys with each neighbour for the round, from memory or made again."""
        if known.context != context:
            known.context = context
            known.round_keys = {other: pair.round_keys(context) for other, pair in known.pairs.items()}
        return known.round_keys

    # Message 1.

    def _contribute(self, call: RoundCall, readings: Readings, entropy: bytes) -> Answer:
        read = self._reader.read(call.proof)
        start = read if isinstance(read, Reason) else read.argument
        if isinstance(start, Reason) or not isinstance(start, StartArgument):
            return Answer((), Declined(0, start if isinstance(start, Reason) else Reason.BAD_PROOF))
        opened = self.memory.open
        if opened is not None and opened.start == start:
            return Answer((), opened.contribution)
        known = self._known
        if known is None or (start.roster, start.roster_digest) != (known.number, known.roster.digest):
            return Answer((), Declined(start.round, Reason.UNKNOWN_ROSTER))
        if start.mode != MASKED:
            return Answer((), Declined(start.round, Reason.BAD_PROOF))
        if not is_drawable(start.noise):
            return Answer((), Declined(start.round, Reason.BAD_ARGUMENT))
        objection = rules.refuse_start(self.memory, start, _group(known.roster))
        if objection is not None:
            return Answer((), Declined(start.round, *objection))
        values = _values(start, readings)
        if isinstance(values, Reason):
            return Answer((), Declined(start.round, values))
        contribution = self._mask(known, start, values, entropy)
        count = len(known.roster.members)
        everybody = ((1 << count) - 1).to_bytes((count + 7) // 8, "little")
        self.memory = msgspec.structs.replace(
            rules.remembering(self.memory, start, _group(known.roster)),
            open=OpenRound(start, contribution, everybody, -1, False, None),
        )
        return Answer((self._kept(), *self._forgotten_sets()), contribution)

    def _mask(self, known: _Known, start: StartArgument, values: list[int], entropy: bytes) -> Contribution:
        reader, place = self._reader, known.place
        context = round_context(reader.chain, reader.epoch, start.round, known.roster.digest)
        pairs = self._round_keys(known, context)
        seeds = [keys.mask_seed for keys in pairs.values()]
        # Hedged: a poor generator is covered as long as one neighbour is honest and present (protocol 2.4).
        dice = Dice(hkdf.extract(context, entropy + b"".join(seeds)))
        numbers = [value + noise_share(dice, start.noise, known.plan.honest_min) for value in values]
        blinding = dice.below(ORDER - 1) + 1
        commitment = commit(numbers, blinding)
        if commitment is None:
            raise ValueError("a commitment at infinity: chance 2^-256")
        secret = dice.bits(SECRET_BITS)
        shares = split(secret, known.plan.threshold, len(known.neighbours), dice)
        seed = secret.to_bytes(SEED_BYTES, "big")
        total = MaskSum(start.slots)
        total.add_values(values_of(numbers), blinding)
        total.add(seed, is_added=True)
        below = sum(other < place for other in pairs)  # neighbours ascend
        total.add_all(seeds[:below], is_added=False)
        total.add_all(seeds[below:], is_added=True)
        masked, masked_blinding = total.total()
        unsigned = Contribution(
            round=start.round,
            member=place,
            masked=values_to_bytes(masked),
            blinding=masked_blinding.to_bytes(BLINDING_BYTES, "big"),
            commitment=commitment,
            self_commitment=self_commitment(context, place, seed),
            shares=tuple(
                pair_keys.seal_share(share, is_up=place < other)
                for (other, pair_keys), share in zip(pairs.items(), shares, strict=True)
            ),
            signature=_NO_SIGNATURE,
        )
        statement = contribution_statement(reader, known.roster.digest, self._keys.hid, unsigned)
        return msgspec.structs.replace(unsigned, signature=self._keys.signer.sign(statement))

    # Message 2, and the one before it when somebody dropped out.

    def _reveal(self, call: RevealCall) -> Answer:
        opened, known = self.memory.open, self._known
        read = self._reader.read(call.proof)
        if isinstance(read, Reason):
            return Answer((), Declined(0, read))
        settle = read.argument
        if not isinstance(settle, SettleArgument):
            return Answer((), Declined(0, Reason.BAD_PROOF))
        number = settle.round
        if opened is None or opened.start.round != number:
            return Answer((), Declined(number, Reason.UNKNOWN_ROUND))
        if known is None or known.roster.digest != opened.start.roster_digest:
            return Answer((), Declined(number, Reason.UNKNOWN_ROSTER))
        if settle.wave == opened.wave and opened.reveal is not None:
            return Answer((), opened.reveal)
        reason = self._refuse_settlement(known, opened, settle)
        if reason is Reason.NOT_A_MEMBER:
            # Certified as not in the sum: the reading may go into another one.
            self.memory = msgspec.structs.replace(rules.freed(self.memory, number), open=None)
            return Answer((self._kept(),), Declined(number, reason))
        if reason is not None:
            return Answer((), Declined(number, reason))
        wanted = _contributors(known.roster, settle.contributors)
        objection = rules.refuse_set(self.memory, self._sets, opened.start, wanted, self._policy)
        if objection is not None:
            return Answer((), Declined(number, *objection))
        return self._answer_settlement(known, opened, settle, call)

    def _refuse_settlement(self, known: _Known, opened: OpenRound, settle: SettleArgument) -> Reason | None:
        contributors = members_of(settle.contributors)
        if not contributors <= members_of(opened.contributors):
            return Reason.CONTRIBUTORS_GREW
        if known.place not in contributors:
            return Reason.NOT_A_MEMBER
        if opened.is_final:
            return Reason.ALREADY_REVEALED
        if settle.wave <= opened.wave:
            return Reason.STALE
        if len(contributors) < known.plan.contributors_min:
            return Reason.GROUP_TOO_SMALL
        if len(contributors.intersection(known.neighbours)) < known.plan.threshold:
            return Reason.CUT_OFF
        return None

    def _answer_settlement(self, known: _Known, opened: OpenRound, settle: SettleArgument, call: RevealCall) -> Answer:
        reader, start = self._reader, opened.start
        context = round_context(reader.chain, reader.epoch, start.round, known.roster.digest)
        contributors = members_of(settle.contributors)
        pairs = self._round_keys(known, context)
        writes: list[Keep] = []
        if settle.is_final:
            secrets = []
            for other, sealed in sorted(call.shares):
                if other in pairs and other in contributors:
                    share = pairs[other].open_share(sealed, is_up=other < known.place)
                    if share is not None:
                        secrets.append((other, share))
            helped = _contributors(known.roster, settle.contributors)
            self._sets[helped.digest] = helped
            writes.append(Keep(helped.digest, _encoded(helped)))
            self.memory = rules.settled(self.memory, start.round, helped.digest)
        else:
            secrets = [(other, pair_keys.mask_seed) for other, pair_keys in pairs.items() if other not in contributors]
        statement = reveal_digest(reader.chain, reader.epoch, start.round, settle.wave, self._keys.hid, tuple(secrets))
        signature = self._keys.signer.sign(statement)
        reveal = Reveal(start.round, known.place, settle.wave, tuple(secrets), signature)
        opened = OpenRound(start, opened.contribution, settle.contributors, settle.wave, settle.is_final, reveal)
        self.memory = msgspec.structs.replace(self.memory, open=opened)
        return Answer((*writes, self._kept()), reveal)

    def _void(self, message: RoundVoid) -> Answer:
        read = self._reader.read(message.proof)
        if isinstance(read, Reason):
            return Answer((), Declined(0, read))
        if not isinstance(read.argument, VoidArgument):
            return Answer((), Declined(0, Reason.BAD_PROOF))
        number = read.argument.round
        opened = self.memory.open
        if read.argument.reason in REVEALED:
            return Answer((), Declined(number, Reason.ALREADY_REVEALED))  # others may have helped to a sum
        if opened is not None and opened.start.round == number:
            if opened.is_final:
                return Answer((), Declined(number, Reason.ALREADY_REVEALED))
            self.memory = msgspec.structs.replace(self.memory, open=None)
        self.memory = rules.freed(self.memory, number)
        return Answer((self._kept(),), None)

    # Memory.

    def _kept(self) -> Keep:
        return Keep(MEMORY, MEMORY_CODEC.encode(self.memory))

    def _forgotten_sets(self) -> list[Keep]:
        used = {past.members for past in self.memory.past}
        gone = [digest for digest in self._sets if digest not in used]
        for digest in gone:
            del self._sets[digest]
        return [Keep(digest, None) for digest in gone]


@lru_cache(maxsize=16)
def _encoded(contributors: Contributors) -> bytes:
    """Return a set as it is kept."""
    return SET_CODEC.encode(MemorySet(contributors.hids))


def contribution_statement(reader: ChainReader, roster_digest: bytes, hid: bytes, item: Contribution) -> bytes:
    """Return what a contribution's signature covers."""
    body = body_hash(item.masked, item.blinding, item.self_commitment, item.shares)
    return contribution_digest(reader.chain, reader.epoch, item.round, roster_digest, hid, body, item.commitment)


def _values(start: StartArgument, readings: Readings) -> list[int] | Reason:
    """Return what is summed of the readings, or why there is nothing to sum."""
    values = []
    for slot in range(start.slots):
        reading = readings(start.first_s + slot * HALF_HOUR_S)
        if reading is None:
            return Reason.NO_READING
        if not 0 <= reading <= start.reading_max:
            return Reason.READING_OUT_OF_RANGE
        values.append(rounded(reading, start.noise))
    return values
