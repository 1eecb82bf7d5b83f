"""Both modes of aggregation beside each other, from rounds that really ran."""

from bcami.ami.aggregation_costs import group_costs
from bcami.report.costs.aggregation import aggregation_section
from bcami.report.document import Chart, Table


def test_both_modes_are_shown_for_each_size() -> None:
    section = aggregation_section(group_costs((10, 20)))
    tables = {item.key: item for item in section.items if isinstance(item, Table)}
    rounds = tables["aggregation_rounds"]
    modes = [(row.cells[0], row.cells[1]) for row in rounds.rows]
    assert {(10, "masked"), (10, "ring"), (20, "masked"), (20, "ring")} <= set(modes)
    sent = {(row.cells[0], row.cells[1]): row.cells[3] for row in rounds.rows}
    assert sent[20, "masked"] > sent[20, "ring"] > 0
    assert [row.cells[0] for row in tables["aggregation_graph"].rows] == [10, 20]
    charts = [item for item in section.items if isinstance(item, Chart)]
    assert all(series.x == (10.0, 20.0) for chart in charts for series in chart.series)
