"""simulate --costs: messages and bytes of agreement against the number of nodes, as CSV and as a plot."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    from bcami.faults.simulator.costs import Cost

TURNS: Final = 6
REPORTS: Final = 100
VOTES: Final = ("prepare", "commit", "checkpoint")
_COLOURS: Final = {
    "prepare": "#1f5fa8",
    "commit": "#5b9bd5",
    "checkpoint": "#9dc3e6",
    "pre-prepare": "#d9822b",
    "certificate gossip": "#f2b872",
    "endorsement": "#8fbf7f",
    "batch": "#4f7f45",
    "status": "#b0b0b0",
}
_FIT: Final = "#222222"


def simulate_costs(out: Path) -> None:
    """Measure every size, write costs.csv, costs.png and costs.svg, and show the fit."""
    from bcami.faults.simulator.costs import SIZES, fit_square, measure

    costs: list[Cost] = []
    with SCREEN.progress("simulate --costs") as progress:
        for nodes in SIZES:
            progress(f"{nodes} nodes")
            costs += measure(nodes, TURNS, REPORTS)
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "costs.csv", costs)
    a, r2 = fit_square(votes_per_block(costs))
    plot_costs(out, costs)
    SCREEN.line(f"votes per block = {a:.3f} n² (R² {r2:.5f}); see {out}/costs.csv, costs.png, costs.svg")
    per_transaction = dict(totals(costs))
    SCREEN.result(
        "bcami/simulate/costs/1",
        {"votes_per_block_over_n2": round(a, 4), "r2": round(r2, 6), "bytes_per_transaction": per_transaction},
    )


def write_csv(path: Path, costs: "Sequence[Cost]") -> None:
    """Write a line for each size and kind."""
    from bcami.faults.simulator.costs import expected

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((
            "nodes", "kind", "messages", "expected_messages", "bytes", "blocks", "batches", "transactions",
            "messages_per_block", "messages_per_transaction", "bytes_per_transaction",
        ))  # fmt: skip
        for item in costs:
            formula = expected(item.kind, item.nodes, item.blocks, item.batches)
            writer.writerow((
                item.nodes, item.kind, item.messages, "" if formula is None else formula, item.bytes,
                item.blocks, item.batches, item.transactions, f"{item.messages_per_block:.3f}",
                f"{item.messages_per_transaction:.4f}", f"{item.bytes_per_transaction:.1f}",
            ))  # fmt: skip


def votes_per_block(costs: "Sequence[Cost]") -> list[tuple[int, float]]:
    """Return (n, prepares, commits and checkpoints for each block): the part that grows with n²."""
    found: dict[int, float] = defaultdict(float)
    for item in costs:
        if item.kind in VOTES:
            found[item.nodes] += item.messages_per_block
    return sorted(found.items())


def totals(costs: "Sequence[Cost]") -> list[tuple[int, float]]:
    """Return (n, bytes for each transaction)."""
    found: dict[int, float] = defaultdict(float)
    for item in costs:
        found[item.nodes] += item.bytes_per_transaction
    return [(nodes, round(total, 1)) for nodes, total in sorted(found.items())]


def plot_costs(out: Path, costs: "Sequence[Cost]") -> None:
    """Draw messages per block and bytes per transaction against n."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.6), layout="constrained")
    _messages(left, costs)
    _bytes(right, costs)
    for panel in (left, right):
        panel.grid(visible=True, color="#e6e6e6", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlabel("nodes n = 3f + 1")
        panel.set_xticks(sorted({item.nodes for item in costs}))
    per_block = costs[0].transactions / costs[0].blocks
    figure.suptitle(
        f"What agreement costs without faults   ({per_block:.0f} transactions in a block, one reading each)",
        x=0.01,
        ha="left",
        fontsize=13,
        fontweight="bold",
    )
    figure.savefig(out / "costs.png", dpi=120)
    figure.savefig(out / "costs.svg")
    plt.close(figure)


def _messages(panel: Any, costs: "Sequence[Cost]") -> None:
    from bcami.faults.simulator.costs import fit_square

    points = votes_per_block(costs)
    a, r2 = fit_square(points)
    sizes = [nodes for nodes, _ in points]
    smooth = [sizes[0] + (sizes[-1] - sizes[0]) * step / 100 for step in range(101)]
    panel.plot(
        smooth, [a * n * n for n in smooth], "--", color=_FIT, linewidth=1.2, label=f"fit: {a:.2f} n²  (R² = {r2:.4f})"
    )
    panel.plot(*zip(*points, strict=True), "o", color=_FIT, markersize=6, label="votes together")
    for kind in ("commit", "checkpoint", "prepare", "batch"):
        rows = [(item.nodes, item.messages_per_block) for item in costs if item.kind == kind]
        style = "x" if kind == "checkpoint" else "."
        name = {"batch": "batch, pre-prepare, certificate: n − 1 each", "prepare": "prepare: (n − 1)²"}.get(
            kind, f"{kind}: n (n − 1)"
        )
        panel.plot(*zip(*rows, strict=True), f"{style}-", color=_COLOURS[kind], linewidth=1.1, markersize=7, label=name)
    panel.set_ylabel("messages for each block, all nodes together")
    panel.set_ylim(bottom=0)
    panel.set_title("Votes grow with n²", loc="left", fontsize=11)
    panel.legend(loc="upper left", fontsize=9, frameon=True, framealpha=0.9)


def _bytes(panel: Any, costs: "Sequence[Cost]") -> None:
    sizes = sorted({item.nodes for item in costs})
    kinds = [kind for kind in reversed(_COLOURS) if any(item.kind == kind for item in costs)]
    rows = {
        kind: [sum(item.bytes_per_transaction for item in costs if (item.nodes, item.kind) == (n, kind)) for n in sizes]
        for kind in kinds
    }
    rows = {kind: [value / 1000 for value in values] for kind, values in rows.items()}
    panel.stackplot(sizes, *rows.values(), colors=[_COLOURS[kind] for kind in rows], labels=list(rows))
    panel.set_ylabel("kB for each committed transaction, all nodes together")
    panel.set_xlim(sizes[0], sizes[-1])
    panel.set_ylim(bottom=0)
    panel.set_title("Batching shares the votes among a block's transactions", loc="left", fontsize=11)
    handles, labels = panel.get_legend_handles_labels()
    panel.legend(handles[::-1], labels[::-1], loc="upper left", fontsize=9, frameon=True, framealpha=0.9)
