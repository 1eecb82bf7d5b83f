"""A paused process goes on when the time is over, and when whoever paused it is gone.

The kernel tells a parent that its child stopped, and that it went on; no other look at it is sure to be in time.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bcami.processes.identity import ProcessIdentity, identify
from bcami.processes.pause import end_pause, start_pause

LIMIT_S = 120
LONG_S = 600


@pytest.fixture
def victim() -> Iterator[ProcessIdentity]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        identity = identify(child.pid)
        assert identity is not None
        yield identity
        child.kill()


def wait_stopped(victim: ProcessIdentity) -> None:
    """Return when it is stopped; for pauses that outlast the test."""
    told = os.waitid(os.P_PID, victim.pid, os.WSTOPPED)
    assert told is not None
    assert told.si_status == signal.SIGSTOP


def wait_went_on(victim: ProcessIdentity) -> None:
    """Return when it went on after it had been stopped; the kernel keeps that until it is asked."""
    told = os.waitid(os.P_PID, victim.pid, os.WCONTINUED)
    assert told is not None
    assert told.si_status == signal.SIGCONT


def is_heard_of(victim: ProcessIdentity) -> bool:
    """Tell whether it was stopped or continued since the last question."""
    return os.waitid(os.P_PID, victim.pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG) is not None


def test_a_pause_ends_with_its_time(victim: ProcessIdentity) -> None:
    pause = start_pause(victim, 0.2)
    wait_went_on(victim)
    assert pause.wait(LIMIT_S) == 0
    end_pause(pause)


def test_a_pause_ends_when_it_is_told_to(victim: ProcessIdentity) -> None:
    pause = start_pause(victim, LONG_S)
    wait_stopped(victim)
    end_pause(pause)
    wait_went_on(victim)


def test_a_pause_ends_when_its_holder_is_terminated(victim: ProcessIdentity) -> None:
    pause = start_pause(victim, LONG_S)
    wait_stopped(victim)
    pause.terminate()
    pause.wait(LIMIT_S)
    wait_went_on(victim)
    end_pause(pause)


def test_a_pause_ends_when_whoever_asked_for_it_is_killed(victim: ProcessIdentity) -> None:
    program = (
        "import sys; from bcami.processes.identity import ProcessIdentity; "
        "from bcami.processes.pause import start_pause; "
        f"start_pause(ProcessIdentity({victim.pid}, {victim.started!r}), {LONG_S}); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as runner:
        wait_stopped(victim)
        runner.kill()
    wait_went_on(victim)


def test_another_process_of_the_same_number_is_left_alone(victim: ProcessIdentity) -> None:
    pause = start_pause(ProcessIdentity(victim.pid, "0"), LONG_S)
    assert pause.wait(LIMIT_S) == 1
    assert not is_heard_of(victim)
    end_pause(pause)
