"""The rejects file: every row that was not sent, with file, line, reason and its text, written as it is found."""

import csv
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bcami.errors import EnvironmentFault
from bcami.replay.rows import Reject

TEXT_CHARACTERS_MAX: Final = 400
"""More of a row than this is not written; hhblock rows have about 350."""


class RejectLog:
    """Counts rejects by reason and, with a path, writes them to a CSV file."""

    def __init__(self, path: Path | None = None) -> None:
        self.counts: Counter[Reject] = Counter()
        self.path = path
        try:
            self._file = None if path is None else path.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise EnvironmentFault(
                f"the rejects file cannot be written: {error.strerror}", where=str(path), do="name another place"
            ) from error
        self._writer = None if self._file is None else csv.writer(self._file, lineterminator="\n")
        if self._writer is not None:
            self._writer.writerow(("file", "line", "reason", "text"))

    def add(self, file: str, line: int, reason: Reject, text: bytes, column: str = "") -> None:
        """Count one reject; `column` names the cell of a wide row."""
        self.counts[reason] += 1
        if self._writer is not None:
            shown = text.decode("utf-8", errors="backslashreplace")[:TEXT_CHARACTERS_MAX]
            self._writer.writerow((file, line, reason.value, f"{column}: {shown}" if column else shown))

    @property
    def total(self) -> int:
        return self.counts.total()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
