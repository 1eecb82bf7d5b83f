"""Structured logs of a long-running process: one JSON object a line on standard output."""

import sys
from typing import Final

import structlog

REPEAT_S: Final = 5.0
"""Lines of one kind are this far apart; what came in between is counted in the next."""
_KINDS_MAX: Final = 1_000


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


def start_logging(name: str) -> structlog.stdlib.BoundLogger:
    """Configure logging for this process and return its logger, bound to the process's name."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    logger: structlog.stdlib.BoundLogger = structlog.get_logger().bind(process=name)
    return logger
