"""Typed state: a contract declares what it keeps, and the runtime does keys, encoding and order.

A state key is `<contract>/<map>/<key bytes>`. Every form of key has a fixed width, so that no two keys share their
bytes and a prefix of a pair selects exactly its first part.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from bcami.codec import encode
from bcami.contract.context import Context, ReadFault
from bcami.model.ids import HASH_BYTES

K = TypeVar("K")
V = TypeVar("V")
A = TypeVar("A")
B = TypeVar("B")

U63_MAX: Final = 2**63 - 1


class KeyForm(NamedTuple, Generic[K]):
    """How a key becomes bytes of a fixed width."""

    width: int
    encode: Callable[[K], bytes]


def _hash_bytes(value: bytes) -> bytes:
    if len(value) != HASH_BYTES:
        raise ValueError(f"a key of {len(value)} bytes, not of {HASH_BYTES}")
    return value


def _number_bytes(value: int) -> bytes:
    if not 0 <= value <= U63_MAX:
        raise ValueError(f"a key number outside 0 … 2^63 − 1: {value}")
    return value.to_bytes(8, "big")


def pair(first: KeyForm[A], second: KeyForm[B]) -> KeyForm[tuple[A, B]]:
    """Return the form of a key of two parts."""
    encode_first, encode_second = first.encode, second.encode
    return KeyForm(first.width + second.width, lambda key: encode_first(key[0]) + encode_second(key[1]))


HASH: Final[KeyForm[bytes]] = KeyForm(HASH_BYTES, _hash_bytes)
NUMBER: Final[KeyForm[int]] = KeyForm(8, _number_bytes)
ONLY: Final[KeyForm[None]] = KeyForm(0, lambda _: b"")
"""For a map with one entry."""


class View(Generic[K, V]):
    """Reads a map of another contract of the same package."""

    def __init__(self, contract: str, name: str, kind: type[V], form: KeyForm[K]) -> None:
        self.contract = contract
        self.name = name
        self.kind = kind
        self.form = form
        self._prefix = f"{contract}/{name}/".encode()
        self._encode_key = form.encode
        self._decode: Callable[[bytes], V] = msgspec.msgpack.Decoder(kind).decode

    def state_key(self, key: K) -> bytes:
        """Return the key in the world state."""
        return self._prefix + self._encode_key(key)

    def decode(self, value: bytes) -> V:
        """Return a stored value. What does not decode is damage at this node: raises ReadFault."""
        try:
            return self._decode(value)
        except msgspec.MsgspecError as error:
            raise ReadFault(error) from error

    async def get(self, ctx: Context, key: K) -> V | None:
        """Return the committed value, or None. One step."""
        ctx.step()
        value = await ctx.load(self._prefix + self._encode_key(key))
        return None if value is None else self.decode(value)

    async def items(self, ctx: Context, prefix: bytes, limit: int) -> AsyncIterator[tuple[bytes, V]]:
        """Yield (key bytes, value) of at most `limit` entries whose key starts with `prefix`; in queries only."""
        start = len(self._prefix)
        async for key, value in ctx.load_range(self._prefix + prefix, limit):
            ctx.step()
            yield key[start:], self.decode(value)


class Map(View[K, V]):
    """State that its contract alone writes; declared as an attribute of the contract's class."""

    def __init__(self, kind: type[V], form: KeyForm[K]) -> None:
        super().__init__("", "", kind, form)

    def __set_name__(self, owner: Any, name: str) -> None:
        self.contract = owner.name
        self.name = name
        self._prefix = f"{owner.name}/{name}/".encode()

    def put(self, ctx: Context, key: K, value: V) -> None:
        """Buffer a value. One step. Raises TypeError for a value of another type."""
        if type(value) is not self.kind:
            raise TypeError(f"{self.contract}/{self.name} holds {self.kind.__name__}, not {type(value).__name__}")
        ctx.write(self._prefix + self._encode_key(key), encode(value))

    def delete(self, ctx: Context, key: K) -> None:
        """Buffer a deletion. One step."""
        ctx.write(self._prefix + self._encode_key(key), None)
