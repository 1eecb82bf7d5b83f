"""Design D5, protocol 5.5, 7.2: a certified world state given to a peer, and taken over in place of the blocks' work."""

from collections.abc import Callable

import pytest

from bcami.crypto.lthash import LtHash, state_element
from bcami.ledger.audit import audit_ledger
from bcami.ledger.lmdb_ledger import LmdbLedger
from bcami.ledger.memory import MemoryLedger
from bcami.ledger.store import CommitRefused, Ledger
from bcami.model.chain import StateVersion
from tests.unit.ledger.chain import GENESIS, ChainMaker, certify, signer, usage
from tests.unit.ledger.conftest import MAP_BYTES

PART_BYTES = 40
CERTIFIED = 5


@pytest.fixture(params=["memory", "lmdb"])
def make(request: pytest.FixtureRequest, tmp_path) -> Callable[[str], Ledger]:
    made = []

    def open_ledger(name: str) -> Ledger:
        ledger = (
            MemoryLedger(GENESIS)
            if request.param == "memory"
            else LmdbLedger(tmp_path / name, GENESIS, map_bytes=MAP_BYTES)
        )
        made.append(ledger)
        return ledger

    yield open_ledger
    for ledger in made:
        ledger.close()


def writes(height: int) -> dict[bytes, bytes | None]:
    """Keys that come, change and go; some of them without a history."""
    return {
        b"key/%d" % (height % 4): None if height == 4 else b"value %d" % height,
        b"guard/%d" % height: b"seen",
        b"new/%d" % height: b"x" * height,
        b"new/%d" % (height - 2): None,
    }


def filled(ledger: Ledger, above: int = 2) -> ChainMaker:
    """Commit CERTIFIED blocks with certificates (the third without one of its own) and some above without."""
    maker = ChainMaker()
    for height in range(1, CERTIFIED + above + 1):
        commit = maker.commit([usage(signer(1), height)], writes(height))
        certified = height <= CERTIFIED and height != 3
        ledger.commit(commit, [certify(commit)] if certified else [])
    return maker


def taken(source: Ledger) -> tuple[list, LtHash]:
    snapshot = source.open_snapshot()
    assert snapshot is not None and snapshot.height == CERTIFIED
    rows, is_last, after = [], False, b""
    while not is_last:
        part, is_last = snapshot.part(after, PART_BYTES)
        assert part or is_last
        rows += part
        after = rows[-1][0]
    snapshot.close()
    lthash = LtHash()
    lthash.update([state_element(key, entry.value, entry.height) for key, entry in rows], ())
    return rows, lthash


def moved(source: Ledger, target: Ledger) -> None:
    rows, lthash = taken(source)
    header, certificate = source.header(CERTIFIED), source.certificate(CERTIFIED)
    target.stage([], rows[:3], fresh=True)
    target.stage([source.bundle(height) for height in range(target.height + 1, CERTIFIED + 1)], rows[3:])
    target.install(header, certificate, lthash.to_bytes())


@pytest.mark.parametrize("above", [0, 1, 2])
def test_a_snapshot_is_the_certified_state_whatever_stands_above(make, above):
    source = make("source")
    filled(source, above)
    rows, lthash = taken(source)
    header = source.header(CERTIFIED)
    assert rows == sorted(rows)
    assert lthash.root() == header.state_root
    assert sum(len(key) + len(entry.value) for key, entry in rows) == header.state_bytes


def test_a_snapshot_stays_as_it_was_while_blocks_are_committed(make):
    source = make("source")
    maker = filled(source)
    snapshot = source.open_snapshot()
    first, _ = snapshot.part(b"", PART_BYTES)
    commit = maker.commit([usage(signer(1), 99)], {key: b"other" for key, _ in first} | {b"zzz": b"1"})
    source.commit(commit, [certify(commit)])
    rest, is_last = snapshot.part(first[-1][0], 1 << 20)
    assert is_last
    lthash = LtHash()
    lthash.update([state_element(key, entry.value, entry.height) for key, entry in [*first, *rest]], ())
    assert lthash.root() == source.header(CERTIFIED).state_root


