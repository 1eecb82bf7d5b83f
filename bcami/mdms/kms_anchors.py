"""Keeps the head of the audit log on the chain, and compares the log with what is there.

Soon after a start, and then when something was added, at most as often as the pace says. A log is anchored only after
it was compared with the last anchor: one that was cut, changed or put back from an old backup is never anchored over
the true one. A chain that cannot be read is asked again until it can.

A transaction that opens an epoch and was given up, or is of a run that ended before it settled, may come into a block
after the one that opened ours. Then the chain's epoch is one of which nobody has the key, and takes no anchor of ours.
So whenever an anchor is refused the chain is asked for its epoch, and when it is not ours a new one is opened above it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bcami.crypto.keys import SecretKey
from bcami.errors import BcamiError, InconclusiveError
from bcami.kms import KeyServer
from bcami.kms.audit import AUDIT_ENTRY, AuditEntry, check_log
from bcami.kms.records import AUDIT
from bcami.mdms.kms_chain import KmsChain
from bcami.mdms.kms_store import KmsStore
from bcami.model.reasons import Reason
from bcami.model.registration import KmsState

T = TypeVar("T")
Look = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Asks a question between two steps (`KmsService.look`)."""


@dataclass(frozen=True, slots=True)
class AnchorPace:
    """In seconds."""

    first_s: float = 5.0
    """From the start to the first anchor: meters that the chain has are in the log by then."""
    next_s: float = 300.0
    retry_s: float = 2.0


class AuditAnchors:
    """See the module."""

    def __init__(
        self,
        server: KeyServer,
        store: KmsStore,
        chain: KmsChain,
        look: Look,
        log: Any,
        pace: AnchorPace,
        reopen: Callable[[], None],
    ) -> None:
        """`reopen` has a new epoch opened, unless one is being opened."""
        self._server = server
        self._store = store
        self._chain = chain
        self._look = look
        self._log = log
        self._pace = pace
        self._reopen = reopen
        self.is_compared = False
        """The log was compared with the chain in this run."""
        self.fault: str | None = None
        """What was wrong with it then."""
        self.anchored = 0
        """Entries that the chain vouches for."""

    async def keep(self, signer: Callable[[], SecretKey | None], stop: asyncio.Event) -> None:
        """Compare and anchor until `stop` is set."""
        pause = self._pace.first_s
        while not await _stopped(stop, pause):
            if not self.is_compared:
                await self.compare()
            outcome = await self.anchor(signer()) if self.is_compared else Reason.NOT_READY
            if outcome not in (None, Reason.VALID, Reason.NOT_READY):
                await self._reopen_if_overtaken(signer)
            pause = self._pace.next_s if outcome is Reason.VALID else self._pace.retry_s

    async def compare(self) -> None:
        """Compare the log with the last anchor, if the chain can be read."""
        try:
            last = await self._chain.anchored()
        except InconclusiveError as error:
            self._log.warning("audit log not compared with the chain", what=error.what)
            return
        _, self.fault = await self._look(lambda: self.checked(last))
        self.anchored, self.is_compared = last.length, True
        if self.fault is not None:
            self._log.error("the audit log of the symmetric keys is not what the chain has", what=self.fault)

    async def anchor(self, signer: SecretKey | None) -> Reason | None:
        """Put the head of the log on the chain; None when it is there already, or may not be put there."""
        counts = self._server.counts
        if signer is None or not self.is_compared or self.fault is not None or counts.audit_length == self.anchored:
            return None
        reason = await self._chain.anchor(signer, counts.audit_length, counts.audit_head)
        if reason is Reason.VALID:
            self.anchored = counts.audit_length
        else:
            self._log.warning("audit log not anchored", length=counts.audit_length, reason=reason.value)
        return reason

    async def _reopen_if_overtaken(self, signer: Callable[[], SecretKey | None]) -> None:
        """Have an epoch opened above the chain's when that is not ours; the next round anchors with its key."""
        try:
            last = await self._chain.anchored(at_least=self._server.counts.epoch)
        except InconclusiveError:
            return  # the next round asks again
        own = signer()
        if own is not None and last.kms_key != own.public_key:
            self._log.warning("the chain has another epoch of symmetric keys than this MDMS: opening one above it")
            self._reopen()

    async def audit(self) -> tuple[KmsState, Sequence[AuditEntry], str | None]:
        """Return the anchor, the whole log, and what is wrong with it. Raises InconclusiveError."""
        last = await self._chain.anchored()
        entries, fault = await self._look(lambda: self.checked(last))
        return last, entries, fault

    def checked(self, last: KmsState) -> tuple[list[AuditEntry], str | None]:
        try:
            entries = [AUDIT_ENTRY.decode(value) for _, value in self._store.rows(AUDIT)]
        except BcamiError as error:  # a record that does not open, or is none
            return [], f"the log cannot be read: {error.what}"
        return entries, check_log(entries, last.head, last.length)


async def _stopped(stop: asyncio.Event, after_s: float) -> bool:
    """Wait; True as soon as it is time to stop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(after_s):
            await stop.wait()
    return stop.is_set()
