"""Draws the charts of a report as SVG and PNG. The same chart gives the same bytes, on one version of matplotlib.

Colours are Okabe and Ito's, which stay apart for colour-blind readers and in grey; what a paper printed is hatched,
so that it differs by shape as well.
"""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bcami.report.document import Chart, Kind, Series
from bcami.report.figures import math_text, number_text

COLOURS: Final[dict[Kind, str]] = {
    "printed": "#9aa0a6",
    "published": "#9aa0a6",
    "recomputed": "#e69f00",
    "measured": "#0072b2",
    "number": "#56b4e9",
    "text": "#009e73",
    "verdict": "#d55e00",
}
_CYCLE: Final = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#6b7280", "#b8a000")
_MARKERS: Final = "osD^vPX*"
_STYLE: Final = {
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.framealpha": 0.9,
    "figure.constrained_layout.use": True,
}
_WIDE_INCHES: Final = 8.0
_NARROW_INCHES: Final = 4.4
_LABELS_MAX: Final = 16
"""A chart with more bars than this has no number at each."""
_LABELS_MAX_NARROW: Final = 9
_INSIDE_MAX: Final = 4
"""Lines whose names have room among them."""
_LETTERS_MAX_NARROW: Final = 32
"""Under an axis, before names lean."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart, drawn."""

    svg: bytes
    narrow_svg: bytes
    """The same for a window as narrow as a telephone's, with letters as large."""
    png: bytes


def draw(chart: Chart) -> Drawing:
    """Return the chart as SVG and PNG."""
    svg, png = _drawn(chart, _WIDE_INCHES, "svg", "png")
    (narrow,) = _drawn(chart, _NARROW_INCHES, "svg")
    return Drawing(svg, narrow, png)


def _drawn(chart: Chart, inches: float, *forms: str) -> list[bytes]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    style: Any = {**_STYLE, "svg.hashsalt": chart.key}
    with mpl.rc_context(style):
        figure, axes = plt.subplots(figsize=_size(chart, inches))
        {"bars": _bars, "stacked": _stacked, "rows": _rows, "lines": _lines, "steps": _lines}[chart.form](axes, chart)
        _finish(axes, chart)
        found = []
        for form in forms:
            drawn = io.BytesIO()
            metadata: Any = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
            figure.savefig(drawn, format=form, dpi=150, metadata=metadata)
            found.append(drawn.getvalue())
        plt.close(figure)
    return found


def _is_narrow(axes: Any) -> bool:
    return bool(axes.figure.get_size_inches()[0] < _WIDE_INCHES)


def _size(chart: Chart, inches: float) -> tuple[float, float]:
    if chart.form == "rows":
        bars = sum(len(series.x) for series in chart.series)
        return inches, max(2.0, 0.9 + 0.3 * bars) + (0.0 if inches == _WIDE_INCHES else 0.6)
    return inches, 4.2 if inches == _WIDE_INCHES else 3.7


def _colours(chart: Chart) -> list[str]:
    """Return a colour for each series: by where it comes from, or in turn when several come from the same."""
    kinds = [series.kind for series in chart.series]
    sources = {"printed", "recomputed", "published", "measured", "text"}
    if len(set(kinds)) == len(kinds) or (len(set(kinds)) > 1 and set(kinds) <= sources):
        return [COLOURS[kind] for kind in kinds]
    return [_CYCLE[place % len(_CYCLE)] for place in range(len(kinds))]


def _hatch(series: Series) -> str:
    return "////" if series.kind in {"printed", "published"} else ""


def _groups(chart: Chart) -> list[float | str]:
    return list(dict.fromkeys(x for series in chart.series for x in series.x))


def _name(group: float | str) -> str:
    return group if isinstance(group, str) else number_text(group)


def _name_groups(axes: Any, groups: list[float | str]) -> None:
    names = [_name(group) for group in groups]
    is_crowded = _is_narrow(axes) and sum(map(len, names)) > _LETTERS_MAX_NARROW
    axes.set_xticks(range(len(groups)), names, rotation=20 if is_crowded else 0, ha="right" if is_crowded else "center")


def _bars(axes: Any, chart: Chart) -> None:
    groups = _groups(chart)
    width = 0.8 / len(chart.series)
    count = sum(len(series.x) for series in chart.series)
    for place, (series, colour) in enumerate(zip(chart.series, _colours(chart), strict=True)):
        known = [(groups.index(x), y) for x, y in zip(series.x, series.y, strict=True) if y is not None]
        at = [group + (place - (len(chart.series) - 1) / 2) * width for group, _ in known]
        heights = [y for _, y in known]
        bars = axes.bar(
            at,
            heights,
            width * 0.94,
            label=series.name,
            color=colour,
            hatch=_hatch(series),
            edgecolor="white",
            yerr=_errors(series),
            ecolor="#333333",
            capsize=2,
        )
        if count <= (_LABELS_MAX_NARROW if _is_narrow(axes) else _LABELS_MAX):
            axes.bar_label(bars, [number_text(y, 3) for y in heights], padding=2, fontsize=8)
    _name_groups(axes, groups)
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)


def _stacked(axes: Any, chart: Chart) -> None:
    groups = _groups(chart)
    base = [0.0] * len(groups)
    for series, colour in zip(chart.series, _colours(chart), strict=True):
        heights = [0.0] * len(groups)
        for x, y in zip(series.x, series.y, strict=True):
            heights[groups.index(x)] = y or 0.0
        axes.bar(range(len(groups)), heights, 0.66, bottom=base, label=series.name, color=colour, edgecolor="white")
        base = [low + height for low, height in zip(base, heights, strict=True)]
    for place, total in enumerate(base):
        axes.annotate(
            number_text(total, 3), (place, total), (0, 2), textcoords="offset points", ha="center", fontsize=8
        )
    _name_groups(axes, groups)
    axes.set_xlim(-0.8, max(len(groups), 2) - 0.2)
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.1)


