"""What a report says: sections with text, tables and charts. Any report is made of these; nothing here knows its topic.

A cell holds a number or a text, never a formatted number: the page formats it, CSV and JSON carry it whole.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec


class Range(msgspec.Struct, frozen=True, tag="range"):
    """From the lowest to the highest of what a source gives."""

    low: float
    high: float


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """What repeated measuring came to."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""
    n: int
    """Samples."""

    def scaled(self, factor: float) -> "Measured":
        """Return the same in another unit."""
        return Measured(self.median * factor, self.low * factor, self.high * factor, self.n)


Cell = str | int | float | bool | Range | Measured | None
Kind = Literal["text", "number", "printed", "recomputed", "published", "measured", "verdict"]
"""Where a column's cells come from. `printed` and `recomputed`: a paper and its formula; `published`: figures of other
hardware; `measured`: differs from run to run; `number`: a count or a formula; `verdict`: coloured by its word."""


class Column(msgspec.Struct, frozen=True):
    key: str
    """Name in CSV and JSON."""
    title: str
    kind: Kind = "text"


class Row(msgspec.Struct, frozen=True):
    cells: tuple[Cell, ...]
    method: str = ""
    """How the measured cells came about."""
    note: str = ""
    """What a reader has to know: where figures differ and why."""


class Table(msgspec.Struct, frozen=True):
    key: str
    """Name of its CSV file."""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    source: str = ""
    """Paper and place, where it repeats one."""
    text: str = ""
    """What it tells, in a sentence or two."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"table {self.key}: {len(row.cells)} cells under {len(self.columns)} columns")

    def column(self, key: str) -> tuple[Cell, ...]:
        """Return the cells of one column. Raises StopIteration when there is none of that key."""
        place = next(place for place, column in enumerate(self.columns) if column.key == key)
        return tuple(row.cells[place] for row in self.rows)


class Series(msgspec.Struct, frozen=True):
    """One set of points of a chart."""

    name: str
    kind: Kind
    x: tuple[float | str, ...]
    y: tuple[float | None, ...]
    low: tuple[float, ...] = ()
    """Lower ends of error bars; empty for none."""
    high: tuple[float, ...] = ()
    line: Literal["solid", "dashed", "none"] = "solid"


class Chart(msgspec.Struct, frozen=True):
    """A figure: `bars` stand in groups by x, `stacked` upon each other, `rows` lie, `lines` and `steps` run over x."""

    key: str
    """Name of its SVG, PNG and CSV files."""
    title: str
    """What it shows."""
    form: Literal["bars", "stacked", "rows", "lines", "steps"]
    x_title: str
    """With the unit."""
    y_title: str
    series: tuple[Series, ...]
    caption: str = ""
    x_log: bool = False
    y_log: bool = False
    marked: tuple[tuple[float, str], ...] = ()
    """Levels to draw across, each with its name."""


class Section(msgspec.Struct, frozen=True):
    key: str
    title: str
    text: tuple[str, ...] = ()
    """Paragraphs."""
    items: tuple[Table | Chart, ...] = ()
    """In the order in which they are read."""


class Setting(msgspec.Struct, frozen=True):
    """What a report rests on."""

    command: str
    date: str
    """ISO 8601, UTC."""
    seed: int
    quick: bool
    machine: dict[str, str]
    versions: dict[str, str]
    load: str = ""
    """What else the machine did, as far as it is known."""


class Report(msgspec.Struct, frozen=True):
    kind: str
    """Word in the schema: costs, capacity, security."""
    title: str
    summary: tuple[str, ...]
    """Sentences that a reader needs first."""
    method: tuple[str, ...]
    """Paragraphs on how figures came about, and what they do not say."""
    setting: Setting
    sections: tuple[Section, ...]

    @property
    def tables(self) -> list[Table]:
        return [item for section in self.sections for item in section.items if isinstance(item, Table)]

    @property
    def charts(self) -> list[Chart]:
        return [item for section in self.sections for item in section.items if isinstance(item, Chart)]

    def table(self, key: str) -> Table:
        """Return the table of that key. Raises KeyError."""
        for table in self.tables:
            if table.key == key:
                return table
        raise KeyError(key)


COMPARISON = (
    Column("quantity", "Quantity"),
    Column("unit", "Unit"),
    Column("printed", "Paper as printed", "printed"),
    Column("recomputed", "From its own formula", "recomputed"),
    Column("measured", "Measured here", "measured"),
)
"""The columns in which a paper stands beside this system."""


def compare(
    quantity: str,
    unit: str,
    printed: Cell = None,
    recomputed: Cell = None,
    measured: Cell = None,
    *,
    method: str = "",
    note: str = "",
) -> Row:
    """Return a row of COMPARISON."""
    return Row((quantity, unit, printed, recomputed, measured), method, note)


def comparison(key: str, title: str, rows: Sequence[Row], *, source: str = "", text: str = "") -> Table:
    """Return a table of COMPARISON."""
    return Table(key, title, COMPARISON, tuple(rows), source, text)


def paragraphs(text: str) -> tuple[str, ...]:
    """Return the paragraphs of a text, which blank lines part, each on one line."""
    return tuple(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def chart_table(chart: Chart) -> Table:
    """Return the data of a chart as a table: one row for each point."""
    has_spread = any(series.low for series in chart.series)
    columns = [
        Column("series", "Series"),
        Column("x", chart.x_title, "number"),
        Column("y", chart.y_title or chart.x_title, "measured"),
    ]
    if has_spread:
        columns += [Column("low", "low", "measured"), Column("high", "high", "measured")]
    rows = []
    for series in chart.series:
        for place, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            cells: list[Cell] = [series.name, x, y]
            if has_spread:
                cells += [series.low[place], series.high[place]] if series.low else [None, None]
            rows.append(Row(tuple(cells)))
    return Table(chart.key, chart.title, tuple(columns), tuple(rows))
