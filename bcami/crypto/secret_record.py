"""Records that hold private keys: stored, never shown."""

from typing import Any, NoReturn

import msgspec


class SecretRecord(msgspec.Struct, frozen=True, array_like=True):
    """Base of stored records with private keys: no repr of a field, no pickle, no copy."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(secret)"

    def __rich_repr__(self) -> Any:
        yield "secret"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a record of private keys is neither pickled nor copied")

    def __copy__(self) -> NoReturn:
        raise TypeError("a record of private keys is neither pickled nor copied")
