"""Processes are started, found again, stopped, and never left behind. The services here are stand-ins of a few lines."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bcami.cli.network import _watch
from bcami.config import default_definition
from bcami.errors import EnvironmentFault, InputError
from bcami.paths import HomePaths
from bcami.processes.identity import ProcessIdentity, identify, running
from bcami.processes.supervisor import Readiness, Service, Supervisor
from tests.ports import free_ports

STAND_IN = """
    import http.server, signal, sys
    port, manner = int(sys.argv[1]), sys.argv[2]
    print("started", manner, flush=True)
    if manner == "breaks":
        sys.exit("the ledger is damaged at height 7")
    signal.signal(signal.SIGTERM, signal.SIG_IGN if manner == "stubborn" else lambda *_: sys.exit(0))
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(503 if manner == "slow" else 200)
            self.end_headers()
    http.server.HTTPServer(("127.0.0.1", port), Answers).serve_forever()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HomePaths]:
    (tmp_path / "stand_in.py").write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield HomePaths(tmp_path)
    for pid_file in tmp_path.glob("*.pid"):
        identity = running(pid_file)
        if identity is not None:
            os.kill(identity.pid, signal.SIGKILL)


def supervisor(home: HomePaths, manners: dict[str, str], *, attached: bool = False) -> Supervisor:
    base = free_ports(9)
    listed = tuple(
        Service(
            name=name,
            url=f"http://127.0.0.1:{base + 2 * place + 1}",
            pid_file=home.folder / f"{name}.pid",
            log=home.folder / f"{name}.log",
            command=("stand_in", str(base + 2 * place + 1), manner),
            ready_path="/readyz",
        )
        for place, (name, manner) in enumerate(manners.items())
    )
    return Supervisor(home, default_definition(4).resolve(base), attached=attached, listed=listed)


def wait_gone(identity: ProcessIdentity) -> None:
    for _ in range(2_400):
        if identify(identity.pid) != identity:
            return
        threading.Event().wait(0.05)
    pytest.fail("the process is still there")


@pytest.mark.parametrize("attached", [True, False])
def test_up_starts_what_is_missing_and_down_stops_everything(home: HomePaths, attached: bool) -> None:
    first = supervisor(home, {"node1": "well", "node2": "well"}, attached=attached)
    seen: list[Readiness] = []
    assert len(first.up(seen.append)) == 2
    pids = {item.name: item.pid for item in seen}
    assert first.down(["node2"]) == [("node2", True)]

    again = {item.name: item for item in first.up(lambda item: None)}
    assert again["node1"].pid == pids["node1"]
    assert again["node1"].seconds is None
    assert again["node2"].pid != pids["node2"]
    assert sorted(first.down()) == [("node1", True), ("node2", True)]
    assert first.down() == []
    assert not list(home.folder.glob("*.pid"))


def test_whoever_watches_ends_when_all_is_stopped_elsewhere(home: HomePaths) -> None:
    both = supervisor(home, {"node1": "well", "node2": "well"}, attached=True)
    both.up(lambda item: None)
    elsewhere = Supervisor(home, default_definition(4).resolve(), attached=False, listed=both.services)
    stopping = threading.Thread(target=elsewhere.down)
    stopping.start()
    _watch(both)
    stopping.join()
    assert both.down() == []


def test_a_killed_process_is_noticed_and_started_again(home: HomePaths) -> None:
    both = supervisor(home, {"node1": "well", "node2": "well"}, attached=True)
    both.up(lambda item: None)
    identity = both.identity("node1")
    assert identity is not None
    os.kill(identity.pid, signal.SIGKILL)
    wait_gone(identity)
    assert both.ended() == [("node1", "ended by SIGKILL")]
    assert both.ended() == []
    assert both.identity("node1") is None
    assert [item.name for item in both.up(lambda item: None) if item.seconds is not None] == ["node1"]
    both.down()


def test_what_does_not_stop_is_killed_and_said(home: HomePaths) -> None:
    one = supervisor(home, {"node1": "stubborn"})
    one.up(lambda item: None)
    assert one.down(stop_s=0.3) == [("node1", False)]


def test_a_process_that_breaks_is_shown_with_its_last_lines_and_the_others_go_on(home: HomePaths) -> None:
    (home.folder / "node2.log").write_text("a line of last week\n")
    both = supervisor(home, {"node1": "well", "node2": "breaks"})
    with pytest.raises(EnvironmentFault) as caught:
        both.up(lambda item: None)
    text = str(caught.value)
    assert "node2 did not become ready: ended with exit code 1" in text
    assert "the ledger is damaged at height 7" in text
    assert "a line of last week" not in text
    assert [name for name, _ in both.down()] == ["node1"]


def test_a_process_that_is_never_ready_is_an_error(home: HomePaths) -> None:
    one = supervisor(home, {"node1": "slow"})
    with pytest.raises(EnvironmentFault, match="not ready after"):
        one.up(lambda item: None, ready_s=0.5)
    one.down()


def test_an_unknown_name_is_an_input_error(home: HomePaths) -> None:
    with pytest.raises(InputError, match="nothing here is called 'nod'"):
        supervisor(home, {"node1": "well"}).service("nod")


def test_two_commands_do_not_start_processes_at_once(home: HomePaths) -> None:
    one = supervisor(home, {"node1": "well"})

    def meanwhile(_: Readiness) -> None:
        with pytest.raises(EnvironmentFault, match="another command"):
            one.down()

    one.up(meanwhile)
    one.down()


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_attached_processes_end_when_their_starter_is_gone(home: HomePaths, signal_number: int) -> None:
    """The starter gets no chance to clean up."""
    base = free_ports(9)
    starter = textwrap.dedent(f"""
        import pathlib, sys
        from bcami.config import default_definition
        from bcami.paths import HomePaths
        from bcami.processes.supervisor import Service, Supervisor
        home = HomePaths(pathlib.Path({str(home.folder)!r}))
        listed = (Service("node1", "http://127.0.0.1:{base}", home.folder / "node1.pid", home.folder / "node1.log",
                          ("stand_in", "{base}", "well"), "/readyz"),)
        up = Supervisor(home, default_definition(4).resolve({base}), attached=True, listed=listed)
        up.up(lambda item: print("ready", flush=True))
        input()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", starter], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        identity = running(home.folder / "node1.pid")
        assert identity is not None
        process.send_signal(signal_number)
        process.wait(60)
    wait_gone(identity)
