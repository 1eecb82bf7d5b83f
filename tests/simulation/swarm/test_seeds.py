"""Seeds of the simulator: drawn clusters under drawn faults, judged by the invariants I1 … I15.

A failure prints the command that replays it. `make soak` runs many more.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bcami.faults.simulator.runner import run_seed

SOURCES = Path(__file__).parents[3] / "bcami"
SEEDS = int(os.environ.get("BCAMI_SIMULATED_SEEDS", "500"))
"""Half of them in each of two files; all are run, however long it takes."""


def run_all(seeds: range) -> None:
    for seed in seeds:
        result = run_seed(seed)
        if result.failure is not None:
            pytest.fail(
                f"{result.failure.invariant}: {result.failure.what}\n"
                f"replay: bcami simulate --seeds {seed}:{seed + 1} --trace"
            )


def test_every_invariant_holds_for_each_even_seed() -> None:
    run_all(range(0, SEEDS, 2))


def test_the_same_seed_gives_the_same_run_in_any_process() -> None:
    script = "from bcami.faults.simulator.runner import run_seed; print([run_seed(s).trace_hash for s in (3, 5, 15)])"
    told = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("0", "1", "4242")
    }
    assert len(told) == 1


def test_a_trace_reads_as_documented_and_does_not_change_the_run() -> None:
    lines: list[str] = []
    assert run_seed(2, write=lines.append).trace_hash == run_seed(2).trace_hash
    steps = [line for line in lines if " -- " not in line]
    assert all(re.match(r"^ *\d+ \d+\.\d+!? +v\d+\?? +\d+/\d+ +\w+.* =>", line) for line in steps)


def test_another_seed_gives_another_run() -> None:
    assert len({run_seed(seed).trace_hash for seed in range(4)}) == 4


def test_only_the_simulator_replaces_signatures() -> None:
    named = {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        if re.search(r"\bstand_in\b", path.read_text(encoding="utf-8"))
    }
    assert named == {"crypto/signatures.py", "faults/simulator/signing.py"}
