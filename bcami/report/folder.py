"""The folder that a report leaves, and the page in it.

report.html     everything, in one file that needs no network; prints to PDF
report.json     the same for programs (schema bcami/report/1)
tables/*.csv    one for each table
figures/*.svg, *.png, *.csv    one of each for each figure; the CSV holds its points
"""

import base64
import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import jinja2
import msgspec
from markupsafe import Markup

from bcami.errors import EnvironmentFault, InputError
from bcami.report.charts import Drawing, draw
from bcami.report.document import Cell, Chart, Column, Measured, Range, Report, Setting, Table, chart_table
from bcami.report.figures import DASH, cell_text, rich_text, spread_text

SCHEMA: Final = "bcami/report/1"
PAGE: Final = "report.html"
DATA: Final = "report.json"
_NUMERIC: Final = frozenset({"number", "printed", "recomputed", "published", "measured"})
_PAIRS: Final = {"printed", "recomputed", "published"}
"""Kinds whose cells may be ranges: in CSV they have two columns."""


def write_report(report: Report, folder: Path, show: Callable[[str], None] = lambda _: None) -> Path:
    """Write the whole report into a folder that exists, and return the page. Raises EnvironmentFault."""
    try:
        for name in ("tables", "figures"):
            (folder / name).mkdir(exist_ok=True)
        for table in report.tables:
            (folder / "tables" / f"{table.key}.csv").write_text(table_csv(table), encoding="utf-8", newline="")
        drawings: dict[str, Drawing] = {}
        for chart in report.charts:
            show(f"drawing {chart.title}")
            drawing = drawings[chart.key] = draw(chart)
            (folder / "figures" / f"{chart.key}.svg").write_bytes(drawing.svg)
            (folder / "figures" / f"{chart.key}.png").write_bytes(drawing.png)
            data = table_csv(chart_table(chart))
            (folder / "figures" / f"{chart.key}.csv").write_text(data, encoding="utf-8", newline="")
        (folder / DATA).write_text(json.dumps(report_data(report), indent=1) + "\n", encoding="utf-8")
        (folder / PAGE).write_text(page(report, drawings), encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(f"the report cannot be written: {error}", where=str(folder)) from None
    return folder / PAGE


def report_data(report: Report) -> dict[str, Any]:
    """Return the report for programs, as JSON has it."""
    data: dict[str, Any] = msgspec.to_builtins(report)
    for section, shown in zip(data["sections"], report.sections, strict=True):
        for item, kind in zip(section["items"], shown.items, strict=True):
            item["is"] = "table" if isinstance(kind, Table) else "chart"
    return {"schema": SCHEMA, **data}


class _ItemShape(msgspec.Struct):
    shown_as: Literal["table", "chart"] = msgspec.field(name="is")
    key: str


class _SectionShape(msgspec.Struct):
    items: list[_ItemShape]


class _Shape(msgspec.Struct):
    """What readers of the JSON rely on."""

    kind: str
    setting: Setting
    sections: list[_SectionShape]


def load_report(place: Path) -> dict[str, Any]:
    """Return the data of a report: its folder, or its JSON file. Raises InputError."""
    path = place / DATA if place.is_dir() else place
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"no report can be read: {error.strerror}", where=str(path)) from None
    except ValueError as error:
        raise InputError(f"not JSON: {error}", where=str(path)) from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InputError(f"not a report of the schema {SCHEMA}", where=str(path))
    try:
        msgspec.convert(data, _Shape)
    except msgspec.ValidationError as error:
        raise InputError(f"not a whole report: {error}", where=str(path)) from None
    return data


# CSV.


