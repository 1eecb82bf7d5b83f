"""CPU time of processes, and the cost of the primitives that bound a cluster's throughput on this machine."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import coincurve

from bcami.crypto.hpke import KemSecretKey, setup_sender
from bcami.crypto.keys import SecretKey

_RUNS: Final = 5
_CALLS: Final = 2_000
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process so far. Raises OSError when it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def cores() -> int:
    """Return the CPUs in this process's affinity mask."""
    return len(os.sched_getaffinity(0))


def primitive_seconds() -> tuple[float, float, float]:
    """Return the best of five for (coincurve's own verify on a parsed key, sign, seal of one reading), in seconds."""
    own = coincurve.PrivateKey(b"\x01" * 32)
    digest = b"\x02" * 32
    signature, public = own.sign(digest, hasher=None), own.public_key
    key = SecretKey.generate(b"\x03" * 32)
    _, context = setup_sender(KemSecretKey.generate(b"\x04" * 32).public_key, b"bench", b"\x05" * 32)
    sequences = iter(range(1, 2**62))
    plaintext, aad = bytes(20), bytes(120)
    return (
        _best(lambda: public.verify(signature, digest, hasher=None)),
        _best(lambda: key.sign(digest)),
        _best(lambda: context.seal(next(sequences), aad, plaintext)),
    )


def _best(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_RUNS):
        start = time.perf_counter()
        for _ in range(_CALLS):
            call()
        best = min(best, (time.perf_counter() - start) / _CALLS)
    return best
