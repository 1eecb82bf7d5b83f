"""Two reports compared: what may differ (measured cells) by its ratio, and what may not, cell by cell."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from bcami.errors import InputError
from bcami.report.document import Cell, Column, Measured, Range, Report, Row, Section, Setting, Table
from bcami.report.figures import cell_text

_ABSENT: Final = "(not there)"


@dataclass(frozen=True, slots=True)
class _Cell:
    """One cell of a report, with where it stands."""

    table: str
    row: str
    column: str
    is_measured: bool
    value: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """What two reports do not have in common."""

    fixed: tuple[tuple[str, str, str, str, str], ...]
    """(table, row, column, in A, in B) of cells that should be the same in every run."""
    measured: tuple[tuple[str, str, str, float, float, bool], ...]
    """(table, row, column, in A, in B, quartiles are apart) of every measured cell in both."""
    setting: tuple[tuple[str, str, str], ...]
    """(what, in A, in B) of machine, versions and the like."""


def compare_reports(first: dict[str, Any], second: dict[str, Any]) -> Difference:
    """Return the differences of two reports' data. Raises InputError when they are reports of two kinds."""
    if first["kind"] != second["kind"]:
        raise InputError(
            f"a report of {first['kind']} does not compare with one of {second['kind']}", do="name two of one kind"
        )
    ours, theirs = _cells(first), _cells(second)
    fixed, measured = [], []
    for place in dict.fromkeys((*ours, *theirs)):
        one, two = ours.get(place), theirs.get(place)
        either = one or two
        assert either is not None
        names = (either.table, either.row, either.column)
        if one is None or two is None:
            fixed.append((*names, _text(one), _text(two)))
        elif not one.is_measured:
            if one.value != two.value:
                fixed.append((*names, _text(one), _text(two)))
        else:
            pair = _number(one.value), _number(two.value)
            if pair[0] is not None and pair[1] is not None:
                measured.append((*names, pair[0], pair[1], _are_apart(one.value, two.value)))
    return Difference(tuple(fixed), tuple(measured), tuple(_settings(first["setting"], second["setting"])))


def _cells(report: dict[str, Any]) -> dict[tuple[str, str, int, str], _Cell]:
    found: dict[tuple[str, str, int, str], _Cell] = {}
    for section in report["sections"]:
        for item in section["items"]:
            if item.get("is") != "table":
                continue
            for row in item["rows"]:
                name = _row_name(item["columns"], row["cells"])
                number = sum(place[:2] == (item["key"], name) for place in found)
                for column, value in zip(item["columns"], row["cells"], strict=True):
                    place = (item["key"], name, number, column["key"])
                    found[place] = _Cell(item["key"], name, column["title"], column["kind"] == "measured", value)
    return found


def _row_name(columns: list[dict[str, Any]], cells: list[Any]) -> str:
    """Return what tells a row from the others: its first cell, unless it was measured, and what else names a shape."""
    told = ["row" if columns[0]["kind"] == "measured" else str(cells[0])]
    told += [
        str(cell)
        for column, cell in list(zip(columns, cells, strict=True))[1:]
        if column["key"] in {"readings", "members", "mode", "load", "unit"} and cell is not None
    ]
    return ", ".join(told)


def _settings(first: dict[str, Any], second: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name in ("command", "date", "seed", "quick", "load"):
        yield name, str(first[name]), str(second[name])
    for part in ("machine", "versions"):
        for name in dict.fromkeys((*first[part], *second[part])):
            yield name, first[part].get(name, _ABSENT), second[part].get(name, _ABSENT)


def _text(cell: _Cell | None) -> str:
    return _ABSENT if cell is None else cell_text(_revived(cell.value))


def _revived(value: Any) -> Cell:
    """Return the cell that JSON holds."""
    if isinstance(value, dict):
        fields = {name: item for name, item in value.items() if name != "type"}
        return Range(**fields) if value["type"] == "range" else Measured(**fields)
    known: Cell = value
    return known


def _number(value: Any) -> float | None:
    revived = _revived(value)
    if isinstance(revived, Measured):
        return revived.median
    return float(revived) if isinstance(revived, int | float) else None


def _are_apart(first: Any, second: Any) -> bool:
    """Tell whether the quartiles of two measured cells have nothing in common; False where there are none."""
    one, two = _revived(first), _revived(second)
    if not (isinstance(one, Measured) and isinstance(two, Measured) and min(one.n, two.n) > 1):
        return False
    return one.high < two.low or two.high < one.low


# The report.


def difference_report(found: Difference, names: tuple[str, str], setting: Setting) -> Report:
    """Return the comparison as a report of its own."""
    apart = sum(item[5] for item in found.measured)
    changed = tuple(item for item in found.setting if item[1] != item[2])
    return Report(
        "difference",
        "Two reports compared",
        (
            f"{len(found.measured)} measured cells are in both; of {apart} the quartiles are apart.",
            f"{len(found.fixed)} cells differ that should be the same in every run."
            if found.fixed
            else "All else is the same: what papers print, what follows from formulas, and what is counted.",
        ),
        (f"A is {names[0]}, B is {names[1]}. Quartiles are compared where a cell has more than one sample.",),
        setting,
        (
            Section("measured", "Measured", (), (_measured_table(found),)),
            Section("fixed", "What should not differ", (), (_fixed_table(found),)),
            Section("settings", "Settings that differ", (), (_setting_table(changed),)),
        ),
    )


def _measured_table(found: Difference) -> Table:
    rows = [
        Row((table, row, column, one, two, round(two / one, 3) if one else None, "apart" if apart else ""))
        for table, row, column, one, two, apart in sorted(found.measured, key=_how_far, reverse=True)
    ]
    return Table(
        "difference_measured",
        "Measured cells, the farthest apart first",
        (
            Column("table", "Table"),
            Column("row", "Row"),
            Column("column", "Column"),
            Column("a", "A", "measured"),
            Column("b", "B", "measured"),
            Column("ratio", "B over A", "measured"),
            Column("quartiles", "Quartiles"),
        ),
        tuple(rows),
    )


def _how_far(item: tuple[str, str, str, float, float, bool]) -> float:
    one, two = abs(item[3]), abs(item[4])
    if one == two:
        return 1.0
    return max(one, two) / min(one, two) if min(one, two) else float("inf")


def _fixed_table(found: Difference) -> Table:
    columns = (
        Column("table", "Table"),
        Column("row", "Row"),
        Column("column", "Column"),
        Column("a", "A"),
        Column("b", "B"),
    )
    return Table(
        "difference_fixed", "Cells that differ and should not", columns, tuple(Row(item) for item in found.fixed)
    )


def _setting_table(changed: tuple[tuple[str, str, str], ...]) -> Table:
    columns = (Column("what", "What"), Column("a", "A"), Column("b", "B"))
    return Table("difference_settings", "Settings", columns, tuple(Row(item) for item in changed))
