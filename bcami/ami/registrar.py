"""Opens sessions: brings a meter's registration from wherever it stands to a session (design D7, protocol 2)."""

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from bcami.ami.meter import Meter, SealedReport
from bcami.ami.writer import GroupWriter
from bcami.client.courier import Courier, Settlement
from bcami.client.issuance import ContributionPolicy, Draft, IssuanceRecord, IssuanceRefused, Prepared, Share, issue
from bcami.client.nodes import NodeClient, NodeUnavailable
from bcami.client.periods import MdmsPeriod, verify_period
from bcami.client.reads import weak_read
from bcami.client.retry import Backoff
from bcami.crypto.roster import Roster
from bcami.errors import EnvironmentFault, InconclusiveError
from bcami.model.api import TransactionProof
from bcami.model.reasons import Reason

CONCURRENT_MAX: Final = 64
"""Registrations under way at a time."""
_ATTEMPTS: Final = 8
_PERIOD_WAIT_S: Final = 30.0
_PERIOD_ANSWER_S: Final = 2.0

FINAL_REASONS: Final = frozenset({Reason.UNKNOWN_HID, Reason.REVOKED_HID, Reason.NOT_AUTHORIZED})
"""Nothing that a meter does heals these: the utility has to act."""
_NUMBER_REASONS: Final = frozenset(
    {Reason.SESSION_NOT_ABOVE, Reason.REPLAY, Reason.SEQUENCE_TOO_OLD, Reason.SESSION_CLOSED}
)
"""The chain shows a higher number than this meter knows of."""


class SessionUnavailable(Exception):
    """The meter gets no session; `reason` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"no session: {reason}")
        self.reason = reason


class PeriodSource:
    """The newest MDMS period that is proven, shared by all meters of a fleet."""

    def __init__(self, nodes: Sequence[NodeClient], roster: Roster) -> None:
        self._nodes = nodes
        self._roster = roster
        self.newest: MdmsPeriod | None = None
        self.refused: list[Reason] = []
        """Why proofs that nodes gave were not believed."""

    async def refresh(self) -> None:
        """Ask all nodes, waiting briefly for silent ones; keep the proven period with the highest number."""
        asked = [asyncio.ensure_future(_period_of(node)) for node in self._nodes]
        answered, silent = await asyncio.wait(asked, timeout=_PERIOD_ANSWER_S)
        for task in silent:
            task.cancel()
        for proof in (task.result() for task in answered):
            if proof is None or (self.newest is not None and proof.transaction.sequence <= self.newest.number):
                continue
            period = verify_period(proof, self._roster.genesis, self._roster)
            if isinstance(period, Reason):
                self.refused.append(period)
            else:
                self.newest = period

    async def current(self) -> MdmsPeriod:
        """Return the newest period, waiting for the MDMS's first one. Raises EnvironmentFault when none comes."""
        backoff = Backoff(first_ms=100, cap_ms=1_000)
        attempt = 0
        try:
            async with asyncio.timeout(_PERIOD_WAIT_S):
                while self.newest is None:
                    await self.refresh()
                    if self.newest is None:
                        attempt += 1
                        await asyncio.sleep(backoff.delay_ms(attempt, b"period") / 1000)
        except TimeoutError:
            raise EnvironmentFault(
                f"no node proves a period of the MDMS within {_PERIOD_WAIT_S:.0f} s",
                likely=f"proofs were refused as {self.refused[-1]}" if self.refused else "the MDMS is not running",
                do="see `bcami status`",
            ) from None
        return self.newest


async def _period_of(node: NodeClient) -> TransactionProof | None:
    try:
        return await node.period()
    except NodeUnavailable:
        return None


