"""Meter ids as small integers, in order of their first appearance."""

from typing import Final

from bcami.errors import InputError

METERS_MAX: Final = 250_000
"""London has 5,566. The limit bounds memory (about 50 MB) when a column holds something else than meter ids."""
METER_ID_CHARACTERS_MAX: Final = 64
INVALID: Final = -1


def is_meter_id(text: str) -> bool:
    """A meter id is 1 to 64 printable characters; the name of the id column is none (a header repeated inside)."""
    return 0 < len(text) <= METER_ID_CHARACTERS_MAX and text.isprintable() and text.lower() != "lclid"


class MeterIndex:
    """Gives each meter id a number 0, 1, 2 …; with `chosen`, tells which ones the user wants."""

    def __init__(self, chosen: frozenset[str] | None = None) -> None:
        self.ids: list[str] = []
        self.wanted: list[bool] = []
        self._chosen = chosen
        self._by_id: dict[str, int] = {}
        self._by_bytes: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def of_bytes(self, raw: bytes) -> int:
        """Return the number of the id in a raw field, or INVALID."""
        number = self._by_bytes.get(raw)
        if number is None:
            try:
                number = self.of_text(raw.decode("utf-8").strip())
            except UnicodeDecodeError:
                number = INVALID
            if number != INVALID:
                self._by_bytes[raw] = number
        return number

    def of_text(self, text: str) -> int:
        """Return the number of a stripped id, or INVALID. Raises InputError above METERS_MAX."""
        number = self._by_id.get(text)
        if number is not None:
            return number
        if not is_meter_id(text):
            return INVALID
        if len(self.ids) == METERS_MAX:
            raise too_many_meters(text)
        number = len(self.ids)
        self._by_id[text] = number
        self.ids.append(text)
        self.wanted.append(self._chosen is None or text in self._chosen)
        return number


def too_many_meters(newest: str) -> InputError:
    return InputError(
        f"more than {METERS_MAX:,} different meter ids",
        where=f"the newest is {newest!r}",
        likely="the id column holds something else",
        do="check the columns, or split the data set",
    )
