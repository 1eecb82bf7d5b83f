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
import time

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


def hold(identity: ProcessIdentity, seconds: float, lifeline: int, told: int) -> bool:
    """Stop the process, wait for the time, the end of the lifeline or a byte from `told`, and continue it.

    False when it is not there. No exception of a signal handler may come in between: the process would stay stopped.
    """
    if not signal_process(identity, signal.SIGSTOP):
        return False
    deadline = time.monotonic() + seconds
    while True:
        readable, _, _ = select.select([lifeline, told], [], [], max(0.0, deadline - time.monotonic()))
        if not readable or told in readable or not os.read(lifeline, 1):
            break
    signal_process(identity, signal.SIGCONT)
    return True


def _main(pid: int, started: str, seconds: float) -> int:
    told, tell = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(tell, b"."))
    return 0 if hold(ProcessIdentity(pid, started), seconds, sys.stdin.fileno(), told) else 1


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
