"""Before a node starts, its newest blocks are what a strong quorum signed, also when checksums were made new."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from bcami.codec import encode
from bcami.crypto.roster import Roster
from bcami.errors import EnvironmentFault
from bcami.ledger.audit import audit_ledger
from bcami.ledger.lmdb_ledger import LmdbLedger
from bcami.ledger.records import BLOCKS, BODY_DECODER, decoded, height_key
from bcami.model.reasons import Reason
from bcami.processes import newest
from bcami.processes.newest import check_newest
from bcami.report.security.tampering import rewrite
from tests.unit.ledger.chain import GENESIS, certify, random_chain

BLOCKS_MADE = 8
ROSTER = Roster.from_genesis(GENESIS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger whose newest block has no certificate yet."""
    with LmdbLedger(tmp_path / "ledger", GENESIS) as ledger:
        for commit in random_chain(BLOCKS_MADE):
            height = commit.block.header.height
            ledger.commit(commit, [certify(commit)] if height % 2 == 1 else [])
    return tmp_path / "ledger"


def check(folder: Path) -> int:
    with LmdbLedger(folder, GENESIS) as ledger:
        return check_newest(ledger, ROSTER, "node1")


def change_an_outcome(folder: Path, height: int) -> None:
    def changed(value: bytes) -> bytes:
        body = decoded(BLOCKS, height_key(height), value, BODY_DECODER)
        first, *rest = body.outcomes
        return encode(replace(body, outcomes=(replace(first, reason=Reason.REPLAY), *rest)))

    rewrite(folder, BLOCKS, height_key(height), changed)
    assert audit_ledger(folder, GENESIS, name="node1", quick=True).ok, "checksums are right"


def test_a_whole_ledger_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(folder) == BLOCKS_MADE - 1, "those that are certified, by themselves or by a later one"
    monkeypatch.setattr(newest, "TRANSACTIONS_MAX", 1)
    assert check(folder) == 1, "a bounded amount of work"


def test_an_empty_ledger_passes(tmp_path: Path) -> None:
    assert check(tmp_path / "ledger") == 0


@pytest.mark.parametrize("height", [7, 6, 1])
def test_a_changed_block_is_named(folder: Path, height: int) -> None:
    change_an_outcome(folder, height)
    with pytest.raises(EnvironmentFault, match=f"block {height} is not what a strong quorum signed"):
        check(folder)


def test_an_older_block_is_left_to_the_audit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_an_outcome(folder, 1)
    monkeypatch.setattr(newest, "BLOCKS_MAX", 3)
    assert check(folder) == 3
