"""Numbers as people read them: few digits, thin gaps between thousands, one style everywhere."""

import re
from typing import Final

from markupsafe import Markup, escape

from bcami.report.document import Cell, Kind, Measured, Range

DASH: Final = "–"
_DIGITS: Final = 4
_DIGITS_EXACT: Final = 8
_BELOW: Final = re.compile(r"\b([A-Za-z])_([A-Za-z0-9τ]+(?:,[A-Z]+)?)")
"""`N_G`, `x_j`, `L_Pu,SM`; not `mdms_us`."""
_ABOVE: Final = re.compile(r"(?<=\d)\^(-?\d+)")
"""Of what is printed, counted or computed: shown as it is."""


def number_text(value: float, digits: int = _DIGITS) -> str:
    """Return a number with so many significant digits, whole numbers whole, thousands set apart."""
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}".replace(",", "\u202f")
    if abs(value) >= 1000:
        decimals = max(0, digits - len(str(int(abs(value)))))
        text = f"{value:,.{decimals}f}".replace(",", "\u202f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if 0 < abs(value) < 1e-4:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}·10^{int(exponent)}"
    text = f"{value:.{digits}g}"
    return f"{value:.10f}".rstrip("0").rstrip(".") if "e" in text else text


def cell_text(cell: Cell, kind: Kind = "text") -> str:
    """Return what a page shows of a cell."""
    digits = _DIGITS if kind == "measured" else _DIGITS_EXACT
    match cell:
        case None:
            return ""
        case bool():
            return "yes" if cell else "no"
        case str():
            return cell
        case int() | float():
            return number_text(cell, digits)
        case Range(low, high):
            return f"{number_text(low, digits)}{DASH}{number_text(high, digits)}"
        case Measured(median):
            return number_text(median)


def spread_text(cell: Cell) -> str:
    """Return quartiles and n of what was measured several times, else nothing: an exact count has no spread."""
    if not isinstance(cell, Measured):
        return ""
    if cell.n <= 1:
        return ""
    return f"{number_text(cell.low, 3)}{DASH}{number_text(cell.high, 3)}, n\u00a0=\u00a0{number_text(cell.n)}"


def rich_text(text: str) -> Markup:
    """Return text as HTML, escaped, with `N_G` and `10^-7` set as sub- and superscripts."""
    found = _BELOW.sub(r"\1<sub>\2</sub>", str(escape(text)))
    return Markup(_ABOVE.sub(r"<sup>\1</sup>", found))  # noqa: S704  escaped above


def math_text(text: str) -> str:
    """Return text for a drawing, with `N_G` as a subscript."""
    return _BELOW.sub(r"$\\mathrm{\1}_\\mathrm{\2}$", text)
