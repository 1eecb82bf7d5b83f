"""What each party of an aggregation saw, message by message: one JSON line each, for whoever wants to check."""

from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self


class Transcript:
    """Writes lines `{"at", "from", "kind", "bytes"}`; `bytes` is the message as it arrived, in hex.

    A message that went to many is written out once: further lines have `"same_as"`, the number of the first one's line.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="ascii")
        self._lines = 0
        self._written: dict[bytes, int] = {}
        self._last: tuple[bytes | None, int] = (None, 0)
        """The last message and the line of it: what goes to many comes again and again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def note(self, at: str, sender: str, kind: str, data: bytes) -> None:
        """Note that party `at` took a message."""
        self._lines += 1
        last, first = self._last
        if data is not last:
            first = self._written.setdefault(sha256(data).digest(), self._lines)
            self._last = (data, first)
        shown = f'"bytes": "{data.hex()}"' if first == self._lines else f'"same_as": {first}'
        self._file.write(f'{{"at": "{at}", "from": "{sender}", "kind": "{kind}", {shown}}}\n')
