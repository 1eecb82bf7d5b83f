"""Ends a process whose event loop does not turn any more, and says where it stood (design D6).

Chaincode is trusted through its package id and bounded in steps, but a contract can still be slow in one step. A node
that hangs would look alive to its supervisor and be a silent fault to its peers; ended, it is started again.
"""

import asyncio
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

STUCK_S: Final = 30.0
_BEAT_S: Final = 1.0
EXIT_BUG: Final = 70


class Watchdog:
    """Watches one event loop from a thread of its own."""

    def __init__(self, on_stuck: Callable[[float], None], stuck_s: float = STUCK_S) -> None:
        self._on_stuck = on_stuck
        self._stuck_s = stuck_s
        self._beat = time.monotonic()
        self._stop = threading.Event()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch; call it on the loop."""
        self._pulse(loop)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _pulse(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat = time.monotonic()
        if not self._stop.is_set():
            loop.call_later(_BEAT_S, self._pulse, loop)

    def _watch(self) -> None:
        """Add up the time without a beat; time in which this thread stood still too was taken from all of us.

        A process that is stopped and continued, or a machine that sleeps, has not hung.
        """
        every_s = self._stuck_s / 4
        looked, beat, silent_s = time.monotonic(), self._beat, 0.0
        while not self._stop.wait(every_s):
            now = time.monotonic()
            silent_s = silent_s + min(now - looked, 2 * every_s) if self._beat == beat else 0.0
            looked, beat = now, self._beat
            if silent_s >= self._stuck_s:
                self._on_stuck(silent_s)
                return


def end_process(silent_s: float) -> None:
    """Write every thread's stack to standard error and end this process with exit code 70."""
    sys.stderr.write(f"the event loop has not turned for {silent_s:.0f} s: ending; stacks follow\n")
    sys.stderr.flush()
    faulthandler.dump_traceback(file=sys.stderr)
    os._exit(EXIT_BUG)
