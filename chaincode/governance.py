"""What the members know about each other: evidence that one of them contradicted itself.

A member that holds two statements of another which no honest one makes both brings them here. Everybody verifies them
against genesis; what stands here convicts for good. One record for each place: the first one counts.
"""

from bcami.contract import (
    EVIDENCE_PER_MEMBER_MAX,
    HASH,
    NUMBER,
    Context,
    Contract,
    Evidence,
    EvidenceRecord,
    Map,
    Reason,
    found,
    pair,
    query,
    require,
    submit,
)


class Governance(Contract):
    """Evidence against members."""

    name = "governance"

    records = Map(EvidenceRecord, pair(NUMBER, HASH))
    """By accused replica and place."""
    counts = Map(int, NUMBER)
    """Records of each accused replica: their number is bounded."""

    @submit
    async def report_evidence(self, ctx: Context, argument: Evidence) -> None:
        """Record evidence that holds, unless there is some about the same place, or enough of that member."""
        reporter = found(ctx.member(ctx.signer), Reason.NOT_AUTHORIZED)
        await self._require_new(ctx, argument)
        ctx.require_evidence(argument)
        accused = argument.place.replica
        count = await self.counts.get(ctx, accused) or 0
        require(count < EVIDENCE_PER_MEMBER_MAX, Reason.OVER_QUOTA)
        record = EvidenceRecord(
            evidence_id=ctx.evidence_id(argument), evidence=argument, reporter=reporter, time_ms=ctx.time_ms
        )
        self.records.put(ctx, (accused, ctx.place_id(argument.place)), record)
        self.counts.put(ctx, accused, count + 1)

    @report_evidence.signers
    async def report_evidence_signers(self, ctx: Context, argument: Evidence) -> tuple[bytes, ...]:
        reporter = found(ctx.member(ctx.signer), Reason.NOT_AUTHORIZED)
        require(ctx.session == 0, Reason.UNKNOWN_SESSION)
        await self._require_new(ctx, argument)
        return (ctx.network.member_keys[reporter],)

    @query
    async def evidence(self, ctx: Context, argument: bytes) -> tuple[EvidenceRecord, ...]:
        """Answer all records about one replica (8 bytes, big-endian), in the order of their places' ids."""
        require(len(argument) == NUMBER.width, Reason.BAD_ARGUMENT)
        records = [record async for _, record in self.records.items(ctx, argument, EVIDENCE_PER_MEMBER_MAX)]
        return tuple(records)

    async def _require_new(self, ctx: Context, evidence: Evidence) -> None:
        key = (evidence.place.replica, ctx.place_id(evidence.place))
        require(await self.records.get(ctx, key) is None, Reason.ALREADY_RECORDED)
