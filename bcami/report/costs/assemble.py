"""Puts the parts of the cost report together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from bcami.report.costs import aggregation, backends, bc_ami, kms, phases, rekeying, related
from bcami.report.costs.kms_running import measure_kms
from bcami.report.costs.primitives import measure_asymmetric, measure_symmetric
from bcami.report.costs.strategies import strategy_tables
from bcami.report.document import Report, Section, Setting, paragraphs
from bcami.report.measuring import Effort
from bcami.report.stand import Stand
from bcami.report.units import UnitCosts, unit_costs

TITLE: Final = "What a metering backend costs: the papers' figures, their formulas, and measurements of this system"


@dataclass(slots=True)
class Parts:
    """What the parts find, by name: later ones use what earlier ones measured."""

    effort: Effort
    scratch: Path
    """A folder for what is measured on disk."""
    show: Callable[[str], None]
    """Tells what is being done within a step."""
    found: dict[str, Any] = field(default_factory=dict)


Step = Callable[[Parts], list[Section]]


def _bc_ami(parts: Parts) -> list[Section]:
    stand = Stand(seed=parts.effort.seed)
    parts.found["requests"] = {count: len(bc_ami.one_report(stand, count)[1]) for count in phases.READINGS}
    parts.found["seals"] = {count: bc_ami.measure_seal(stand, count, parts.effort) for count in phases.READINGS}
    costs = {name: bc_ami.measure_meter(stand, name, parts.effort) for name in bc_ami.METERS}
    others = bc_ami.measure_others(stand, parts.effort)
    parts.found["meter"] = costs[bc_ami.METERS[0]]
    parts.found["others"] = others
    return [bc_ami.time_section(costs, others), bc_ami.size_section(stand)]


def _kms(parts: Parts) -> list[Section]:
    symmetric = measure_symmetric(parts.effort)
    parts.found["symmetric"] = symmetric
    running, rekeyed = measure_kms(parts.effort)
    more = strategy_tables(symmetric, measure_asymmetric(parts.effort), rekeyed)
    return [kms.kms_section(symmetric, running), rekeying.rekeying_section(rekeyed, more)]


def _phases(parts: Parts) -> list[Section]:
    found = phases.measure_desk(parts.effort, parts.scratch, parts.show)
    parts.found["desk"] = found
    return [phases.phases_section(found)]


def _backends(parts: Parts) -> list[Section]:
    found = backends.measure_backends(parts.effort)
    return [
        backends.backends_section(found),
        related.related_section(found, parts.found["meter"], parts.found["others"]),
    ]


def _aggregation(parts: Parts) -> list[Section]:
    return [aggregation.aggregation_section(aggregation.measure_aggregation(parts.effort, parts.show))]


STEPS: Final[tuple[tuple[str, Step], ...]] = (
    ("meters", _bc_ami),
    ("keys", _kms),
    ("private aggregation", _aggregation),
    ("phases of a transaction", _phases),
    ("crypto libraries", _backends),
)
"""What is done, in the order of the report, each with what progress calls it."""


def cost_report(
    effort: Effort,
    setting: Setting,
    scratch: Path,
    show: Callable[[int, int, str], None],
    more: Sequence[tuple[str, Step]] = (),
) -> Report:
    """Measure, and return the report. `show` gets (steps done, steps in all, what is being done).

    `more` are steps that need what a command has: a network that runs, a data set. They come before the last ones.
    """
    steps = (*STEPS, *more)
    sections: list[Section] = []
    parts = Parts(effort, scratch, lambda _: None)
    for done, (name, step) in enumerate(steps):
        show(done, len(steps), name)
        parts.show = partial(_within, show, done, len(steps), name)
        sections += step(parts)
    return Report("costs", TITLE, _summary(parts), METHOD, setting, tuple(sections))


def _within(show: Callable[[int, int, str], None], done: int, of: int, name: str, what: str) -> None:
    show(done, of, f"{name}: {what}")


METHOD: Final = paragraphs(
    """
    Times of operations are CPU time of the measuring thread, so that other processes of the machine disturb them
    little. A sample is as many calls as take about a millisecond; the garbage collector is off meanwhile. Each figure
    is the median of the samples; below it stand the lower and the upper quartile and the number of samples. Where
    wall-clock time is given (latencies, throughput), the text says so, and such figures are as good as the machine
    was idle.

    Everything measured is the code that runs in meters, nodes and the MDMS; nothing is a stand-in made for the report,
    except where a row says so. Sizes are lengths of bytes that this code makes.

    Columns of papers hold what the paper prints, also where it is wrong; the next column follows from the paper's own
    formula, and a note says where the two differ. Published times come from other hardware and do not compare with
    ours as figures.

    Two runs with the same seed and versions differ only in measured cells.
    """
)


def measure_for_units(parts: Parts) -> None:
    """Measure what unit costs need of meters and of nodes; the running cluster is the caller's."""
    stand = Stand(seed=parts.effort.seed)
    parts.found["requests"] = {count: len(bc_ami.one_report(stand, count)[1]) for count in phases.READINGS}
    parts.found["seals"] = {count: bc_ami.measure_seal(stand, count, parts.effort) for count in phases.READINGS}
    parts.found["desk"] = phases.measure_desk(parts.effort, parts.scratch, parts.show, (phases.BASE,))


def units_of(parts: Parts) -> list[UnitCosts]:
    """Return the unit costs, once meters, phases and the running cluster were measured."""
    found = parts.found
    seals = {count: spent.median for count, spent in found["seals"].items()}
    return unit_costs(found["desk"], found["live"], seals, found["requests"])


def _summary(parts: Parts) -> tuple[str, ...]:
    found = parts.found
    meter = found["meter"]
    one, day = phases.base_cost(found["desk"]), phases.base_cost(found["desk"], phases.READINGS[-1])
    live = next((run for run in found.get("live", ()) if run.readings == 1), None)
    sentences = paragraphs(
        f"""
        A meter spends {meter.whole.median / 1000:.3f} ms of CPU time on one report on this machine,
        {meter.signature.median / 1000:.3f} ms of it on the signature; BC-AMI prints 8.02 to 20.59 ms, on other
        hardware.

        BC-AMI's 1346 bits add up, but are a list of what a meter stores; what a report sends is in a table of its
        own. The paper's five London sums are those of files that a spreadsheet had cut.

        Of the KMS paper's tables, 8, 9 and 11 follow from its formulas, and 13 does with bits where the text says
        bytes; an end of 7, the upper end of multicast in 10 and nearly all of 12 do not.

        Among {one.nodes} nodes a report of one reading costs each {one.bytes_per_transaction:.0f} bytes to send; in a
        report of {day.readings} a reading costs {day.bytes_per_transaction / day.readings:.0f}.
        """
    )
    if live is None:
        return sentences
    return (
        *sentences,
        (
            f"On a running cluster of {live.nodes} nodes a report takes {live.cpu_us['nodes'] / 1000:.2f} ms of CPU "
            f"time of all nodes together, and {live.cpu_us['mdms'] / 1000:.2f} ms of the MDMS's."
        ),
    )
