"""Blocks of whole lines out of a data file, with the number of each line."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Final

import numpy as np

from bcami.errors import InputError
from bcami.replay.fields import FIELD_PADDING, Bytes, Integers
from bcami.replay.sources import DAMAGED, DataFile, damaged, open_data, unreadable
from bcami.units import MIB

BLOCK_BYTES: Final = 4 * MIB
"""About 85,000 rows: large enough for numpy, small enough that a block's arrays stay below 50 MB."""
DAMAGE_STEP_BYTES: Final = 4096
LINE_BYTES_MAX: Final = 1 * MIB
"""A file without line ends must not be collected in memory; hhblock has about 350 bytes a line."""

_NEWLINE, _RETURN, _COMMA, _QUOTE = 10, 13, 44, 34


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines, without their ends."""

    buffer: Bytes
    starts: Integers
    ends: Integers
    first_line: int
    """Number of line 0 in the file, counted from 1; the header is line 1."""
    bytes_packed: int
    """How much of the file on disk was read so far."""

    def text(self, row: int) -> bytes:
        return self.buffer[int(self.starts[row]) : int(self.ends[row])].tobytes()


def read_blocks(file: DataFile) -> Iterator[Block]:
    """Yield the lines behind the header. Raises InputError, naming the line, when the file breaks off."""
    line = 1
    rest = b""
    with open_data(file) as stream:
        while True:
            try:
                fresh = stream.read(BLOCK_BYTES)
            except DAMAGED as error:
                raise damaged(file.name, error, _lines_before_damage(file)) from error
            except OSError as error:
                raise unreadable(file.name, error) from error
            if not fresh and not rest:
                return
            data = rest + fresh if fresh else rest + b"\n"
            cut = data.rfind(b"\n") + 1
            rest = data[cut:]
            if len(rest) > LINE_BYTES_MAX:
                raise InputError(
                    f"a line is longer than {LINE_BYTES_MAX:,} bytes",
                    where=f"{file.name}, line {line + data.count(10, 0, cut)}",
                    likely="this is no text file, or its lines end with CR alone",
                    do="save the file as CSV with LF or CRLF line ends",
                )
            if cut == 0:
                continue
            block = _split(data[:cut], line, _position(stream, file))
            line += len(block.starts)
            yield _without_header(block) if block.first_line == 1 else block


def _lines_before_damage(file: DataFile) -> int:
    """Return how many whole lines can be had, the header included: the last block came short of what was there."""
    lines = 0
    with suppress(InputError, *DAMAGED), open_data(file) as stream:
        while fresh := stream.read1(DAMAGE_STEP_BYTES):  # type: ignore[attr-defined] # read1: both archives have it
            lines += fresh.count(b"\n")
    return lines


def _split(data: bytes, line: int, position: int) -> Block:
    buffer = np.frombuffer(data + bytes(FIELD_PADDING), dtype=np.uint8)
    ends = np.flatnonzero(buffer == _NEWLINE)
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    if b"\r" in data:
        ends = ends - ((buffer[ends - 1] == _RETURN) & (ends > starts))
    return Block(buffer, starts, ends, line, position)


def _without_header(block: Block) -> Block:
    return Block(block.buffer, block.starts[1:], block.ends[1:], 2, block.bytes_packed)


def _position(stream: IO[bytes], file: DataFile) -> int:
    """Return how many bytes on disk were consumed, roughly for archives."""
    under = getattr(stream, "fileobj", None) or getattr(stream, "_fileobj", None)
    tell = getattr(under, "tell", stream.tell)
    return min(int(tell()), file.bytes_packed)


def split_fields(block: Block, width: int) -> tuple[Integers, Integers]:
    """Return the commas of each row that has exactly `width` fields and no quotes, and which rows those are.

    Returns (rows, commas of shape (rows, width - 1)).
    """
    commas = np.flatnonzero(block.buffer == _COMMA)
    first = np.searchsorted(commas, block.starts)
    count = np.searchsorted(commas, block.ends) - first
    regular = count == width - 1
    regular &= block.ends > block.starts
    quotes = np.flatnonzero(block.buffer == _QUOTE)
    if len(quotes):
        regular &= np.searchsorted(quotes, block.starts) == np.searchsorted(quotes, block.ends)
    rows = np.flatnonzero(regular)
    if width == 1 or len(rows) == 0:
        return rows, np.empty((len(rows), width - 1), dtype=np.int64)
    return rows, commas[first[rows][:, None] + np.arange(width - 1)]
