"""How much a fleet has taken and not settled: what holds its memory flat (design D17)."""

import asyncio
from typing import Final

from bcami.units import MIB

PENDING_MAX: Final = 8192
PENDING_BYTES_MAX: Final = 32 * MIB
"""Reports that were taken and are neither committed nor stopped."""
_REPORT_OVERHEAD_BYTES: Final = 1024


class Pressure:
    """Counts pending reports, lets submitters wait for room, and tells them when nothing goes on any more."""

    def __init__(self, pending_max: int = PENDING_MAX, pending_bytes_max: int = PENDING_BYTES_MAX) -> None:
        self._pending_max = pending_max
        self._pending_bytes_max = pending_bytes_max
        self._bytes = 0
        self._changed = asyncio.Event()
        self._awaited: set[asyncio.Future[None]] = set()
        self._failure: Exception | None = None
        self.pending = 0

    def take(self, report_bytes: int) -> None:
        self.pending += 1
        self._bytes += report_bytes + _REPORT_OVERHEAD_BYTES

    def give_back(self, report_bytes: int) -> None:
        self.pending -= 1
        self._bytes -= report_bytes + _REPORT_OVERHEAD_BYTES
        self._changed.set()

    async def room(self) -> None:
        """Return when there is room for another report. Raises what the fleet failed of."""
        while self.pending >= self._pending_max or self._bytes >= self._pending_bytes_max:
            await self.next_change()
        self.raise_failure()

    async def nothing_pending(self) -> None:
        """Return when every report is settled. Raises what the fleet failed of."""
        while self.pending:
            await self.next_change()
        self.raise_failure()

    async def next_change(self) -> None:
        """Return when a report was settled. Raises what the fleet failed of."""
        self.raise_failure()
        self._changed.clear()
        await self._changed.wait()

    def promise(self) -> asyncio.Future[None]:
        """Return a future for one submitter; a failure reaches it too."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited.add(future)
        future.add_done_callback(self._awaited.discard)
        return future

    def fail(self, error: Exception) -> None:
        """Nothing goes on: tell everybody who waits, now and later."""
        if self._failure is None:
            self._failure = error
        self._changed.set()
        for future in list(self._awaited):
            if not future.done():
                future.set_exception(error)

    def close(self) -> None:
        for future in list(self._awaited):
            future.cancel()

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
