"""The embedded store: one DuckDB file, owned by the MDMS process alone.

A unit of work is one DuckDB transaction with one insert from columns for each table, never one for each row.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa

from bcami.errors import EnvironmentFault, InputError
from bcami.kms import Identity
from bcami.mdms import columns, schema
from bcami.mdms.columns import reading_table, table_of
from bcami.mdms.mirror import NO_ACKNOWLEDGEMENT, Mirror
from bcami.mdms.presence import CHUNK_BYTES, CHUNK_SLOT_BITS, FINE_FIRST, Presence
from bcami.mdms.records import (
    AcknowledgementRow,
    BackupRow,
    Cursor,
    CursorMovedError,
    PeriodRow,
    ReadingColumns,
    SessionRow,
    Stored,
    UnitOfWork,
)
from bcami.mdms.store import Counts

MEMORY_LIMIT: Final = "128MB"
"""Of DuckDB's own buffers; larger work spills to files beside the store."""
CHECKPOINT_THRESHOLD: Final = "32MB"
_PRESENCE: Final = """
select meter::BIGINT as meter, slot >> 12 as chunk, bitstring_agg((slot & 4095)::INTEGER, 0, 4095)::BLOB as bits
from (select meter, case when start_s % 1800 = 0 then start_s // 1800 else 4194304 + start_s // 60 end as slot
      from readings) group by all
"""
"""The bits of `bcami.mdms.presence`, chunk by chunk."""
assert (CHUNK_SLOT_BITS, FINE_FIRST) == (12, 4194304)


