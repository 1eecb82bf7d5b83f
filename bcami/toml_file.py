"""A TOML file as a strict record. What is wrong in it is told with file, line, key and the nearest valid key."""

import difflib
import re
import tomllib
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bcami.errors import InputError

Location = Sequence[str | int]


class Record(BaseModel):
    """A table of a file: every key is known and of the type that it says."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


_R = TypeVar("_R", bound=Record)


def load_record(path: Path, kind: type[_R]) -> _R:
    """Return the record in a file. Raises InputError naming file, line, key and the nearest valid key."""
    text = read_text(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise InputError(f"not valid TOML: {error}", where=f"{path}:{line[1]}" if line else str(path)) from None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _explained(path, text, data, kind, error) from None


def read_text(path: Path) -> str:
    """Return a file's text. Raises InputError."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("no such file", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the file cannot be read: {error}", where=str(path)) from None


def unknown_key(path: Path, location: Location, valid: Iterable[str]) -> InputError:
    """Return the error for a key that nobody knows, with the nearest valid one."""
    key = str(location[-1])
    names = sorted(valid)
    return InputError(
        f"unknown key {key!r}",
        where=f"{path}:{line_of(path.read_text(encoding='utf-8'), location)}",
        do=nearest(key, names) or f"valid keys: {', '.join(names)}",
    )


def nearest(key: str, names: Iterable[str]) -> str:
    """Return a question after the name that was perhaps meant; "" when none is near."""
    close = difflib.get_close_matches(key, list(names), 1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def line_of(text: str, location: Location) -> int:
    """Return the line on which a key stands, or the one that opens its table; 1 when it is not found."""
    tables = [str(part) for part in location if isinstance(part, str)]
    wanted_place = next((part for part in location if isinstance(part, int)), 0)
    table, opened = "", 1
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[{1,2}\s*([\w.-]+)\s*\]{1,2}", line)
        if header:
            table = header[1]
            seen[table] = seen.get(table, -1) + 1
        inside = not table or seen[table] == wanted_place
        if tables and header and table == tables[0] and inside:
            opened = number
        key = re.match(r"\s*([\w-]+)\s*=", line)
        if key and inside and [*filter(None, [table]), key[1]] == tables:
            return number
    return opened


def _explained(path: Path, text: str, data: dict[str, Any], kind: type[Record], error: ValidationError) -> InputError:
    first = error.errors(include_url=False)[0]
    location = first["loc"]
    key = str(location[-1]) if location else ""
    if first["type"] == "extra_forbidden":
        return unknown_key(path, location, _keys_at(kind, location))
    present = location[:-1] if first["type"] == "missing" else location
    where = f"{path}:{line_of(text, present)}"
    if first["type"] == "missing":
        misspelt = [name for name in _table_at(data, present) if name not in _keys_at(kind, location)]
        close = difflib.get_close_matches(key, misspelt, 1)
        return InputError(f"key {key!r} is missing", where=where, do=f"rename {close[0]!r}" if close else "add it")
    if first["type"] == "value_error":
        return InputError(str(first["ctx"]["error"]), where=where)
    dotted = ".".join(str(part) for part in location)
    return InputError(f"key {dotted!r}: {first['msg']}, found {first['input']!r}", where=where)


def _table_at(data: Any, location: Location) -> list[str]:
    for part in location:
        data = data[part]
    return list(data) if isinstance(data, dict) else []


def _keys_at(kind: type[Record], location: Location) -> list[str]:
    """Return the keys of the table that holds the location's last part."""
    inner = kind
    for part in location[:-1]:
        if isinstance(part, str) and part in inner.model_fields:
            inner = _record_in(inner.model_fields[part].annotation) or inner
    return list(inner.model_fields)


def _record_in(annotation: Any) -> type[Record] | None:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _record_in(part))), None)
