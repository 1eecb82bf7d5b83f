"""Stops a process for a while, and is sure to continue it: a paused process cannot end itself when its starter dies.

    python -m bcami.processes.pause PID STARTED SECONDS

A process of its own holds the pause. It ends it when the time is over, when its standard input ends (whoever asked for
the pause is gone, however that happened), or when it is told to stop.
"""

import os
import select
import signal
import subprocess
import sys
from types import FrameType
from typing import NoReturn

from bcami.processes.identity import ProcessIdentity, signal_process


def start_pause(identity: ProcessIdentity, seconds: float) -> "subprocess.Popen[bytes]":
    """Stop the process for so long; the pause ends early when the returned process's standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, str(identity.pid), identity.started, str(seconds)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def end_pause(pause: "subprocess.Popen[bytes]") -> None:
    """Return when the process goes on."""
    if pause.stdin is not None:
        pause.stdin.close()
    pause.wait()


def hold(identity: ProcessIdentity, seconds: float, lifeline: int) -> bool:
    """Stop the process, wait for the time or the end of the lifeline, continue it; False when it is not there."""
    if not signal_process(identity, signal.SIGSTOP):
        return False
    try:
        readable, _, _ = select.select([lifeline], [], [], seconds)
        while readable and os.read(lifeline, 1):
            readable, _, _ = select.select([lifeline], [], [], seconds)
    finally:
        signal_process(identity, signal.SIGCONT)
    return True


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(0 if hold(ProcessIdentity(int(sys.argv[1]), sys.argv[2]), float(sys.argv[3]), 0) else 1)
