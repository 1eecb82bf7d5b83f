"""A pid file means one process and never another that got its number."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from bcami.processes.identity import ProcessIdentity, identify, running, signal_process, write_pid_file


def waiting() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def test_a_living_process_is_known_until_it_ends(tmp_path: Path) -> None:
    with waiting() as child:
        identity = identify(child.pid)
        assert identity is not None
        write_pid_file(tmp_path / "x.pid", identity)
        assert running(tmp_path / "x.pid") == identity
        assert signal_process(identity, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert identify(child.pid) is None, "a zombie does not run"
    assert running(tmp_path / "x.pid") is None
    assert not signal_process(identity, signal.SIGKILL)


def test_a_process_that_got_the_number_later_is_not_ours(tmp_path: Path) -> None:
    with waiting() as child:
        identity = identify(child.pid)
        assert identity is not None
        earlier = ProcessIdentity(child.pid, identity.started + "1")
        write_pid_file(tmp_path / "x.pid", earlier)
        assert running(tmp_path / "x.pid") is None
        assert not signal_process(earlier, signal.SIGKILL)
        assert child.poll() is None
        child.communicate(b"\n")


def test_a_damaged_or_missing_pid_file_means_nobody(tmp_path: Path) -> None:
    assert running(tmp_path / "none.pid") is None
    for text in ("", "12", "abc def\n", "-1 5\n"):
        (tmp_path / "x.pid").write_text(text)
        assert running(tmp_path / "x.pid") is None
