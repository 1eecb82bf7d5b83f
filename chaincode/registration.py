"""Who is a customer, and which key speaks for a meter in which session (BC-AMI 4.2.2; design D7; protocol 1, 2).

The utility enrols and revokes. A meter opens a session by `register`, signed by its enrolment key and by the new
session key, after it asked f + 1 nodes to `contribute`. Enrolment is once and revocation is for good: a record under a
HID never gets another key, so a signature that an endorser found valid stays valid.
"""

from bcami.contract import (
    HASH,
    NUMBER,
    Context,
    Contract,
    ContributionAnswer,
    ContributionRequest,
    EnrolArgument,
    Enrolment,
    Map,
    MeterState,
    Period,
    Reason,
    RegisterArgument,
    RevokeArgument,
    Session,
    View,
    found,
    pair,
    query,
    require,
    require_issued_key,
    submit,
)


class Registration(Contract):
    """Enrolments, and the sessions that they opened."""

    name = "registration"

    enrolments = Map(Enrolment, HASH)
    """By HID."""
    sessions = Map(Session, pair(HASH, NUMBER))
    """By HID and number; a record never changes."""
    current = Map(int, HASH)
    """Number of the current session, by HID."""

    periods = View("mdms", "periods", Period, NUMBER)
    current_period = View("mdms", "current", int, HASH)

    @submit
    async def enrol(self, ctx: Context, argument: EnrolArgument) -> None:
        """Record a customer's enrolment keys."""
        network = ctx.network
        # These sign other transactions; under an enrolment their guards could be used up.
        require(argument.hid != network.mdms_hid, Reason.ALREADY_ENROLLED)
        require(argument.hid != network.utility_id, Reason.ALREADY_ENROLLED)
        require(argument.hid not in network.member_ids, Reason.ALREADY_ENROLLED)
        require(await self.enrolments.get(ctx, argument.hid) is None, Reason.ALREADY_ENROLLED)
        require(ctx.is_public_key(argument.enrolment_key), Reason.BAD_ARGUMENT)
        require(ctx.is_kem_key(argument.enrolment_kem_key), Reason.BAD_ARGUMENT)
        require(argument.enrolment_kem_key[1:33] != argument.enrolment_key[1:], Reason.BAD_ARGUMENT)
        record = Enrolment(argument.enrolment_key, argument.enrolment_kem_key, revoked=False)
        self.enrolments.put(ctx, argument.hid, record)

    @enrol.signers
    async def enrol_signers(self, ctx: Context, argument: EnrolArgument) -> tuple[bytes, ...]:
        require(await self.enrolments.get(ctx, argument.hid) is None, Reason.ALREADY_ENROLLED)
        return self._utility(ctx)

    @submit
    async def revoke(self, ctx: Context, argument: RevokeArgument) -> None:
        """End a customer's right to register and to report, for good."""
        enrolment = await self._enrolment(ctx, argument.hid)
        record = Enrolment(enrolment.enrolment_key, enrolment.enrolment_kem_key, revoked=True)
        self.enrolments.put(ctx, argument.hid, record)

    @revoke.signers
    async def revoke_signers(self, ctx: Context, argument: RevokeArgument) -> tuple[bytes, ...]:
        await self._enrolment(ctx, argument.hid)
        return self._utility(ctx)

    @submit
    async def register(self, ctx: Context, argument: RegisterArgument) -> None:
        """Open the session whose number is the transaction's sequence."""
        hid = ctx.signer
        number = ctx.sequence
        await self._enrolment(ctx, hid)
        last = await self.current.get(ctx, hid)
        if last is not None:
            require(number > last, Reason.SESSION_NOT_ABOVE)
            session = await self.sessions.get(ctx, (hid, last))
            gap_ms = ctx.network.parameters.session_gap_ms
            require(session is None or ctx.time_ms >= session.time_ms + gap_ms, Reason.SESSION_TOO_SOON)
        period = found(await self.periods.get(ctx, argument.period), Reason.UNKNOWN_PERIOD)
        require(argument.period_key_id == period.key_id, Reason.KEY_MISMATCH)
        grace_end_ms = period.superseded_ms + ctx.network.parameters.period_grace_ms
        require(period.superseded_ms == 0 or ctx.time_ms < grace_end_ms, Reason.PERIOD_EXPIRED)
        require_issued_key(ctx, hid, number, argument)
        require(ctx.is_kem_key(argument.encapsulation), Reason.BAD_ARGUMENT)
        record = Session(
            number=number,
            public_key=argument.public_key,
            kem_key=argument.kem_key,
            encapsulation=argument.encapsulation,
            period=argument.period,
            time_ms=ctx.time_ms,
        )
        self.sessions.put(ctx, (hid, number), record)
        self.current.put(ctx, hid, number)

    @register.signers
    async def register_signers(self, ctx: Context, argument: RegisterArgument) -> tuple[bytes, ...]:
        require(ctx.session == 0, Reason.UNKNOWN_SESSION)
        enrolment = await self._enrolment(ctx, ctx.signer)
        last = await self.current.get(ctx, ctx.signer)
        require(ctx.sequence > (last or 0), Reason.SESSION_NOT_ABOVE)
        return (enrolment.enrolment_key, argument.public_key)

    @query
    async def contribute(self, ctx: Context, argument: ContributionRequest) -> ContributionAnswer:
        """Answer this node's share of a new key, if the holder of the enrolment key asks (protocol 2.1)."""
        if argument.hid == ctx.network.mdms_hid:
            enrolment_key = ctx.network.mdms_enrolment_key
            kem_key = ctx.network.mdms_enrolment_kem_key
            last = await self.current_period.get(ctx, argument.hid)
        else:
            enrolment = await self._enrolment(ctx, argument.hid)
            enrolment_key = enrolment.enrolment_key
            kem_key = enrolment.enrolment_kem_key
            last = await self.current.get(ctx, argument.hid)
        require(argument.session > (last or 0), Reason.SESSION_NOT_ABOVE)
        require(ctx.is_request_of(enrolment_key, argument), Reason.BAD_SIGNATURE)
        return ctx.contribute(argument, kem_key)

    @query
    async def meter(self, ctx: Context, argument: bytes) -> MeterState:
        """Answer the enrolment and the current session of a HID (32 bytes)."""
        require(len(argument) == HASH.width, Reason.BAD_ARGUMENT)
        enrolment = found(await self.enrolments.get(ctx, argument), Reason.UNKNOWN_HID)
        number = await self.current.get(ctx, argument)
        session = None if number is None else await self.sessions.get(ctx, (argument, number))
        return MeterState(enrolment, session)

    def _utility(self, ctx: Context) -> tuple[bytes, ...]:
        require(ctx.signer == ctx.network.utility_id, Reason.NOT_AUTHORIZED)
        require(ctx.session == 0, Reason.UNKNOWN_SESSION)
        return (ctx.network.utility_key,)

    async def _enrolment(self, ctx: Context, hid: bytes) -> Enrolment:
        enrolment = found(await self.enrolments.get(ctx, hid), Reason.UNKNOWN_HID)
        require(not enrolment.revoked, Reason.REVOKED_HID)
        return enrolment
