"""BC-AMI's figures: what the paper prints, what its formulas give, and that ours are counted on real bytes."""

import pytest

from bcami.report.costs import bc_ami
from bcami.report.document import Measured, Row, Table
from bcami.report.measuring import Effort
from bcami.report.papers import bc_ami as paper
from bcami.report.stand import Stand, made_up_readings

EFFORT = Effort(quick=True, seed=1)


def row(table: Table, quantity: str, unit: str | None = None) -> Row:
    return next(row for row in table.rows if row.cells[0] == quantity and unit in (None, row.cells[1]))


def test_the_paper_is_printed_as_printed_and_recomputed_by_its_own_formula() -> None:
    table = bc_ami.size_section(Stand(seed=1)).items[0]
    assert isinstance(table, Table)
    total = row(table, "sum", "bit")
    assert total.cells[2:4] == (1346, 1346)
    kilobytes = row(table, "sum", "kB")
    assert kilobytes.cells[2:4] == (0.16825, 0.16825)
    assert row(table, "L_Pu,SM: public key of the meter").cells[2] == 257
    assert row(table, "L_Pu,SM: public key of the meter").cells[4] == Measured(264, 264, 264, 1)


def test_table_3_has_every_meter_and_its_sum() -> None:
    one = Measured(1000.0, 1.0, 1.0, 1)
    costs = {name: bc_ami.MeterCosts(one, one, one, one) for name in bc_ami.METERS}
    section = bc_ami.time_section(costs, bc_ami.OtherCosts(*[one] * 6))
    table = section.items[0]
    assert isinstance(table, Table)
    assert [row(table, f"{name}, total").cells[2] for name in bc_ami.METERS] == [20.59, 8.02, 13.34, 13.52, 8.96]
    assert row(table, "SM5, total").cells[3] == 8.96
    assert row(table, "SM5, encryption").cells[2:5] == (4.01, None, one.scaled(1e-3))
    assert row(table, "slowest over fastest meter").cells[3] == 2.567


def test_what_is_sent_adds_up_to_the_transaction() -> None:
    table = bc_ami.size_section(Stand(seed=1)).items[1]
    assert isinstance(table, Table)
    cells = {r.cells[0]: r.cells[4] for r in table.rows}
    total = cells.pop("transaction as sent")
    parts = [cell for name, cell in cells.items() if not str(name).startswith("transaction with")]
    assert isinstance(total, Measured)
    assert sum(cell.median for cell in parts if isinstance(cell, Measured)) == total.median
    assert row(table, "transaction as sent").cells[3] == 1928, "the paper's Table 2 with HPKE"
    counts = ("1 reading", "4 readings", "48 readings")
    each = [cells[f"transaction with {count}, bytes for each"] for count in counts]
    medians = [cell.median for cell in each if isinstance(cell, Measured)]
    assert medians[0] * 8 == total.median
    assert medians[0] > 3 * medians[1] > 6 * medians[2]


def test_a_meter_is_measured_on_its_own_code() -> None:
    stand = Stand(seed=1)
    costs = bc_ami.measure_meter(stand, "SM1", EFFORT)
    for part in (costs.timestamp, costs.encryption, costs.signature, costs.whole):
        assert part.n == EFFORT.samples
        assert 0 < part.low <= part.median <= part.high
    opened = stand.open_meter("SM1")
    sealed = opened.meter.seal(bytes(20), 1, 1)
    assert opened.meter.is_live(sealed)
    assert opened.registration.session == 1


def test_the_papers_own_words_about_blocks() -> None:
    assert paper.SPREADSHEET_ROWS == 2**20
    for block, kwh in paper.BLOCK_KWH.items():
        assert kwh == pytest.approx(paper.CUT_KWH[block], abs=paper.CUT_TOLERANCE_KWH)
        assert paper.TRUE_KWH[block] > 1.3 * kwh
    assert [reading.start_s for reading in made_up_readings(2, 1)] == [1_357_000_200, 1_357_002_000]
