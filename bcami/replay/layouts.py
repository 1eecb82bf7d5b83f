"""The three layouts of the London data, told apart by their header.

    halfhourly   Kaggle: LCLid,tstp,energy(kWh/hh)
    hhblock      Kaggle: LCLid,day,hh_0 … hh_47; hh_0 starts at 00:00
    ukpn         UK Power Networks: LCLid[,stdorToU],DateTime,KWH/hh (per half hour) [,Acorn,Acorn_grouped]

Columns are found by name, in any order, with any others between them; names are compared without case and outer
blanks (the original has a trailing blank in one).
"""

import csv
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Final

from bcami.errors import InputError


class Layout(StrEnum):
    HALFHOURLY = "halfhourly"
    HHBLOCK = "hhblock"
    UKPN = "ukpn"


SLOTS_PER_DAY: Final = 48

_NAMES: Final[dict[Layout, tuple[str, str, tuple[str, ...]]]] = {
    Layout.HALFHOURLY: ("LCLid", "tstp", ("energy(kWh/hh)",)),
    Layout.HHBLOCK: ("LCLid", "day", tuple(f"hh_{slot}" for slot in range(SLOTS_PER_DAY))),
    Layout.UKPN: ("LCLid", "DateTime", ("KWH/hh (per half hour)",)),
}
"""Meter, time and value columns."""

_OTHER_KINDS: Final = {
    "energy_sum": "daily totals, no half-hourly readings",
    "acorn_grouped": "a table about households, no readings",
    "tariff": "tariffs, no readings",
    "temperature": "weather, no readings",
    "temperaturemax": "weather, no readings",
    "bank holidays": "holidays, no readings",
    "main categories": "a table about Acorn groups, no readings",
}

_HALF_HOURLY_NAMES: Final = {
    name.lower() for _, time, values in _NAMES.values() for name in (time, *values) if name != "day"
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a file has what."""

    layout: Layout
    width: int
    """Fields in every row."""
    meter: int
    time: int
    values: tuple[int, ...]
    """One place, or 48 for hhblock in the order of the day."""


@dataclass(frozen=True, slots=True)
class NotReadable:
    """Why a header is none of a readable layout."""

    what: str
    do: str = ""
    near: bool = False
    """It looks like readings with something wrong, rather than like another kind of file."""


def parse_layout(text: str) -> Layout:
    """Return the layout of that name; `half-hourly` and other spellings with punctuation count.

    Raises InputError that names the nearest layout.
    """
    plain = "".join(letter for letter in text.lower() if letter.isalnum())
    if plain in set(Layout):
        return Layout(plain)
    names = [layout.value for layout in Layout]
    nearest = get_close_matches(plain, names, n=1, cutoff=0.3)
    raise InputError(
        f"there is no layout {text!r}",
        where="--layout",
        do=f"use one of {', '.join(names)}" + (f" (nearest: {nearest[0]})" if nearest else ""),
    )


def recognise(header: str, wanted: Layout | None = None) -> Columns | NotReadable:
    """Return where the columns are, for the wanted layout or for the first that fits."""
    found = [name.strip() for name in next(csv.reader([header]), [])]
    places: dict[str, int] = {}
    for place, name in enumerate(found):
        places.setdefault(name.lower(), place)
    for layout in Layout if wanted is None else (wanted,):
        meter, time, values = _NAMES[layout]
        if all(name.lower() in places for name in (meter, time, *values)):
            return Columns(
                layout,
                len(found),
                places[meter.lower()],
                places[time.lower()],
                tuple(places[name.lower()] for name in values),
            )
    return _explain(header, found, places, wanted)


def _explain(header: str, found: list[str], places: dict[str, int], wanted: Layout | None) -> NotReadable:
    for mark, spelled in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if header.count(mark) >= 2 > header.count(","):
            return NotReadable(
                f"wrong delimiter: the columns are separated by {spelled}, not by commas",
                "save the file with commas between the columns",
                near=True,
            )
    layout = wanted or max(Layout, key=lambda candidate: _matches(candidate, places))
    meter, time, values = _NAMES[layout]
    own = _matches(layout, places) - (meter.lower() in places)
    shown = ", ".join(found[:8]) + (", …" if len(found) > 8 else "")
    kind = next((kind for mark, kind in _OTHER_KINDS.items() if mark in places), None)
    if wanted is None and kind is not None and not _HALF_HOURLY_NAMES & places.keys():
        return NotReadable(kind, _known())
    if wanted is None and own == 0:
        return NotReadable(f"no known header (it starts with: {shown[:120]})", _known())
    missing = [name for name in (meter, time, *values) if name.lower() not in places]
    listed = ", ".join(missing[:4]) + (", …" if len(missing) > 4 else "")
    return NotReadable(
        f"missing column{'s' if len(missing) > 1 else ''} {listed} of the {layout} layout (found: {shown[:200]})",
        _nearest(missing[0], found) or _known(),
        near=True,
    )


def _matches(layout: Layout, places: dict[str, int]) -> int:
    meter, time, values = _NAMES[layout]
    return (meter.lower() in places) + (time.lower() in places) + any(name.lower() in places for name in values)


def _nearest(missing: str, found: list[str]) -> str:
    close = get_close_matches(missing.lower(), [name.lower() for name in found], n=1, cutoff=0.6)
    return f"rename the column {close[0]!r} to {missing!r} if that is what it holds" if close else ""


def _known() -> str:
    heads = "; ".join(f"{layout}: {names[0]},{names[1]},{names[2][0]}" for layout, names in _NAMES.items())
    return f"use a file of a known layout ({heads}{'…'})"
