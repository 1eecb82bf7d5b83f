"""What the processes of a running cluster take, and how long a report is on its way: wall-clock time and CPU by "
"role.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bcami.ami.statistics import Latencies
from bcami.report.document import Chart, Column, Measured, Row, Section, Series, Table
from bcami.report.measuring import exact, quartiles

_PERCENTS: Final = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9)


@dataclass(frozen=True, slots=True)
class Probe:
    """One report through an idle cluster: milliseconds from its making until each thing was seen."""

    left: float
    """The request leaves the meters' process."""
    accepted: float
    """The node has taken the report over and said so."""
    endorsed: float
    """A batch certificate was seen."""
    executed: float
    """Ordered and executed."""
    certified: float
    """Durable and certified by a strong quorum."""
    receipt: float
    """The meter has verified its receipt."""
    released: float
    stored: float
    """The MDMS has verified, decrypted and stored it."""


@dataclass(frozen=True, slots=True)
class GatewayCost:
    """What a node's gateway takes for a request with so many reports."""

    reports: int
    request_bytes: int
    cpu_us: float
    """For one report."""
    answer_ms: Measured
    """Wall-clock time of the whole request."""


@dataclass(frozen=True, slots=True)
class LiveRun:
    """One shape of load on one cluster."""

    nodes: int
    readings: int
    meters: int
    seconds: float
    committed: int
    full: Latencies
    half_per_second: float
    half: Latencies | None
    """At half the saturated rate, open loop; None where it was not measured."""
    cpu_us: dict[str, float]
    """By role for a transaction: nodes (all together), mdms, load (the meters and their client)."""
    mdms_bytes: float = 0.0
    """Growth of the MDMS's store for a reading, its log included."""

    @property
    def per_second(self) -> float:
        return self.committed / self.seconds


@dataclass(frozen=True, slots=True)
class LiveFound:
    """Everything that was measured on running clusters."""

    runs: tuple[LiveRun, ...]
    probes: tuple[Probe, ...] = ()
    gateway: tuple[GatewayCost, ...] = ()


def live_section(found: LiveFound, load: str, units: Table) -> Section:
    """Return throughput, latency and CPU by role of live clusters."""
    runs = found.runs
    base = next(run for run in runs if run.readings == 1)
    by_nodes = [run for run in runs if run.readings == 1]
    return Section(
        "live",
        "Beyond the papers: the running cluster",
        (
            (
                "Nodes and the MDMS are processes of their own on this machine, with TLS between them, HTTP in front "
                "and durable stores; the meters are one process more. All of them share its cores, so throughput is "
                "that of the whole machine, not of a cluster of machines. CPU time by role is the figure to plan "
                "with."
            ),
            (
                f"Latencies and throughput are wall-clock time: {load}. A report costs less CPU time in larger "
                "blocks, and blocks grow with the throughput: so on a busy or slow machine a report costs more than "
                "on an idle one."
            ),
        ),
        (
            _probe_table(found.probes, base),
            _gateway_table(found.gateway, base),
            _throughput_table(runs),
            _latency_table(runs),
            _latency_chart(base),
            _role_chart(by_nodes),
            units,
        ),
    )


_PHASES: Final = (
    ("meter", "", "left", "seals, signs and stores the report; its request leaves"),
    ("gateway", "left", "accepted", "HTTP, decoding, admission: id, HID, session, hash, signature, replay; the answer"),
    ("endorsement", "accepted", "endorsed", "the batch goes to all nodes, a strong quorum endorses it"),
    ("ordering", "endorsed", "executed", "three phases of PBFT, execution at each node"),
    ("commit", "executed", "certified", "a durable write, checkpoint votes, the block certificate"),
    ("release", "certified", "released", "a rule, not a cost: two seconds after its certificate by default"),
    ("MDMS", "released", "stored", "pulls, verifies, decrypts, validates, stores"),
)
"""A phase, the moments of a probe between which it lies, and what happens."""


def _probe_table(probes: Sequence[Probe], base: LiveRun) -> Table:
    method = (
        f"One report at a time through {base.nodes} idle nodes; two nodes were asked every few milliseconds, and the "
        "MDMS, which comes seconds later, every 20. A node may go on before it has answered: that counts for the "
        "gateway."
    )
    rows = []
    for name, begin, end, what in _PHASES:
        until = [float(getattr(item, end)) for item in probes]
        since = [float(getattr(item, begin)) if begin else 0.0 for item in probes]
        took = [max(0.0, late - early) for late, early in zip(until, since, strict=True)]
        rows.append(Row((name, quartiles(took), quartiles(until), what), method))
    receipts = quartiles(item.receipt for item in probes)
    rows.insert(
        5, Row(("receipt", None, receipts, "the meter has verified it; the release does not wait for that"), method)
    )
    return Table(
        "live_phases",
        "A report's way through an idle cluster, by phase",
        (
            Column("phase", "Phase"),
            Column("took_ms", "Took, ms", "measured"),
            Column("until_ms", "Over after, ms", "measured"),
            Column("what", "What happens"),
        ),
        tuple(rows),
        text="Wall-clock time; the second column counts from the moment at which the report was made.",
    )


