"""Opens MDMS periods through dealerless issuance, and erases old ones (design D7, D8, protocol 2.5).

A period is needed when this MDMS holds the key of none, when the newest one on the chain is not its own (its keys were
lost, or the store was restored), and when the current one is old enough. What was under way when a process ended goes
on with the same bytes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bcami.client.courier import Settlement
from bcami.client.issuance import (
    Draft,
    IssuanceRecord,
    IssuanceRefused,
    Party,
    Prepared,
    Share,
    draw,
    issue,
    prepare_mdms,
)
from bcami.client.nodes import NodeClient, NodeUnavailable
from bcami.client.periods import verify_period
from bcami.mdms.keyring import IssuanceEnd, PeriodKeyring
from bcami.mdms.opening import ReportOpener
from bcami.mdms.records import PeriodRow
from bcami.mdms.store import MdmsStore
from bcami.model.reasons import Reason

PERIOD_SECONDS_DEFAULT: Final = 86_400
RETRY_S: Final = 2.0

Settle = Callable[[bytes, bytes], Awaitable[Settlement]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a process gives to code that may not reach for it: the clock and the generator."""

    now_ms: Callable[[], int]
    randomness: Callable[[], bytes]
    """32 fresh bytes."""


class PeriodRegistrar:
    """Keeps one period of this MDMS current on the chain."""

    def __init__(
        self,
        party: Party,
        keyring: PeriodKeyring,
        store: MdmsStore,
        nodes: Sequence[NodeClient],
        settle: Settle,
        surroundings: Surroundings,
        log: Any,
        *,
        period_seconds: int = PERIOD_SECONDS_DEFAULT,
    ) -> None:
        self._party = party
        self._keyring = keyring
        self._store = store
        self._nodes = list(nodes)
        self._settle = settle
        self._surroundings = surroundings
        self._log = log
        self._period_ms = period_seconds * 1000
        self._above = 0

    async def ensure(self) -> int:
        """Return the number of the current period, after opening one if it is needed.

        Raises IssuanceRefused when too few nodes contribute.
        """
        while True:
            record = await asyncio.to_thread(self._keyring.issuance)
            if record is None:
                current = self._keyring.current()
                if current is not None and not self.is_due(current):
                    return current
                record = await self._draw()
            number = record.session
            _, settlement = await issue(
                self._party,
                record,
                nodes=self._nodes,
                first=number % len(self._nodes),
                save=self._save,
                prepare=self._prepare,
                settle=self._settle,
            )
            end = _end_of(settlement)
            await asyncio.to_thread(self._keyring.finish_issuance, number, end)
            self._above = max(self._above, number)
            if end is IssuanceEnd.REGISTERED:
                self._log.info("period opened", period=number, height=settlement.height)
                return number
            self._log.warning(f"period {end.value}", period=number, reason=settlement.reason.value)

    def is_due(self, current: int) -> bool:
        """Tell whether a period after `current` is needed."""
        rows = {row.number: row for row in self._store.periods()}
        if any(number > current for number in rows):
            return True
        row = rows.get(current)
        return row is not None and self._surroundings.now_ms() - row.time_ms >= self._period_ms

    async def _draw(self) -> Draft:
        """Return a durable draft under a number above all that were used and that the chain shows (protocol 2.3)."""
        used = [
            self._above,
            *self._keyring.numbers(),
            *self._keyring.abandoned(),
            *(row.number for row in self._store.periods()),
        ]
        shown = await asyncio.gather(*(self._newest_of(node) for node in self._nodes))
        draft = draw(self._party, max([*used, *shown]) + 1, self._surroundings.randomness())
        await self._save(draft)
        return draft

    async def _newest_of(self, node: NodeClient) -> int:
        """Return the newest period that a node proves, 0 when it proves none."""
        try:
            proof = await node.period()
        except NodeUnavailable:
            return 0
        if proof is None:
            return 0
        period = verify_period(proof, self._party.roster.genesis, self._party.roster)
        return 0 if isinstance(period, Reason) else period.number

    async def _save(self, record: IssuanceRecord) -> None:
        await asyncio.to_thread(self._keyring.save_issuance, record)

    async def _prepare(self, draft: Draft, shares: Sequence[Share]) -> Prepared:
        return prepare_mdms(self._party, draft, shares, self._surroundings.now_ms())


def _end_of(settlement: Settlement) -> IssuanceEnd:
    if settlement.reason is Reason.VALID:
        return IssuanceEnd.REGISTERED
    return IssuanceEnd.REJECTED if settlement.is_final else IssuanceEnd.ABANDONED


async def keep_current(registrar: PeriodRegistrar, stop: asyncio.Event, log: Any) -> None:
    """Open periods whenever they are needed until `stop` is set."""
    while not stop.is_set():
        try:
            await registrar.ensure()
        except IssuanceRefused as error:
            log.warning("no period yet", what=str(error))
        try:
            async with asyncio.timeout(RETRY_S):
                await stop.wait()
        except TimeoutError:
            continue


def erasable_periods(periods: Sequence[PeriodRow], stored_ms: int, grace_ms: int) -> list[int]:
    """Return the periods that no block above the stored ones can still use.

    `stored_ms` is the block time up to which everything is durably stored. A contract refuses a superseded period once
    the grace is over, and block times never fall.
    """
    return [
        row.number
        for row in periods
        if not row.erased and row.superseded_ms and stored_ms > row.superseded_ms + grace_ms
    ]


def erase_old_periods(
    store: MdmsStore, keyring: PeriodKeyring, opener: ReportOpener, grace_ms: int, *, after_backup: bool = False
) -> list[int]:
    """Destroy the keys and contexts of periods that cannot be used any more; return their numbers.

    With `after_backup`, only as far as a backup of the store reaches (design D8). The store is marked first, so a crash
    in between destroys at the next start; before that, sessions of these periods cannot be opened already.
    """
    stored_ms = store.cursor.time_ms
    if after_backup:
        backup = store.last_backup()
        stored_ms = 0 if backup is None else min(stored_ms, backup.time_ms)
    numbers = erasable_periods(store.periods(), stored_ms, grace_ms)
    for number in numbers:
        store.mark_erased(number)
        opener.forget_period(number)
    kept = {*keyring.numbers(), *keyring.abandoned()}
    for row in store.periods():
        if row.erased and row.number in kept:
            keyring.erase(row.number)
    _erase_abandoned(store, keyring)
    return numbers


def _erase_abandoned(store: MdmsStore, keyring: PeriodKeyring) -> None:
    """Destroy keys whose registration was given up and has become impossible: a higher period is stored, not they."""
    registered = {row.number for row in store.periods()}
    for number in keyring.abandoned():
        if number not in registered and number < max(registered, default=0):
            keyring.erase(number)
