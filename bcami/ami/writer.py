"""Group commit: the writes of many meters become durable in one transaction of the outbox."""

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from bcami.ami.outbox import Outbox, Write

_LAZY_S: Final = 0.25
"""How long writes that nobody waits for may stay in memory: losing them costs a repeated request, nothing else."""


class GroupWriter:
    """Collects writes while the disk is busy, and commits all of them at once. One event loop, one thread."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._writes: list[Write] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._is_wanted = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="outbox")
        self._failure: Exception | None = None
        self._lazy: asyncio.TimerHandle | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def write(self, writes: Iterable[Write]) -> None:
        """Return when the writes, and all that were added before, are durable. Raises what the store raised."""
        self._raise_failure()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writes.extend(writes)
        self._waiters.append(waiter)
        self._is_wanted.set()
        await waiter

    def add(self, write: Write) -> None:
        """Take a write that nobody waits for: it goes with the next group, or soon."""
        self._writes.append(write)
        if self._lazy is None:
            self._lazy = asyncio.get_running_loop().call_later(_LAZY_S, self._is_wanted.set)

    async def close(self) -> None:
        """Write what is left and stop. Raises what the store raised."""
        try:
            if self._failure is None:
                await self.write(())
        finally:
            if self._lazy is not None:
                self._lazy.cancel()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._thread.shutdown()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._is_wanted.wait()
            self._is_wanted.clear()
            if self._lazy is not None:
                self._lazy.cancel()
                self._lazy = None
            writes, self._writes = self._writes, []
            waiters, self._waiters = self._waiters, []
            try:
                if writes:
                    await loop.run_in_executor(self._thread, self._outbox.apply, writes)
            except Exception as error:
                self._failure = error
                _fail([*waiters, *self._waiters], error)
                return
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)


def _fail(waiters: Iterable[asyncio.Future[None]], error: Exception) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)
