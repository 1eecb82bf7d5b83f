"""A paused process goes on when the time is over, and when whoever paused it is gone."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bcami.processes.identity import ProcessIdentity, identify
from bcami.processes.pause import end_pause, start_pause

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states from /proc")


@pytest.fixture
def victim() -> Iterator[ProcessIdentity]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        identity = identify(child.pid)
        assert identity is not None
        yield identity
        child.kill()


def state(identity: ProcessIdentity) -> str:
    return Path(f"/proc/{identity.pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def test_a_pause_ends_with_its_time(victim: ProcessIdentity) -> None:
    pause = start_pause(victim, 1.5)
    wait_for(lambda: state(victim) == "T")
    assert pause.wait(10) == 0
    assert state(victim) != "T"
    end_pause(pause)


def test_a_pause_ends_when_it_is_told_to(victim: ProcessIdentity) -> None:
    pause = start_pause(victim, 600)
    wait_for(lambda: state(victim) == "T")
    end_pause(pause)
    assert state(victim) != "T"


def test_a_pause_ends_when_its_holder_is_terminated(victim: ProcessIdentity) -> None:
    pause = start_pause(victim, 600)
    wait_for(lambda: state(victim) == "T")
    pause.terminate()
    pause.wait(10)
    assert state(victim) != "T"
    end_pause(pause)


def test_a_pause_ends_when_whoever_asked_for_it_is_killed(victim: ProcessIdentity) -> None:
    program = (
        "import sys; from bcami.processes.identity import ProcessIdentity; "
        "from bcami.processes.pause import start_pause; "
        f"start_pause(ProcessIdentity({victim.pid}, {victim.started!r}), 600); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as runner:
        wait_for(lambda: state(victim) == "T")
        runner.kill()
    wait_for(lambda: state(victim) != "T")


def test_another_process_of_the_same_number_is_left_alone(victim: ProcessIdentity) -> None:
    pause = start_pause(ProcessIdentity(victim.pid, "0"), 600)
    assert pause.wait(10) == 1
    assert state(victim) != "T"
    end_pause(pause)
