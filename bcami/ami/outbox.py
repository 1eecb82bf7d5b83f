"""The durable store of a fleet: one LMDB environment for all its meters (protocol 3.1).

`apply` writes any number of changes of any number of meters in one transaction and returns when they are on disk, or
changes nothing. Each record carries a checksum over table, key and value. The folder is 0700 and the files 0600, since
they hold the meters' private keys; a deleted key may stay in a freed page of the file until LMDB uses it again.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from zlib import crc32

import lmdb

from bcami.errors import EnvironmentFault, InputError
from bcami.kms.meter import METER_INBOX, METER_TABLE
from bcami.units import MIB

FACTORY: Final = b"factory"
"""HID → FactoryRecord."""
PROGRESS: Final = b"progress"
"""HID → Progress."""
ISSUANCES: Final = b"issuances"
"""HID → IssuanceRecord: a registration under way."""
SESSIONS: Final = b"sessions"
"""HID → SessionRecord."""
RESERVED: Final = b"reserved"
"""HID → session and the highest sequence number reserved in it."""
REPORTS: Final = b"reports"
"""HID, session, sequence → ReportRecord."""
WAITING: Final = b"waiting"
"""HID, arrival → WaitingRecord."""
AGGREGATION: Final = b"aggregation"
"""HID, key → what a meter must not forget about the sums that it was part of (bcami.aggregation)."""
KMS: Final = METER_TABLE
"""HID → MeterKeysRecord: the meter's end of the symmetric keys."""
KMS_INBOX: Final = METER_INBOX
"""HID, epoch, number → Received: a message of the MDMS that the meter's application has not been given."""
APPLICATION: Final = b"application"
"""HID, key → what a meter's application keeps; written in one transaction with the mark that it was given a message."""
ABOUT: Final = b"about"
"""`chain`: chain id of the network; `position`: what the source of reports asked to remember."""
TABLES: Final = (
    FACTORY,
    PROGRESS,
    ISSUANCES,
    SESSIONS,
    RESERVED,
    REPORTS,
    WAITING,
    AGGREGATION,
    KMS,
    KMS_INBOX,
    APPLICATION,
    ABOUT,
)

MAP_BYTES: Final = 16 * 1024 * MIB
"""Address space, not disk: the file grows as needed."""
_CHECKSUM_BYTES: Final = 4


class Write(NamedTuple):
    """One change; None deletes."""

    table: bytes
    key: bytes
    value: bytes | None


class Outbox:
    """The environment. `apply` may run in another thread than the reads; one `apply` at a time."""

    def __init__(self, folder: Path, chain: bytes) -> None:
        """Open or make the store of the network `chain`.

        Raises InputError when it belongs to another network, EnvironmentFault when it cannot be opened.
        """
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._environment = lmdb.open(
                str(folder), map_size=MAP_BYTES, max_dbs=len(TABLES), mode=0o600, metasync=True, sync=True
            )
            self._tables = {name: self._environment.open_db(name) for name in TABLES}
        except (OSError, lmdb.Error) as error:
            raise EnvironmentFault(
                f"the fleet's store cannot be opened: {error}",
                where=str(folder),
                likely="another process uses it, or the disk is full",
                do="stop the other replay, or free some space",
            ) from None
        known = self.get(ABOUT, b"chain")
        if known is None:
            self.apply([Write(ABOUT, b"chain", chain)])
        elif known != chain:
            self.close()
            raise InputError(
                "the fleet's store belongs to another network",
                where=str(folder),
                likely="the network was initialised anew and the old fleet was left behind",
                do="move the folder away; its meters and their unsent readings go with it",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._environment.close()

    def apply(self, writes: Iterable[Write]) -> None:
        """Make all changes durable, in order, or none. Raises EnvironmentFault when the disk refuses."""
        try:
            with self._environment.begin(write=True) as unit:
                for table, key, value in writes:
                    if value is None:
                        unit.delete(key, db=self._tables[table])
                    else:
                        unit.put(key, _checksum(table, key, value) + value, db=self._tables[table])
        except lmdb.Error as error:
            raise EnvironmentFault(
                f"the fleet's store cannot be written: {error}",
                where=str(self._folder),
                likely="the disk is full",
                do="free some space and resume",
            ) from None

    def get(self, table: bytes, key: bytes) -> bytes | None:
        """Return a value. Raises EnvironmentFault when its record is damaged."""
        with self._environment.begin() as unit:
            stored: bytes | None = unit.get(key, db=self._tables[table])
        return None if stored is None else self._checked(table, key, stored)

    def items(self, table: bytes, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values under a prefix, in the order of keys. Raises EnvironmentFault on damage."""
        with self._environment.begin() as unit, unit.cursor(db=self._tables[table]) as cursor:
            found = cursor.set_range(prefix) if prefix else cursor.first()
            while found and cursor.key().startswith(prefix):
                key: bytes = cursor.key()
                yield key, self._checked(table, key, cursor.value())
                found = cursor.next()

    def count(self, table: bytes) -> int:
        """Return how many records a table holds."""
        with self._environment.begin() as unit:
            entries: int = unit.stat(self._tables[table])["entries"]
        return entries

    def _checked(self, table: bytes, key: bytes, stored: Any) -> bytes:
        value = bytes(stored[_CHECKSUM_BYTES:])
        if stored[:_CHECKSUM_BYTES] != _checksum(table, key, value):
            raise EnvironmentFault(
                f"a record of the fleet's store is damaged: {table.decode()} of {key[:32].hex()}",
                where=str(self._folder),
                likely="the disk lost or changed data",
                do="restore the folder from a backup, or move it away and enrol the meters under new ids",
            )
        return value


def _checksum(table: bytes, key: bytes, value: bytes) -> bytes:
    return crc32(value, crc32(key, crc32(table))).to_bytes(_CHECKSUM_BYTES, "big")
