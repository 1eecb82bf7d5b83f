"""How a contract is written (design D6): a class with typed state, `async` submit and query functions and a context.

    class Notes(Contract):
        \"\"\"Keeps one note for each meter.\"\"\"

        name = "notes"
        notes = Map(Note, HASH)

        @submit
        async def write(self, ctx: Context, argument: Note) -> None:
            require(await self.notes.get(ctx, ctx.signer) is None, Reason.ALREADY_ENROLLED)
            self.notes.put(ctx, ctx.signer, argument)

        @write.signers
        async def write_signers(self, ctx: Context, argument: Note) -> tuple[bytes, ...]:
            return (ctx.network.utility_key,)

        @query
        async def read(self, ctx: Context, argument: bytes) -> Note: ...

The argument's annotation says how it is decoded: a record strictly, `bytes` as they are. A `signers` function returns
the keys that must have signed; an endorser runs it before it checks the signatures, so it is also the place to refuse
early. It sees no time (`ctx.time_ms` is 0): what depends on time belongs into the submit function, as does everything
that decides the outcome, because only the submit function runs when the transaction is executed.
"""

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from bcami.contract.context import Context

C = TypeVar("C", bound="Contract")
A = TypeVar("A")
R = TypeVar("R")

SignersFunction = Callable[[C, Context, A], Awaitable[tuple[bytes, ...]]]


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Base of a contract's own arguments and state records."""


class Submit(Generic[C, A]):
    """A function that a transaction calls."""

    def __init__(self, function: Callable[[C, Context, A], Awaitable[None]]) -> None:
        self.function = function
        self.signers_function: SignersFunction[C, A] | None = None

    def signers(self, function: SignersFunction[C, A]) -> SignersFunction[C, A]:
        """Decorate the function that returns the keys that must have signed."""
        self.signers_function = function
        return function


class Query(Generic[C, A, R]):
    """A function that reads state and changes nothing."""

    def __init__(self, function: Callable[[C, Context, A], Awaitable[R]]) -> None:
        self.function = function


def submit(function: Callable[[C, Context, A], Awaitable[None]]) -> Submit[C, A]:
    """Mark a function that a transaction calls; it needs a `signers` function too."""
    return Submit(function)


def query(function: Callable[[C, Context, A], Awaitable[R]]) -> Query[C, A, R]:
    """Mark a function that only reads."""
    return Query(function)


class Contract:
    """Base of every contract. Instances hold no state of their own."""

    __slots__ = ()

    name: ClassVar[str]
    """The contract's name in transactions and state keys."""


def members_of(contract: type[Contract], kind: type[Any]) -> dict[str, Any]:
    """Return the attributes of one kind that a contract's class declares, by name."""
    return {name: value for name, value in vars(contract).items() if isinstance(value, kind)}
