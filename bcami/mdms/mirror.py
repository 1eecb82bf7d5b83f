"""What a store keeps in memory of its own contents, so that following blocks needs no query.

It changes only after a unit of work is durable, and is rebuilt from the store at start. Any back end can use it.
"""

from dataclasses import dataclass, field

from bcami.mdms.presence import Presence
from bcami.mdms.records import (
    AcknowledgementRow,
    Cursor,
    PeriodRow,
    ReadingColumns,
    SessionRow,
    Stored,
    UnitOfWork,
)

NO_ACKNOWLEDGEMENT = AcknowledgementRow(0, 0, 0, 0)


@dataclass(slots=True)
class Mirror:
    """Enrolled identities, open sessions, periods, totals, and which intervals are stored."""

    cursor: Cursor
    meters: dict[bytes, int] = field(default_factory=dict)
    sessions: dict[tuple[bytes, int], SessionRow] = field(default_factory=dict)
    """Of periods whose keys are not erased."""
    periods: dict[int, PeriodRow] = field(default_factory=dict)
    acknowledged: AcknowledgementRow = NO_ACKNOWLEDGEMENT
    unreadable: int = 0
    repeated_equal: int = 0
    repeated_different: int = 0
    presence: Presence = field(default_factory=Presence)

    def apply(self, unit: UnitOfWork, new: ReadingColumns, stored: Stored) -> None:
        """Take over what is durable now."""
        self.meters.update((row.hid, row.number) for row in unit.meters)
        self.sessions.update(((row.hid, row.number), row) for row in unit.sessions)
        for period in unit.periods:
            for old in list(self.periods.values()):
                if not old.superseded_ms:
                    self.periods[old.number] = old._replace(superseded_ms=period.time_ms)
            self.periods[period.number] = period
        for row in unit.acknowledgements:
            self.acknowledged = max(self.acknowledged, row, key=lambda item: item.acknowledged_height)
        self.unreadable += len(unit.unreadable)
        self.repeated_equal += stored.repeated_equal
        self.repeated_different += stored.repeated_different
        self.presence.add(new.meter, new.start_s)
        self.cursor = unit.after

    def erase(self, period: int) -> None:
        """Forget what could only be opened with the period's keys."""
        self.periods[period] = self.periods[period]._replace(erased=True)
        self.sessions = {key: row for key, row in self.sessions.items() if row.period != period}