def table_csv(table: Table) -> str:
    """Return a table as CSV: full precision, a range in two columns, a measured cell as median, quartiles and n."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    has_spread = {
        column.key: any(isinstance(cell, Measured) for cell in table.column(column.key)) for column in table.columns
    }
    writer.writerow([*(name for column in table.columns for name in _names(column, has_spread)), "method", "note"])
    for row in table.rows:
        cells = [
            value
            for column, cell in zip(table.columns, row.cells, strict=True)
            for value in _values(column, cell, has_spread)
        ]
        writer.writerow([*cells, row.method, row.note])
    return stream.getvalue()


def _names(column: Column, has_spread: dict[str, bool]) -> list[str]:
    if column.kind == "measured" and has_spread[column.key]:
        return [column.key, f"{column.key}_q1", f"{column.key}_q3", f"{column.key}_n"]
    if column.kind in _PAIRS:
        return [column.key, f"{column.key}_to"]
    return [column.key]


def _values(column: Column, cell: Cell, has_spread: dict[str, bool]) -> list[object]:
    width = len(_names(column, has_spread))
    match cell:
        case Measured(median, low, high, n) if width == 4:
            return [median, low, high, n]
        case Range(low, high) if width == 2:
            return [low, high]
        case Range() | Measured():
            return [cell_text(cell), *[""] * (width - 1)]
        case None:
            return [""] * width
        case _:
            return [cell, *[""] * (width - 1)]


# The page.


class _Notes:
    """Footnotes of one table: the same text has the same letter."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def marks(self, *texts: str) -> str:
        found = []
        for text in texts:
            if text:
                if text not in self.texts:
                    self.texts.append(text)
                found.append(_letter(self.texts.index(text)))
        return " ".join(found)


def _letter(place: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[place] if place < 26 else letters[place // 26 - 1] + letters[place % 26]


def _table_view(table: Table) -> dict[str, Any]:
    notes = _Notes()
    rows = []
    for row in table.rows:
        cells = [
            {"text": _shown(column, cell), "spread": spread_text(cell), "css": _css(column, cell)}
            for column, cell in zip(table.columns, row.cells, strict=True)
        ]
        rows.append({"cells": cells, "marks": notes.marks(row.method, row.note)})
    listed = [(_letter(place), text) for place, text in enumerate(notes.texts)]
    return {"table": table, "rows": rows, "notes": listed}


def _shown(column: Column, cell: Cell) -> str:
    return DASH if cell is None and column.kind in _NUMERIC else cell_text(cell, column.kind)


def _css(column: Column, cell: Cell) -> str:
    classes: list[str] = [column.kind]
    if cell is None:
        classes.append("none")
    if column.kind in _NUMERIC and not isinstance(cell, str):
        classes.append("figure")
    if column.kind == "verdict" and isinstance(cell, str):
        classes.append(cell.split(" ")[0].lower())
    return " ".join(classes)


def page(report: Report, drawings: dict[str, Drawing]) -> str:
    """Return the HTML page; `drawings` holds each chart by key."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bcami.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rich"] = rich_text
    numbers = _numbers(report)
    return environment.get_template("page.html.j2").render(
        report=report,
        date=_date_text(report.setting.date),
        dash=DASH,
        is_table=lambda item: isinstance(item, Table),
        view=_table_view,
        number=lambda item: numbers[item.key],
        has_measured=any(column.kind == "measured" for table in report.tables for column in table.columns),
        drawing=lambda chart, form: _data(drawings[chart.key], form),
    )


def _data(drawing: Drawing, form: str) -> Markup:
    svg = drawing.narrow_svg if form == "narrow" else drawing.svg
    return Markup(base64.b64encode(svg).decode())  # noqa: S704  base64 only


def _date_text(date: str) -> str:
    """Return `2026-01-02 03:04 UTC` for an ISO date in UTC."""
    return f"{date[:16].replace('T', ' ')} UTC"


def _numbers(report: Report) -> dict[str, str]:
    """Return `Table 3` or `Figure 2` for each key."""
    found: dict[str, str] = {}
    for word, items in (("Table", report.tables), ("Figure", report.charts)):
        named: Sequence[Table | Chart] = items
        for place, item in enumerate(named, 1):
            found[item.key] = f"{word} {place}"
    return found
