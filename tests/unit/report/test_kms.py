"""The KMS paper's figures: printed as printed, recomputed by its formulas, and where the two differ."""

import pytest

from bcami.kms.costs import lkh_batch, lkh_leave, star_leave
from bcami.report.costs import kms, rekeying
from bcami.report.costs.kms_running import measure_kms
from bcami.report.costs.primitives import Asymmetric, Symmetric
from bcami.report.costs.strategies import strategy_tables
from bcami.report.document import Chart, Measured, Range, Section, Table
from bcami.report.measuring import Effort
from bcami.report.papers import kms as paper
from bcami.report.papers import rekeying as formula

ONE = Measured(1.0, 1.0, 1.0, 5)
PRIMITIVES = Symmetric(ONE, ONE, ONE, ONE, ONE, ONE)


def table(section: Section, key: str) -> Table:
    return next(item for item in section.items if isinstance(item, Table) and item.key == key)


@pytest.fixture(scope="module")
def section() -> Section:
    return kms.kms_section(PRIMITIVES, kms.KmsMeasured(meter_bytes={5: 1000}, method="counted"))


def test_storage(section: Section) -> None:
    seven, eight = table(section, "kms_table_7"), table(section, "kms_table_8")
    assert seven.column("recomputed")[:4] == (20_032, 10_016, 10_016, 641_024)
    assert seven.rows[4].cells[2:4] == ("4 + m, 4 + 2m", Range(4, 34)), "4 + m is wrong: without projects it is 4 keys"
    assert seven.column("printed")[0] == "< 2n + 2m + 2", "the paper prints formulas, and no figure that is ours"
    assert eight.column("printed") == (0.448, 0.768, 1.088, 1.4)
    assert eight.column("recomputed") == (0.448, 0.768, 1.088, 1.408)
    assert eight.column("measured") == (Measured(1.0, 1.0, 1.0, 1), None, None, None)


def test_the_running_key_management_is_what_is_measured() -> None:
    found, rekeyed = measure_kms(Effort(quick=True, seed=3), groups=(1000,))
    assert found.meter_bytes == {m: paper.bytes_of(paper.meter_counts(m)) for m in (5, 10, 15, 20)}, "profile paper"
    assert all(found.hardened_bytes[m] < found.meter_bytes[m] for m in found.hardened_bytes)
    assert found.server is not None
    assert (found.server.keys, found.server.counters, found.server.additional) == (20_032, 10_016, 10_016), "Table 7"
    assert found.server.key_bytes == 641_024
    assert [(held.keys, held.counters, held.additional) for held in found.meter] == [(4, 2, 2), (34, 17, 17)]
    assert tuple(found.rekey_ms) == tuple(found.rekey_bytes) == (1000,)
    assert {item.mode for item in found.messages} == {"unicast", "broadcast, multicast"}
    for size, item in rekeyed.lkh.items():
        assert item.messages == 1
        assert item.keys == lkh_leave(size, 4)
        assert rekeyed.flat[size].messages == rekeyed.flat[size].keys == star_leave(size)
        assert rekeyed.flat[size].sent_bytes > item.sent_bytes
    assert found.meter_us.keys() == {"unicast", "broadcast", "multicast"}
    assert all(0 < cost.low <= cost.median <= cost.high for cost in found.meter_us.values())


def test_tables_10_and_11_follow_from_operations_and_rates(section: Section) -> None:
    ten, eleven = table(section, "kms_table_10"), table(section, "kms_table_11")
    assert ten.column("printed") == (Range(7.68, 38.4), Range(5.12, 25.6), Range(12.8, 38.4))
    assert ten.column("recomputed") == (Range(7.68, 38.4), Range(5.12, 25.6), Range(12.8, 64.0))
    assert eleven.column("recomputed") == eleven.column("printed") == (Range(0.384, 7.68), Range(0.256, 5.12))
    assert ten.column("measured") == tuple(Measured(value, value, value, 5) for value in (6.0, 3.0, 9.0))


def test_table_12_is_not_what_its_formula_gives(section: Section) -> None:
    twelve = table(section, "kms_table_12")
    assert len(twelve.rows) == 15
    first, last = twelve.rows[0].cells, twelve.rows[14].cells
    assert first[2] == Range(0.38, 6.98)
    assert first[3] == Range(0.3866, 7.719)
    assert last[2] == Range(3.75, 75.74)
    assert last[3] == Range(3.8477, 76.9171)
    for group, (low, _) in list(zip(paper.TABLE_12_GROUPS, paper.TABLE_12_MS, strict=True))[1:]:
        assert low < 3 * paper.operation_us(1000) * group / 1000


