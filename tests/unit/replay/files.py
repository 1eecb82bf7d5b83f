"""Small data files in each layout, and what the tests want to know of them."""

import gzip
import zipfile
from pathlib import Path
from typing import Any

from bcami.replay.options import Filters
from bcami.replay.readings import ReadingStream
from bcami.replay.rejects import RejectLog
from bcami.replay.sources import Source, discover
from bcami.replay.survey import survey

HALFHOURLY = "LCLid,tstp,energy(kWh/hh)"
UKPN = "LCLid,stdorToU,DateTime,KWH/hh (per half hour) "
UKPN_ACORN = UKPN + ",Acorn,Acorn_grouped"
HHBLOCK = "LCLid,day," + ",".join(f"hh_{slot}" for slot in range(48))


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    """Write a plain, .gz or .zip file, by its name."""
    data = "".join(line + end for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("block_0.csv", data)
    else:
        path.write_bytes(data)
    return path


def halfhour(meter: str, time: str, value: str) -> str:
    return f"{meter},{time}.0000000, {value} "


def stream_of(path: Path | Source, filters: Filters | None = None, rejects: RejectLog | None = None) -> ReadingStream:
    source = discover(path) if isinstance(path, Path) else path
    filters = filters or Filters()
    chosen = survey(source).first(filters.meters)
    return ReadingStream(source, filters, rejects or RejectLog(), chosen)


def readings_of(stream: ReadingStream) -> list[tuple[str, int, int]]:
    """Return (meter, start_s, energy) of all accepted readings, in order."""
    return [
        (stream.meters.ids[meter], start_s, energy)
        for chunk in stream
        for meter, start_s, energy in zip(
            chunk.meter.tolist(), chunk.start_s.tolist(), chunk.energy.tolist(), strict=True
        )
    ]


def rejects_of(stream: ReadingStream) -> dict[str, int]:
    return {reason.value: count for reason, count in stream.rejects.counts.items()}


def totals(path: Path) -> dict[str, Any]:
    stream = stream_of(path)
    meters: set[int] = set()
    rows = energy = 0
    for chunk in stream:
        meters.update(chunk.meter.tolist())
        rows += len(chunk)
        energy += int(chunk.energy.sum())
    return {
        "layout": stream.source.layout.value,
        "meters": len(meters),
        "readings": rows,
        "energy": energy,
        "rejects": rejects_of(stream),
    }
