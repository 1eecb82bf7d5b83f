"""The folder that a fault run leaves: verdicts, figures, a plot, and everything that is needed to do it again."""

import csv
import json
import platform
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from bcami import __version__
from bcami.cli.fault_plot import plot_run
from bcami.cli.fault_run import Outcome
from bcami.cli.own_network import RunNetwork
from bcami.faults.verdict import Figures, Finding, History, Verdict, figures, judge, overall
from bcami.processes.cpu import cores
from bcami.processes.supervisor import services

MEANING: Final = {
    Verdict.PASS: "Everything that always must hold did hold, and so did all that this scenario expects.",
    Verdict.FAIL: "At least one expectation did not hold. The findings marked FAIL say which; the logs of the nodes "
    "and the timeline are in this folder, and the network is kept beside them.",
    Verdict.INCONCLUSIVE: "Nothing was found to be wrong, but the run proves less than it should: see the findings "
    "marked INCONCLUSIVE.",
}


def write_report(place: RunNetwork, source: Path, outcome: Outcome) -> dict[str, Any]:
    """Write the report into the run's folder and return its summary."""
    folder = place.run
    findings = judge(outcome.scenario, outcome.history)
    seen = figures(outcome.scenario, outcome.history)
    summary = _summary(source, outcome, findings, seen)
    (folder / "scenario.toml").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    _json(folder / "summary.json", summary)
    _json(folder / "history.json", msgspec.to_builtins(outcome.history))
    _json(folder / "evidence.json", [msgspec.to_builtins(item) for item in outcome.watch.evidence.values()])
    _lines(folder / "events.jsonl", [{"at_s": item.at_s, "what": item.what} for item in outcome.events])
    _lines(folder / "nodes.jsonl", [msgspec.to_builtins(look) for look in outcome.watch.looks])
    _series(folder / "series.csv", outcome.history)
    (folder / "report.md").write_text(_markdown(summary, outcome), encoding="utf-8")
    if not place.is_own:
        _copy_logs(place, folder / "logs")
    plot_run(folder / "plot.png", outcome.scenario, outcome.history, outcome.watch.looks, summary["verdict"])
    return summary


def _summary(source: Path, outcome: Outcome, findings: Sequence[Finding], seen: Figures) -> dict[str, Any]:
    scenario, history = outcome.scenario, outcome.history
    return {
        "scenario": source.stem,
        "title": scenario.title,
        "claim": scenario.claim,
        "verdict": str(overall(findings)),
        "nodes": scenario.nodes,
        "seed": scenario.seed,
        "findings": [msgspec.to_builtins(item) for item in findings],
        "figures": {
            **msgspec.to_builtins(seen),
            "during_percent": round(seen.during_percent, 1),
            "after_percent": round(seen.after_percent, 1),
            "latency_ms": _latencies(outcome),
        },
        "faults": [msgspec.to_builtins(item) for item in history.shown],
        "reports": {"sent": history.sent, "committed": history.committed, "rejected": history.rejected},
        "evidence": {name: len(held) for name, held in history.evidence.items()},
        "evidence_recorded": history.recorded,
        "in_step_s": history.in_step_s,
        "others_percent": history.others_percent,
        "again": f"bcami fault run {shlex.quote(str(source))} --nodes {scenario.nodes}",
        "machine": {
            "bcami": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": cores(),
        },
    }


def _latencies(outcome: Outcome) -> dict[str, int | None]:
    """Return the highest p99 of half a second before, during and after the faults."""
    history = outcome.history
    first = min((item.start_s for item in history.shown), default=0.0)
    last = max((item.end_s or 0.0 for item in history.shown), default=0.0)
    spans = {"before": (1.0, first), "during": (first, last), "after": (last + 1.0, history.load_end_s)}
    found: dict[str, int | None] = {}
    for name, (start_s, end_s) in spans.items():
        inside = [item for item in history.samples if start_s <= item.at_s <= end_s]
        middle = sorted(item.p50_ms for item in inside if item.p50_ms is not None)
        found[f"{name}_p50"] = middle[len(middle) // 2] if middle else None
        found[f"{name}_p99_max"] = max((item.p99_ms for item in inside if item.p99_ms is not None), default=None)
    return found


def _copy_logs(place: RunNetwork, folder: Path) -> None:
    """Keep the logs of a network that goes on; those of an own one are kept when it is removed."""
    folder.mkdir()
    for service in services(place.home, place.network):
        if service.log.exists():
            shutil.copyfile(service.log, folder / f"{service.name}.log")


def _series(path: Path, history: History) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["at_s", "committed", "offered", "p50_ms", "p99_ms"])
        writer.writerows(
            [item.at_s, item.committed, item.offered, item.p50_ms, item.p99_ms] for item in history.samples
        )


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


_FILES: Final = (
    "`scenario.toml` is the scenario, `summary.json` the verdict and figures, `series.csv` the load, `nodes.jsonl`\n"
    "what each node said of itself, `evidence.json` pairs of contradicting statements, `sent/` the readings that were\n"
    "sent (a data set for `bcami reconcile`), `logs/` the logs. The seed fixes which nodes are drawn and what liars\n"
    "draw; the times of a live run are the machine's."
)


def _markdown(summary: dict[str, Any], outcome: Outcome) -> str:
    seen, sent = summary["figures"], summary["reports"]
    rates = (
        f"{seen['before_per_s']:g}, {seen['during_per_s']:g} ({seen['during_percent']:g} %), "
        f"{seen['after_per_s']:g} ({seen['after_percent']:g} %)"
    )
    rows = [
        f"| {item['expectation']} | {item['verdict']} | {item['wanted']} | {item['found']} |"
        for item in summary["findings"]
    ]
    parts = (
        f"# {summary['title']}: {summary['verdict']}",
        f"Claim: {summary['claim']}",
        MEANING[Verdict(summary["verdict"])],
        "![throughput, latency and views over time](plot.png)",
        "\n".join(["| expectation | verdict | wanted | found |", "|---|---|---|---|", *rows]),
        "## Figures",
        "\n".join(
            (
                f"- throughput before, during, after: {rates} reports/s",
                f"- longest time without a commit: {seen['pause_s']:g} s, from {seen['pause_at_s']:g} s on",
                f"- view changes: {seen['view_changes']}",
                f"- reports sent {sent['sent']}, committed {sent['committed']}",
                f"- latency: {', '.join(f'{name} {value} ms' for name, value in seen['latency_ms'].items())}",
            )
        ),
        "## Timeline",
        "\n".join(["```", *(f"{item.at_s:7.2f} s  {item.what}" for item in outcome.events), "```"]),
        "## Again",
        f"```\n{summary['again']}\n```",
        _FILES,
    )
    return "\n\n".join(parts) + "\n"
