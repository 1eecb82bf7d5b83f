"""What a usage transaction costs in each phase, by number of nodes and readings, on real node cores (`report.desk`)."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bcami.model.quorum import Quorum
from bcami.report.desk import PHASES, Desk, Tally, expected_messages
from bcami.report.document import Chart, Column, Measured, Row, Section, Series, Table
from bcami.report.measuring import Effort, exact, quartiles

BASE: Final = 4
"""Nodes of most figures."""
READINGS: Final = (1, 4, 48)
_TOGETHER: Final = 100
_HALF_HOURS_PER_YEAR: Final = 48 * 365
_METHOD: Final = (
    f"Real cores and LMDB stores in one process, {_TOGETHER} transactions submitted together, CPU time by step; the "
    "samples are such batches."
)
_WORDS: Final = {
    "admission": "id, HID, session, hash, signature and replay at the node that the meter chose",
    "endorsement": "the same checks at the other endorsers, endorsements, batch certificates",
    "ordering": "PRE-PREPARE, PREPARE, COMMIT: signatures made and checked",
    "execution": "contracts, Merkle roots, state hash",
    "certification": "CHECKPOINT votes, block certificates, receipts",
    "storage": "durable writes of promises and blocks, the kernel's part included",
}


@dataclass(frozen=True, slots=True)
class DeskCost:
    """Batches of one shape, one tally for each."""

    nodes: int
    readings: int
    tallies: tuple[Tally, ...]

    @property
    def transactions(self) -> int:
        return sum(tally.transactions for tally in self.tallies)

    @property
    def blocks(self) -> int:
        return sum(tally.blocks for tally in self.tallies)

    @property
    def sent_bytes(self) -> int:
        return sum(sum(tally.sent_bytes.values()) for tally in self.tallies)

    @property
    def bytes_per_transaction(self) -> float:
        """Return what one node sends to its peers for a transaction."""
        return self.sent_bytes / self.nodes / self.transactions

    @property
    def stored_per_transaction(self) -> float:
        """Return by how much one node's ledger grows."""
        return sum(tally.stored_bytes for tally in self.tallies) / self.transactions

    def cpu_us(self, phase: str) -> Measured:
        """Return CPU time for a transaction, all nodes together."""
        return quartiles(tally.cpu_us(phase) for tally in self.tallies)

    @property
    def whole_us(self) -> Measured:
        return quartiles(sum(tally.cpu_us(phase) for phase in PHASES) for tally in self.tallies)


def nodes_of(effort: Effort) -> tuple[int, ...]:
    """Return the sizes of cluster that are measured."""
    return (4, 7) if effort.quick else (4, 7, 10, 13)


def measure_desk(
    effort: Effort, scratch: Path, show: Callable[[str], None], sizes: Sequence[int] = ()
) -> list[DeskCost]:
    """Return costs by number of nodes with one reading to a report, and by readings with BASE nodes.

    `sizes`: numbers of nodes, where not the usual ones. `scratch` is a folder on the disk that is to be measured; what
    is made in it is removed.
    """
    rounds = 2 if effort.quick else 12
    found = []
    for nodes in sizes or nodes_of(effort):
        place = scratch / f"desk-{nodes}"
        show(f"{nodes} nodes in one process")
        desk = Desk(nodes, place)
        try:
            desk.run(1, _TOGETHER, 1)
            for readings in READINGS if nodes == BASE else READINGS[:1]:
                turns = rounds if nodes == BASE else rounds // 2 + 1
                tallies = tuple(desk.run(1, _TOGETHER, readings) for _ in range(turns))
                found.append(DeskCost(nodes, readings, tallies))
        finally:
            desk.close()
            shutil.rmtree(place)
    return found


def base_cost(found: list[DeskCost], readings: int = 1) -> DeskCost:
    """Return the cost with BASE nodes."""
    return next(item for item in found if (item.nodes, item.readings) == (BASE, readings))


def phases_section(found: list[DeskCost]) -> Section:
    """Return the tables and figures of phases, messages, bytes and growth."""
    by_nodes = [item for item in found if item.readings == 1]
    by_readings = [item for item in found if item.nodes == BASE]
    return Section(
        "phases",
        "Beyond the papers: a usage transaction, phase by phase",
        (
            (
                "These figures come from the code that a node process runs, with real signatures and real stores, "
                "driven in one process so that each step can be timed by itself. HTTP, TLS and the event loop are "
                "not in them; the next section has the processes as wholes. Counts of messages and bytes are exact."
            ),
        ),
        (
            _phase_table(by_nodes),
            _phase_chart(by_nodes),
            _message_table(by_nodes),
            _bytes_table(by_nodes, by_readings),
            _growth_table(by_readings),
            _growth_chart(by_readings),
        ),
    )


def _phase_table(found: list[DeskCost]) -> Table:
    rows = [Row((phase, *(item.cpu_us(phase) for item in found), _WORDS[phase]), _METHOD) for phase in _WORDS]
    rows.append(
        Row(("all phases", *(item.whole_us for item in found), "all nodes together, with status and timers"), _METHOD)
    )
    rows.append(
        Row(
            ("all phases, each node", *(item.whole_us.scaled(1 / item.nodes) for item in found), "the same by n"),
            _METHOD,
        )
    )
    return Table(
        "phase_cpu",
        "CPU time of a transaction by phase, all nodes together, µs",
        (
            Column("phase", "Phase"),
            *(Column(f"n{item.nodes}_us", f"n = {item.nodes}", "measured") for item in found),
            Column("what", "What it is"),
        ),
        tuple(rows),
        text=f"One reading to a report; blocks had {found[0].transactions / found[0].blocks:.0f} transactions in the "
        "mean. Ordering, certification and storage are paid for each block, so they shrink as blocks grow.",
    )


