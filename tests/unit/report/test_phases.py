"""A cluster on the desk: exact counts of messages, and every phase is paid for."""

from pathlib import Path

import pytest

from bcami.report.costs import phases
from bcami.report.desk import PHASES, Desk, expected_messages
from bcami.report.document import Table


@pytest.fixture(scope="module")
def cost(tmp_path_factory: pytest.TempPathFactory) -> phases.DeskCost:
    desk = Desk(4, tmp_path_factory.mktemp("desk"))
    try:
        return phases.DeskCost(4, 1, tuple(desk.run(1, 20, 1) for _ in range(2)))
    finally:
        desk.close()


def test_messages_are_those_of_the_formula(cost: phases.DeskCost) -> None:
    for tally in cost.tallies:
        assert tally.blocks == 1
        assert dict(tally.messages) == expected_messages(4)
    first, second = cost.tallies
    assert first.sent_bytes["Commit"] == second.sent_bytes["Commit"]
    assert first.sent_bytes["Batch"] > 3 * 20 * 190, "a batch carries its transactions to three nodes"


def test_every_phase_costs_something_but_idle_ones(cost: phases.DeskCost) -> None:
    for phase in PHASES[:-1]:
        assert cost.cpu_us(phase).median > 0, phase
    assert cost.whole_us.median == pytest.approx(sum(cost.cpu_us(phase).median for phase in PHASES), rel=0.2)
    assert cost.tallies[0].writes >= 4 * 2


def test_tables_of_phases(cost: phases.DeskCost) -> None:
    section = phases.phases_section([cost, phases.DeskCost(4, 48, cost.tallies)])
    tables = {item.key: item for item in section.items if isinstance(item, Table)}
    assert [row.cells[0] for row in tables["phase_cpu"].rows] == [*PHASES[:-1], "all phases", "all phases, each node"]
    messages = tables["messages_per_block"]
    assert messages.column("n4_counted") == messages.column("n4_formula") == (3, 2, 3, 3, 9, 12, 12, 44)
    assert len(tables["bytes_per_reading"].rows) == 2
    assert expected_messages(7)["Endorsement"] == 4


def test_more_readings_make_bigger_batches(tmp_path: Path) -> None:
    desk = Desk(4, tmp_path)
    try:
        one, many = desk.run(1, 5, 1), desk.run(1, 5, 48)
    finally:
        desk.close()
    assert many.sent_bytes["Batch"] - one.sent_bytes["Batch"] == pytest.approx(3 * 5 * 47 * 16, abs=3 * 40)
    assert many.sent_bytes["Commit"] == one.sent_bytes["Commit"]
