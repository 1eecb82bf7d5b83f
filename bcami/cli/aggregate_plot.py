"""The plot of what private aggregation costs against the size of the group."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bcami.ami.aggregation_costs import GroupCost, RoundCost

_LINES: Final[tuple[tuple[str, str, str, float, Callable[[GroupCost], RoundCost | None]], ...]] = (
    ("masked", "#8db4dd", "-", 4.0, lambda cost: cost.masked),
    ("masked, with agreeing on keys (once for a roster)", "#1f5fa8", ":", 1.8, lambda cost: cost.masked_first),
    ("masked, 5 % gone", "#d9822b", "--", 1.6, lambda cost: cost.masked_dropouts),
    ("forming the ring (once for its members)", "#1a7f37", ":", 1.6, lambda cost: cost.ring_setup),
    ("ring", "#1a7f37", "-", 1.6, lambda cost: cost.ring),
)
"""Name, colour, style, width: the wide line shows where others lie on it."""
_PANELS: Final[tuple[tuple[str, Callable[[RoundCost], float]], ...]] = (
    ("messages that a meter sends", lambda cost: cost.messages_sent),
    ("bytes that a meter sends (log)", lambda cost: cost.bytes_sent),
    ("CPU time of a meter, ms (log)", lambda cost: cost.meter_ms),
    ("CPU time of the head-end (masked) or supplier (ring), ms (log)", lambda cost: cost.head_end_ms),
)
_NOTES: Final = """\
masked: up to about 100 members everybody masks with everybody, above that with 70 to 90 neighbours, hence the bend. \
The wide line lies below others.
ring: a round goes through as many hops as there are members, one after the other, which CPU time does not show; one \
member that is gone ends it without a sum."""


def plot_costs(path: Path, costs: Sequence[GroupCost]) -> None:
    """Draw the costs of one round into a PNG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, panels = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for panel, (title, value) in zip(panels.flat, _PANELS, strict=True):
        for name, colour, style, width, choose in _LINES:
            _line(panel, costs, choose, value, label=name, color=colour, linestyle=style, linewidth=width)
        panel.set_xscale("log")
        if "log" in title:
            panel.set_yscale("log")
            low, high = panel.get_ylim()
            if high < 1000 * low:
                panel.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        panel.set_title(title, loc="left", fontsize=11)
        panel.set_xlabel("members of the group (log)")
        panel.set_xticks([cost.members for cost in costs], [f"{cost.members:,}" for cost in costs], fontsize=8)
        panel.minorticks_off()
        panel.grid(visible=True, color="#e6e6e6", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels.flat[0].set_ylim(bottom=0)
    lines, names = panels.flat[0].get_legend_handles_labels()
    look = {"fontsize": 9, "title_fontsize": 9, "alignment": "left", "frameon": False}
    figure.legend(lines, names, title=_NOTES, loc="outside lower left", ncols=3, **look)
    title = "One round of private aggregation: in memory, with real keys and messages; no HTTP, no blocks"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _line(
    panel: Any,
    costs: Sequence[GroupCost],
    choose: Callable[[GroupCost], RoundCost | None],
    value: Callable[[RoundCost], float],
    **look: str | float,
) -> None:
    points = [(cost.members, value(chosen)) for cost in costs if (chosen := choose(cost)) is not None]
    panel.plot([x for x, _ in points], [y for _, y in points], marker=".", **look)
