"""How far a replay got, so that `--resume` seals nothing twice and loses nothing.

A plan is deterministic: the same input and options give the same reports in the same order. Reports are submitted in
that order, each with a *position*: the plan's id and how many reports of the plan there are up to this one. The fleet
writes the position into its outbox in the same database transaction that makes the report durable, so at any instant
of a crash, or a power cut, the position says exactly which reports of the plan the outbox has taken over. What it has
taken, it delivers by itself, with the same bytes (protocol 3.1). `--resume` therefore reads the input again from the
start, skips that many reports, and submits the rest.

The outbox remembers one position, that of its last replay. Asking to resume another plan is an error rather than a
start from the beginning, which would seal everything again (the MDMS would store nothing twice, but the chain would).
"""

import struct
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from bcami.errors import InputError
from bcami.replay.options import ReplayOptions
from bcami.replay.sources import Source

PLAN_BYTES: Final = 32
_COUNT: Final = struct.Struct(">Q")


def plan_id(source: Source, options: ReplayOptions, meters: Sequence[str]) -> bytes:
    """Return 32 bytes that are equal only for plans with the same reports in the same order.

    Files count by name, size and time of change; where they lie does not matter, and of the speed only whether the
    reports are merged by time.
    """
    filters = options.filters
    parts = [
        f"{options.readings_per_report} {'file' if options.speed is None else 'time'}",
        f"{source.layout} {filters.meters} {filters.from_s} {filters.to_s}",
    ]
    for file in source.files:
        status = file.path.stat()
        parts.append(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}")
    return sha256("\n".join([*parts, *meters]).encode()).digest()


def position_at(plan: bytes, reports: int) -> bytes:
    """Return the mark that goes with report number `reports`, counted from 1."""
    return plan + _COUNT.pack(reports)


def reports_taken(position: bytes | None, plan: bytes) -> int:
    """Return how many reports of this plan the outbox has; 0 when nothing was replayed yet.

    Raises InputError when its last replay was of another plan.
    """
    if position is None:
        return 0
    if len(position) != PLAN_BYTES + _COUNT.size or position[:PLAN_BYTES] != plan:
        raise InputError(
            "the last replay on this network was another one, so this one cannot be resumed",
            where="--resume",
            likely="the path, a file in it, a filter, --readings-per-report, or max against a finite speed differs",
            do="repeat the options of the aborted run, or leave out --resume: the MDMS stores no reading twice",
        )
    count: int = _COUNT.unpack(position[PLAN_BYTES:])[0]
    return count
