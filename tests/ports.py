"""Ports that no other test gets: each process that runs tests has a stretch of its own, held by a lock on a file.

A port that was free a moment ago may be taken by the cluster of the worker beside this one, or by a connection that
somebody opens. The stretches lie between the ports that `bcami init` picks for itself and those that Linux gives to
outgoing connections.
"""

import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bcami.processes.ports import is_free

FIRST, LAST = 32_000, 32_768
COUNT = 64
"""Of each process. A network of seven nodes takes 16."""

_held: list[IO[bytes]] = []


def free_ports(count: int = 1) -> int:
    """Return the first of so many free ports in a row, which no other process of tests uses while this one lives."""
    global _next  # noqa: PLW0603 - one stretch for the process
    if _next is None:
        _next = _cycle(_own_stretch())
    for _ in range(2 * COUNT):
        base = next(_next)
        if base % COUNT + count <= COUNT and all(is_free("127.0.0.1", port) for port in range(base, base + count)):
            for _ in range(count - 1):
                next(_next)
            return base
    raise RuntimeError(f"{count} ports in a row are not free anywhere between {base} and {base + COUNT}")


_next: Iterator[int] | None = None


def _cycle(first: int) -> Iterator[int]:
    return itertools.cycle(range(first, first + COUNT))


def _own_stretch() -> int:
    """Lock a stretch until this process ends, and return its first port."""
    folder = Path(tempfile.gettempdir()) / f"bcami-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for first in range(FIRST, LAST, COUNT):
        stream = (folder / str(first)).open("ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            continue
        _held.append(stream)
        return first
    raise RuntimeError(f"all ports from {FIRST} to {LAST} are held by other runs of the tests")
