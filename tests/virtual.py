"""An event loop whose clock stands still while there is work, and jumps to the next timer when there is none.

For code that waits only on timers, on its own tasks, and on threads that it starts through the loop: such a test takes
no time, its timeouts are exact, and no machine is too slow for it. Not for sockets or threads of others: while an
answer is on its way from there, nothing of the loop's is due, and the clock would jump over all timeouts. A thread of
others that answers fails the test.
"""

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")
LIMIT_S = 3600.0
"""Of virtual time: what hangs ends here at once."""


class _Jumping(selectors.DefaultSelector):
    """Does not wait for a timer: it moves the clock. While a thread is at work it waits for that, and no time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.threads_at_work = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or self.threads_at_work:
            return super().select(0 if timeout is not None and timeout <= 0 else None)
        ready = super().select(0)
        if not ready and timeout > 0:
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """See above."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        self._threads = {threading.get_ident()}
        self.answers_of_others = 0
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> "asyncio.Future[T]":
        def known() -> T:
            self._threads.add(threading.get_ident())
            return func(*args)

        self._jumping.threads_at_work += 1
        future = super().run_in_executor(executor, known)
        future.add_done_callback(self._done)
        return future

    def call_soon_threadsafe(self, *args: Any, **options: Any) -> asyncio.Handle:
        if threading.get_ident() not in self._threads:
            self.answers_of_others += 1
        return super().call_soon_threadsafe(*args, **options)

    def _done(self, _: "asyncio.Future[Any]") -> None:
        self._jumping.threads_at_work -= 1


def run(work: Coroutine[Any, Any, T], seconds: float = LIMIT_S) -> T:
    """Run a coroutine in virtual time, of which it may take so many seconds."""

    async def within_time() -> T:
        async with asyncio.timeout(seconds):
            return await work

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result = runner.run(within_time())
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop) and not loop.answers_of_others, (
            "a thread answered that time did not wait for"
        )
        return result
