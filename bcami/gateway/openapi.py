"""Descriptions of what is answered, made from the records themselves, so that they cannot drift from them."""

from typing import Any, Final

from msgspec import inspect

MSGPACK: Final = "application/msgpack"
JSON: Final = "application/json"

Schema = dict[str, Any]

ANY_NUMBER: Final[Schema] = {"type": "integer", "minimum": 0}
TEXT: Final[Schema] = {"type": "string"}
HEX: Final[Schema] = {"type": "string", "pattern": "^([0-9a-f]{2})*$"}


def schema_of(kind: Any) -> Schema:
    """Return the JSON schema of what `forms.hexed` makes of a record type."""
    return _schema(inspect.type_info(kind))


def structure(**properties: Schema) -> Schema:
    """Return the schema of an object with exactly these members."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def listing(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def answers(
    description: str, schema: Schema | None, *, packed: str = "", example: Any = None
) -> dict[int | str, dict[str, Any]]:
    """Return the description of a 200: JSON if there is a schema, msgpack if `packed` names its record."""
    content: dict[str, Any] = {}
    if schema is not None:
        content[JSON] = {"schema": schema}
        if example is not None:
            content[JSON]["example"] = example
    if packed:
        content[MSGPACK] = {
            "schema": {"type": "string", "format": "binary", "description": f"`{packed}` of bcami.model"}
        }
    return {200: {"description": description, "content": content}}


def _schema(info: inspect.Type) -> Schema:
    match info:
        case inspect.BytesType():
            return _hex(info)
        case inspect.IntType(ge=low, le=high):
            bounds = {"minimum": low, "maximum": high}
            return {"type": "integer", **{key: value for key, value in bounds.items() if value is not None}}
        case inspect.EnumType(cls=cls):
            return {"type": "string", "enum": [item.value for item in cls]}
        case inspect.StrType():
            return {"type": "string"}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.NoneType():
            return {"type": "null"}
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            return listing(_schema(item))
        case inspect.UnionType(types=types):
            return {"anyOf": [_schema(item) for item in types]}
        case inspect.StructType(fields=fields):
            return structure(**{field.name: _schema(field.type) for field in fields})
        case _:
            raise TypeError(f"no JSON form for {info}")


def _hex(info: inspect.BytesType) -> Schema:
    if info.min_length is not None and info.min_length == info.max_length:
        return {"type": "string", "pattern": f"^[0-9a-f]{{{2 * info.min_length}}}$"}
    return dict(HEX)


def example_of(kind: Any) -> Any:
    """Return an example of a record's JSON form: zeros of the right width."""
    return _example(inspect.type_info(kind))


def _example(info: inspect.Type) -> Any:
    match info:
        case inspect.BytesType(min_length=width):
            return "00" * (width or 4)
        case inspect.IntType():
            return 1
        case inspect.EnumType(cls=cls):
            return next(iter(cls)).value
        case inspect.StrType():
            return "node1"
        case inspect.BoolType():
            return False
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            return [_example(item)]
        case inspect.UnionType(types=types):
            return _example(types[0])
        case inspect.StructType(fields=fields):
            return {field.name: _example(field.type) for field in fields}
        case _:
            return None
