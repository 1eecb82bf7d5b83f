"""What a number of meters needs: cores, bandwidth, storage and clusters, from unit costs that were measured here.

Linear by design. A cluster is one channel: every node of it checks, orders and stores everything, so more nodes add
trust, not capacity; more meters need more clusters side by side. The process of a node uses one core for nearly all
of its work, so a cluster carries what one core of a node carries.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from bcami.errors import InputError
from bcami.report.document import Cell, Chart, Column, Report, Row, Section, Series, Setting, Table, paragraphs
from bcami.report.units import UnitCosts, at_readings, unit_table

YEAR_S: Final = 365 * 86_400
_INTERVAL: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_HEADROOM: Final = 0.5


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked for."""

    meters: float
    interval_s: float
    """Length of the interval of a reading."""
    readings: int
    """Readings in a report."""
    utilisation: float = _HEADROOM
    """Share of a core that is planned with; the rest is for peaks and catching up."""
    peak: float = 2.0
    """Rate of the worst minutes over the mean: meters do not report evenly."""

    @property
    def reports_per_second(self) -> float:
        return self.meters / (self.interval_s * self.readings)


@dataclass(frozen=True, slots=True)
class Plan:
    """What it needs."""

    reports_per_second: float
    peak_per_second: float
    cluster_per_second: float
    """Reports that one cluster carries at the planned utilisation."""
    clusters: int
    node_cores: float
    mdms_cores: float
    node_mbps: float
    """Sent by each node in the peak, to its peers."""
    intake_mbps: float
    """Received by each node from meters in the peak."""
    ledger_tb_year: float
    """Of each node."""
    all_ledgers_tb_year: float
    mdms_tb_year: float


def plan(demand: Demand, unit: UnitCosts) -> Plan:
    """Return what the demand needs at these unit costs."""
    peak = demand.reports_per_second * demand.peak
    cluster = demand.utilisation * 1e6 / unit.node_us
    clusters = max(1, math.ceil(peak / cluster))
    each = peak / clusters
    yearly = demand.reports_per_second * YEAR_S
    ledger = yearly / clusters * unit.ledger_bytes / 1e12
    return Plan(
        reports_per_second=demand.reports_per_second,
        peak_per_second=peak,
        cluster_per_second=cluster,
        clusters=clusters,
        node_cores=peak * unit.node_us * unit.nodes / 1e6 / demand.utilisation,
        mdms_cores=peak * unit.mdms_us / 1e6 / demand.utilisation,
        node_mbps=each * unit.sent_bytes * 8 / 1e6,
        intake_mbps=each / unit.nodes * unit.request_bytes * 8 / 1e6,
        ledger_tb_year=ledger,
        all_ledgers_tb_year=ledger * clusters * unit.nodes,
        mdms_tb_year=yearly * demand.readings * unit.mdms_bytes / 1e12,
    )


