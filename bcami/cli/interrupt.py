"""Runs a command's coroutine so that the first Ctrl-C or SIGTERM ends it, with its clean-up.

A signal handler that raises does so wherever the main thread stands: inside a step of some other task, which keeps the
exception for itself or dies of it, and then the clean-up waits for that task. So the signal is taken by the event
loop, between two steps, and cancels the command's own task. The second signal is not so patient: it raises.
"""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run_command(work: Coroutine[Any, Any, T]) -> T:
    """Run it and return what it returns. To be called in the main thread, where no loop runs.

    Raises KeyboardInterrupt after SIGINT and SystemExit(143) after SIGTERM, when everything that was open is closed; a
    signal that this process ignores is ignored.
    """
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    taken = [number for number in _SIGNALS if handlers[number] is not signal.SIG_IGN]
    told: list[signal.Signals] = []

    async def run() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def restore() -> None:
            for number in taken:
                loop.remove_signal_handler(number)
                signal.signal(number, handlers[number])

        def end(number: signal.Signals) -> None:
            told.append(number)
            restore()
            task.cancel()

        for number in taken:
            loop.add_signal_handler(number, end, number)
        try:
            return await work
        finally:
            restore()

    try:
        result = asyncio.run(run())
    except asyncio.CancelledError:
        if not told:
            raise
    if not told:
        return result
    if told[0] is signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signal.SIGTERM)
