"""Every way to alter one field of a record, anywhere inside it."""

import enum
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

Altered = tuple[str, Any]
"""Path of the field, and the whole record with that field altered."""


def altered(record: Any, path: str = "") -> Iterator[Altered]:
    """Yield (path, copy) for each alteration of each field, deep inside too; types stay right, values need not."""
    match record:
        case msgspec.Struct():
            for name in record.__struct_fields__:
                yield from _inside(record, f"{path}.{name}", getattr(record, name), _setter(record, name))
        case tuple():
            yield from _of_tuple(record, path)
        case enum.Enum():
            yield path, next(item for item in type(record) if item is not record)
        case bool():
            yield path, not record
        case int():
            yield from ((path, value) for value in (record + 1, record - 1, 0, 2**63 - 1) if 0 <= value != record)
        case bytes() if record:
            yield path, bytes([record[0] ^ 1]) + record[1:]
            yield path, bytes(len(record))
        case str():
            yield path, record[::-1] + "x"
        case _:
            return


def _setter(record: Any, name: str) -> Callable[[Any], Any]:
    return lambda value: msgspec.structs.replace(record, **{name: value})


def _inside(record: Any, path: str, value: Any, put: Callable[[Any], Any]) -> Iterator[Altered]:
    for inner, changed in altered(value, path):
        yield inner, put(changed)
    if isinstance(value, msgspec.Struct):
        yield path, put(None)


def _of_tuple(record: tuple, path: str) -> Iterator[Altered]:
    for place, item in enumerate(record):
        put = lambda value, place=place: (*record[:place], value, *record[place + 1 :])  # noqa: E731
        for inner, changed in altered(item, f"{path}[{place}]"):
            yield inner, put(changed)
    if record:
        yield f"{path}[-]", record[:-1]
        yield f"{path}[+]", (*record, record[-1])
        yield f"{path}[none]", ()
    if len(record) > 1:
        yield f"{path}[turned]", record[::-1]
