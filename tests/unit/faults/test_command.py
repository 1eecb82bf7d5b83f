"""The program's side of fault runs: options, files and exit codes."""

from pathlib import Path
from typing import Any

import pytest

from bcami.cli.fault import _option, _raise, _scenario_path
from bcami.errors import ExpectationError, InconclusiveError, InputError


def summary(verdict: str) -> dict[str, Any]:
    finding = {"expectation": "no fork", "verdict": verdict, "wanted": "one", "found": "two"}
    return {"verdict": verdict, "findings": [finding]}


def test_the_verdict_becomes_the_exit_code() -> None:
    _raise(summary("PASS"), Path("run"))
    with pytest.raises(ExpectationError, match="no fork: wanted one, found two") as failed:
        _raise(summary("FAIL"), Path("run"))
    assert failed.value.exit_code == 1
    with pytest.raises(InconclusiveError) as open_:
        _raise(summary("INCONCLUSIVE"), Path("run"))
    assert open_.value.exit_code == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("share=0.5", ("share", 0.5)),
        ("ms=80", ("ms", 80)),
        ("peers=node1,2", ("peers", ["node1", 2])),
        ("kinds=commit,", ("kinds", ["commit"])),
        ("way=share", ("way", "share")),
    ],
)
def test_an_option_is_a_number_a_word_or_a_list(text: str, value: tuple[str, Any]) -> None:
    assert _option(text) == value


@pytest.mark.parametrize("text", ["share", "=3", ""])
def test_anything_else_is_no_option(text: str) -> None:
    with pytest.raises(InputError, match="OPTION=VALUE"):
        _option(text)


def test_a_scenario_is_a_file_or_one_that_comes_along(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("")
    assert _scenario_path(str(own)) == own
    assert _scenario_path("primary-killed").stem == "primary-killed"
    assert _scenario_path("primary-killed.toml").stem == "primary-killed"
    with pytest.raises(InputError, match="did you mean 'primary-killed'"):
        _scenario_path("primary-kiled")
