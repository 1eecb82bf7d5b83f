"""Structured logs of a long-running process: one JSON object a line on standard output.

A process whose standard output is its log file, as the supervisor starts it, keeps that file within a bound: when it is
full it is put aside and a new one is begun, which standard output and error then follow.
"""

import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

import structlog

from bcami.units import MIB

REPEAT_S: Final = 5.0
"""Lines of one kind are this far apart; what came in between is counted in the next."""
_KINDS_MAX: Final = 1_000
LOG_BYTES_MAX: Final = 16 * MIB
"""A log file that would grow beyond this is put aside as .1, that one as .2 and so on."""
LOGS_KEPT: Final = 3
_OUTPUTS: Final = (1, 2)
"""Standard output and standard error: there go stacks of threads, and what a library writes."""


class Repetition:
    """Holds back lines that repeat: a peer that floods a node must not fill its log."""

    def __init__(self, apart_s: float = REPEAT_S) -> None:
        self._apart_s = apart_s
        self._last: dict[object, float] = {}
        self._held: dict[object, int] = {}

    def admit(self, kind: object, count: int, now_s: float) -> int:
        """Return how many happenings the line to be logged now speaks of; 0 when it is to be held back."""
        held = self._held.pop(kind, 0) + count
        last = self._last.get(kind)
        if last is not None and now_s - last < self._apart_s:
            self._held[kind] = held
            return 0
        if len(self._last) >= _KINDS_MAX:
            self._last.clear()
            self._held.clear()
        self._last[kind] = now_s
        return held


class OwnLog(RotatingFileHandler):
    """The log file of this process, within its bound; what is written past the logger goes to the same file."""

    def __init__(self, path: Path, bytes_max: int = LOG_BYTES_MAX, kept: int = LOGS_KEPT) -> None:
        super().__init__(path, maxBytes=bytes_max, backupCount=kept, encoding="utf-8")

    def doRollover(self) -> None:  # noqa: N802  the name is the library's
        super().doRollover()
        assert self.stream is not None
        for descriptor in _OUTPUTS:
            os.dup2(self.stream.fileno(), descriptor)


def _is_output(log: Path) -> bool:
    """Tell whether standard output goes to this file."""
    try:
        return os.path.samestat(os.fstat(_OUTPUTS[0]), log.stat())
    except OSError:
        return False


def _logger_factory(log: Path | None) -> Any:
    if log is None or not _is_output(log):
        return structlog.WriteLoggerFactory(file=sys.stdout)
    written = logging.getLogger("bcami.log")
    written.setLevel(logging.INFO)
    written.propagate = False
    for handler in list(written.handlers):
        written.removeHandler(handler)
        handler.close()
    written.addHandler(OwnLog(log))
    return lambda *_: written


def start_logging(name: str, log: Path | None = None) -> structlog.stdlib.BoundLogger:
    """Configure logging for this process and return its logger, bound to the process's name.

    `log` is the file that standard output goes to when the supervisor has started the process.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=_logger_factory(log),
        cache_logger_on_first_use=True,
    )
    logger: structlog.stdlib.BoundLogger = structlog.get_logger().bind(process=name)
    return logger
