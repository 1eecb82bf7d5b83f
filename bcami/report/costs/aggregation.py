"""What summing a group's readings privately costs, in both modes, against the size of the group."""

from collections.abc import Callable, Sequence

from bcami.ami.aggregation_costs import GROUP_SIZES, GroupCost, RoundCost, group_costs
from bcami.report.document import Chart, Column, Row, Section, Series, Table
from bcami.report.measuring import Effort, exact

_METHOD = "One round in memory with real keys and messages, CPU time; the sum is checked. No HTTP and no blocks in it."


def measure_aggregation(effort: Effort, show: Callable[[str], None]) -> list[GroupCost]:
    """Return the costs of several sizes of group. Raises ExpectationError when a sum is wrong."""
    sizes = (10, 30, 100) if effort.quick else GROUP_SIZES
    return group_costs(sizes, lambda members: show(f"a group of {members}"))


def aggregation_section(found: Sequence[GroupCost]) -> Section:
    """Return tables and figures of both modes."""
    return Section(
        "aggregation",
        "Private aggregation against the size of the group",
        (
            (
                "The ring of the privacy paper needs one message around the group and hardly any computation, but "
                "one meter that is gone voids the round, and two neighbours together with the supplier learn how a "
                "meter's readings change. The masked mode, the default, survives drop-outs and a stated number of "
                "colluding members; for that each meter shares masks with its neighbours in a graph."
            ),
        ),
        (_round_table(found), _bytes_chart(found), _time_chart(found), _graph_table(found)),
    )


def _round_table(found: Sequence[GroupCost]) -> Table:
    rows = [
        Row(
            (
                item.members,
                mode,
                round(cost.messages_sent, 2),
                round(cost.bytes_sent),
                round(cost.bytes_received),
                exact(cost.meter_ms),
                exact(cost.head_end_ms),
                cost.chain_bytes,
            ),
            _METHOD,
        )
        for item in found
        for mode, cost in item.modes()
    ]
    return Table(
        "aggregation_rounds",
        "One round: means over the members",
        (
            Column("members", "Members", "number"),
            Column("mode", "Mode"),
            Column("messages", "Messages a meter sends", "number"),
            Column("sent_bytes", "Bytes it sends", "number"),
            Column("received_bytes", "Bytes it receives", "number"),
            Column("meter_ms", "A meter, CPU ms", "measured"),
            Column("head_end_ms", "Head-end or supplier, CPU ms", "measured"),
            Column("chain_bytes", "Bytes on the chain", "number"),
        ),
        tuple(rows),
        text="Each line is one round of one group; “first round of a roster” agrees on keys with neighbours, “forming "
        "it” makes the ring.",
    )


def _series(found: Sequence[GroupCost], value: Callable[[RoundCost], float]) -> tuple[Series, ...]:
    sizes = tuple(float(item.members) for item in found)
    return (
        Series(
            "masked, first round", "measured", sizes, tuple(value(item.masked_first) for item in found), line="dashed"
        ),
        Series("masked", "measured", sizes, tuple(value(item.masked) for item in found)),
        Series("ring", "measured", sizes, tuple(value(item.ring) for item in found)),
    )


def _bytes_chart(found: Sequence[GroupCost]) -> Chart:
    return Chart(
        "aggregation_bytes",
        "Bytes that a meter sends in a round",
        "lines",
        "members of the group (log)",
        "bytes sent by a meter (log)",
        _series(found, lambda cost: cost.bytes_sent),
        caption="Masked: grows with the neighbours of a meter. Up to about 100 members that is everybody, above it 70 "
        "to 90, hence the bend. Ring: a few messages, whatever the size.",
        x_log=True,
        y_log=True,
    )


def _time_chart(found: Sequence[GroupCost]) -> Chart:
    return Chart(
        "aggregation_time",
        "CPU time of a meter in a round",
        "lines",
        "members of the group (log)",
        "CPU time of a meter, ms (log)",
        _series(found, lambda cost: max(cost.meter_ms, 1e-3)),
        caption="The first round of a roster agrees on keys with every neighbour; later rounds do not. A ring's round "
        "also waits for as many hops as it has members, one after the other, which is not CPU time.",
        x_log=True,
        y_log=True,
    )


def _graph_table(found: Sequence[GroupCost]) -> Table:
    return Table(
        "aggregation_graph",
        "What the masked mode chooses for a size",
        (
            Column("members", "Members", "number"),
            Column("degree", "Neighbours of a meter", "number"),
            Column("threshold", "Shares that give back a mask", "number"),
            Column("colluding", "Colluding members it stands", "number"),
        ),
        tuple(Row((item.members, item.degree, item.threshold, item.colluding_max)) for item in found),
        text="Chosen from a bound on what colluding members and withheld contributions can reveal; see "
        "bcami/aggregation/bounds.py.",
    )