def test_table_13_needs_bits(section: Section) -> None:
    thirteen = table(section, "kms_table_13")
    assert thirteen.column("printed")[:5] == (2.48, 4.96, 7.44, 12.39, 24.77)
    assert thirteen.column("recomputed")[:5] == (2.477, 4.955, 7.432, 12.387, 24.774)
    assert thirteen.column("recomputed")[5] == Range(4.94, 19.82)
    assert thirteen.column("recomputed")[9] == Range(49.39, 198.19)


@pytest.mark.parametrize(
    ("degree", "size", "leavers", "mean", "worst"),
    [
        (2, 1024, 1, 20, 20),
        (2, 1024, 10, 135.9, 151.6),
        (2, 1024, 100, 734.2, 869.2),
        (4, 1024, 100, 636.7, 803.2),
        (4, 4096, 10, 166.1, 185.6),
        (4, 16_384, 100, 1398, 1603),
    ],
)
def test_batches_of_lkh(degree: int, size: int, leavers: int, mean: float, worst: float) -> None:
    assert float(lkh_batch(size, degree, leavers)) == pytest.approx(mean, abs=0.6)
    assert formula.lkh_batch_worst(size, degree, leavers) == pytest.approx(worst, abs=0.6)


def test_one_leave_from_ten_thousand() -> None:
    assert star_leave(10_000) == 9_999
    assert lkh_leave(10_000, 4) == 27
    assert formula.oft_leave(10_000) == 15
    assert formula.treekem_leave(10_000)[1] == 26
    assert formula.treekem_leave(1024) == (9, 18)
    assert formula.cs_cover(1024, 10) == pytest.approx(66.8, abs=0.05)


def test_what_was_measured_stands_beside_the_formulas() -> None:
    item = rekeying.Rekeyed(19, 1, 900, ONE)
    section = rekeying.rekeying_section(rekeying.RekeyMeasured(lkh={1024: item}, method="counted"))
    assert table(section, "rekey_measured").rows[0].cells == ("lkh", 1024, 19, 1, 900, ONE)
    assert not any(
        isinstance(entry, Table) and entry.key == "rekey_measured"
        for entry in rekeying.rekeying_section(rekeying.RekeyMeasured()).items
    )
    chart = next(entry for entry in section.items if isinstance(entry, Chart))
    points = {series.name: series.y for series in chart.series if series.kind == "measured"}
    assert points == {"LKH 4, this system": (19.0,)}
    assert table(section, "rekey_batch").column("star") == (1024, 1024, 1024), "who takes a place needs the key too"
    leave = table(section, "rekey_leave")
    assert leave.rows[3].cells[:5] == (1024, 1023, 19, 19, 11)


def test_strategies_are_priced_and_claims_are_marked_as_published() -> None:
    item = rekeying.Rekeyed(19, 1, 900, ONE)
    join, work, server, claims = strategy_tables(
        PRIMITIVES, Asymmetric(ONE, ONE, ONE, ONE), rekeying.RekeyMeasured(lkh={1024: item})
    )
    assert {row.cells[0] for row in work.rows} == {"flat", "LKH 4", "OFT", "MLS TreeKEM", "CS", "SD"}
    prices = {row.cells[0]: row.cells[2] for row in work.rows}
    assert prices["LKH 4"] == Measured(5 + 19, 5 + 19, 5 + 19, 5), "h keys drawn, 4h - 1 wrapped"
    assert prices["flat"] == Measured(2 + 1023 * 8, 2 + 1023 * 8, 2 + 1023 * 8, 5)
    assert work.column("running_us") == (None, ONE, None, None, None, None)
    assert server.rows[3].cells == (1024, 1024, 1365, 2047, 2047, 1)
    assert len(join.rows) == 6
    keys = dict(zip(claims.column("scheme"), claims.column("keys"), strict=True))
    assert keys["Liu et al. 2013 (32)"] == 1023
    assert keys["Wan et al. 2014 (47)"] == 19
    assert keys["Kamto et al. (51)"] is None, "nothing is made up for what no text tells"
    assert keys["El-Hajjar and Hanzo (37)"] is None, "a key graph alone does not tell"
    assert keys["Benmalek et al. (55), iVerSAMI"] is None, "the same"
    assert "as published" in claims.columns[2].title


def test_batches_of_the_literature_stay_above_what_was_counted_on_trees() -> None:
    assert formula.oft_batch(1024, 1) == 12
    for leavers, counted_max in ((1, 18), (10, 68), (100, 286)):
        assert formula.treekem_batch(1024, leavers) >= counted_max