class DuckDbStore:
    """`bcami.mdms.store.MdmsStore` on DuckDB. Any thread may write, one at a time; readers have their own cursors."""

    def __init__(self, path: Path, chain: bytes, created_ms: int, *, threads: int = 2) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._connection = _connect(path, threads)
        try:
            _prepare(self._connection, path, chain, created_ms)
            self._mirror = _rebuild(self._connection)
        except BaseException:
            self._connection.close()
            raise

    @property
    def cursor(self) -> Cursor:
        return self._mirror.cursor

    @property
    def counts(self) -> Counts:
        held = self._mirror
        return Counts(
            held.presence.count, held.repeated_equal, held.repeated_different, held.unreadable, len(held.meters)
        )

    @property
    def acknowledged_height(self) -> int:
        return self._mirror.acknowledged.acknowledged_height

    def meter_number(self, hid: bytes) -> int | None:
        return self._mirror.meters.get(hid)

    def session(self, hid: bytes, number: int) -> SessionRow | None:
        return self._mirror.sessions.get((hid, number))

    def period(self, number: int) -> PeriodRow | None:
        return self._mirror.periods.get(number)

    def periods(self) -> tuple[PeriodRow, ...]:
        known = dict(self._mirror.periods)
        return tuple(known[number] for number in sorted(known))

    def identities_above(self, height: int) -> list[Identity]:
        with closing(self.reader()) as reader:
            rows = reader.execute(
                "select s.hid, s.number, s.public_key, s.kem_key from sessions as s join meters as m on m.hid = s.hid "
                "where s.height > ? and m.revoked_height is null "
                "qualify row_number() over (partition by s.hid order by s.number desc) = 1 order by m.number",
                [height],
            ).fetchall()
        return [Identity(*row) for row in rows]

    def revoked_above(self, height: int) -> list[bytes]:
        with closing(self.reader()) as reader:
            rows = reader.execute("select hid from meters where revoked_height > ?", [height]).fetchall()
        return [hid for (hid,) in rows]

    def reader(self) -> duckdb.DuckDBPyConnection:
        """Return a connection of its own for one thread that reads; its caller closes it."""
        return self._connection.cursor()

    def absorb(self, unit: UnitOfWork) -> Stored:
        with self._lock:
            if unit.before != self.cursor:
                raise CursorMovedError(f"the unit starts at {unit.before.height}, the store is at {self.cursor.height}")
            first = self._mirror.presence.is_first(unit.readings.meter, unit.readings.start_s)
            new, again = unit.readings.take(first), unit.readings.take(~first)
            with self._transaction():
                self._insert_changes(unit)
                self._insert("readings", reading_table(new))
                equal = self._insert_repeats(again)
                self._move_cursor(unit.after)
            stored = Stored(len(new), equal, len(again) - equal)
            self._mirror.apply(unit, new, stored)
            return stored

    def mark_erased(self, period: int) -> None:
        with self._lock:
            with self._transaction():
                self._connection.execute("update periods set erased = true where number = ?", [period])
            self._mirror.erase(period)

    def add_to_directory(self, entries: Sequence[tuple[bytes, str]]) -> int:
        with self._lock, self._transaction():
            known = dict(self._connection.execute("select hid, meter_id from directory").fetchall())
            changed = {hid: name for hid, name in entries if known.get(hid) != name}
            with self._incoming(table_of(columns.DIRECTORY, changed.items())):
                self._connection.execute("delete from directory where hid in (select hid from incoming)")
                self._connection.execute("insert into directory select * from incoming")
            return len(changed)

    def record_backup(self, backup: BackupRow) -> None:
        with self._lock, self._transaction():
            self._connection.execute("insert into backups values (?, ?, ?, ?)", list(backup))

    def last_backup(self) -> BackupRow | None:
        with self._lock:
            rows = self._connection.execute("select * from backups order by made_ms desc limit 1").fetchall()
        return BackupRow(*rows[0]) if rows else None

    def copy_to(self, path: Path) -> Cursor:
        if path.exists():
            raise InputError("the file exists already", where=str(path), do="name a new one")
        reader = self.reader()
        try:
            source = _one(reader, "select current_database()")[0]
            reader.execute(f"attach '{str(path).replace(chr(39), chr(39) * 2)}' as copied")
            try:
                reader.execute("begin transaction")
                reader.execute(f'copy from database "{source}" to copied')
                cursor = Cursor(*_one(reader, "select height, header_hash, time_ms, usage_height from copied.cursor"))
                reader.execute("commit")
            finally:
                with suppress(duckdb.Error):
                    reader.execute("rollback")
                reader.execute("detach copied")
        finally:
            reader.close()
        return cursor

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Make what the block does durable as a whole, or undo it. Raises EnvironmentFault when the disk refuses."""
        try:
            self._connection.execute("begin transaction")
            yield
            self._connection.execute("commit")
        except BaseException as error:
            with suppress(duckdb.Error):  # a failed commit has rolled back by itself
                self._connection.execute("rollback")
            if isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException):
                raise EnvironmentFault(
                    "the store cannot be written",
                    where=str(self.path),
                    likely=str(error).splitlines()[0],
                    do="make room on the disk and start the MDMS again: it goes on where it stands",
                ) from None
            raise

    @contextmanager
    def _incoming(self, table: pa.Table) -> Iterator[None]:
        """Let queries name the table `incoming`."""
        self._connection.register("incoming", table)
        try:
            yield
        finally:
            self._connection.unregister("incoming")

    def _insert(self, name: str, table: pa.Table) -> None:
        if table.num_rows:
            self._connection.from_arrow(table).insert_into(name)

    def _insert_changes(self, unit: UnitOfWork) -> None:
        """Add what the blocks say besides readings."""
        self._insert("meters", table_of(columns.METERS, [(*row, None) for row in unit.meters]))
        self._insert("sessions", table_of(columns.SESSIONS, unit.sessions))
        for period in unit.periods:
            self._connection.execute("update periods set superseded_ms = ? where superseded_ms = 0", [period.time_ms])
            self._connection.execute("insert into periods values (?, ?, ?, ?, ?, ?, ?, ?)", list(period))
        self._insert("acknowledgements", table_of(columns.ACKNOWLEDGEMENTS, unit.acknowledgements))
        self._insert("unreadable", table_of(columns.UNREADABLE, unit.unreadable))
        if unit.revoked:
            with self._incoming(table_of(columns.REVOKED, unit.revoked)):
                self._connection.execute(
                    "update meters set revoked_height = r.height from incoming as r where meters.hid = r.hid"
                )

    def _insert_repeats(self, again: ReadingColumns) -> int:
        """Keep readings of stored intervals beside the first ones; return how many are equal to them."""
        if not len(again):
            return 0
        with self._incoming(reading_table(again)):
            equal = self._connection.execute(
                "insert into repeats select a.*, a.energy = r.energy from incoming as a "
                "join readings as r on r.meter = a.meter and r.start_s = a.start_s "
                "where r.start_s between ? and ? returning equal",
                [int(again.start_s.min()), int(again.start_s.max())],
            ).fetchnumpy()["equal"]
        if len(equal) != len(again):
            raise EnvironmentFault(
                f"{len(again)} intervals are known as stored, {len(equal)} were found",
                where=str(self.path),
                likely="the store was changed by another program or is damaged",
                do="restore the newest backup",
            )
        return int(np.count_nonzero(equal))

    def _move_cursor(self, after: Cursor) -> None:
        self._connection.execute(
            "update cursor set height = ?, header_hash = ?, time_ms = ?, usage_height = ?",
            [after.height, after.header_hash, after.time_ms, after.usage_height],
        )


def _connect(path: Path, threads: int) -> duckdb.DuckDBPyConnection:
    options: dict[str, Any] = {
        "threads": threads,
        "memory_limit": MEMORY_LIMIT,
        "checkpoint_threshold": CHECKPOINT_THRESHOLD,
    }
    try:
        return duckdb.connect(str(path), config=options)
    except duckdb.Error as error:
        locked = isinstance(error, duckdb.IOException) and "lock" in str(error).lower()
        raise EnvironmentFault(
            "the store is open in another process" if locked else "the store cannot be opened",
            where=str(path),
            likely="an MDMS of this home is running already" if locked else str(error).splitlines()[0],
            do="`bcami status` shows it" if locked else "check the disk, or restore the newest backup",
        ) from None


def _prepare(connection: duckdb.DuckDBPyConnection, path: Path, chain: bytes, created_ms: int) -> None:
    """Create the tables in a new file, or check that an old one is of this chain and format."""
    known = _one(connection, "select count(*) from information_schema.tables where table_name = 'about'")[0]
    if not known:
        connection.execute("begin transaction")
        connection.execute(schema.TABLES)
        connection.execute("insert into about values (?, ?)", [schema.FORMAT, chain])
        connection.execute("insert into cursor values (0, ?, ?, 0)", [chain, created_ms])
        connection.execute("commit")
        return
    form, stored_chain = _one(connection, "select format, chain from about")
    if stored_chain != chain:
        raise InputError(
            "the store belongs to another chain",
            where=str(path),
            likely="the network was initialised anew and the old store left behind",
            do="move the old store away",
        )
    if form != schema.FORMAT:
        raise InputError(
            f"the store has format {form}, this program writes {schema.FORMAT}",
            where=str(path),
            do="use the version of bcami that made it",
        )


def _rebuild(connection: duckdb.DuckDBPyConnection) -> Mirror:
    """Return what is held in memory, read from the file."""
    mirror = Mirror(Cursor(*_one(connection, "select height, header_hash, time_ms, usage_height from cursor")))
    mirror.meters = dict(connection.execute("select hid, number from meters").fetchall())
    for row in connection.execute("select * from periods").fetchall():
        mirror.periods[row[0]] = PeriodRow(*row)
    for row in connection.execute(
        "select s.hid, s.number, s.encapsulation, s.period, s.height, s.public_key, s.kem_key from sessions as s "
        "left join periods as p on p.number = s.period where not coalesce(p.erased, false)"
    ).fetchall():
        mirror.sessions[row[0], row[1]] = SessionRow(*row)
    newest = connection.execute("select * from acknowledgements order by acknowledged_height desc limit 1").fetchall()
    mirror.acknowledged = AcknowledgementRow(*newest[0]) if newest else NO_ACKNOWLEDGEMENT
    mirror.unreadable = _one(connection, "select count(*) from unreadable")[0]
    equal, total = _one(connection, "select count(*) filter (equal), count(*) from repeats")
    mirror.repeated_equal, mirror.repeated_different = equal, total - equal
    _rebuild_presence(connection, mirror.presence)
    return mirror


def _rebuild_presence(connection: duckdb.DuckDBPyConnection, presence: Presence) -> None:
    """Fill the bits from the readings. Raises EnvironmentFault when an interval is stored twice."""
    relation = connection.sql(_PRESENCE)
    assert relation is not None
    table = relation.to_arrow_table()
    if table.num_rows:
        bits = np.frombuffer(b"".join(table.column("bits").to_pylist()), np.uint8).reshape(-1, CHUNK_BYTES).copy()
        presence.restore(table.column("meter").to_numpy(), table.column("chunk").to_numpy(), bits)
    stored = _one(connection, "select count(*) from readings")[0]
    if stored != presence.count:
        raise EnvironmentFault(
            f"the store holds {stored - presence.count} intervals twice",
            likely="it was changed by another program or is damaged",
            do="restore the newest backup",
        )


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """Return the only row of a query, read out so that the connection is free again."""
    (row,) = connection.execute(query).fetchall()
    return tuple(row)