def parse_meters(text: str) -> float:
    """Return a number of meters such as `30e6` or `2_000_000`. Raises InputError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and 1 <= value <= 1e10):
        raise InputError(f"not a number of meters: {text!r}", where="--meters", do="say 30e6, or 2000000")
    return value


def parse_interval_s(text: str) -> float:
    """Return the seconds in `30m`, `15m`, `1h`, `900s` or `1d`. Raises InputError."""
    match = _INTERVAL.fullmatch(text.strip().lower())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 1 <= seconds <= _SECONDS["d"]:
        raise InputError(f"not an interval: {text!r}", where="--interval", do="say 30m, 15m, 1h or 900s; a day at most")
    return seconds


# The report.


def capacity_report(demand: Demand, units: Sequence[UnitCosts], setting: Setting) -> Report:
    """Return the plan as a report, beside plans with other numbers of readings in a report. Raises InputError."""
    unit = at_readings(units, demand.readings)
    chosen = plan(demand, unit)
    counts = sorted({*(item.readings for item in units), demand.readings})
    others = [(count, plan(replace(demand, readings=count), at_readings(units, count))) for count in counts]
    return Report(
        "capacity",
        f"What {_count(demand.meters)} meters need",
        (
            (
                f"{_count(demand.meters)} meters with a reading every {_duration(demand.interval_s)}, "
                f"{demand.readings} to a report, make {chosen.reports_per_second:,.0f} reports a second, "
                f"{chosen.peak_per_second:,.0f} in the peak."
            ),
            (
                f"On cores like this machine's that takes {chosen.clusters} clusters of {unit.nodes} nodes, "
                f"{chosen.node_cores:,.0f} cores for nodes and {chosen.mdms_cores:,.0f} for the MDMS, and "
                f"{chosen.all_ledgers_tb_year:,.1f} TB a year of ledgers on all nodes together, before pruning."
            ),
            "The plan is a line through measured unit costs, no load test of that size: see the assumptions.",
        ),
        _METHOD,
        setting,
        (
            Section(
                "plan", "The plan", (), (_plan_table(demand, chosen, unit), _readings_table(others), _chart(others))
            ),
            Section("units", "Measured unit costs", (), (unit_table([at_readings(units, count) for count in counts]),)),
            Section("assumptions", "Assumptions", (), (_assumptions(demand, unit),)),
        ),
    )


_METHOD: Final = paragraphs(
    """
    Unit costs were measured on this machine: CPU time of whole node and MDMS processes in a saturated cluster; bytes
    between nodes and growth of ledgers by counting, on real cores; the growth of the MDMS's store from its file. The
    plan multiplies them; every step is in the tables.

    CPU time includes what other processes of the machine do to caches and clocks, and excludes their own time.
    """
)


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


def _plan_table(demand: Demand, found: Plan, unit: UnitCosts) -> Table:
    rows: tuple[tuple[str, str, Cell, str], ...] = (
        ("meters", "count", demand.meters, "asked for"),
        ("reports in the mean", "1/s", found.reports_per_second, "meters / (interval · readings per report)"),
        ("reports in the peak", "1/s", found.peak_per_second, f"mean · {demand.peak:g}"),
        (
            "reports that a cluster carries",
            "1/s",
            found.cluster_per_second,
            f"{demand.utilisation:.0%} of one core / CPU of a node for a report",
        ),
        ("clusters (channels)", "count", found.clusters, "peak / what a cluster carries, rounded up"),
        ("nodes", "count", found.clusters * unit.nodes, f"clusters · {unit.nodes}"),
        ("cores for nodes", "count", found.node_cores, "peak · CPU · nodes of a cluster / utilisation"),
        ("cores for the MDMS", "count", found.mdms_cores, "peak · CPU / utilisation; blocks of clusters in parallel"),
        ("sent by each node to peers", "Mb/s", found.node_mbps, "peak of its cluster · bytes, TLS not counted"),
        (
            "received by each node from meters",
            "Mb/s",
            found.intake_mbps,
            "peak of its cluster / nodes · bytes, HTTP not counted",
        ),
        ("ledger of each node", "TB/year", found.ledger_tb_year, "mean of its cluster · growth, nothing pruned"),
        ("all ledgers", "TB/year", found.all_ledgers_tb_year, "ledger · nodes"),
        ("MDMS store", "TB/year", found.mdms_tb_year, "readings · growth of the store"),
    )
    return Table(
        "capacity_plan",
        "What is needed",
        (
            Column("what", "What"),
            Column("unit", "Unit"),
            Column("value", "Needed", "measured"),
            Column("how", "How it follows"),
        ),
        tuple(Row(row) for row in rows),
        text="Each line multiplies measured unit costs by what is asked for; the last column says how.",
    )


def _readings_table(plans: list[tuple[int, Plan]]) -> Table:
    return Table(
        "capacity_by_readings",
        "The same with other numbers of readings in a report",
        (
            Column("readings", "Readings per report", "number"),
            Column("reports_per_second", "Reports/s", "number"),
            Column("clusters", "Clusters", "measured"),
            Column("node_cores", "Cores for nodes", "measured"),
            Column("mdms_cores", "Cores for the MDMS", "measured"),
            Column("all_ledgers_tb_year", "Ledgers, TB/year", "measured"),
        ),
        tuple(
            Row(
                (
                    count,
                    round(item.reports_per_second, 1),
                    item.clusters,
                    item.node_cores,
                    item.mdms_cores,
                    item.all_ledgers_tb_year,
                )
            )
            for count, item in plans
        ),
        text="More readings in a report cost latency: 48 half-hours are a day, and the MDMS sees them when it is over.",
    )


def _chart(plans: list[tuple[int, Plan]]) -> Chart:
    names = tuple(str(count) for count, _ in plans)
    return Chart(
        "capacity_cores",
        "Cores needed, by readings in a report",
        "bars",
        "readings in a report",
        "cores (log)",
        (
            Series("nodes", "measured", names, tuple(item.node_cores for _, item in plans)),
            Series("MDMS", "number", names, tuple(item.mdms_cores for _, item in plans)),
        ),
        caption="At the planned utilisation, in the peak; nodes of all clusters together.",
        y_log=True,
    )


def _assumptions(demand: Demand, unit: UnitCosts) -> Table:
    rows = (
        ("cores", "like this machine's; see the last section for which"),
        ("nodes of a cluster", f"{unit.nodes}, so that {(unit.nodes - 1) // 3} may be faulty"),
        ("work of a node", "on one core: ordering and signature checks do not spread over cores in this version"),
        ("utilisation", f"{demand.utilisation:.0%} of a core in the peak (--utilisation)"),
        ("peak over mean", f"{demand.peak:g} (--peak): meters report at random within the interval"),
        ("clusters", "share nothing; a meter belongs to one; the MDMS follows all of them"),
        ("sessions", "opened rarely: one registration for many reports is not in the figures"),
        ("retries", "none; a lost or refused report costs again"),
        ("storage", "no replication below the ledger, nothing pruned, no backups; compression none"),
        ("bandwidth", "payload of messages between nodes and of requests; TLS, TCP, IP and HTTP come on top"),
        ("blocks", "as large as in the measured runs; in larger ones a report costs less CPU time and fewer bytes"),
        ("growth", "linear: world state and index grow with meters and reports as in the measured run"),
    )
    return Table(
        "capacity_assumptions",
        "What the plan takes for granted",
        (Column("assumption", "Assumption"), Column("value", "Value")),
        tuple(Row(row) for row in rows),
        text="Where one of these is not so, the plan is off by as much.",
    )
