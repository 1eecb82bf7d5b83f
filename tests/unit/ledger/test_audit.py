"""Whatever is changed in a stored ledger, the audit names the table and the block, and lives to tell."""

import random
from contextlib import contextmanager
from pathlib import Path

import lmdb
import msgspec
import pytest

from bcami.codec import encode
from bcami.errors import EnvironmentFault
from bcami.ledger import audit, index, records
from bcami.ledger.audit import audit_ledger, inspect
from bcami.ledger.lmdb_ledger import LmdbLedger
from bcami.ledger.position import POSITION_BYTES, PositionMark
from bcami.ledger.records import LEDGER_TABLES, height_key, height_of
from bcami.ledger.report import AuditHooks
from bcami.model.block import header_hash
from bcami.model.chain import StateEntry
from tests.unit.ledger import hooks
from tests.unit.ledger.chain import GENESIS, METER, ChainMaker, certify, random_chain, signer, usage
from tests.unit.ledger.test_lmdb_ledger import ROOT

BLOCKS = 8
TABLES = {table.name: table for table in LEDGER_TABLES}


@pytest.fixture(autouse=True)
def hooks_can_be_imported(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A ledger with records in every table, the index partly folded, the last two blocks without certificate."""
    monkeypatch.setattr(index, "PENDING_MAX", 10)
    with LmdbLedger(tmp_path / "ledger", GENESIS) as ledger:
        for commit in random_chain(BLOCKS):
            ledger.commit(commit, [certify(commit)] if commit.block.header.height <= BLOCKS - 2 else [])
        ledger.stage([ledger.bundle(1)], [(b"key", StateEntry(b"value", 1))])
        assert all(size.entries for size in ledger.sizes().values())
    return tmp_path / "ledger"


def here(folder: Path, *, quick: bool = False, made: AuditHooks | None = None):
    """Audit in this process: for changes that LMDB itself made, which leave no damaged page."""
    mark = PositionMark(bytearray(POSITION_BYTES))
    return inspect(folder, GENESIS, "node1", made or AuditHooks(), mark, quick=quick)


@contextmanager
def edited(folder: Path, table: str):
    env = lmdb.open(str(folder), max_dbs=20, map_size=1 << 30, sync=False)
    with env.begin(write=True, db=env.open_db(table.encode())) as txn:
        yield txn
    env.close()


def rows(folder: Path, table: str) -> list[tuple[bytes, bytes]]:
    env = lmdb.open(str(folder), max_dbs=20, readonly=True)
    with env.begin(db=env.open_db(table.encode(), create=False)) as txn:
        found = list(txn.cursor())
    env.close()
    return found


def block_of(table: str, key: bytes, stored: bytes) -> int:
    """Return the block that the audit has to name for a record."""
    if table in {"meta", "staged"}:
        return BLOCKS
    if table in {"state", "transactions", "signers"}:
        return height_of(stored)
    return height_of(key[-8:] if table == "history" else key)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


def test_a_sound_ledger_passes_and_its_facts_are_reported(folder):
    head = random_chain(BLOCKS)[-1].block.header
    report = audit_ledger(folder, GENESIS, name="node1", hooks="tests.unit.ledger.hooks:signed_by_meter")
    assert report.ok
    assert report.first_error is None
    assert (report.name, report.mode) == ("node1", "full")
    assert (report.height, report.blocks_checked, report.certified_height) == (BLOCKS, BLOCKS, BLOCKS - 2)
    assert report.block_hash == header_hash(head).hex()
    assert report.state_root == head.state_root.hex()
    assert report.transactions_checked == sum(len(c.block.outcomes) for c in random_chain(BLOCKS))
    assert report.signatures_checked == report.transactions_checked
    assert report.executed_to == 0


def test_an_empty_ledger_passes(tmp_path):
    LmdbLedger(tmp_path, GENESIS).close()
    assert audit_ledger(tmp_path, GENESIS).ok
    assert here(tmp_path, quick=True).ok


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("part", ["key", "first", "middle", "checksum"])
def test_a_changed_record_is_named(folder, table, part):
    found = rows(folder, table)
    for key, stored in (found[0], found[-1], found[len(found) // 2]):
        changed = flipped(key, random.Random(part + table).randrange(len(key))) if part == "key" else key
        place = {"first": 0, "middle": (len(stored) - 8) // 2, "checksum": len(stored) - 1, "key": 0}[part]
        if any(changed == other for other, _ in found if other != key):
            continue
        with edited(folder, table) as txn:
            txn.delete(key)
            txn.put(changed, stored if part == "key" else flipped(stored, place))
        for quick in (True, False) if (key, stored) == found[0] else (True,):
            report = here(folder, quick=quick)
            assert not report.ok
            assert (report.first_error.table, report.first_error.height) == (table, block_of(table, key, stored)), (
                report.first_error
            )
            assert report.first_error.reason
        with edited(folder, table) as txn:
            txn.delete(changed)
            txn.put(key, stored)
    assert here(folder).ok


@pytest.mark.parametrize("table", TABLES)
def test_a_deleted_record_is_missed(folder, table):
    found = rows(folder, table)
    for key, stored in (found[0], found[len(found) // 2], found[-1]):
        with edited(folder, table) as txn:
            txn.delete(key)
        for quick in (True, False):
            report = here(folder, quick=quick)
            assert not report.ok
            assert report.first_error.table == table
            unknown = table in {"state", "signers", "meta"} or (table == "history" and stored[8] == 0)
            # What no other record names is missed by its number: the last block is the one that does not fit.
            expected = BLOCKS if unknown else block_of(table, key, stored)
            assert report.first_error.height == expected, report.first_error
        with edited(folder, table) as txn:
            txn.put(key, stored)
    assert here(folder).ok


def raw_places(folder: Path, key: bytes, stored: bytes, in_key: bool) -> list[int]:
    """Return where the record lies in the file; older copies in freed pages are in the list too."""
    data, record, places = (folder / "data.mdb").read_bytes(), key + stored, []
    at = data.find(record)
    while at >= 0:
        places.append(at + (len(key) // 2 if in_key else len(key) + len(stored) // 2))
        at = data.find(record, at + 1)
    return places


@pytest.mark.parametrize("table", TABLES)
def test_a_byte_flipped_in_the_file_is_named(folder, table):
    found = rows(folder, table)
    key, stored = found[len(found) // 2]
    for in_key in (False, True):
        places = raw_places(folder, key, stored, in_key)
        if table == "meta" and not places:
            places = raw_places(folder, *next(row for row in found if row[0] == b"head"), in_key)
        assert places or table in {"batches", "blocks"}, "the record is not inline"
        if not places:
            places = [(folder / "data.mdb").read_bytes().find(stored) + len(stored) // 2]
        flip_in_file(folder, places)
        report = audit_ledger(folder, GENESIS, quick=True)
        assert not report.ok
        assert report.first_error.table == table
        assert report.first_error.height == block_of(table, key, stored), report.first_error
        flip_in_file(folder, places)
    assert audit_ledger(folder, GENESIS).ok


def flip_in_file(folder: Path, places: list[int]) -> None:
    with (folder / "data.mdb").open("r+b") as file:
        for place in places:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 0x10]))


def test_any_byte_flipped_anywhere_never_takes_the_caller_along(folder):
    whole = (folder / "data.mdb").read_bytes()
    source = random.Random(7)
    for _ in range(8):
        place = source.randrange(len(whole))
        (folder / "data.mdb").write_bytes(flipped(whole, place))
        report = audit_ledger(folder, GENESIS)
        assert report.ok == (report.first_error is None)


@pytest.mark.parametrize("pages", ["cut", "ones", "shuffled"])
def test_damaged_pages_give_a_verdict(folder, pages):
    whole = (folder / "data.mdb").read_bytes()
    half = len(whole) // 8192 * 4096
    if pages == "cut":
        damaged = whole[:half]
    elif pages == "ones":
        damaged = whole[:8192] + b"\xff" * (len(whole) - 8192)
    else:
        middle = [whole[at : at + 4096] for at in range(8192, len(whole), 4096)]
        random.Random(1).shuffle(middle)
        damaged = whole[:8192] + b"".join(middle)
    (folder / "data.mdb").write_bytes(damaged)
    report = audit_ledger(folder, GENESIS, name="node1")
    assert not report.ok
    assert report.first_error.table in TABLES
    assert "node1" in str(report.fault(str(folder)))


def test_a_file_that_is_no_store_gives_a_verdict(folder):
    (folder / "data.mdb").write_bytes(bytes(100_000))
    report = audit_ledger(folder, GENESIS)
    assert not report.ok
    assert "no store" in report.first_error.reason


def test_no_ledger_is_the_environments_fault(tmp_path):
    with pytest.raises(EnvironmentFault, match="there is no ledger"):
        audit_ledger(tmp_path, GENESIS)


def test_another_network_is_the_environments_fault(folder):
    with pytest.raises(EnvironmentFault, match="another network"):
        audit_ledger(folder, msgspec.structs.replace(GENESIS, network="other"))


def test_a_reader_that_fails_is_a_verdict_with_its_last_words(folder):
    report = audit_ledger(folder, GENESIS, hooks="tests.unit.ledger.hooks:crashes")
    assert not report.ok
    assert "a bug of whoever made the hooks" in report.first_error.reason


def test_a_reader_that_hangs_is_ended(folder, monkeypatch):
    monkeypatch.setattr(audit, "POLL_S", 0.001)
    report = audit_ledger(folder, GENESIS, stall_s=0.0)
    assert not report.ok
    assert "hung" in report.first_error.reason


def test_progress_is_told(folder, monkeypatch):
    monkeypatch.setattr(audit, "POLL_S", 0.001)
    told = []
    assert audit_ledger(folder, GENESIS, progress=lambda done, total: told.append((done, total))).ok
    assert all(0 <= done <= total == BLOCKS for done, total in told)


def test_a_ledger_is_audited_while_its_node_writes(folder):
    chain = random_chain(BLOCKS + 2)
    with LmdbLedger(folder, GENESIS) as ledger:
        assert audit_ledger(folder, GENESIS).height == BLOCKS
        ledger.commit(chain[BLOCKS])
        assert audit_ledger(folder, GENESIS).height == BLOCKS + 1


# Records with right checksums that say something wrong: somebody who has the program changed them.


def sealed(folder: Path, table: str, key: bytes, value: bytes) -> None:
    with edited(folder, table) as txn:
        txn.put(key, TABLES[table].seal(key, value))


def verdict(folder: Path, table: str, height: int, reason: str, made: AuditHooks | None = None) -> None:
    report = here(folder, made=made)
    assert not report.ok
    assert (report.first_error.table, report.first_error.height) == (table, height), report.first_error
    assert reason in report.first_error.reason, report.first_error


def test_a_forged_header_is_found(folder):
    header = random_chain(BLOCKS)[3].block.header
    forged = msgspec.structs.replace(header, state_bytes=header.state_bytes + 1)
    sealed(folder, "headers", height_key(4), encode(forged))
    verdict(folder, "certificates", 4, "another header")
    assert here(folder, quick=True).first_error.height == 5


def test_a_forged_outcome_is_found(folder):
    block = random_chain(BLOCKS)[3].block
    from bcami.model.reasons import Reason

    forged = (msgspec.structs.replace(block.outcomes[0], reason=Reason.REPLAY), *block.outcomes[1:])
    sealed(folder, "blocks", height_key(4), encode(records.BlockBody(block.proposal, block.executed, forged)))
    verdict(folder, "blocks", 4, "results root")


def test_a_forged_batch_is_found(folder):
    stored = random_chain(BLOCKS)[2].batches[1]
    first = msgspec.structs.replace(stored.batch.transactions[0], timestamp_ms=6)
    batch = msgspec.structs.replace(stored.batch, transactions=(first, *stored.batch.transactions[1:]))
    sealed(folder, "batches", records.batch_key(3, 1), encode(msgspec.structs.replace(stored, batch=batch)))
    verdict(folder, "batches", 3, "batch 1 is not the one that was endorsed")


def test_a_weak_certificate_is_found(folder):
    certificate = certify(random_chain(BLOCKS)[2])
    weak = msgspec.structs.replace(certificate, votes=certificate.votes[:2])
    sealed(folder, "certificates", height_key(3), encode(weak))
    verdict(folder, "certificates", 3, "does not verify")


def test_a_forged_state_value_is_found(folder):
    key, stored = next(row for row in rows(folder, "state") if row[0].startswith(b"guard/"))
    sealed(folder, "state", key, stored[:8] + b"forged")
    verdict(folder, "state", BLOCKS, "state root")
    assert here(folder, quick=True).ok


def test_a_forged_version_is_found(folder):
    key, stored = rows(folder, "history")[0]
    sealed(folder, "history", key, stored[:9] + b"forged")
    report = here(folder)
    # A version that is neither the newest nor named by a hash is not covered; the newest is.
    newest = height_of(key[-8:]) == max(height_of(k[-8:]) for k, _ in rows(folder, "history") if k[:-8] == key[:-8])
    assert report.ok != newest


def test_forged_indexes_are_found(folder):
    key, stored = rows(folder, "transactions")[0]
    height, place = height_of(stored), records.unpack_place(stored[:12])
    sealed(folder, "transactions", key, records.pack_place(height, place.index + 1))
    verdict(folder, "transactions", height, "does not point to transaction")
    sealed(folder, "transactions", key, stored[:-8])
    signers = rows(folder, "signers")
    sealed(folder, "signers", signers[0][0], records.pack_place(1, 0))
    assert here(folder).first_error.table == "signers"
    sealed(folder, "signers", signers[0][0], signers[0][1][:-8])
    sealed(folder, "links", height_key(5), bytes(12))
    verdict(folder, "links", 5, "links are not those")


def test_signatures_are_checked_with_the_keys_of_the_state_below(tmp_path):
    maker = ChainMaker()
    key = b"keys/" + signer(1)
    other = ChainMaker and GENESIS.members[0].consensus_key
    with LmdbLedger(tmp_path, GENESIS) as ledger:
        ledger.commit(maker.commit([], {key: METER.public_key}))
        ledger.commit(maker.commit([usage(signer(1), 1, sign=True)], {key: other}))
        assert_hooks = hooks.signed_by_the_state(GENESIS, None)
    assert here(tmp_path, made=assert_hooks).signatures_checked == 1
    with LmdbLedger(tmp_path, GENESIS) as ledger:
        ledger.commit(maker.commit([usage(signer(1), 2, sign=True)]))
    verdict(tmp_path, "batches", 3, "a signature of transaction 0", assert_hooks)


def test_a_valid_transaction_without_a_signer_is_found(folder):
    verdict(folder, "batches", 1, "has no signer: unknown_session", hooks.no_signer(GENESIS, None))


def test_executing_again_is_compared(folder, monkeypatch):
    made = hooks.executed_again(GENESIS, None)
    assert here(folder, made=made).executed_to == BLOCKS
    wrong = AuditHooks(
        reexecute=lambda block, batches: (
            msgspec.structs.replace(block.header, state_root=bytes(32)) if block.header.height == 6 else block.header
        )
    )
    verdict(folder, "state", 6, "executing the block again", wrong)


def test_a_pruned_ledger_passes_and_says_so(folder):
    with LmdbLedger(folder, GENESIS) as ledger:
        ledger.prune(4)
    made = hooks.signed_by_meter(GENESIS, None)
    report = here(folder, made=msgspec_free(made))
    assert report.ok
    assert report.pruned_to == 4
    assert report.executed_to == 0
    assert 0 < report.signatures_checked < report.transactions_checked


def msgspec_free(made: AuditHooks) -> AuditHooks:
    """Return the hooks with one that must not be asked: nothing can be executed again without payloads."""

    def reexecute(block, batches):
        raise AssertionError("payloads are gone")

    return AuditHooks(made.signers, reexecute)


def test_a_payload_that_is_gone_but_not_pruned_is_found(folder):
    from bcami.ledger.rules import pruned_batch

    commit = random_chain(BLOCKS)[4]
    place = next(place for place, stored in enumerate(commit.batches) if pruned_batch(stored))
    sealed(folder, "batches", records.batch_key(5, place), encode(pruned_batch(commit.batches[place])))
    verdict(folder, "batches", 5, "is gone, but not pruned")
