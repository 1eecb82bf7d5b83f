"""What the allocator keeps of freed memory goes back to the system."""

import subprocess
import sys

import pytest

SCRIPT = """
import os
from pathlib import Path
from bcami.processes.memory import Trimmer

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

held = [bytes(2000) for _ in range(30_000)]  # 60 MB in the C library's heap
kept = held[::1000]
del held
before = resident()
assert Trimmer().trim()
print(before - resident())
"""


def test_holes_in_the_heap_go_back_to_the_system() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only glibc is asked")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 30_000_000
