"""Ledgers of both kinds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bcami.ledger.lmdb_ledger import LmdbLedger
from bcami.ledger.memory import MemoryLedger
from bcami.ledger.store import Ledger
from tests.unit.ledger.chain import GENESIS

MAP_BYTES = 1 << 30


@pytest.fixture(params=["memory", "lmdb"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "memory":
        yield MemoryLedger(GENESIS)
    else:
        with LmdbLedger(tmp_path / "ledger", GENESIS, map_bytes=MAP_BYTES) as made:
            yield made
