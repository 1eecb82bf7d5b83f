"""The table of what stands behind each fault is whole, and everything that it names exists."""

import re
from pathlib import Path

import pytest

from bcami.faults.catalogue import BEHAVIOURS
from bcami.faults.simulator.plan import FAULTS

TOP = Path(__file__).resolve().parents[2]
TABLE = TOP / "docs" / "decisions" / "fault-coverage.md"
ROWS = {"F": 48, "B": 31, "I": 15}


def known() -> set[str]:
    """Return every name that the table may use: tests, behaviours, the saboteur's acts, ablations, scenarios."""
    found = {*BEHAVIOURS, *FAULTS, *(path.stem for path in (TOP / "network" / "scenarios").glob("*.toml"))}
    for path in (TOP / "tests").rglob("*.py"):
        pattern = r"^ *(?:async )?def (test_\w+)" if path.name != "ablations.py" else r"^def (\w+)"
        found |= set(re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE))
    return found


def rows() -> list[list[str]]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| [FBI]\d", line)]


def words() -> set[str]:
    return set(re.findall(r"`([^`]+)`", TABLE.read_text(encoding="utf-8")))


def test_every_fault_bug_shape_and_invariant_has_one_row() -> None:
    wanted = [f"{letter}{number}" for letter, count in ROWS.items() for number in range(1, count + 1)]
    assert [row[0] for row in rows()] == wanted


def test_what_the_table_names_exists() -> None:
    names = known() | {"bcami fault list"}
    missing = sorted(name for name in words() if name not in names and not (TOP / name).is_file())
    assert not missing, "renamed, removed or never there: " + ", ".join(missing)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_says_what_stands_behind_it_or_that_nothing_does(row: list[str]) -> None:
    assert len(row) == 4
    assert "`" in row[2] or row[3]


def test_every_behaviour_and_every_act_is_in_the_table() -> None:
    missing = {*BEHAVIOURS, *FAULTS} - {"misbehave"} - words()
    assert not missing, "say what they stand for: " + ", ".join(sorted(missing))
