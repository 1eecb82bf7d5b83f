"""What the MDMS needs of a store. DuckDB is the embedded default; PostgreSQL comes behind the same interface (D12)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow as pa

from bcami.kms import Identity
from bcami.mdms.records import (
    BackupRow,
    Cursor,
    PeriodRow,
    SessionRow,
    Stored,
    UnitOfWork,
)


class Counts(NamedTuple):
    """Totals of what is stored."""

    readings: int
    repeated_equal: int
    repeated_different: int
    unreadable: int
    meters: int


class MeterSummary(NamedTuple):
    """One enrolled meter and the extent of its readings."""

    number: int
    hid: bytes
    meter_id: str | None
    """None until the utility's directory names it."""
    readings: int
    first_start_s: int | None
    last_start_s: int | None

    @property
    def label(self) -> str:
        return self.hid.hex() if self.meter_id is None else self.meter_id


class Gap(NamedTuple):
    """Missing intervals between two readings of a meter."""

    meter: str
    from_s: int
    """First missing second."""
    to_s: int
    """Start of the reading after the gap."""
    intervals: int


class ProfileSlot(NamedTuple):
    """What a meter used at one half-hour of the UTC day."""

    second_of_day: int
    readings: int
    energy_sum: int
    energy_min: int
    energy_max: int


class MdmsStore(Protocol):
    """Moves only by whole units of work; what a property or look-up shows is durable."""

    @property
    def cursor(self) -> Cursor: ...

    @property
    def counts(self) -> Counts: ...

    @property
    def acknowledged_height(self) -> int:
        """Highest height acknowledged by a transaction seen as valid in a stored block."""

    def meter_number(self, hid: bytes) -> int | None:
        """Return the number under which an enrolled identity's readings are stored."""

    def session(self, hid: bytes, number: int) -> SessionRow | None:
        """Return a registered session of a period that is not erased."""

    def period(self, number: int) -> PeriodRow | None: ...

    def periods(self) -> tuple[PeriodRow, ...]:
        """Return all periods, oldest first."""

    def identities_above(self, height: int) -> list[Identity]:
        """Return the newest session of each meter that registered one above `height` and is not revoked."""

    def revoked_above(self, height: int) -> list[bytes]:
        """Return the HIDs that blocks above `height` revoked."""

    def absorb(self, unit: UnitOfWork) -> Stored:
        """Store a unit of work and move the cursor, durably, both or neither.

        Of several readings of one interval the first in chain order stays; later ones are kept as repeats.
        Raises CursorMovedError when the unit does not start at the store's cursor.
        """

    def mark_erased(self, period: int) -> None:
        """Record that a period's private keys are destroyed; its sessions cannot be opened any more."""

    def add_to_directory(self, entries: Sequence[tuple[bytes, str]]) -> int:
        """Record (hid, meter id) pairs; return how many were new or changed."""

    def record_backup(self, backup: BackupRow) -> None: ...

    def last_backup(self) -> BackupRow | None: ...

    def copy_to(self, path: Path) -> Cursor:
        """Write a consistent copy of the whole store to a new file; return the cursor it stands at."""

    def close(self) -> None: ...


class ReadingQueries(Protocol):
    """What the MDMS answers from its store. Every method reads one consistent state, without the writer's lock."""

    def find_meter(self, name: str) -> MeterSummary | None:
        """Return the meter with this meter id, or with this HID in hexadecimal."""

    def names_of(self, hids: Sequence[bytes]) -> dict[bytes, str]:
        """Return the meter ids of those that the directory names."""

    def meters(self, after: int, limit: int) -> list[MeterSummary]:
        """Return meters with a number above `after`, in the order of their numbers."""

    def readings(self, meter: int, from_s: int, to_s: int, limit: int) -> pa.Table:
        """Return start_s, energy, interval_s, flags, height, place of a meter's first readings in [from, to)."""

    def profile(self, meter: int, from_s: int, to_s: int) -> list[ProfileSlot]: ...

    def gaps(self, meter: int | None, from_s: int, to_s: int, limit: int) -> list[Gap]:
        """Return missing intervals between readings in [from, to), by meter number and time."""

    def unreadable(self, limit: int) -> pa.Table:
        """Return the newest reports that could not be stored, without their content."""

    def sorted_readings(
        self, meters: Sequence[str] | None, from_s: int, to_s: int, *, flags: bool
    ) -> Iterator[pa.RecordBatch]:
        """Yield meter_id, start_s, energy (and flags), sorted by (meter_id, start_s), in bounded memory."""
