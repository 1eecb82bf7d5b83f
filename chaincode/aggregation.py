"""Rounds of private aggregation: who may take part, who did, and the sum (design D18; protocol 9).

The utility opens rosters and rounds, and can do nothing that makes a meter tell its reading: rosters hold registered
meters only, each once; contributors only ever become fewer; what is settled as final, finished or void stays so. A
masked round ends with a sum only when every contributor's signature was counted and the sum opens their commitments,
so the utility can claim no other one. A ring round has nothing to check: its claim is recorded as unproven.
"""

from bcami.contract import (
    GROUP_MIN,
    HASH,
    MASKED,
    MEMBERS_MAX,
    MEMBERS_PER_PART,
    NO_HASH,
    NUMBER,
    ONLY,
    REVEALED,
    RING,
    AggregationHeads,
    ClaimArgument,
    Context,
    Contract,
    EnlistArgument,
    Enrolment,
    FinishArgument,
    FixRosterArgument,
    Map,
    MemberName,
    Reason,
    RosterHead,
    RosterMember,
    RosterPart,
    RoundResult,
    RoundView,
    Session,
    SettleArgument,
    Settlement,
    StartArgument,
    Tally,
    TallyArgument,
    View,
    VoidArgument,
    found,
    pair,
    query,
    require,
    submit,
)

HALF_HOUR_S = 1800


