"""The MDMS's periods, how far it has stored, and its symmetric keys (BC-AMI 4.2.4; protocol 2.5, 7.1, 8).

A period is a session of the MDMS: it brings the KEM key to which meters seal. Its successor starts the grace in which
reports to the old key still count; afterwards the MDMS erases that key.

An epoch of the symmetric keys has a key of its own that signs what the MDMS sends to many. It is also the signer of the
epoch's transactions, so that their numbers are nobody else's: 1 opens the epoch, higher ones anchor the audit log.
"""

from bcami.contract import (
    HASH,
    NO_HASH,
    NUMBER,
    ONLY,
    AcknowledgeArgument,
    Acknowledgement,
    AnchorArgument,
    Context,
    Contract,
    KmsState,
    Map,
    MdmsRegisterArgument,
    OpenKmsArgument,
    Period,
    Reason,
    found,
    query,
    require,
    require_issued_key,
    submit,
)

OPERATOR = b"bcami/operator/1"
"""Domain of the id of a signer that is known by its key alone (`bcami.model.genesis.operator_id`)."""


class Mdms(Contract):
    """Periods, acknowledgements, and epochs of the symmetric keys."""

    name = "mdms"

    periods = Map(Period, NUMBER)
    """By number; only `superseded_ms` of a record changes, once."""
    current = Map(int, HASH)
    """Number of the current period, by the MDMS's HID."""
    acknowledgements = Map(Acknowledgement, ONLY)
    """The last one."""
    kms = Map(KmsState, ONLY)
    """The open epoch."""

    @submit
    async def register(self, ctx: Context, argument: MdmsRegisterArgument) -> None:
        """Open the period whose number is the transaction's sequence; the former one enters its grace."""
        number = ctx.sequence
        last = await self.current.get(ctx, ctx.signer)
        require(number > (last or 0), Reason.SESSION_NOT_ABOVE)
        require_issued_key(ctx, ctx.signer, number, argument)
        if last is not None:
            former = found(await self.periods.get(ctx, last), Reason.UNKNOWN_PERIOD)
            superseded = Period(
                number=former.number,
                public_key=former.public_key,
                kem_key=former.kem_key,
                key_id=former.key_id,
                time_ms=former.time_ms,
                superseded_ms=ctx.time_ms,
            )
            self.periods.put(ctx, last, superseded)
        period = Period(
            number=number,
            public_key=argument.public_key,
            kem_key=argument.kem_key,
            key_id=ctx.period_key_id(argument.kem_key),
            time_ms=ctx.time_ms,
            superseded_ms=0,
        )
        self.periods.put(ctx, number, period)
        self.current.put(ctx, ctx.signer, number)

    @register.signers
    async def register_signers(self, ctx: Context, argument: MdmsRegisterArgument) -> tuple[bytes, ...]:
        require(ctx.signer == ctx.network.mdms_hid, Reason.NOT_AUTHORIZED)
        require(ctx.session == 0, Reason.UNKNOWN_SESSION)
        last = await self.current.get(ctx, ctx.signer)
        require(ctx.sequence > (last or 0), Reason.SESSION_NOT_ABOVE)
        return (ctx.network.mdms_enrolment_key, argument.public_key)

    @submit
    async def acknowledge(self, ctx: Context, argument: AcknowledgeArgument) -> None:
        """Record that everything up to a height is durably stored; nodes may prune up to there."""
        await self._open_period(ctx)
        last = await self.acknowledgements.get(ctx, None)
        require(last is None or argument.height > last.height, Reason.HEIGHT_NOT_ABOVE)
        self.acknowledgements.put(ctx, None, Acknowledgement(argument.height, argument.block_hash))

    @acknowledge.signers
    async def acknowledge_signers(self, ctx: Context, argument: AcknowledgeArgument) -> tuple[bytes, ...]:
        require(ctx.signer == ctx.network.mdms_hid, Reason.NOT_AUTHORIZED)
        period = await self._open_period(ctx)
        last = await self.acknowledgements.get(ctx, None)
        require(last is None or argument.height > last.height, Reason.HEIGHT_NOT_ABOVE)
        return (period.public_key,)

    @submit
    async def open_kms(self, ctx: Context, argument: OpenKmsArgument) -> None:
        """Open an epoch; the former one's key has no say any more. The last anchor stays."""
        last = await self.kms.get(ctx, None)
        length, head = (0, NO_HASH) if last is None else (last.length, last.head)
        self.kms.put(ctx, None, KmsState(ctx.signer, argument.kms_key, length, head))

    @open_kms.signers
    async def open_kms_signers(self, ctx: Context, argument: OpenKmsArgument) -> tuple[bytes, ...]:
        require(ctx.is_public_key(argument.kms_key), Reason.BAD_ARGUMENT)
        require(ctx.signer == ctx.sha256(OPERATOR + argument.kms_key), Reason.NOT_AUTHORIZED)
        require(ctx.session == 0, Reason.UNKNOWN_SESSION)
        require(ctx.sequence == 1, Reason.ALREADY_RECORDED)
        return (ctx.network.mdms_enrolment_key, argument.kms_key)

    @submit
    async def anchor(self, ctx: Context, argument: AnchorArgument) -> None:
        """Record where the audit log ends: what is recorded can not be cut or replaced by an old copy unnoticed."""
        state = await self._open_epoch(ctx)
        require(argument.length > state.length, Reason.HEIGHT_NOT_ABOVE)
        self.kms.put(ctx, None, KmsState(state.signer, state.kms_key, argument.length, argument.head))

    @anchor.signers
    async def anchor_signers(self, ctx: Context, argument: AnchorArgument) -> tuple[bytes, ...]:
        state = await self._open_epoch(ctx)
        require(argument.length > state.length, Reason.HEIGHT_NOT_ABOVE)
        return (state.kms_key,)

    @query
    async def symmetric_keys(self, ctx: Context, argument: bytes) -> KmsState:
        """Answer the open epoch and the last anchor."""
        require(not argument, Reason.BAD_ARGUMENT)
        return found(await self.kms.get(ctx, None), Reason.NOT_FOUND)

    @query
    async def period(self, ctx: Context, argument: bytes) -> Period:
        """Answer a period by its number (8 bytes, big-endian), or the current one (no bytes)."""
        require(len(argument) in (0, NUMBER.width), Reason.BAD_ARGUMENT)
        number: int | None = int.from_bytes(argument, "big")
        if not argument:
            number = await self.current.get(ctx, ctx.network.mdms_hid)
        require(number is not None and number < 2**63, Reason.UNKNOWN_PERIOD)
        return found(await self.periods.get(ctx, number or 0), Reason.UNKNOWN_PERIOD)

    @query
    async def acknowledged(self, ctx: Context, argument: bytes) -> Acknowledgement:
        """Answer the last acknowledgement; height 0 while there is none."""
        require(not argument, Reason.BAD_ARGUMENT)
        last = await self.acknowledgements.get(ctx, None)
        return last or Acknowledgement(0, NO_HASH)

    async def _open_epoch(self, ctx: Context) -> KmsState:
        state = found(await self.kms.get(ctx, None), Reason.NOT_AUTHORIZED)
        require(ctx.signer == state.signer, Reason.NOT_AUTHORIZED)
        require(ctx.session == 0, Reason.UNKNOWN_SESSION)
        return state

    async def _open_period(self, ctx: Context) -> Period:
        current = await self.current.get(ctx, ctx.signer)
        require(current is not None and 0 < ctx.session <= current, Reason.UNKNOWN_SESSION)
        require(ctx.session == current, Reason.SESSION_CLOSED)
        return found(await self.periods.get(ctx, ctx.session), Reason.UNKNOWN_SESSION)
