"""Errors become messages and exit codes in one place; help is complete; starting is cheap."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bcami.cli import main, network
from bcami.cli.screen import SCREEN
from bcami.errors import BcamiError, EnvironmentFault, ExpectationError, InconclusiveError, InputError


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    SCREEN.wants_json = SCREEN.answered = False
    SCREEN.home = ""


WITHOUT_A_HOME = {"simulate"}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the program in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["bcami", *arguments])
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main.run()
    code = ended.value.code
    return code if isinstance(code, int) else 0


def commands() -> list[tuple[str, str]]:
    """Return (name, docstring) of every command, groups walked through."""

    def walk(group: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, f"{prefix}{name} ")
            else:
                yield f"{prefix}{name}", command.callback.__doc__ or ""

    return list(walk(typer.main.get_command(main.app), ""))


def test_the_commands_of_the_design_are_there() -> None:
    names = {name for name, _ in commands()}
    wanted = "demo init up status down logs doctor replay reconcile verify rebuild bench"
    assert set(wanted.split()) <= names
    assert {"show block", "show tx", "show meter", "show evidence"} <= names
    assert {"mdms status", "mdms gaps", "mdms export", "mdms backup"} <= names


@pytest.mark.parametrize(("name", "text"), commands(), ids=[name for name, _ in commands()])
def test_every_command_has_help_with_an_example(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"bcami {name}" in text, "the docstring ends with an example"
    assert run(monkeypatch, *name.split(), "--help") == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert "--home" in shown or name in WITHOUT_A_HOME


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ExpectationError("two readings are missing"), 1),
        (InputError("no such file", where="data.csv:7", do="check the path"), 2),
        (InconclusiveError("too few"), 3),
        (EnvironmentFault("port 5 is taken", likely="another program"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_error_has_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr(network, "_opened", fail)
    assert run(monkeypatch, "status", "--home", str(tmp_path)) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    if isinstance(error, BcamiError):
        assert shown.err.startswith(f"error: {error.what}\n")
        assert error.do in shown.err
        assert error.likely in shown.err


def test_a_program_gets_the_error_as_one_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "status", "--json", "--home", str(tmp_path)) == 4
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "bcami/error/1"
    assert told["exit_code"] == 4
    assert told["do"].startswith("bcami init")


def test_a_bug_is_one_line_and_a_saved_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(network, "_opened", fail)
    assert run(monkeypatch, "status", "--home", str(tmp_path)) == 70
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "ZeroDivisionError" in shown
    saved = (tmp_path / "runs" / "latest" / "traceback.txt").read_text()
    assert "in fail" in saved


@pytest.mark.parametrize("arguments", [["statsu"], ["status", "--jsn"], ["init", "--nodes", "four"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, *arguments) == 2


def test_contradicting_options_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    both = ["init", "--nodes", "4", "--definition", "local-7", "--home", str(tmp_path)]
    assert run(monkeypatch, *both) == 2


def test_starting_is_cheap() -> None:
    """`bcami --help` loads none of the heavy libraries."""
    code = (
        "import sys; import bcami.cli.main; "
        "print([name for name in ('pyarrow', 'duckdb', 'pandas', 'numpy', 'uvicorn', 'fastapi', 'httpx', 'pydantic') "
        "if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == "[]"
