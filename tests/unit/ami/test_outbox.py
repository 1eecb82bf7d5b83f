"""The fleet's store: durable together or not at all, damage found, private."""

import asyncio
import stat
from pathlib import Path

import lmdb
import pytest

from bcami.ami.outbox import MAP_BYTES, REPORTS, SESSIONS, TABLES, Outbox, Write
from bcami.ami.writer import GroupWriter
from bcami.errors import EnvironmentFault, InputError

CHAIN = bytes(32)


def flip(folder: Path, table: bytes, key: bytes, place: int) -> None:
    with lmdb.open(str(folder), map_size=MAP_BYTES, max_dbs=len(TABLES)) as environment:
        database = environment.open_db(table)
        with environment.begin(write=True) as unit:
            stored = bytearray(unit.get(key, db=database))
            stored[place] ^= 1
            unit.put(key, bytes(stored), db=database)


def test_what_is_applied_is_there_again(tmp_path: Path) -> None:
    with Outbox(tmp_path / "fleet", CHAIN) as outbox:
        outbox.apply([Write(REPORTS, b"a1", b"x"), Write(REPORTS, b"a2", b""), Write(REPORTS, b"b", b"y")])
        outbox.apply([Write(REPORTS, b"a1", None), Write(REPORTS, b"missing", None)])
    with Outbox(tmp_path / "fleet", CHAIN) as outbox:
        assert list(outbox.items(REPORTS)) == [(b"a2", b""), (b"b", b"y")]
        assert list(outbox.items(REPORTS, b"a")) == [(b"a2", b"")]
        assert outbox.get(REPORTS, b"a1") is None
        assert outbox.count(REPORTS) == 2


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    with Outbox(tmp_path / "fleet", CHAIN):
        assert stat.S_IMODE((tmp_path / "fleet").stat().st_mode) == 0o700
        for path in (tmp_path / "fleet").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_networks_store_is_refused(tmp_path: Path) -> None:
    Outbox(tmp_path / "fleet", CHAIN).close()
    with pytest.raises(InputError, match="belongs to another network"):
        Outbox(tmp_path / "fleet", bytes([1]) * 32)


@pytest.mark.parametrize("place", [0, 4, -1])
def test_damage_is_found(tmp_path: Path, place: int) -> None:
    with Outbox(tmp_path / "fleet", CHAIN) as outbox:
        outbox.apply([Write(SESSIONS, b"key", b"value")])
    flip(tmp_path / "fleet", SESSIONS, b"key", place)
    with Outbox(tmp_path / "fleet", CHAIN) as outbox:
        with pytest.raises(EnvironmentFault, match="sessions"):
            outbox.get(SESSIONS, b"key")
        with pytest.raises(EnvironmentFault, match="sessions"):
            list(outbox.items(SESSIONS))


class FailingOutbox:
    def __init__(self) -> None:
        self.groups: list[list[Write]] = []
        self.fails = False

    def apply(self, writes: list[Write]) -> None:
        if self.fails:
            raise EnvironmentFault("disk full")
        self.groups.append(list(writes))


def test_writers_share_a_transaction() -> None:
    outbox = FailingOutbox()

    async def work() -> None:
        writer = GroupWriter(outbox)  # type: ignore[arg-type]
        writer.add(Write(REPORTS, b"lazy", None))
        await asyncio.gather(*(writer.write([Write(REPORTS, bytes([n]), b"")]) for n in range(20)))
        writer.add(Write(REPORTS, b"late", None))
        await writer.close()

    asyncio.run(work())
    assert [len(group) for group in outbox.groups] == [21, 1]


def test_after_a_failure_nothing_is_written_any_more() -> None:
    outbox = FailingOutbox()

    async def work() -> None:
        writer = GroupWriter(outbox)  # type: ignore[arg-type]
        outbox.fails = True
        with pytest.raises(EnvironmentFault, match="disk full"):
            await writer.write([Write(REPORTS, b"x", b"")])
        outbox.fails = False
        with pytest.raises(EnvironmentFault, match="disk full"):
            await writer.write([Write(REPORTS, b"y", b"")])
        await writer.close()

    asyncio.run(work())
    assert outbox.groups == []
