"""Sizes, times and energy as exact integers, with the unit in the name."""

import re
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

ENERGY_UNITS_PER_KWH: Final = 10_000_000
"""One energy unit is 10^-7 kWh: it holds every digit of the London source exactly (design D9)."""

HALF_HOUR_S: Final = 1800

_DECIMAL: Final = re.compile(r"[+-]?\d{1,9}(?:\.(\d+))?")


def energy_from_text(text: str) -> int:
    """Return the energy units in a decimal text of kWh, exactly.

    Raises ValueError when the text is no plain decimal or holds more than seven significant decimals.
    """
    stripped = text.strip()
    match = _DECIMAL.fullmatch(stripped)
    if match is None:
        raise ValueError(f"not a decimal number of kWh: {text!r}")
    decimals = (match[1] or "").rstrip("0")
    if len(decimals) > 7:
        raise ValueError(f"more than seven decimals: {text!r}")
    whole = stripped.split(".", 1)[0]
    sign = -1 if whole.startswith("-") else 1
    units = abs(int(whole)) * ENERGY_UNITS_PER_KWH + int(decimals.ljust(7, "0"))
    return sign * units


def energy_to_text(units: int) -> str:
    """Return energy units as a decimal text of kWh with exactly seven decimals."""
    sign = "-" if units < 0 else ""
    whole, rest = divmod(abs(units), ENERGY_UNITS_PER_KWH)
    return f"{sign}{whole}.{rest:07d}"
