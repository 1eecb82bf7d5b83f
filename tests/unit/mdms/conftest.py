from collections.abc import Iterator
from pathlib import Path

import pytest

from bcami.mdms.duckdb_store import DuckDbStore
from bcami.mdms.follower import Follower
from bcami.mdms.opening import ReportOpener
from tests.chain import ChainBuilder, ChainMeter, ChainPeriod


class World:
    """A small chain with one period and one registered meter, and an MDMS store that has seen none of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chain = ChainBuilder()
        self.periods: dict[int, ChainPeriod] = {}
        self.period = self.open_period()
        self.meter: ChainMeter = self.chain.enrol("MAC000003", "MAC000002")
        self.chain.open_session(self.meter, self.period)
        self.store = self.open_store()

    def open_period(self) -> ChainPeriod:
        period = self.chain.open_period()
        self.periods[period.number] = period
        return period

    def open_store(self, kind: type[DuckDbStore] = DuckDbStore) -> DuckDbStore:
        path = self.folder / "store.duckdb"
        return kind(path, self.chain.roster.chain, self.chain.genesis.created_ms, threads=1)

    def private_key(self, number: int):
        period = self.periods.get(number)
        return None if period is None else period.kem

    def follower(self, store: DuckDbStore | None = None) -> Follower:
        opener = ReportOpener(self.chain.roster.chain, self.private_key)
        return Follower(self.chain.roster, store or self.store, opener)

    def reopen(self, kind: type[DuckDbStore] = DuckDbStore) -> None:
        self.store.close()
        self.store = self.open_store(kind)

    def rows(self, query: str) -> list[tuple]:
        reader = self.store.reader()
        try:
            return reader.execute(query).fetchall()
        finally:
            reader.close()

    def readings(self) -> list[tuple[int, int, int]]:
        return self.rows("select meter, start_s, energy from readings order by meter, start_s")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()
