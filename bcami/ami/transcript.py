"""What each party of an aggregation saw, message by message: one JSON line each, for whoever wants to check."""

import json
from pathlib import Path
from types import TracebackType
from typing import Self


class Transcript:
    """Writes lines `{"at", "from", "kind", "bytes"}`; `bytes` is the message as it arrived, in hex."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="ascii")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def note(self, at: str, sender: str, kind: str, data: bytes) -> None:
        """Note that party `at` took a message."""
        json.dump({"at": at, "from": sender, "kind": kind, "bytes": data.hex()}, self._file)
        self._file.write("\n")
