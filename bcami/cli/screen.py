"""What a command shows: results for people or for programs, progress, and nothing twice.

With `--json` one object with a `schema` field goes to stdout and everything else to stderr. Progress is one live line
on a terminal and a plain line every few seconds elsewhere; NO_COLOR is honoured (rich does that).
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

PLAIN_EVERY_S: Final = 2.0
"""Pace of progress lines when nobody looks at a terminal."""
_PLAIN_WIDTH: Final = 200


class Progress:
    """Shows the newest of a stream of states; call it as often as you like."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._began = time.monotonic()
        self._printed = self._began
        self._live = Live(console=console, transient=True, refresh_per_second=8) if console.is_terminal else None

    def __call__(self, text: str) -> None:
        """Show `text` beside the title and the elapsed time."""
        now = time.monotonic()
        line = f"{self._title}  {text}  [{now - self._began:.0f} s]"
        if self._live is not None:
            self._live.update(Text(line))
        elif now - self._printed >= PLAIN_EVERY_S:
            self._printed = now
            self._console.print(Text(line))

    def start(self) -> None:
        if self._live is not None:
            self._live.start()
            self("…")

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()


class Screen:
    """One command's output."""

    def __init__(self) -> None:
        self.wants_json = False
        self.answered = False
        """True when the JSON object is out."""
        self.home = ""
        """The home that the command is about; "" until it is known."""

    @property
    def console(self) -> Console:
        """The console for people: stdout, or stderr when stdout is for a program."""
        stream = sys.stderr if self.wants_json else sys.stdout
        return Console(
            file=stream, highlight=False, soft_wrap=True, width=None if stream.isatty() else _PLAIN_WIDTH, markup=False
        )

    def line(self, text: str = "", style: str = "") -> None:
        """Print a line of the result; the JSON object says the same."""
        if not self.wants_json:
            self.note(text, style)

    def note(self, text: str, style: str = "") -> None:
        """Print a line about what is going on, to stderr when the result is JSON."""
        self.console.print(Text(text), style=style or None)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print rows under headings; numbers stand right."""
        if self.wants_json:
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for place, heading in enumerate(headings):
            numeric = bool(rows) and all(isinstance(row[place], int | float) for row in rows)
            table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        self.console.print(table, soft_wrap=False)

    def result(self, schema: str, fields: dict[str, Any]) -> None:
        """Answer a program; nothing when the result is for people."""
        if self.wants_json and not self.answered:
            self.answered = True
            sys.stdout.write(json.dumps({"schema": schema, **fields}, indent=2) + "\n")
            sys.stdout.flush()

    @contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        progress = Progress(self.console, title)
        progress.start()
        try:
            yield progress
        finally:
            progress.stop()


SCREEN: Final = Screen()
"""The one screen of this process."""


def _cell(value: object) -> Text:
    if value is None:
        return Text("-")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, float):
        return Text(f"{value:,.2f}")
    return Text(str(value))
