"""A flood of one kind of line becomes a line now and then, and nothing is lost from the count."""

import json
import subprocess
import sys
from pathlib import Path

from bcami.processes.logs import Repetition


def test_repeated_lines_are_held_back_and_counted_in_the_next() -> None:
    repetition = Repetition(apart_s=5.0)
    assert repetition.admit("bad", 1, 0.0) == 1
    assert [repetition.admit("bad", 2, second / 10) for second in range(1, 40)] == [0] * 39
    assert repetition.admit("other", 1, 4.0) == 1
    assert repetition.admit("bad", 1, 5.0) == 79
    assert repetition.admit("bad", 1, 5.1) == 0


def test_the_memory_of_kinds_is_bounded() -> None:
    repetition = Repetition(apart_s=5.0)
    for kind in range(5_000):
        assert repetition.admit(kind, 1, 0.0) == 1
    assert len(repetition._last) <= 1_000


CHILD = """
import os, sys
from pathlib import Path
from bcami.processes import logs

logs.OwnLog.__init__.__defaults__ = (4_000, 2)
log = logs.start_logging("node1", Path(sys.argv[1]))
for number in range(300):
    log.info("line", number=number)
sys.stderr.write("past the logger\\n")
sys.stderr.flush()
os.write(1, b"and to the output\\n")
"""


def run_child(log: Path, output: Path) -> None:
    with output.open("ab") as stream:
        subprocess.run([sys.executable, "-c", CHILD, str(log)], stdout=stream, stderr=stream, check=True, timeout=60)


def test_a_log_file_stays_within_its_bound_and_takes_all_output(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    run_child(log, log)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["node.log", "node.log.1", "node.log.2"]
    assert all(path.stat().st_size <= 4_000 + 100 for path in tmp_path.iterdir())
    newest = log.read_text().splitlines()
    assert newest[-2:] == ["past the logger", "and to the output"], "standard output and error follow"
    lines = [*(tmp_path / "node.log.1").read_text().splitlines(), *newest[:-2]]
    numbers = [json.loads(line)["number"] for line in lines]
    assert numbers == list(range(300 - len(numbers), 300)), "no line is lost between two files"


def test_a_process_that_writes_to_a_terminal_or_pipe_makes_no_log_file(tmp_path: Path) -> None:
    log, other = tmp_path / "node.log", tmp_path / "other.txt"
    run_child(log, other)
    assert not log.exists()
    assert len(other.read_text().splitlines()) == 302
