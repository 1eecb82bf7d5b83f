"""The stream of accepted readings of a source: filtered, checked, each (meter, half-hour) once, rejects counted.

    stream = ReadingStream(discover(path), Filters(), rejects)
    for chunk in stream: ...

Order is that of the files and their rows, always the same, which `--resume` rests on. What lies outside the filters
is neither read nor rejected: readings_read = accepted + rejected. A row whose time or meter cannot be told cannot
be outside, and counts. Timestamps are the start of the half-hour, UTC.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bcami.replay.fields import Integers, Mask
from bcami.replay.lines import Block, read_blocks
from bcami.replay.meters import INVALID, MeterIndex
from bcami.replay.options import Filters
from bcami.replay.rejects import RejectLog
from bcami.replay.rows import ParsedBlock, Reject, RowReject, read_block
from bcami.replay.seen import CONFLICT, DUPLICATE, NEW, SeenReadings
from bcami.replay.sources import DataFile, Source


@dataclass(frozen=True, slots=True)
class ReadingChunk:
    """Accepted readings in file order, as columns."""

    meter: npt.NDArray[np.int32]
    """Numbers in the stream's MeterIndex."""
    start_s: Integers
    energy: Integers

    def __len__(self) -> int:
        return len(self.meter)


@dataclass(slots=True)
class ReadingStream:
    """Iterate once; the counters are right at any time in between."""

    source: Source
    filters: Filters
    rejects: RejectLog
    chosen: frozenset[str] | None = None
    """The ids that `filters.meters` means (`survey` finds them); None: all."""
    scratch: Path | None = None
    """Folder for the scratch file; the system's when None."""
    accepted: int = 0
    bytes_read: int = 0
    """Of the files as they are on disk."""
    meters: MeterIndex = field(init=False)

    def __post_init__(self) -> None:
        if self.filters.meters is not None and self.chosen is None:
            raise ValueError("the chosen meters come from a survey")
        self.meters = MeterIndex(self.chosen)

    @property
    def readings_read(self) -> int:
        return self.accepted + self.rejects.total

    def __iter__(self) -> Iterator[ReadingChunk]:
        seen = SeenReadings(self.scratch)
        before = 0
        try:
            for file in self.source.files:
                for block in read_blocks(file):
                    chunk = self._accept(file, block, read_block(block, file.columns, self.meters), seen)
                    self.accepted += len(chunk)
                    self.bytes_read = before + block.bytes_packed
                    if len(chunk):
                        yield chunk
                before += file.bytes_packed
                self.bytes_read = before
        finally:
            seen.close()

    def _accept(self, file: DataFile, block: Block, parsed: ParsedBlock, seen: SeenReadings) -> ReadingChunk:
        inside = self._inside(parsed)
        row, meter = parsed.row[inside], parsed.meter[inside]
        start_s, energy = parsed.start_s[inside], parsed.energy[inside]
        verdict = seen.add(meter, start_s, energy)
        rejects = [reject for reject in parsed.rejects if self._counts(reject)]
        for value, reason in ((DUPLICATE, Reject.DUPLICATE), (CONFLICT, Reject.CONFLICT)):
            for place in np.flatnonzero(verdict == value).tolist():
                slot = (int(start_s[place]) % 86_400) // 1800
                column = f"hh_{slot}" if len(file.columns.values) > 1 else ""
                rejects.append(RowReject(int(row[place]), reason, int(meter[place]), int(start_s[place]), column))
        for reject in sorted(rejects, key=lambda one: one.row):
            line = block.first_line + reject.row
            self.rejects.add(file.name, line, reject.reason, block.text(reject.row), reject.column)
        new = verdict == NEW
        return ReadingChunk(meter[new], start_s[new], energy[new])

    def _inside(self, parsed: ParsedBlock) -> Mask:
        inside = np.ones(len(parsed.row), dtype=np.bool_)
        if self.filters.from_s is not None:
            inside &= parsed.start_s >= self.filters.from_s
        if self.filters.to_s is not None:
            inside &= parsed.start_s < self.filters.to_s
        if self.chosen is not None:
            inside &= np.array(self.meters.wanted, dtype=np.bool_)[parsed.meter]
        return inside

    def _counts(self, reject: RowReject) -> bool:
        if reject.meter != INVALID and not self.meters.wanted[reject.meter]:
            return False
        if reject.start_s is None:
            return True
        after = self.filters.from_s is None or reject.start_s >= self.filters.from_s
        return after and (self.filters.to_s is None or reject.start_s < self.filters.to_s)