def _phase_chart(found: list[DeskCost]) -> Chart:
    names = tuple(f"n = {item.nodes}" for item in found)
    return Chart(
        "phase_cpu_chart",
        "CPU time of a transaction in the whole cluster, by phase",
        "stacked",
        "nodes of the cluster",
        "CPU time for a transaction, µs",
        tuple(
            Series(phase, "measured", names, tuple(item.cpu_us(phase).median for item in found))
            for phase in PHASES[:-1]
        ),
        caption="Medians. What every node does for a transaction grows with n; what is done for a block grows faster.",
    )


def _message_table(found: list[DeskCost]) -> Table:
    kinds = tuple(expected_messages(BASE))
    rows = []
    for kind in kinds:
        cells: list[float] = []
        for item in found:
            blocks = item.blocks
            counted = sum(tally.messages[kind] for tally in item.tallies) / blocks
            size = sum(tally.sent_bytes[kind] for tally in item.tallies) / blocks
            cells += [round(counted, 3), expected_messages(item.nodes)[kind], round(size)]
        rows.append(Row((kind, *cells)))
    totals: list[float] = []
    for item in found:
        counted = sum(tally.messages[kind] for tally in item.tallies for kind in kinds) / item.blocks
        totals += [round(counted, 3), sum(expected_messages(item.nodes).values()), round(item.sent_bytes / item.blocks)]
    rows.append(Row(("all", *totals)))
    return Table(
        "messages_per_block",
        "Messages between nodes for one block of one batch",
        (
            Column("kind", "Message"),
            *(
                column
                for item in found
                for column in (
                    Column(f"n{item.nodes}_counted", f"n = {item.nodes}: counted", "number"),
                    Column(f"n{item.nodes}_formula", "formula", "number"),
                    Column(f"n{item.nodes}_bytes", "bytes", "number"),
                )
            ),
        ),
        tuple(rows),
        text="Formula: n − 1 for what goes to all, strong − 1 endorsements, (n − 1)² PREPAREs (the primary sends "
        "none), n(n − 1) COMMITs and CHECKPOINTs. Status messages, one for each pair of nodes twice a second, are "
        "left out. Counted on the wire encoding, frames included, TLS not.",
    )


def _bytes_table(by_nodes: list[DeskCost], by_readings: list[DeskCost]) -> Table:
    shapes = [*by_nodes, *(item for item in by_readings if item.readings > 1)]
    one, day = by_readings[0], by_readings[-1]
    rows = [
        Row(
            (
                item.nodes,
                Quorum(item.nodes).f,
                item.readings,
                round(item.transactions / item.blocks, 1),
                round(item.bytes_per_transaction, 1),
                round(item.bytes_per_transaction / item.readings, 2),
            )
        )
        for item in shapes
    ]
    return Table(
        "bytes_per_reading",
        "Bytes that a node sends to its peers",
        (
            Column("nodes", "n", "number"),
            Column("f", "f", "number"),
            Column("readings", "Readings per report", "number"),
            Column("transactions_per_block", "Transactions per block", "number"),
            Column("bytes_per_transaction", "Bytes per transaction", "number"),
            Column("bytes_per_reading", "Bytes per reading", "number"),
        ),
        tuple(rows),
        text=f"Mean over the nodes; each receives as much as it sends. A report of {day.readings} readings takes "
        f"{day.bytes_per_transaction / one.bytes_per_transaction:.1f} times the bytes of a report of one: identity, "
        "signature and votes are paid once.",
    )


def _growth_table(found: list[DeskCost]) -> Table:
    rows = []
    for item in found:
        yearly = _HALF_HOURS_PER_YEAR / item.readings * item.stored_per_transaction
        rows.append(
            Row(
                (
                    item.readings,
                    exact(round(item.stored_per_transaction)),
                    exact(round(item.stored_per_transaction / item.readings, 1)),
                    exact(round(yearly / 1e6, 2)),
                ),
                f"Growth of the LMDB tables over {item.transactions} transactions; a batch takes whole pages of 4 KB.",
            )
        )
    return Table(
        "ledger_growth",
        "Growth of one node's ledger, nothing pruned",
        (
            Column("readings", "Readings per report", "number"),
            Column("bytes_per_transaction", "Bytes per transaction", "measured"),
            Column("bytes_per_reading", "Bytes per reading", "measured"),
            Column("mb_per_meter_year", "MB per meter and year", "measured"),
        ),
        tuple(rows),
        text="Half-hourly readings of a year: 17,520. Pruning drops the payloads after the MDMS has acknowledged them; "
        "headers, outcomes, certificates and the index of ids stay.",
    )


def _growth_chart(found: list[DeskCost]) -> Chart:
    years = tuple(float(year) for year in range(6))
    return Chart(
        "ledger_growth_chart",
        "One node's ledger over the years, a thousand meters",
        "lines",
        "years",
        "ledger, GB",
        tuple(
            Series(
                f"{item.readings} readings per report" if item.readings > 1 else "1 reading per report",
                "measured",
                years,
                tuple(
                    year * 1000 * _HALF_HOURS_PER_YEAR / item.readings * item.stored_per_transaction / 1e9
                    for year in years
                ),
            )
            for item in found
        ),
        caption="Extrapolated from the growth for a transaction; nothing pruned.",
    )
