"""What one report costs, from what was measured: the figures that a capacity plan multiplies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from bcami.errors import InputError
from bcami.report.costs.live import LiveRun
from bcami.report.costs.phases import BASE, DeskCost
from bcami.report.document import Column, Row, Setting, Table

UNITS_TABLE: Final = "unit_costs"
_FIGURES: Final = (
    "node_us",
    "mdms_us",
    "meter_us",
    "sent_bytes",
    "request_bytes",
    "ledger_bytes",
    "mdms_bytes",
)


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """What one report costs, with so many nodes and readings in it."""

    nodes: int
    readings: int
    node_us: float
    """CPU of one node."""
    mdms_us: float
    meter_us: float
    """CPU of the meter alone, its client and HTTP not counted."""
    sent_bytes: float
    """Sent by a node to its peers."""
    request_bytes: float
    """From the meter to its node."""
    ledger_bytes: float
    """Growth of one node's ledger."""
    mdms_bytes: float
    """Growth of the MDMS's store for one reading."""


def unit_costs(
    desk: Sequence[DeskCost], live: Sequence[LiveRun], meter_us: dict[int, float], request_bytes: dict[int, int]
) -> list[UnitCosts]:
    """Return unit costs for each number of readings that was measured both live and on the desk, with BASE nodes.

    `meter_us`: a meter's time for a report, by readings. `request_bytes`: a transaction as sent, likewise.
    """
    counted = {item.readings: item for item in desk if item.nodes == BASE}
    return [
        UnitCosts(
            nodes=run.nodes,
            readings=run.readings,
            node_us=run.cpu_us["nodes"] / run.nodes,
            mdms_us=run.cpu_us["mdms"],
            meter_us=meter_us[run.readings],
            sent_bytes=round(counted[run.readings].bytes_per_transaction, 1),
            request_bytes=request_bytes[run.readings],
            ledger_bytes=round(counted[run.readings].stored_per_transaction, 1),
            mdms_bytes=run.mdms_bytes,
        )
        for run in live
        if run.nodes == BASE and run.readings in counted
    ]


def require_measured(readings: int, measured: Sequence[int]) -> None:
    """Return when so many readings lie within what was measured. Raises InputError."""
    if not measured or not min(measured) <= readings <= max(measured):
        span = f"{min(measured)} to {max(measured)}" if measured else "nothing"
        raise InputError(f"{readings} readings in a report were not measured", do=f"measured: {span}")


def at_readings(units: Sequence[UnitCosts], readings: int) -> UnitCosts:
    """Return unit costs for any number of readings: measured, or on the line between the nearest two.

    Raises InputError outside what was measured.
    """
    require_measured(readings, [unit.readings for unit in units])
    known = sorted(units, key=lambda unit: unit.readings)
    low = [unit for unit in known if unit.readings <= readings][-1]
    high = next(unit for unit in known if unit.readings >= readings)
    if low.readings == high.readings:
        return low
    share = (readings - low.readings) / (high.readings - low.readings)

    def between(name: str) -> float:
        first, second = float(getattr(low, name)), float(getattr(high, name))
        return first + share * (second - first)

    return UnitCosts(low.nodes, readings, *(between(name) for name in _FIGURES))


def unit_table(units: Sequence[UnitCosts]) -> Table:
    """Return the unit costs as the table that `read_units` reads back."""
    return Table(
        UNITS_TABLE,
        "What one report costs",
        (
            Column("nodes", "n", "number"),
            Column("readings", "Readings per report", "number"),
            Column("node_us", "A node, CPU µs", "measured"),
            Column("mdms_us", "MDMS, CPU µs", "measured"),
            Column("meter_us", "Meter, CPU µs", "measured"),
            Column("sent_bytes", "A node sends, bytes", "number"),
            Column("request_bytes", "A meter sends, bytes", "number"),
            Column("ledger_bytes", "Ledger grows, bytes", "measured"),
            Column("mdms_bytes", "MDMS store, bytes per reading", "measured"),
        ),
        tuple(
            Row(
                (
                    item.nodes,
                    item.readings,
                    item.node_us,
                    item.mdms_us,
                    item.meter_us,
                    item.sent_bytes,
                    item.request_bytes,
                    item.ledger_bytes,
                    item.mdms_bytes,
                )
            )
            for item in units
        ),
        text="Readings that were not measured lie on the line between the nearest two that were.",
    )


def read_units(report: dict[str, Any]) -> list[UnitCosts]:
    """Return the unit costs in a cost report's data. Raises InputError when it has none."""
    for section in report["sections"]:
        for item in section["items"]:
            if item.get("is") == "table" and item["key"] == UNITS_TABLE:
                return [UnitCosts(*row["cells"]) for row in item["rows"]]
    raise InputError("the report has no unit costs", do="give a report of `bcami report costs`")


def measured_elsewhere(setting: Setting, report: dict[str, Any]) -> Setting:
    """Return the setting of a plan whose unit costs are another report's: machine, versions and effort are that one's.

    Raises InputError when the report says nothing of them.
    """
    try:
        theirs = msgspec.convert(report["setting"], Setting)
    except (KeyError, msgspec.ValidationError) as error:
        raise InputError(f"the report does not say where it was made: {error}") from None
    machine = {**theirs.machine, "unit costs measured": theirs.date, "unit costs by": theirs.command}
    return replace(
        setting,
        seed=theirs.seed,
        quick=theirs.quick,
        machine=machine,
        versions=theirs.versions,
        load=theirs.load,
    )
