"""The plot is drawn whatever a run saw."""

from pathlib import Path

import pytest

from bcami.cli.fault_plot import plot_run
from bcami.cli.fault_watch import Look
from bcami.faults.verdict import History, Sample, Shown
from tests.unit.faults.test_verdict import history, scenario

LOOKS = [Look(at_s / 2, f"node{at_s % 4 + 1}", at_s, at_s, at_s // 10, "node1") for at_s in range(40)]


@pytest.mark.parametrize(
    ("seen", "looks"),
    [
        (history(), LOOKS),
        (History(), []),
        (history(samples=[]), LOOKS),
        (history(samples=[Sample(0.0, 0, 0)], shown=[]), [Look(1.0, "node1")]),
        (
            history(
                samples=[Sample(at_s / 10, at_s * 9, at_s * 9, 5, 9) for at_s in range(100)],
                shown=[Shown("kill", ["node1"], False, 2.0), Shown("cut", ["node2"], False, 2.0, 3.0, 1, "a | b")],
            ),
            LOOKS,
        ),
    ],
    ids=["whole", "nothing", "no samples", "one sample", "open end"],
)
def test_a_run_is_drawn(tmp_path: Path, seen: History, looks: list[Look]) -> None:
    path = tmp_path / "plot.png"
    plot_run(path, scenario(), seen, looks, "INCONCLUSIVE")
    assert path.read_bytes().startswith(b"\x89PNG")
