"""BC-AMI's experiment on the London data: the paper's sums are those of files that a spreadsheet had cut."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bcami.replay.lines import read_blocks
from bcami.replay.meters import MeterIndex
from bcami.replay.rows import read_block
from bcami.replay.sources import DataFile, discover
from bcami.report.document import Chart, Column, Row, Section, Series, Table
from bcami.report.papers import bc_ami as paper
from bcami.units import ENERGY_UNITS_PER_KWH

ROWS_KEPT = paper.SPREADSHEET_ROWS - 1
"""Data rows that a spreadsheet shows: one of its rows is the header."""


@dataclass(frozen=True, slots=True)
class BlockTotals:
    """One file, whole and cut."""

    name: str
    rows: int
    readings: int
    """Rows that hold a reading."""
    meters: int
    units: int
    """Energy of all readings, 10^-7 kWh."""
    cut_meters: int
    cut_units: int
    """The same of the first rows only."""


def total(file: DataFile, rows_kept: int = ROWS_KEPT) -> BlockTotals:
    """Return the totals of a file, whole and after so many data rows. Raises InputError when it breaks off."""
    meters, cut_meters = MeterIndex(), 0
    rows = readings = units = cut_units = 0
    for block in read_blocks(file):
        parsed = read_block(block, file.columns, meters)
        kept = parsed.row + rows < rows_kept
        units += int(parsed.energy.sum())
        cut_units += int(parsed.energy[kept].sum())
        if kept.any():
            cut_meters = max(cut_meters, int(np.max(parsed.meter[kept])) + 1)
        readings += len(parsed.energy)
        rows += len(block.starts)
    return BlockTotals(file.name, rows, readings, len(meters), units, cut_meters, cut_units)


def measure_london(path: Path, show: Callable[[str], None]) -> list[BlockTotals]:
    """Return the totals of each data file under a path. Raises InputError."""
    found = []
    for file in discover(path).files:
        show(file.name)
        found.append(total(file))
    return found


def london_section(found: list[BlockTotals], path: str) -> Section:
    """Return the paper's five sums beside the reconstruction, and the user's own files whole and cut."""
    return Section(
        "london",
        "BC-AMI's London experiment",
        (
            (
                "The paper says that it took Block1 to Block5 of the half-hourly London data, each of “10,48,576 "
                "rows”, and sums their energy. 1,048,576 is 2^20, the most rows that a spreadsheet shows; Kaggle's "
                "files are longer. Cutting block_1 … block_5 after 1,048,575 data rows gives the paper's five sums "
                "within 2.5 kWh, so it summed what was left: 68 to 73 % of the energy. Nor are the 112 files 112 "
                "meters, as it says: each holds about fifty households."
            ),
            (
                "Those half-hourly files are not part of this program. The reconstruction rests on Kaggle's daily "
                "file of the same blocks; the last table does the same with whatever files it is given (--data)."
            ),
        ),
        (_paper_table(), _paper_chart(), _own_table(found, path)),
    )


def _paper_table() -> Table:
    rows = tuple(
        Row(
            (
                f"Block{block}",
                paper.BLOCK_KWH.get(block),
                paper.CUT_KWH.get(block),
                true,
                round(100 * paper.BLOCK_KWH[block] / true, 1) if block in paper.BLOCK_KWH else None,
            ),
            "",
            "" if block in paper.BLOCK_KWH else "Kaggle's first file; the paper's Block1 is block_1, not this one.",
        )
        for block, true in paper.TRUE_KWH.items()
    )
    return Table(
        "london_paper",
        "Energy of the paper's five blocks, kWh",
        (
            Column("block", "Block"),
            Column("printed", "Paper as printed", "printed"),
            Column("recomputed", "File cut after 1,048,575 rows", "recomputed"),
            Column("true", "Whole file", "number"),
            Column("percent", "Paper, % of whole", "number"),
        ),
        rows,
        f"{paper.CITATION}, 5.3.2; cut and whole from Kaggle's daily files of the same blocks",
    )


def _paper_chart() -> Chart:
    names = tuple(f"Block{block}" for block in paper.BLOCK_KWH)
    return Chart(
        "london_blocks",
        "What the paper summed, and what the blocks hold",
        "bars",
        "block of the London data",
        "energy, MWh",
        (
            Series("paper as printed", "printed", names, tuple(kwh / 1000 for kwh in paper.BLOCK_KWH.values())),
            Series(
                "cut after 1,048,575 rows",
                "recomputed",
                names,
                tuple(paper.CUT_KWH[block] / 1000 for block in paper.BLOCK_KWH),
            ),
            Series("whole file", "number", names, tuple(paper.TRUE_KWH[block] / 1000 for block in paper.BLOCK_KWH)),
        ),
        caption="The printed sums are those of files that a spreadsheet had cut.",
    )


def _own_table(found: list[BlockTotals], path: str) -> Table:
    rows = tuple(
        Row(
            (
                item.name,
                item.rows,
                item.readings,
                item.meters,
                round(item.units / ENERGY_UNITS_PER_KWH, 4),
                round(item.cut_units / ENERGY_UNITS_PER_KWH, 4),
                item.cut_meters,
                round(100 * item.cut_units / item.units, 2) if item.units else None,
            )
        )
        for item in found
    )
    is_cut = any(item.rows > ROWS_KEPT for item in found)
    return Table(
        "london_files",
        "The files at hand, whole and cut at a spreadsheet's limit",
        (
            Column("file", "File"),
            Column("rows", "Data rows", "number"),
            Column("readings", "Readings", "number"),
            Column("meters", "Meters", "number"),
            Column("kwh", "kWh, whole", "number"),
            Column("kwh_cut", "kWh after 1,048,575 rows", "number"),
            Column("meters_cut", "Meters in the cut", "number"),
            Column("percent", "Cut, % of whole", "number"),
        ),
        rows,
        text=f"Data: {path}. "
        + (
            "Rows without a reading (Null and the like) count as rows, not as energy."
            if is_cut
            else "None of these files has more rows than a spreadsheet shows, so nothing is lost in them."
        ),
    )