@pytest.mark.parametrize("pruned", [0, 4])
@pytest.mark.parametrize("own", [0, 2])
def test_an_installed_ledger_answers_like_the_one_that_it_came_from(make, own, pruned):
    source, target = make("source"), make("target")
    maker = filled(source)
    for height in range(1, own + 1):
        commit, _ = _again(source, height)
        target.commit(*_again(source, height))
        assert commit.block.header.height == target.height
    source.prune(pruned)
    moved(source, target)
    assert (target.height, target.certified_height, target.snapshot_height) == (CERTIFIED,) * 3
    assert target.pruned_to == pruned
    assert target.head_hash == source.header(CERTIFIED + 1).previous
    for height in range(1, CERTIFIED + 1):
        assert target.block(height) == source.block(height)
        assert target.bundle(height).headers == source.bundle(height).headers
        (outcome,) = source.block(height).outcomes
        assert target.place(outcome.transaction_id) == source.place(outcome.transaction_id)
        assert target.receipt(outcome.transaction_id) == source.receipt(outcome.transaction_id)
    meter = signer(1)
    assert target.by_signer(meter) == [entry for entry in source.by_signer(meter) if entry[0] <= CERTIFIED]
    assert target.history(b"key/1") == [StateVersion(5, b"value 5")], "what was before the snapshot is not known"
    assert target.history(b"key/0") == []
    for height in (CERTIFIED + 1, CERTIFIED + 2):
        target.commit(*_again(source, height))
    assert list(target.scan(b"", 100)) == list(source.scan(b"", 100))
    assert target.lthash() == source.lthash()
    assert maker.height == target.height


def _again(source: Ledger, height: int):
    """Return the commit of a block that `filled` made, and its certificates."""
    maker = ChainMaker()
    for _ in range(height):
        commit = maker.commit([usage(signer(1), maker.height + 1)], writes(maker.height + 1))
    certificate = source.certificate(height)
    return commit, [] if certificate is None else [certificate]


def test_what_does_not_fit_is_not_installed(make):
    source, target = make("source"), make("target")
    filled(source)
    rows, lthash = taken(source)
    header, certificate = source.header(CERTIFIED), source.certificate(CERTIFIED)
    bundles = [source.bundle(height) for height in range(1, CERTIFIED + 1)]
    target.stage(bundles[:-1], rows, fresh=True)
    with pytest.raises(CommitRefused):
        target.install(header, certificate, lthash.to_bytes())
    target.stage(bundles, rows, fresh=True)
    with pytest.raises(CommitRefused):
        target.install(header, certificate, bytes(2048))
    with pytest.raises(CommitRefused):
        target.install(header, source.certificate(CERTIFIED - 1), lthash.to_bytes())
    assert target.height == 0 and not list(target.scan(b"", 10))
    target.install(header, certificate, lthash.to_bytes())
    target.install(header, certificate, lthash.to_bytes())
    assert target.height == CERTIFIED


def test_what_was_staged_before_a_crash_is_gone(tmp_path):
    source = MemoryLedger(GENESIS)
    filled(source)
    rows, lthash = taken(source)
    with LmdbLedger(tmp_path, GENESIS, map_bytes=MAP_BYTES) as ledger:
        ledger.stage([source.bundle(1)], rows, fresh=True)
    with LmdbLedger(tmp_path, GENESIS, map_bytes=MAP_BYTES) as ledger:
        assert ledger.sizes()["staged"].entries == 0
        moved(source, ledger)
        assert ledger.height == CERTIFIED


def test_a_crash_while_installing_leaves_the_ledger_as_it_was(tmp_path, monkeypatch):
    source = MemoryLedger(GENESIS)
    filled(source)
    with LmdbLedger(tmp_path, GENESIS, map_bytes=MAP_BYTES) as ledger:
        monkeypatch.setattr("bcami.ledger.lmdb_ledger.take_staged_state", lambda write: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            moved(source, ledger)
    monkeypatch.undo()
    with LmdbLedger(tmp_path, GENESIS, map_bytes=MAP_BYTES) as ledger:
        assert ledger.height == 0
        moved(source, ledger)
        assert ledger.height == CERTIFIED


def test_an_installed_ledger_passes_the_audit_and_says_from_where(tmp_path):
    source = MemoryLedger(GENESIS)
    filled(source)
    source.prune(2)
    with LmdbLedger(tmp_path, GENESIS, map_bytes=MAP_BYTES) as ledger:
        moved(source, ledger)
        for height in (CERTIFIED + 1, CERTIFIED + 2):
            ledger.commit(*_again(source, height))
    report = audit_ledger(tmp_path, GENESIS)
    assert report.ok, report.first_error
    assert (report.audited_from, report.pruned_to, report.height) == (CERTIFIED, 2, CERTIFIED + 2)
    assert audit_ledger(tmp_path, GENESIS, quick=True).ok
