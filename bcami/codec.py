"""The one wire and storage encoding: msgpack arrays, decoded strictly (design D16).

msgspec accepts non-minimal integers and the like, so that two byte strings could mean one vote. `Codec.decode`
encodes the value again and compares, which leaves exactly one byte string for each value.
"""

from typing import Any, Generic, TypeVar

import msgspec

from bcami.errors import MalformedError

T = TypeVar("T")

_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


def encode(value: Any) -> bytes:
    """Return the canonical msgpack bytes of a record."""
    return _ENCODER.encode(value)


class Codec(Generic[T]):
    """Encodes and strictly decodes one type (or tagged union), with a limit on the size of its bytes."""

    def __init__(self, kind: Any, bytes_max: int) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self.bytes_max = bytes_max

    def encode(self, value: T) -> bytes:
        return _ENCODER.encode(value)

    def decode(self, data: bytes) -> T:
        """Return the value.

        Raises MalformedError when the bytes are too long, of another shape, or not in canonical form.
        """
        if len(data) > self.bytes_max:
            raise MalformedError(f"{len(data)} bytes, at most {self.bytes_max} are allowed")
        try:
            value = self._decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise MalformedError(f"not a valid record: {error}") from None
        if _ENCODER.encode(value) != data:
            raise MalformedError("not the canonical encoding")
        return value
