"""Writes readings to a Parquet file, and streams them as Arrow, in bounded memory."""

import io
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from bcami.errors import EnvironmentFault, InputError
from bcami.mdms.columns import schema_of

STREAM_SCHEMA: Final = schema_of(meter_id=pa.string(), start_s=pa.int64(), energy=pa.int64())
EXPORT_SCHEMA: Final = STREAM_SCHEMA.append(pa.field("flags", pa.uint8())).with_metadata(
    {
        "energy": "units of 10^-7 kWh over the interval, as the meter sent it",
        "start_s": "first second of the interval, Unix seconds, UTC",
        "flags": "1 duplicate, 2 conflict, 4 negative, 8 spike, 16 zero run, 32 after gap",
    }
)


def write_parquet(batches: Iterable[pa.RecordBatch], path: Path) -> int:
    """Write all batches to a file that is there whole or not at all; return the number of readings.

    Raises InputError on a name that is no .parquet or a folder that is not there, EnvironmentFault from the disk.
    """
    if path.suffix != ".parquet" or not path.parent.is_dir():
        raise InputError(
            "readings are exported to a file that ends in .parquet, in a folder that exists", where=str(path)
        )
    partial = path.with_name(f".{path.name}.partial")
    rows = 0
    try:
        with pq.ParquetWriter(partial, EXPORT_SCHEMA, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch.cast(EXPORT_SCHEMA))
                rows += batch.num_rows
        partial.replace(path)
    except OSError as error:
        raise EnvironmentFault(f"the export cannot be written: {error}", where=str(path)) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return rows


class _Pieces(io.RawIOBase):
    """A file that hands on what is written to it."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        return len(piece)

    def take(self) -> bytes:
        taken, self._pieces = b"".join(self._pieces), []
        return taken


def stream_arrow(batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    """Yield the bytes of an Arrow IPC stream of the batches, piece by piece."""
    pieces = _Pieces()
    with pa.ipc.new_stream(pa.PythonFile(pieces, mode="w"), STREAM_SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch.cast(STREAM_SCHEMA))
            yield pieces.take()
    yield pieces.take()