def _rows(axes: Any, chart: Chart) -> None:
    """Draw lying bars, the first on top."""
    groups = _groups(chart)
    is_alone = len(groups) == sum(len(series.x) for series in chart.series)
    height = 0.7 if is_alone else 0.8 / len(chart.series)
    for place, (series, colour) in enumerate(zip(chart.series, _colours(chart), strict=True)):
        known = [(groups.index(x), y) for x, y in zip(series.x, series.y, strict=True) if y is not None]
        offset = 0.0 if is_alone else (place - (len(chart.series) - 1) / 2) * height
        at = [group + offset for group, _ in known]
        bars = axes.barh(
            at,
            [y for _, y in known],
            height * 0.92,
            label=series.name,
            color=colour,
            hatch=_hatch(series),
            edgecolor="white",
        )
        axes.bar_label(bars, [number_text(y, 4) for _, y in known], padding=3, fontsize=8.5)
    names = [textwrap.fill(_name(group), 18) if _is_narrow(axes) else _name(group) for group in groups]
    axes.set_yticks(range(len(groups)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.14)


def _lines(axes: Any, chart: Chart) -> None:
    for place, (series, colour) in enumerate(zip(chart.series, _colours(chart), strict=True)):
        style = {"solid": "-", "dashed": "--", "none": "None"}[series.line]
        drawn = "steps-post" if chart.form == "steps" else "default"
        marker = _MARKERS[place % len(_MARKERS)] if len(series.x) <= _LABELS_MAX else ""
        y = [float("nan") if value is None else value for value in series.y]
        axes.plot(
            series.x,
            y,
            linestyle=style,
            label=series.name,
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=4 if series.kind == "printed" else 1.6,
            drawstyle=drawn,
        )
        if series.low:
            axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.18, linewidth=0)


def _errors(series: Series) -> list[list[float]] | None:
    if not series.low:
        return None
    known = [(y, low, high) for y, low, high in zip(series.y, series.low, series.high, strict=True) if y is not None]
    return [[y - low for y, low, _ in known], [high - y for y, _, high in known]]


def _finish(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    for is_log, axis, scale in ((chart.x_log, axes.xaxis, axes.set_xscale), (chart.y_log, axes.yaxis, axes.set_yscale)):
        if is_log:
            scale("log")
            low, high = axis.get_view_interval()
            if low > 0 and high / low < 300:
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value, 3)))
            axis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    numeric = _numeric_axes(axes, chart)
    for axis in numeric:
        axis.set_major_formatter(FuncFormatter(lambda value, _: number_text(round(value, 12), 4)))
    if chart.form in {"lines", "steps"}:
        _tick_points(axes, chart)
    axes.figure.suptitle(_folded(chart.title, axes), x=0.01, ha="left", fontweight="bold", fontsize=11)
    axes.set_xlabel(math_text(chart.x_title))
    axes.set_ylabel(math_text(chart.y_title))
    for level, name in chart.marked:
        axes.axhline(level, color="#555555", linewidth=0.9, linestyle=":")
        axes.annotate(name, (1, level), (-2, 3), ("axes fraction", "data"), "offset points", ha="right", fontsize=8)
    if len(chart.series) > 1:
        _legend(axes, chart)


def _legend(axes: Any, chart: Chart) -> None:
    """Put the legend where no bar is: outside, unless there is room among lines or standing bars."""
    if chart.form == "rows":
        columns = 1 if _is_narrow(axes) else len(chart.series)
        axes.figure.legend(loc="outside lower center", ncols=columns)
    elif _is_narrow(axes) or (chart.form in {"lines", "steps"} and len(chart.series) > _INSIDE_MAX):
        axes.figure.legend(loc="outside lower center", ncols=2 if _is_narrow(axes) else 3)
    elif chart.form == "stacked":
        handles, labels = axes.get_legend_handles_labels()
        axes.figure.legend(handles[::-1], labels[::-1], loc="outside right upper")
    else:
        axes.legend(loc="best")


def _folded(text: str, axes: Any) -> str:
    """Return a title in lines that fit the drawing."""
    return textwrap.fill(text, 44 if _is_narrow(axes) else 84)


def _numeric_axes(axes: Any, chart: Chart) -> Sequence[Any]:
    if chart.form == "rows":
        return () if chart.x_log else (axes.xaxis,)
    found = [] if chart.y_log else [axes.yaxis]
    if chart.form in {"lines", "steps"} and not chart.x_log:
        found.append(axes.xaxis)
    return found


def _tick_points(axes: Any, chart: Chart) -> None:
    """Put the ticks where the points are, when they are few; one that has no room for its number is left out."""
    points = sorted({x for series in chart.series for x in series.x if isinstance(x, int | float)})
    if 2 <= len(points) <= 8:
        if not chart.x_log:
            room = (points[-1] - points[0]) * (0.14 if _is_narrow(axes) else 0.06)
            kept = points[:1]
            for point in points[1:]:
                if point - kept[-1] >= room:
                    kept.append(point)
            points = kept
        axes.set_xticks(points, [number_text(x, 4) for x in points])
        axes.tick_params(axis="x", which="minor", bottom=False)