class Registrar:
    """Opens sessions for meters, a bounded number at a time."""

    def __init__(
        self,
        nodes: Sequence[NodeClient],
        courier: Courier,
        writer: GroupWriter,
        periods: PeriodSource,
        roster: Roster,
        *,
        clock_ms: Callable[[], int],
        randomness: Callable[[int], bytes] = os.urandom,
        policy: ContributionPolicy | None = None,
    ) -> None:
        self._nodes = nodes
        self._courier = courier
        self._writer = writer
        self._periods = periods
        self._roster = roster
        self._clock_ms = clock_ms
        self._randomness = randomness
        self._policy = policy
        self._turns = asyncio.Semaphore(CONCURRENT_MAX)

    async def open(self, meter: Meter, home: int, *, ask_chain: bool = False) -> list[SealedReport]:
        """Open a session for the meter, resuming a registration that was under way.

        Returns the reports of the session before, to be sealed again. Raises SessionUnavailable; while no node answers,
        it goes on trying. `ask_chain` takes a number above the one that the chain shows: for a meter whose store may be
        older than the chain.
        """
        async with self._turns:
            attempt = 0
            while True:
                reason = None
                if meter.issuance is None:
                    shown = await self._chain_session(meter) if ask_chain else 0
                    await self._writer.write(meter.begin_session(self._randomness(32), shown))
                assert meter.issuance is not None
                try:
                    prepared, settlement = await self._issue(meter, meter.issuance, home)
                except IssuanceRefused as refused:
                    reason = refused.reason
                    if reason in _NUMBER_REASONS:
                        meter.issuance = None
                else:
                    if settlement.is_final and settlement.reason is Reason.VALID:
                        writes, unsettled = meter.open_session(prepared)
                        await self._writer.write(writes)
                        return unsettled
                    # Rejected or refused: this number is used up, and with it the key (protocol 2.3).
                    reason = settlement.reason
                    meter.issuance = None
                if reason is not None:  # else no node answered: that is no verdict, however long it lasts
                    attempt += 1
                    if reason in FINAL_REASONS or attempt >= _ATTEMPTS:
                        raise SessionUnavailable(reason)
                    ask_chain = ask_chain or reason in _NUMBER_REASONS
                await self._before_again(attempt, reason, meter)

    async def _issue(self, meter: Meter, record: IssuanceRecord, home: int) -> tuple[Prepared, Settlement]:
        async def save(stored: IssuanceRecord) -> None:
            await self._writer.write([meter.issuance_write(stored)])

        async def prepare(draft: Draft, shares: Sequence[Share]) -> Prepared:
            period = await self._periods.current()
            return meter.prepare(draft, shares, period, self._randomness(32), self._clock_ms())

        async def settle(encoded: bytes, transaction_id: bytes) -> Settlement:
            return await self._courier.settle(encoded, transaction_id, home=home)

        return await issue(
            meter.party,
            record,
            nodes=self._nodes,
            first=home,
            save=save,
            prepare=prepare,
            settle=settle,
            policy=self._policy,
        )

    async def _before_again(self, attempt: int, reason: Reason | None, meter: Meter) -> None:
        """Wait a while, and look for a new period when the old one is the trouble."""
        if reason in (Reason.PERIOD_EXPIRED, Reason.UNKNOWN_PERIOD, Reason.KEY_MISMATCH):
            await self._periods.refresh()
        gap_ms = self._roster.genesis.parameters.session_gap_ms if reason is Reason.SESSION_TOO_SOON else 0
        backoff = Backoff(first_ms=100, cap_ms=2_000)
        await asyncio.sleep((gap_ms + backoff.delay_ms(attempt + 1, meter.party.hid)) / 1000)

    async def _chain_session(self, meter: Meter) -> int:
        """Return the number of the session that the chain shows, by weak equal answers; 0 for none."""
        key = b"registration/current/" + meter.party.hid
        try:
            agreed = await weak_read(self._nodes, lambda node: node.state(key), weak=self._roster.quorum.weak)
        except InconclusiveError:
            return 0
        return 0 if agreed.value is None else msgspec.msgpack.decode(agreed.value, type=int)
