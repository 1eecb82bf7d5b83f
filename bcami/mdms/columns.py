"""Rows and arrays as Arrow tables, the form in which they go into the store at once."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import pyarrow as pa

from bcami.mdms.records import ReadingColumns


def schema_of(**kinds: pa.DataType) -> pa.Schema:
    """Return the schema of columns by name, in this order."""
    return pa.schema([pa.field(name, kind) for name, kind in kinds.items()])


_BYTES: Final = pa.binary()
_INT: Final = pa.int64()
_TEXT: Final = pa.string()

METERS: Final = schema_of(number=_INT, hid=_BYTES, enrolled_height=_INT, revoked_height=_INT)
REVOKED: Final = schema_of(hid=_BYTES, height=_INT)
DIRECTORY: Final = schema_of(hid=_BYTES, meter_id=_TEXT)
SESSIONS: Final = schema_of(
    hid=_BYTES, number=_INT, encapsulation=_BYTES, period=_INT, height=_INT, public_key=_BYTES, kem_key=_BYTES
)
ACKNOWLEDGEMENTS: Final = schema_of(period=_INT, sequence=_INT, acknowledged_height=_INT, height=_INT)
UNREADABLE: Final = schema_of(
    height=_INT,
    place=_INT,
    transaction_id=_BYTES,
    hid=_BYTES,
    session=_INT,
    sequence=_INT,
    timestamp_ms=_INT,
    fault=_TEXT,
    content=_BYTES,
)
_READINGS: Final = schema_of(meter=_INT, start_s=_INT, energy=_INT, interval_s=_INT, height=_INT, place=_INT)


def table_of(columns: pa.Schema, rows: Iterable[Sequence[Any]]) -> pa.Table:
    """Return rows as a table."""
    values = list(zip(*rows, strict=True)) or [()] * len(columns)
    arrays = [pa.array(column, field.type) for column, field in zip(values, columns, strict=True)]
    return pa.Table.from_arrays(arrays, schema=columns)


def reading_table(readings: ReadingColumns) -> pa.Table:
    """Return reading columns as a table, without a copy."""
    columns = (
        readings.meter,
        readings.start_s,
        readings.energy,
        readings.interval_s,
        readings.height,
        readings.place,
    )
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=_READINGS)
