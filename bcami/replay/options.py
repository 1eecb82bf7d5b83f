"""What the user may ask of a replay or a reconciliation, checked."""

import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from bcami.errors import InputError
from bcami.model.report import READINGS_MAX
from bcami.replay.layouts import Layout


@dataclass(frozen=True, slots=True)
class Filters:
    """Which readings of a data set are meant; the same for `replay` and `reconcile`."""

    meters: int | None = None
    """The first N meter ids, sorted."""
    from_s: int | None = None
    """Unix seconds, inclusive."""
    to_s: int | None = None
    """Unix seconds, exclusive."""

    def __post_init__(self) -> None:
        if self.meters is not None and self.meters < 1:
            raise InputError("at least one meter is needed", where="--meters", do="give a number from 1 on")
        if self.from_s is not None and self.to_s is not None and self.from_s >= self.to_s:
            raise InputError("the time span is empty", where="--from, --to", do="let --to be later than --from")


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    path: Path
    filters: Filters = Filters()
    layout: Layout | None = None
    """None: found out from the headers."""
    speed: float | None = None
    """None: as fast as the network takes it; otherwise that many times real time, merged over meters by time."""
    readings_per_report: int = 1
    resume: bool = False
    """Go on where an earlier replay of the same data set, filters and K stopped."""

    def __post_init__(self) -> None:
        if not 1 <= self.readings_per_report <= READINGS_MAX:
            raise InputError(
                f"a report carries 1 to {READINGS_MAX} readings, not {self.readings_per_report}",
                where="--readings-per-report",
                do="48 is a day of half-hours",
            )
        if self.speed is not None and not (math.isfinite(self.speed) and self.speed > 0):
            raise InputError(f"no speed: {self.speed}", where="--speed", do="use max, realtime or a factor above 0")


def parse_speed(text: str) -> float | None:
    """Return the factor of `max` (None), `realtime` (1) or a number such as `60` or `60x`. Raises InputError."""
    word = text.strip().lower()
    if word == "max":
        return None
    if word == "realtime":
        return 1.0
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?x?", word) and float(word.rstrip("x")) > 0:
        return float(word.rstrip("x"))
    raise InputError(f"no speed: {text!r}", where="--speed", do="use max, realtime or a factor such as 60")


def parse_moment(text: str, option: str) -> int:
    """Return Unix seconds of an ISO date or date and time; UTC when it names no zone. Raises InputError."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        try:
            moment = datetime.combine(date.fromisoformat(text.strip()), datetime.min.time())
        except ValueError:
            raise InputError(
                f"no date or time: {text!r}", where=option, do="write 2013-02-01 or 2013-02-01T00:30"
            ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return math.floor(moment.timestamp())
