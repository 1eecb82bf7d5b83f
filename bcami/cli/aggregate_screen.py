"""What `bcami aggregate` prints about a run: the sums, who was left out and why, what it cost."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from bcami.cli.screen import SCREEN
from bcami.model.reasons import Reason, explain
from bcami.processes.aggregation_report import AggregateReport, LeftOut, half_hour_text
from bcami.units import energy_to_text

NAMED_MAX: Final = 6
"""Meters that are named in one line; the run's summary.json has all."""


def show_report(report: AggregateReport, absent: Sequence[str], skipped: Mapping[str, int], run: Path) -> None:
    """Print a run. `absent` are the meters that were asked for and have no reading at that time.

    `skipped` are the rows of the data that were no readings: reason → how many.
    """
    _show_rounds(report)
    SCREEN.line()
    for loss in report.lost:
        SCREEN.line(f"lost           {loss}")
    _show_left_out(report, absent)
    if skipped:
        SCREEN.line("rows skipped   " + ", ".join(f"{count} {reason}" for reason, count in skipped.items()))
    _show_costs(report)
    files = "transcript*.jsonl" if report.processes else "transcript.jsonl"
    SCREEN.line(f"what each saw  {run / files}")


def _show_rounds(report: AggregateReport) -> None:
    for before in report.summed_before:
        SCREEN.line(f"not summed again: {before.text}")
    rows = []
    for item in report.rounds:
        told = "-" if item.energy is None else energy_to_text(item.energy)
        true = "-" if item.true_energy is None else energy_to_text(item.true_energy)
        when = half_hour_text(item.first_s)
        took = (item.seconds, item.cpu_s)
        rows.append((item.round, when, item.reason.value, item.contributors, told, true, item.is_proven, *took))
    SCREEN.table(("round", "half-hour", "ended", "members", "sum kWh", "true kWh", "proven", "seconds", "CPU s"), rows)
    for item in report.rounds:
        if item.explanation:
            SCREEN.line(f"round {item.round} has no sum: {item.explanation}")


def _show_left_out(report: AggregateReport, absent: Sequence[str]) -> None:
    lines: dict[str, dict[str, set[int]]] = {}
    for item in report.left_out:
        lines.setdefault(_why(item), {}).setdefault(item.meter, set()).add(item.first_s)
    heading = "left out"
    if absent:
        why = "no reading of that time" if report.plan else "no reading of some half-hour, which would break the ring"
        SCREEN.line(f"{heading:<15}{_named(absent)}: {why}")
        heading = ""
    for why, times_of in lines.items():
        alike: dict[tuple[int, ...], list[str]] = {}
        for meter in sorted(times_of):
            alike.setdefault(tuple(sorted(times_of[meter])), []).append(meter)
        for times, meters in alike.items():
            shown = ", ".join(half_hour_text(time)[11:] for time in times[:NAMED_MAX])
            more = f" and {len(times) - NAMED_MAX} more" if len(times) > NAMED_MAX else ""
            when = "" if len(times) == len(report.rounds) else f" ({shown}{more})"
            SCREEN.line(f"{heading:<15}{_named(meters)}: {why}{when}")
            heading = ""


def _why(item: LeftOut) -> str:
    if item.is_trial:
        return "gone, as --dropouts asks"
    if item.reason is Reason.TIMED_OUT:
        return "did not answer"
    if item.reason is Reason.STALE:
        return "has forgotten that time, which is long before its newest sum"
    if item.reason is Reason.GROUP_TOO_ALIKE and not item.earlier:
        return "left out, so that the contributors are those of an earlier sum or differ enough"
    earlier = f" (round {item.earlier})" if item.earlier else ""
    return f"{explain(item.reason)}{earlier}"


def _named(meters: Iterable[str]) -> str:
    names = list(meters)
    shown = ", ".join(names[:NAMED_MAX])
    return shown if len(names) <= NAMED_MAX else f"{shown} and {len(names) - NAMED_MAX} more"


def _show_costs(report: AggregateReport) -> None:
    if report.plan is not None:
        plan = report.plan
        SCREEN.line(
            f"hidden from    everybody, while at most {plan.colluding_max} of {plan.members} meters collude: "
            f"{plan.degree} neighbours, threshold {plan.threshold}"
        )
    else:
        SCREEN.line(
            "hidden from    the supplier, while it has no help of a meter's neighbours or the LC (docs/deviations.md)"
        )
    SCREEN.line(
        f"each meter     {report.messages_per_meter:.2f} messages a round, "
        f"{report.bytes_sent_per_meter:,.0f} B sent, {report.bytes_received_per_meter:,.0f} B received, "
        f"{report.cpu_ms_per_meter:.2f} ms of CPU"
    )
    if report.setup is not None:
        setup = report.setup
        SCREEN.line(
            f"beforehand     {setup.agreements} key agreements and a roster of {setup.roster_bytes:,} B at each meter, "
            f"{setup.meter_ms:.2f} ms of CPU; {setup.seconds:.1f} s for all, {setup.cpu_s:.1f} s of CPU"
        )
    if report.head_end_cpu_ms:
        SCREEN.line(f"head-end       {report.head_end_cpu_ms:,.1f} ms of CPU a round")
    SCREEN.line(f"on the chain   {report.transactions} transactions, {report.transaction_bytes:,} B")
    heading = "turned down by"
    for party, reasons in report.noes.items():
        said = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        SCREEN.line(f"{heading:<15}{party}: {said}")
        heading = ""
