"""Tells the chain how far the MDMS has stored (protocol 7.1), paced, and only after blocks that carry usage.

An acknowledgement is a function of the period and of the block it names: its sequence number is the height, its
timestamp the block's time. After a crash the same cursor gives the same bytes, so one is never doubled.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from bcami.client.courier import Settlement
from bcami.codec import encode
from bcami.crypto.roster import Roster
from bcami.mdms.keyring import PeriodKeyring
from bcami.mdms.metrics import MdmsMetrics
from bcami.mdms.records import Cursor
from bcami.mdms.store import MdmsStore
from bcami.model.reasons import Reason
from bcami.model.registration import AcknowledgeArgument
from bcami.model.transaction import Transaction, argument_digest, transaction_id

Settle = Callable[[bytes, bytes], Awaitable[Settlement]]


@dataclass(frozen=True, slots=True)
class AcknowledgePolicy:
    """An acknowledgement is due when either is reached since the last one."""

    seconds: float = 5.0
    blocks: int = 64
    check_s: float = 0.25


class Acknowledger:
    """Acknowledges what one store holds, one transaction at a time."""

    def __init__(
        self,
        roster: Roster,
        keyring: PeriodKeyring,
        store: MdmsStore,
        settle: Settle,
        metrics: MdmsMetrics,
        log: Any,
        policy: AcknowledgePolicy | None = None,
    ) -> None:
        self._roster = roster
        self._keyring = keyring
        self._store = store
        self._settle = settle
        self._metrics = metrics
        self._log = log
        self._policy = policy or AcknowledgePolicy()
        self._asked = 0
        """Height of the last acknowledgement that was settled here, whatever its outcome."""

    @property
    def acknowledged_height(self) -> int:
        return max(self._asked, self._store.acknowledged_height)

    def is_due(self, waited_s: float) -> bool:
        """Tell whether usage is stored above the last acknowledgement, and enough of it or for long enough."""
        cursor = self._store.cursor
        if cursor.usage_height <= self.acknowledged_height:
            return False
        return waited_s >= self._policy.seconds or cursor.height - self.acknowledged_height >= self._policy.blocks

    async def run(self, stop: asyncio.Event) -> None:
        """Acknowledge until `stop` is set; then whatever is still open waits for the next start."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while not stop.is_set():
            if self.is_due(loop.time() - last):
                await self.acknowledge()
                last = loop.time()
            try:
                async with asyncio.timeout(self._policy.check_s):
                    await stop.wait()
            except TimeoutError:
                continue

    async def acknowledge(self) -> Reason | None:
        """Acknowledge the cursor; return the outcome, None when no period of this MDMS is open."""
        number = self._keyring.current()
        cursor = self._store.cursor
        tx = None if number is None else await asyncio.to_thread(self._sign, number, cursor)
        if tx is None:
            return None
        tx_id = transaction_id(tx, self._roster.chain, self._roster.epoch)
        settlement = await self._settle(encode(tx), tx_id)
        self._metrics.acknowledged(settlement.reason)
        if settlement.is_final and settlement.reason in (Reason.VALID, Reason.HEIGHT_NOT_ABOVE):
            self._asked = cursor.height
        if settlement.reason is not Reason.VALID:
            self._log.warning("acknowledgement rejected", height=cursor.height, reason=settlement.reason.value)
        return settlement.reason

    def _sign(self, number: int, cursor: Cursor) -> Transaction | None:
        key = self._keyring.signing(number)
        if key is None:
            return None
        argument = encode(AcknowledgeArgument(cursor.height, cursor.header_hash))
        unsigned = Transaction(
            contract="mdms",
            function="acknowledge",
            signer=self._roster.genesis.mdms_hid,
            session=number,
            sequence=cursor.height,
            timestamp_ms=cursor.time_ms,
            argument_hash=argument_digest(argument),
            argument=argument,
            signatures=(),
        )
        signature = key.sign(transaction_id(unsigned, self._roster.chain, self._roster.epoch))
        return msgspec.structs.replace(unsigned, signatures=(signature,))
