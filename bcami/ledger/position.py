"""Where a reader is: memory that it shares with the process that waits for it, the last word of one that crashed."""

import struct
from typing import Any, Final, NamedTuple, Self

from bcami.ledger.records import LEDGER_TABLES, PROMISES, Table

_TABLES: Final = (*LEDGER_TABLES, PROMISES)
_FIELDS: Final = struct.Struct("<6Q")
POSITION_BYTES: Final = _FIELDS.size


class Position(NamedTuple):
    """One reading of it."""

    steps: int
    """Rises with every record; one that stands still hangs."""
    table: int
    """Place in the list of tables, from 1; 0 before the first."""
    height: int
    """Block that is being read; 0 when not known."""
    blocks: int
    """Blocks walked."""
    blocks_total: int
    records: int

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_FIELDS.unpack(data))

    @property
    def table_name(self) -> str:
        return _TABLES[self.table - 1].name if 1 <= self.table <= len(_TABLES) else "meta"


class PositionMark:
    """Writes the position."""

    def __init__(self, shared: Any) -> None:
        self._shared = shared
        self._steps = 0
        self.blocks = 0
        self.blocks_total = 0
        self.records = 0

    @property
    def last(self) -> Position:
        return Position.unpack(bytes(self._shared[:POSITION_BYTES]))

    def at(self, table: Table, height: int) -> None:
        self._steps += 1
        _FIELDS.pack_into(
            self._shared, 0, self._steps, _NUMBERS[table.name], height, self.blocks, self.blocks_total, self.records
        )


_NUMBERS: Final = {table.name: number for number, table in enumerate(_TABLES, 1)}
