"""Usage reports (BC-AMI 4.2.3, Table 2; design D9; protocol 3).

A report is sealed to the MDMS, so the contract sees its length and its signer only. It keeps nothing beside the guard:
the report itself stands in the block.
"""

from bcami.contract import (
    HASH,
    NUMBER,
    READING_BYTES,
    READINGS_MAX,
    Context,
    Contract,
    Enrolment,
    Period,
    Reason,
    Session,
    View,
    found,
    pair,
    require,
    submit,
)

OVERHEAD_BYTES = 20
"""Head of a report (4) and tag of AES-128-GCM (16)."""


class Usage(Contract):
    """Decides which reports count."""

    name = "usage"

    enrolments = View("registration", "enrolments", Enrolment, HASH)
    sessions = View("registration", "sessions", Session, pair(HASH, NUMBER))
    current = View("registration", "current", int, HASH)
    periods = View("mdms", "periods", Period, NUMBER)

    @submit
    async def report(self, ctx: Context, argument: bytes) -> None:
        """Accept a sealed report of the current session, while the MDMS still has the key of its period."""
        session = await self._open_session(ctx, argument)
        period = found(await self.periods.get(ctx, session.period), Reason.UNKNOWN_PERIOD)
        grace_end_ms = period.superseded_ms + ctx.network.parameters.period_grace_ms
        require(period.superseded_ms == 0 or ctx.time_ms < grace_end_ms, Reason.PERIOD_EXPIRED)

    @report.signers
    async def report_signers(self, ctx: Context, argument: bytes) -> tuple[bytes, ...]:
        session = await self._open_session(ctx, argument)
        return (session.public_key,)

    async def _open_session(self, ctx: Context, report: bytes) -> Session:
        readings_bytes = len(report) - OVERHEAD_BYTES
        require(0 < readings_bytes <= READINGS_MAX * READING_BYTES, Reason.BAD_ARGUMENT)
        require(readings_bytes % READING_BYTES == 0, Reason.BAD_ARGUMENT)
        enrolment = found(await self.enrolments.get(ctx, ctx.signer), Reason.UNKNOWN_HID)
        require(not enrolment.revoked, Reason.REVOKED_HID)
        current = await self.current.get(ctx, ctx.signer)
        require(current is not None and 0 < ctx.session <= current, Reason.UNKNOWN_SESSION)
        require(ctx.session == current, Reason.SESSION_CLOSED)
        return found(await self.sessions.get(ctx, (ctx.signer, ctx.session)), Reason.UNKNOWN_SESSION)
