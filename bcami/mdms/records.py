"""The records that the MDMS keeps, and the unit of work that moves its cursor.

Everything that one or several released blocks change is gathered in a `UnitOfWork` and stored in one database
transaction together with the new cursor, so that after any crash the store is exactly what some cursor says
(design D11).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bcami.errors import BcamiError

START_S_MAX: Final = 2**32 - 1
"""Readings start in [0, START_S_MAX]: Unix seconds up to the year 2106."""
MINUTE_S: Final = 60
"""Intervals start on whole minutes and last whole minutes."""

Int64Column = npt.NDArray[np.int64]


class ReportFault(StrEnum):
    """Why the readings of a committed report could not be stored. Never stops the cursor (protocol 7.1)."""

    UNKNOWN_HID = "unknown_hid"
    UNKNOWN_SESSION = "unknown_session"
    PERIOD_KEY_MISSING = "period_key_missing"
    """The private key of the session's MDMS period is not here."""
    BAD_ENCAPSULATION = "bad_encapsulation"
    """The session's HPKE encapsulation is no valid point."""
    NOT_AUTHENTIC = "not_authentic"
    """The ciphertext does not open under the session's context and this header."""
    MALFORMED_REPORT = "malformed_report"
    OFF_GRID = "off_grid"
    """An interval that is not a whole number of minutes, or a start that is not a multiple of the interval."""
    TIME_OUT_OF_RANGE = "time_out_of_range"
    PRUNED = "pruned"
    """The payload is gone from a strong quorum of nodes; only a backup of this store has it."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last block whose effects are stored; height 0 is genesis."""

    height: int
    header_hash: bytes
    time_ms: int
    """Block time of that height."""
    usage_height: int
    """Highest stored height that carried usage; 0 when none did."""


class MeterRow(NamedTuple):
    """An enrolled identity under the number that readings carry."""

    number: int
    hid: bytes
    enrolled_height: int


class SessionRow(NamedTuple):
    """What opening a session's reports takes, except the period's private key; and its own public keys."""

    hid: bytes
    number: int
    encapsulation: bytes
    period: int
    height: int
    public_key: bytes
    kem_key: bytes


class PeriodRow(NamedTuple):
    """An MDMS period as the chain shows it."""

    number: int
    key_id: bytes
    kem_key: bytes
    public_key: bytes
    time_ms: int
    """Block time of its registration."""
    superseded_ms: int
    """Block time of its successor's registration; 0 while current."""
    height: int
    erased: bool
    """True when the private keys of the period are destroyed here."""


class UnreadableReport(NamedTuple):
    """A committed report whose readings could not be stored."""

    height: int
    place: int
    transaction_id: bytes
    hid: bytes
    session: int
    sequence: int
    timestamp_ms: int
    fault: ReportFault
    content: bytes
    """The opened report where it opened, else the sealed one, so that nothing is lost; empty when pruned."""


class AcknowledgementRow(NamedTuple):
    """An acknowledgement seen as valid in a stored block."""

    period: int
    sequence: int
    acknowledged_height: int
    height: int
    """Block that carries it."""


class BackupRow(NamedTuple):
    """A copy of the store and the period keys."""

    height: int
    """Cursor of the copy."""
    time_ms: int
    """Block time of that height."""
    made_ms: int
    path: str


@dataclass(frozen=True, slots=True)
class ReadingColumns:
    """Readings of a unit of work as columns of equal length, in chain order."""

    meter: Int64Column
    start_s: Int64Column
    energy: Int64Column
    """Units of 10^-7 kWh, as the meter sent it."""
    interval_s: Int64Column
    height: Int64Column
    place: Int64Column
    """Place of the transaction's outcome in its block."""

    def __len__(self) -> int:
        return len(self.meter)

    def take(self, which: npt.NDArray[np.bool_]) -> "ReadingColumns":
        return ReadingColumns(
            self.meter[which],
            self.start_s[which],
            self.energy[which],
            self.interval_s[which],
            self.height[which],
            self.place[which],
        )

    @classmethod
    def empty(cls) -> "ReadingColumns":
        none = np.empty(0, np.int64)
        return cls(none, none, none, none, none, none)


@dataclass(slots=True)
class UnitOfWork:
    """All that a run of consecutive blocks changes; stored completely or not at all."""

    before: Cursor
    """The cursor that this unit starts from: the store refuses any other."""
    after: Cursor
    blocks: int = 0
    meters: list[MeterRow] = field(default_factory=list)
    revoked: list[tuple[bytes, int]] = field(default_factory=list)
    """(hid, height) of each revocation."""
    sessions: list[SessionRow] = field(default_factory=list)
    periods: list[PeriodRow] = field(default_factory=list)
    acknowledgements: list[AcknowledgementRow] = field(default_factory=list)
    unreadable: list[UnreadableReport] = field(default_factory=list)
    readings: ReadingColumns = field(default_factory=ReadingColumns.empty)


class Stored(NamedTuple):
    """What became of the readings of a unit of work."""

    new: int
    repeated_equal: int
    repeated_different: int
    """The interval was stored before with another value: the first stays, this one is kept beside it."""


class CursorMovedError(BcamiError):
    """A unit of work starts from another cursor than the store's: it was built on a state that is gone."""
