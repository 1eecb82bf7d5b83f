"""Results for people or for programs, never both; progress without a terminal is plain lines."""

import json
from pathlib import Path

import pytest

from bcami.cli.runs import new_run
from bcami.cli.screen import Progress, Screen
from bcami.paths import HomePaths


def test_people_get_lines_and_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.line("one [bold] line")
    screen.table(("name", "count"), [("a", 1), ("b", 12_345), ("c", None)])
    screen.result("bcami/x/1", {"a": 1})
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.splitlines()[0] == "one [bold] line"
    assert "12345" in shown.out
    assert "schema" not in shown.out


def test_programs_get_one_object_and_the_rest_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.wants_json = True
    screen.line("a result")
    screen.note("what is going on")
    screen.table(("name",), [("a",)])
    screen.result("bcami/x/1", {"a": 1})
    screen.result("bcami/x/1", {"a": 2})
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"schema": "bcami/x/1", "a": 1}
    assert shown.err == "what is going on\n"


def test_a_long_line_is_not_broken_when_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().line("x" * 500)
    assert capsys.readouterr().out == "x" * 500 + "\n"


def test_progress_is_a_plain_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("bcami.cli.screen.time.monotonic", lambda: now[0])
    progress = Progress(Screen().console, "replay")
    for second in range(6):
        now[0] = 100.0 + second
        progress(f"{second} of 5")
    progress.stop()
    assert capsys.readouterr().out.splitlines() == ["replay  2 of 5  [2 s]", "replay  4 of 5  [4 s]"]


def test_runs_have_folders_of_their_own_and_latest_points_at_the_last(tmp_path: Path) -> None:
    home = HomePaths(tmp_path)
    first, second = new_run(home, "demo"), new_run(home, "demo")
    assert first != second
    assert (home.runs / "latest").resolve() == second
