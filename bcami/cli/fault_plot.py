"""The plot of a fault run: throughput, latency, and what the nodes say, over time, with the faults marked."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bcami.cli.fault_watch import Look
from bcami.faults.scenario import Scenario
from bcami.faults.verdict import History, figures

BIN_S: Final = 0.25
BEHIND_MIN: Final = 6.0
"""The axis reaches at least so many blocks: being one behind for a moment is no event."""
_SILENT_S: Final = 1.2
_COLOURS: Final = {"PASS": "#1a7f37", "FAIL": "#b42318", "INCONCLUSIVE": "#9a6700"}
_FAULT: Final = "#d9822b"
_LINE: Final = "#1f5fa8"


def plot_run(path: Path, scenario: Scenario, history: History, looks: Sequence[Look], verdict: str) -> None:
    """Draw one run into a PNG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        3, 1, figsize=(11, 8.2), sharex=True, height_ratios=(3, 2.2, 1.8), layout="constrained"
    )
    _throughput(panels[0], scenario, history)
    _latency(panels[1], history)
    _nodes(panels[2], scenario, looks)
    for panel in panels:
        _mark(panel, history)
        panel.grid(visible=True, color="#e6e6e6", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    _name_faults(panels[0], history)
    panels[-1].set_xlabel("seconds since the load began")
    panels[-1].set_xlim(0, max(history.load_end_s, 1.0))
    figure.suptitle(f"{scenario.title}   ({scenario.nodes} nodes)", x=0.01, ha="left", fontsize=13, fontweight="bold")
    panels[0].set_title(verdict, loc="left", fontsize=12, fontweight="bold", color=_COLOURS[verdict])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _throughput(panel: Any, scenario: Scenario, history: History) -> None:
    times, rates = _binned(history)
    panel.fill_between(times, rates, step="mid", color=_LINE, alpha=0.25, linewidth=0)
    panel.step(times, rates, where="mid", color=_LINE, linewidth=1.2, label="committed")
    asked = scenario.load.rate_per_s
    panel.axhline(asked, color="#555555", linewidth=0.9, linestyle="--", label=f"offered: {asked:g}/s")
    seen = figures(scenario, history)
    if seen.pause_s > BIN_S:
        middle = seen.pause_at_s + seen.pause_s / 2
        panel.annotate(
            f"{seen.pause_s:.2f} s\nwithout commits",
            (middle, 0),
            (middle, asked * 0.45),
            ha="center",
            fontsize=8.5,
            color="#7a1f12",
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            arrowprops={"arrowstyle": "-", "color": "#7a1f12", "linewidth": 0.8},
        )
    panel.set_ylabel("reports / s")
    panel.set_ylim(0, min(max([asked, *rates], default=1.0) * 1.25, asked * 4))
    panel.legend(loc="lower right", fontsize=8, frameon=True, framealpha=0.9)


def _binned(history: History) -> tuple[list[float], list[float]]:
    """Return middle and commits per second of each bin."""
    times: list[float] = []
    rates: list[float] = []
    start_s, committed = 0.0, 0
    for item in history.samples:
        if item.at_s - start_s >= BIN_S:
            times.append((item.at_s + start_s) / 2)
            rates.append((item.committed - committed) / (item.at_s - start_s))
            start_s, committed = item.at_s, item.committed
    return times, rates


def _latency(panel: Any, history: History) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    told = [item for item in history.samples if item.p50_ms is not None]
    rows: list[tuple[float, float, float]] = []
    for item in told:
        if rows and item.at_s - rows[-1][0] > _SILENT_S:
            rows.append((item.at_s, math.nan, math.nan))  # no line where nothing was committed
        rows.append((item.at_s, item.p50_ms or 0, item.p99_ms or 0))
    for column, name, style in ((1, "p50", "-"), (2, "p99", ":")):
        times, values = [row[0] for row in rows], [row[column] for row in rows]
        panel.plot(times, values, style, color=_LINE, linewidth=1.4, label=name, marker=".", markersize=3)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_ylabel("latency, ms")
    if told:
        panel.legend(loc="upper right", fontsize=8, frameon=True, framealpha=0.9, ncols=2)


def _nodes(panel: Any, scenario: Scenario, looks: Sequence[Look]) -> None:
    """Draw how far each node is behind the highest, and each view change."""
    ahead: list[tuple[float, int]] = []
    best = 0
    for look in looks:
        best = max(best, look.height or 0)
        ahead.append((look.at_s, best))
    for place, name in enumerate(scenario.names):
        own = [(look.at_s, look.height, top) for look, (_, top) in zip(looks, ahead, strict=True) if look.name == name]
        behind = [None if height is None else top - height for _, height, top in own]
        panel.plot([at_s for at_s, _, _ in own], behind, linewidth=1.2, label=name, color=f"C{place % 10}")
    entered: dict[int, float] = {}
    for look in looks:
        if look.view is not None:
            entered.setdefault(look.view, look.at_s)
    for view, at_s in sorted(entered.items()):
        if view and at_s > 0:
            panel.axvline(at_s, color="#7a3fa0", linewidth=0.9)
            panel.annotate(
                f"view {view}",
                (at_s, 0.6),
                xytext=(3, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                fontsize=7,
                color="#7a3fa0",
                va="top",
            )
    panel.set_ylabel("blocks behind")
    panel.set_ylim(0, max(BEHIND_MIN, panel.get_ylim()[1]))
    panel.legend(loc="upper left", fontsize=7, ncols=len(scenario.names), frameon=True, framealpha=0.9)


def _mark(panel: Any, history: History) -> None:
    shaded_s = 0.0
    for item in sorted(history.shown, key=lambda shown: shown.start_s):
        end_s = history.load_end_s if item.end_s is None else item.end_s
        start_s = max(item.start_s, shaded_s)  # faults at the same time are shaded once
        if end_s > start_s:
            panel.axvspan(start_s, end_s, color=_FAULT, alpha=0.13, linewidth=0, zorder=0)
        shaded_s = max(shaded_s, end_s)
    for start_s in {item.start_s for item in history.shown}:
        panel.axvline(start_s, color=_FAULT, linewidth=0.9)


def _name_faults(panel: Any, history: History) -> None:
    """Name each fault at its start; names that would touch go to the next row."""
    rows: list[float] = []
    width_s = max(history.load_end_s, 1.0) / 4
    for item in sorted(history.shown, key=lambda shown: shown.start_s):
        row = next((place for place, free_s in enumerate(rows) if free_s <= item.start_s), len(rows))
        rows[row : row + 1] = [item.start_s + width_s]
        panel.annotate(
            f"{item.kind}: {item.where}",
            (item.start_s, 1),
            xytext=(3, -3 - 12 * row),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8.5,
            va="top",
            color="#8a4a0b",
        )
