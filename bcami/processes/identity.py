"""Which process a pid file means: a number alone may have been given to somebody else since.

A pid file holds the process id and the moment at which the kernel started that process. Only a process of which both
agree is ours; nothing else is ever signalled.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, for as long as the machine runs."""

    pid: int
    started: str
    """Start time as the kernel tells it: clock ticks since boot on Linux, a date elsewhere."""


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of a living process, None when there is none (a zombie is none)."""
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return _identify_by_ps(pid)
    try:
        # The second field is the program's name in parentheses, and may itself hold spaces and parentheses.
        fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    state, threads, started = fields[0], int(fields[17]), fields[19]
    # While other threads still end, the first one is a zombie already, and the process holds its ports.
    gone = state in "ZX" and threads <= 1
    return None if gone else ProcessIdentity(pid, started)


def write_pid_file(path: Path, identity: ProcessIdentity) -> None:
    """Leave a pid file that is either whole or not there."""
    partial = path.with_suffix(".pid.partial")
    partial.write_text(f"{identity.pid} {identity.started}\n", encoding="utf-8")
    partial.replace(path)


def running(path: Path) -> ProcessIdentity | None:
    """Return the living process that the pid file means, None when there is none."""
    try:
        pid, started = path.read_text(encoding="utf-8").strip().split(" ", 1)
        identity = identify(int(pid))
    except (FileNotFoundError, ValueError):
        return None
    return identity if identity is not None and identity.started == started else None


def signal_process(identity: ProcessIdentity, signal_number: int) -> bool:
    """Send a signal if the process is still the same; tell whether it was sent."""
    if identify(identity.pid) != identity:
        return False
    try:
        os.kill(identity.pid, signal_number)
    except ProcessLookupError:
        return False
    return True


def _identify_by_ps(pid: int) -> ProcessIdentity | None:
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False, timeout=10
    )
    state, _, started = answer.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else ProcessIdentity(pid, started.strip())
