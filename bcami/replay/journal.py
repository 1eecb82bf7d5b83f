"""How far each meter's reports were handed over to the fleet's durable outbox: what `--resume` rests on.

A plan is deterministic and the fleet's outbox is durable, so two numbers for each meter are enough:

    handed    reports 0 … handed−1 are in the outbox (their `submit` returned)
    begun     reports 0 … begun−1 were passed to `submit`, whose end may not have been seen

`begun` is written before `submit` is called, `handed` after it returned. After an abort the reports below `handed`
are skipped, those from `begun` on are new, and those between are in doubt: the fleet is asked whether it holds
them (`holds`: by meter and start of the first reading, which is unique since a (meter, half-hour) is planned
once). So nothing is sealed twice, and nothing is lost. Should `holds` not know, the report is sealed again, which
costs a transaction but no reading: the MDMS stores exactly once per (HID, half-hour) (protocol 3.5).

The file is a fixed array in a shared mapping: it survives the death of the process at any instant. A power cut can
lose the last seconds of it; then more is in doubt than the file tells, and the last sentence above applies.
A journal belongs to one plan: its name carries the hash of the data set (names, sizes, times of change) and of every
option that shapes the plan; another data set or K finds no journal and starts at the beginning.
"""

import mmap
import os
import struct
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from bcami.errors import EnvironmentFault
from bcami.replay.options import ReplayOptions
from bcami.replay.sources import Source

_MAGIC: Final = b"bcami/journal/1\n"
_HEAD = struct.Struct(">16s32sQ")
_ENTRY = struct.Struct(">II")


def plan_id(source: Source, options: ReplayOptions, meters: Sequence[str]) -> bytes:
    """Return 32 bytes that are equal only for plans with the same reports in the same order."""
    filters = options.filters
    parts = [
        f"{options.readings_per_report} {'file' if options.speed is None else 'time'}",
        f"{source.layout} {filters.meters} {filters.from_s} {filters.to_s}",
    ]
    for file in source.files:
        status = file.path.stat()
        parts.append(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}")
    return sha256("\n".join([*parts, *meters]).encode()).digest()


class Journal:
    """One plan's progress on disk, by place of the meter in the survey's sorted list."""

    def __init__(self, path: Path, plan: bytes, meters: Sequence[str], *, resume: bool) -> None:
        """Open the journal; without `resume`, or when there is none of this plan, it starts at zero."""
        self._places = {meter: place for place, meter in enumerate(meters)}
        self._done_ahead: dict[str, set[int]] = {}
        size = _HEAD.size + _ENTRY.size * len(meters)
        head = _HEAD.pack(_MAGIC, plan, len(meters))
        self.resumed = resume and _fits(path, head, size)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self.resumed:
                fresh = path.with_suffix(".new")
                fresh.write_bytes(head + bytes(size - len(head)))
                fresh.replace(path)
            with path.open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise EnvironmentFault(
                f"the journal cannot be written: {error.strerror}",
                where=str(path),
                do="free some space or allow writing",
            ) from error

    def handed(self, meter: str) -> int:
        return self._entry(meter)[0]

    def begun(self, meter: str) -> int:
        return self._entry(meter)[1]

    def begin(self, meter: str, ordinal: int) -> None:
        """Note that a report is about to be submitted."""
        handed, begun = self._entry(meter)
        if ordinal >= begun:
            self._put(meter, handed, ordinal + 1)

    def finish(self, meter: str, ordinal: int) -> None:
        """Note that a report is durable in the outbox; reports may finish out of order."""
        handed, begun = self._entry(meter)
        if ordinal < handed:
            return
        ahead = self._done_ahead.setdefault(meter, set())
        ahead.add(ordinal)
        while handed in ahead:
            ahead.remove(handed)
            handed += 1
        self._put(meter, handed, max(begun, handed))

    def close(self) -> None:
        """Write everything through to the disk."""
        self._map.flush()
        self._map.close()

    def _entry(self, meter: str) -> tuple[int, int]:
        handed, begun = _ENTRY.unpack_from(self._map, self._offset(meter))
        return handed, begun

    def _put(self, meter: str, handed: int, begun: int) -> None:
        _ENTRY.pack_into(self._map, self._offset(meter), handed, begun)

    def _offset(self, meter: str) -> int:
        return _HEAD.size + _ENTRY.size * self._places[meter]


def journal_path(folder: Path, plan: bytes) -> Path:
    return folder / f"replay-{plan.hex()[:16]}.journal"


def _fits(path: Path, head: bytes, size: int) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(head)) == head and os.fstat(file.fileno()).st_size == size
    except FileNotFoundError:
        return False
