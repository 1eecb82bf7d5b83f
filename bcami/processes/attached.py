"""Runs a node or the MDMS for as long as the process that started it lives.

    python -m bcami.processes.attached bcami.processes.node --home H --name node1

Standard input is a pipe of which only the starter holds the other end. When the starter is gone, however it ended, the
pipe ends, and this process ends itself: first politely, then for good.
"""

import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import Final

STOP_S: Final = 10.0
"""Time that a process has to end by itself before it is ended."""
_EXIT_ORPHANED: Final = 1


def end_with_starter(lifeline: int) -> None:
    """Wait for the end of the pipe, then end this process."""
    while os.read(lifeline, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(STOP_S)
    os._exit(_EXIT_ORPHANED)


def run(arguments: list[str]) -> None:
    """Run the module named first with the rest as its arguments."""
    lifeline = os.dup(0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=end_with_starter, args=(lifeline,), daemon=True, name="lifeline").start()
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run(sys.argv[1:])
