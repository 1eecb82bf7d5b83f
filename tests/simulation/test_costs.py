"""A fault-free run takes exactly the messages that the protocol's formulas say."""

import csv
from pathlib import Path

import pytest

from bcami.cli.simulate_costs import plot_costs, votes_per_block, write_csv
from bcami.faults.simulator.costs import Cost, expected, fit_square, measure


@pytest.mark.parametrize("nodes", [4, 5, 7, 10])
def test_each_kind_is_sent_as_often_as_its_formula_says(nodes: int) -> None:
    costs = {item.kind: item for item in measure(nodes, 3, 8)}
    assert costs["prepare"].blocks >= 3
    told = {kind for kind in costs if expected(kind, nodes, 1, 1) is not None}
    assert {"batch", "certificate gossip", "pre-prepare", "commit", "checkpoint"} <= told
    for kind in told:
        item = costs[kind]
        assert item.messages == expected(kind, nodes, item.blocks, item.batches), kind
    assert set(costs) - told <= {"status"}


def test_bytes_are_those_of_the_frames() -> None:
    """A vote is epoch, view, height, digest, replica and signature: 32 + 64 bytes and few more."""
    costs = {item.kind: item for item in measure(4, 2, 8)}
    for kind in ("prepare", "commit"):
        assert 4 + 32 + 64 < costs[kind].bytes / costs[kind].messages < 140
    assert costs["batch"].bytes_per_transaction > 3 * (64 + 64)


def test_the_fit_finds_a_square() -> None:
    a, r2 = fit_square([(n, 2.5 * n * n) for n in (4, 7, 10)])
    assert a == pytest.approx(2.5)
    assert r2 == pytest.approx(1)
    assert fit_square([(n, float(n)) for n in (4, 7, 10)])[1] < 0.9


def test_the_files_say_what_was_measured(tmp_path: Path) -> None:
    costs: list[Cost] = [item for nodes in (4, 7) for item in measure(nodes, 1, 4)]
    write_csv(tmp_path / "costs.csv", costs)
    with (tmp_path / "costs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(costs)
    prepare = next(row for row in rows if (row["nodes"], row["kind"]) == ("7", "prepare"))
    assert prepare["messages"] == prepare["expected_messages"]
    assert votes_per_block(costs) == [(4, 9 + 12 + 12), (7, 36 + 42 + 42)]
    plot_costs(tmp_path, costs)
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "costs.svg").read_bytes()