class Aggregation(Contract):
    """Rosters, rounds, results."""

    name = "aggregation"

    heads = Map(AggregationHeads, ONLY)
    rosters = Map(RosterHead, NUMBER)
    parts = Map(RosterPart, pair(NUMBER, NUMBER))
    """By roster and part; a record never changes."""
    rounds = Map(StartArgument, NUMBER)
    """By number; a record never changes."""
    settlements = Map(Settlement, NUMBER)
    tallies = Map(Tally, pair(NUMBER, NUMBER))
    """By round and part of the roster; a record never changes."""
    results = Map(RoundResult, NUMBER)
    """By round: the first one stays."""

    enrolments = View("registration", "enrolments", Enrolment, HASH)
    sessions = View("registration", "sessions", Session, pair(HASH, NUMBER))
    current = View("registration", "current", int, HASH)

    @submit
    async def enlist(self, ctx: Context, argument: EnlistArgument) -> None:
        """Add the next part to a roster: registered members, with the keys of their current sessions."""
        heads = await self._heads(ctx)
        head = await self.rosters.get(ctx, argument.roster)
        if head is None:
            require(argument.roster > heads.roster, Reason.ROUND_NOT_ABOVE)
            self.heads.put(ctx, None, AggregationHeads(argument.roster, heads.round))
            head = RosterHead("", 0, 0, ctx.empty_roster_digest(argument.roster), NO_HASH)
        require(not head.group, Reason.ROSTER_FIXED)
        # Only the last part may be short, so that a member's number tells its part.
        require(argument.part == head.parts, Reason.ROSTER_MISMATCH)
        require(head.count == head.parts * MEMBERS_PER_PART, Reason.ROSTER_MISMATCH)
        require(head.count + len(argument.members) <= MEMBERS_MAX, Reason.OVERSIZED)
        last = head.last_hid
        members: list[RosterMember] = []
        for named in argument.members:
            require(named.hid > last, Reason.MEMBER_TWICE)
            last = named.hid
            members.append(await self._member(ctx, named))
        part = RosterPart(tuple(members))
        self.parts.put(ctx, (argument.roster, argument.part), part)
        digest = ctx.roster_digest(head.digest, part.members)
        self.rosters.put(ctx, argument.roster, RosterHead("", head.parts + 1, head.count + len(members), digest, last))

    @enlist.signers
    async def enlist_signers(self, ctx: Context, argument: EnlistArgument) -> tuple[bytes, ...]:
        return self._utility(ctx)

    @submit
    async def fix_roster(self, ctx: Context, argument: FixRosterArgument) -> None:
        """End a roster. The digest is compared, so that the receipt of this proves it to the members."""
        head = found(await self.rosters.get(ctx, argument.roster), Reason.UNKNOWN_ROSTER)
        require(not head.group, Reason.ROSTER_FIXED)
        require(argument.count == head.count and argument.digest == head.digest, Reason.ROSTER_MISMATCH)
        require(head.count >= GROUP_MIN, Reason.GROUP_TOO_SMALL)
        self.rosters.put(
            ctx, argument.roster, RosterHead(argument.group, head.parts, head.count, head.digest, head.last_hid)
        )

    @fix_roster.signers
    async def fix_roster_signers(self, ctx: Context, argument: FixRosterArgument) -> tuple[bytes, ...]:
        return self._utility(ctx)

    @submit
    async def start(self, ctx: Context, argument: StartArgument) -> None:
        """Open a round over a fixed roster."""
        heads = await self._heads(ctx)
        require(argument.round > heads.round, Reason.ROUND_NOT_ABOVE)
        head = found(await self.rosters.get(ctx, argument.roster), Reason.UNKNOWN_ROSTER)
        require(head.group, Reason.UNKNOWN_ROSTER)
        require(argument.roster_digest == head.digest, Reason.ROSTER_MISMATCH)
        require(argument.first_s % HALF_HOUR_S == 0, Reason.BAD_ARGUMENT)
        require(argument.reading_max > 0, Reason.BAD_ARGUMENT)
        require(argument.mode == MASKED or argument.noise.epsilon_millionths == 0, Reason.BAD_ARGUMENT)
        self.rounds.put(ctx, argument.round, argument)
        self.heads.put(ctx, None, AggregationHeads(heads.roster, argument.round))

    @start.signers
    async def start_signers(self, ctx: Context, argument: StartArgument) -> tuple[bytes, ...]:
        return self._utility(ctx)

    @submit
    async def settle(self, ctx: Context, argument: SettleArgument) -> None:
        """Record who contributed: never anybody who was taken to have dropped out before."""
        start, head = await self._open_round(ctx, argument.round, MASKED)
        last = await self.settlements.get(ctx, start.round)
        contributors = int.from_bytes(argument.contributors, "little")
        require(len(argument.contributors) == (head.count + 7) // 8, Reason.BAD_ARGUMENT)
        require(contributors < 1 << head.count, Reason.BAD_ARGUMENT)
        require(contributors.bit_count() >= GROUP_MIN, Reason.GROUP_TOO_SMALL)
        if last is None:
            require(argument.wave == 0, Reason.STALE)
        else:
            require(not last.is_final, Reason.ALREADY_REVEALED)
            require(argument.wave == last.wave + 1, Reason.STALE)
            before = int.from_bytes(last.contributors, "little")
            require(contributors & before == contributors, Reason.CONTRIBUTORS_GREW)
        self.settlements.put(ctx, start.round, Settlement(argument.wave, argument.contributors, argument.is_final))

    @settle.signers
    async def settle_signers(self, ctx: Context, argument: SettleArgument) -> tuple[bytes, ...]:
        return self._utility(ctx)

    @submit
    async def tally(self, ctx: Context, argument: TallyArgument) -> None:
        """Count the contributors of one part: each one's signature, and its commitment."""
        start, head = await self._open_round(ctx, argument.round, MASKED)
        settled = found(await self.settlements.get(ctx, start.round), Reason.NOT_SETTLED)
        require(settled.is_final, Reason.NOT_SETTLED)
        key = (start.round, argument.part)
        require(await self.tallies.get(ctx, key) is None, Reason.STALE)
        part = found(await self.parts.get(ctx, (start.roster, argument.part)), Reason.BAD_ARGUMENT)
        contributors = int.from_bytes(settled.contributors, "little") >> argument.part * MEMBERS_PER_PART
        present = [member for place, member in enumerate(part.members) if contributors >> place & 1]
        require(len(present) == len(argument.entries), Reason.NOT_A_MEMBER)
        for member, entry in zip(present, argument.entries, strict=True):
            require(ctx.is_aggregated_by(member, start.round, head.digest, entry), Reason.BAD_SIGNATURE)
        total = b""
        if present:
            points = tuple([entry.commitment for entry in argument.entries])
            total = found(ctx.point_sum(points), Reason.BAD_ARGUMENT)
        self.tallies.put(ctx, key, Tally(len(present), total))

    @tally.signers
    async def tally_signers(self, ctx: Context, argument: TallyArgument) -> tuple[bytes, ...]:
        return self._utility(ctx)

    @submit
    async def finish(self, ctx: Context, argument: FinishArgument) -> None:
        """Record the sums, if they are those that the contributors committed to."""
        start, head = await self._open_round(ctx, argument.round, MASKED)
        require(len(argument.sums) == start.slots, Reason.BAD_ARGUMENT)
        count = 0
        points: list[bytes] = []
        for part in range(100):  # MEMBERS_MAX // MEMBERS_PER_PART
            if part < head.parts:
                counted = found(await self.tallies.get(ctx, (start.round, part)), Reason.NOT_SETTLED)
                count += counted.count
                if counted.count:
                    points.append(counted.total)
        total = found(ctx.point_sum(tuple(points)), Reason.NOT_SETTLED)
        require(ctx.opens(total, argument.sums, argument.blinding), Reason.SUM_MISMATCH)
        self.results.put(ctx, start.round, RoundResult(Reason.VALID, argument.sums, count, True, ctx.time_ms))

    @finish.signers
    async def finish_signers(self, ctx: Context, argument: FinishArgument) -> tuple[bytes, ...]:
        return self._utility(ctx)

    @submit
    async def claim(self, ctx: Context, argument: ClaimArgument) -> None:
        """Record what the utility says is the sum of a ring round."""
        start, head = await self._open_round(ctx, argument.round, RING)
        require(len(argument.sums) == start.slots, Reason.BAD_ARGUMENT)
        require(argument.count <= head.count, Reason.BAD_ARGUMENT)
        require(argument.count >= GROUP_MIN, Reason.GROUP_TOO_SMALL)
        self.results.put(ctx, start.round, RoundResult(Reason.VALID, argument.sums, argument.count, False, ctx.time_ms))

    @claim.signers
    async def claim_signers(self, ctx: Context, argument: ClaimArgument) -> tuple[bytes, ...]:
        return self._utility(ctx)

    @submit
    async def void(self, ctx: Context, argument: VoidArgument) -> None:
        """End a round without a sum. Its reason tells whether self masks may have come off: the readings stay spent."""
        require(argument.reason != Reason.VALID, Reason.BAD_ARGUMENT)
        start = found(await self.rounds.get(ctx, argument.round), Reason.UNKNOWN_ROUND)
        require(await self.results.get(ctx, start.round) is None, Reason.ROUND_ENDED)
        settled = await self.settlements.get(ctx, start.round)
        is_final = settled is not None and settled.is_final
        require(is_final == (argument.reason in REVEALED), Reason.BAD_ARGUMENT)
        self.results.put(ctx, start.round, RoundResult(argument.reason, (), 0, False, ctx.time_ms))

    @void.signers
    async def void_signers(self, ctx: Context, argument: VoidArgument) -> tuple[bytes, ...]:
        return self._utility(ctx)

    @query
    async def head(self, ctx: Context, argument: bytes) -> AggregationHeads:
        """Answer the highest numbers of a roster and of a round."""
        require(not argument, Reason.BAD_ARGUMENT)
        return await self._heads(ctx)

    @query
    async def roster(self, ctx: Context, argument: bytes) -> RosterHead:
        """Answer how far a roster got (8 bytes, big-endian)."""
        require(len(argument) == NUMBER.width, Reason.BAD_ARGUMENT)
        number = int.from_bytes(argument, "big")
        require(number < 1 << 63, Reason.BAD_ARGUMENT)
        return found(await self.rosters.get(ctx, number), Reason.UNKNOWN_ROSTER)

    @query
    async def round(self, ctx: Context, argument: bytes) -> RoundView:
        """Answer all about a round (8 bytes, big-endian)."""
        require(len(argument) == NUMBER.width, Reason.BAD_ARGUMENT)
        number = int.from_bytes(argument, "big")
        require(number < 1 << 63, Reason.BAD_ARGUMENT)
        start = found(await self.rounds.get(ctx, number), Reason.UNKNOWN_ROUND)
        head = found(await self.rosters.get(ctx, start.roster), Reason.UNKNOWN_ROSTER)
        settled = await self.settlements.get(ctx, number)
        return RoundView(start, head.group, settled, await self.results.get(ctx, number))

    async def _heads(self, ctx: Context) -> AggregationHeads:
        heads = await self.heads.get(ctx, None)
        return heads or AggregationHeads(0, 0)

    async def _member(self, ctx: Context, named: MemberName) -> RosterMember:
        enrolment = found(await self.enrolments.get(ctx, named.hid), Reason.UNKNOWN_HID)
        require(not enrolment.revoked, Reason.REVOKED_HID)
        number = await self.current.get(ctx, named.hid)
        require(number is not None and 0 < named.session <= number, Reason.UNKNOWN_SESSION)
        require(named.session == number, Reason.SESSION_CLOSED)
        session = found(await self.sessions.get(ctx, (named.hid, named.session)), Reason.UNKNOWN_SESSION)
        return RosterMember(named.hid, named.session, session.public_key, session.kem_key)

    async def _open_round(self, ctx: Context, number: int, mode: str) -> tuple[StartArgument, RosterHead]:
        start = found(await self.rounds.get(ctx, number), Reason.UNKNOWN_ROUND)
        require(start.mode == mode, Reason.UNKNOWN_ROUND)
        require(await self.results.get(ctx, number) is None, Reason.ROUND_ENDED)
        return start, found(await self.rosters.get(ctx, start.roster), Reason.UNKNOWN_ROSTER)

    def _utility(self, ctx: Context) -> tuple[bytes, ...]:
        require(ctx.signer == ctx.network.utility_id, Reason.NOT_AUTHORIZED)
        require(ctx.session == 0, Reason.UNKNOWN_SESSION)
        return (ctx.network.utility_key,)