def _gateway_table(costs: Sequence[GatewayCost], base: LiveRun) -> Table:
    method = (
        "Reports whose outcome is known are sent again: HTTP, decoding, looking the id up and encoding the answer with "
        "its receipts, but no checks and no consensus. CPU time of the node's process, what it takes by itself left "
        "out."
    )
    return Table(
        "live_gateway",
        "The gateway alone: CPU time of a node for a report",
        (
            Column("reports", "Reports in a request", "measured"),
            Column("bytes", "Bytes of the request", "measured"),
            Column("cpu_us", "CPU for a report, µs", "measured"),
            Column("ms", "Whole request, ms", "measured"),
        ),
        tuple(Row((item.reports, item.request_bytes, item.cpu_us, item.answer_ms), method) for item in costs),
        text=f"The courier of a fleet puts many reports into a request when many wait. All {base.nodes} nodes together "
        "took what the next table says; the phases behind the gateway are in the section on phases.",
    )


def _throughput_table(runs: Sequence[LiveRun]) -> Table:
    rows = tuple(
        Row(
            (
                run.nodes,
                run.readings,
                exact(round(run.per_second, 1)),
                exact(round(run.per_second * run.readings, 1)),
                *(exact(run.cpu_us[role]) for role in ("load", "nodes", "mdms")),
                exact(round(run.mdms_bytes, 1)),
            ),
            f"{run.committed} reports of {run.meters} meters in {run.seconds:.1f} s, closed loop.",
            "The MDMS lags behind by the time of release, so its CPU time is that of all that it stored, warm-up "
            "included.",
        )
        for run in runs
    )
    return Table(
        "live_throughput",
        "Throughput when saturated, and CPU time by role",
        (
            Column("nodes", "n", "number"),
            Column("readings", "Readings per report", "number"),
            Column("transactions_per_second", "Reports/s", "measured"),
            Column("readings_per_second", "Readings/s", "measured"),
            Column("load_us", "Meters, CPU µs per report", "measured"),
            Column("nodes_us", "All nodes, CPU µs", "measured"),
            Column("mdms_us", "MDMS, CPU µs", "measured"),
            Column("mdms_bytes", "MDMS store, bytes per reading", "measured"),
        ),
        rows,
        text="As many reports as the machine carries, with nodes, MDMS and meters on it. CPU time is that of whole "
        "processes, for one report.",
    )


def _latency_table(runs: Sequence[LiveRun]) -> Table:
    rows = []
    for run in runs:
        for name, latencies in (("saturated", run.full), ("half load", run.half)):
            if latencies is not None and latencies.count:
                cells = (exact(value or 0) for value in latencies.summary().values())
                rows.append(
                    Row(
                        (run.nodes, run.readings, name, *cells, exact(latencies.ms_max), exact(latencies.count)),
                        _CLOSED if name == "saturated" else _OPEN,
                    )
                )
    return Table(
        "live_latencies",
        "Latency from making a report to its verified receipt, ms",
        (
            Column("nodes", "n", "number"),
            Column("readings", "Readings per report", "number"),
            Column("load", "Load"),
            Column("p50_ms", "p50", "measured"),
            Column("p95_ms", "p95", "measured"),
            Column("p99_ms", "p99", "measured"),
            Column("max_ms", "max", "measured"),
            Column("reports", "Reports", "measured"),
        ),
        tuple(rows),
        text="p95: 95 % of the reports were faster. A receipt proves that the report is in a certified block.",
    )


_CLOSED: Final = "Closed loop: as many reports are on their way as the fleet allows, and latency is that backlog."
_OPEN: Final = "Open loop at half the saturated rate; latency counts from when a report was due."


def _latency_chart(run: LiveRun) -> Chart:
    shown = [("saturated", run.full)]
    if run.half is not None and run.half.count:
        shown.append((f"half load, {run.half_per_second:.0f} reports/s", run.half))
    series = []
    for name, latencies in shown:
        points = [(float(latencies.percentile_ms(percent) or 0), float(percent)) for percent in _PERCENTS]
        series.append(
            Series(
                f"{name}, {latencies.count} reports",
                "measured",
                tuple(max(ms, 1.0) for ms, _ in points),
                tuple(percent for _, percent in points),
            )
        )
    return Chart(
        "live_latency",
        f"Latency from making a report to its verified receipt, {run.nodes} nodes",
        "lines",
        "latency, ms (log)",
        "reports that were faster, %",
        tuple(series),
        caption="Percentiles, wall-clock time. Saturated: the backlog is what one sees; half load counts from the "
        "time at which a report was due, so a cluster that stalls is not spared.",
        x_log=True,
    )


def _role_chart(runs: Sequence[LiveRun]) -> Chart:
    names = tuple(f"n = {run.nodes}" for run in runs)
    titles = {"load": "meters and their client", "nodes": "nodes, all together", "mdms": "MDMS"}
    return Chart(
        "live_cpu",
        "CPU time for a report of one reading, by role",
        "stacked",
        "nodes of the cluster",
        "CPU time for a report, µs",
        tuple(
            Series(title, "measured", names, tuple(run.cpu_us[role] for run in runs)) for role, title in titles.items()
        ),
        caption="Of whole processes, saturated: with HTTP, TLS, event loops and stores.",
    )
