"""What only a ledger on disk has to show: it survives, alone among writers, whatever the process and the disk do."""

import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from bcami.errors import EnvironmentFault
from bcami.ledger import environment, index, tables
from bcami.ledger.audit import inspect
from bcami.ledger.index import PENDING_MAX, SLICES
from bcami.ledger.lmdb_ledger import LmdbLedger
from bcami.ledger.position import POSITION_BYTES, PositionMark
from bcami.ledger.report import AuditHooks
from bcami.ledger.store import CommitRefused
from bcami.model.block import header_hash
from bcami.model.chain import TransactionPlace
from tests.unit.ledger.chain import GENESIS, ChainMaker, certify, random_chain, signer, usage
from tests.unit.ledger.committer import commits

ROOT = Path(__file__).parents[3]


def process(what: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.unit.ledger.committer", what, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def audited(folder: Path):
    return inspect(folder, GENESIS, "node", AuditHooks(), PositionMark(bytearray(POSITION_BYTES)), quick=False)


def test_everything_is_there_after_reopening(tmp_path):
    *chain, following = random_chain(7)
    with LmdbLedger(tmp_path, GENESIS) as ledger:
        for commit in chain:
            ledger.commit(commit, [certify(commit)])
        ledger.prune(2)
    with LmdbLedger(tmp_path, GENESIS) as ledger:
        assert (ledger.height, ledger.certified_height, ledger.pruned_to) == (6, 6, 2)
        assert ledger.head_hash == header_hash(chain[-1].block.header)
        assert ledger.lthash() == chain[-1].lthash
        for commit in chain:
            for place, outcome in enumerate(commit.block.outcomes):
                assert ledger.place(outcome.transaction_id) == TransactionPlace(commit.block.header.height, place)
        ledger.commit(following)
    assert audited(tmp_path).first_error is None


def test_kill_in_the_middle_of_commits_leaves_a_whole_prefix(tmp_path):
    committed = 0
    for lines in (3, 17, 40):
        child = process("commit_on", tmp_path)
        for _ in range(lines):
            committed = int(child.stdout.readline())
        child.kill()
        said = child.stdout.read().split()
        child.communicate()
        committed = int(said[-1]) if said else committed
        with LmdbLedger(tmp_path, GENESIS) as ledger:
            assert committed <= ledger.height <= committed + 1
            assert ledger.certified_height == ledger.height
            height = ledger.height
        expected = [commit for commit, _ in zip(commits(), range(height))][-1]
        with LmdbLedger(tmp_path, GENESIS) as ledger:
            assert ledger.block(height) == expected.block
            assert ledger.lthash() == expected.lthash
        report = audited(tmp_path)
        assert report.first_error is None
        assert report.height == height


def test_a_second_writer_is_told_who_has_the_store(tmp_path):
    holder = process("hold", tmp_path)
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(EnvironmentFault, match=f"in use by another process, pid {holder.pid}"):
        LmdbLedger(tmp_path, GENESIS)
    holder.communicate()
    LmdbLedger(tmp_path, GENESIS).close()


def test_a_second_writer_in_the_same_process_is_refused_too(tmp_path):
    with LmdbLedger(tmp_path, GENESIS), pytest.raises(EnvironmentFault, match="in use"):
        LmdbLedger(tmp_path, GENESIS)


def test_another_process_reads_while_one_writes(tmp_path):
    chain = random_chain(4)
    with LmdbLedger(tmp_path, GENESIS) as ledger:
        ledger.commit(chain[0], [certify(chain[0])])
        reader = process("read", tmp_path)
        for commit in chain[1:]:
            reader.stdin.write("\n")
            reader.stdin.flush()
            height = ledger.height
            assert reader.stdout.readline() == f"{height} True {height}\n"
            ledger.commit(commit, [certify(commit)])
        reader.communicate()
        assert reader.returncode == 0


def test_a_read_only_ledger_refuses_to_write(tmp_path):
    (commit,) = random_chain(1)
    LmdbLedger(tmp_path, GENESIS).close()
    with LmdbLedger(tmp_path, GENESIS, write=False) as ledger, pytest.raises(CommitRefused, match="read-only"):
        ledger.commit(commit)


def test_reading_where_nothing_is_says_so(tmp_path):
    with pytest.raises(EnvironmentFault, match="there is no store"):
        LmdbLedger(tmp_path, GENESIS, write=False)


def test_the_ledger_of_another_network_is_refused(tmp_path):
    LmdbLedger(tmp_path, GENESIS).close()
    with pytest.raises(EnvironmentFault, match="another network"):
        LmdbLedger(tmp_path, msgspec.structs.replace(GENESIS, network="other"))
    LmdbLedger(tmp_path, GENESIS).close()


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"not a store" * 1000)
    with pytest.raises(EnvironmentFault, match="damaged"):
        LmdbLedger(tmp_path, GENESIS)


def test_a_full_map_refuses_the_block_and_keeps_the_ledger(tmp_path):
    maker = ChainMaker()
    with LmdbLedger(tmp_path, GENESIS, map_bytes=512 * 1024) as ledger:
        with pytest.raises(EnvironmentFault, match="map size") as caught:
            for number in range(1, 1000):
                commit = maker.commit([usage(signer(1), number, bytes(15_000))])
                ledger.commit(commit)
        assert caught.value.exit_code == 4
        height = ledger.height
        assert height == commit.block.header.height - 1
    with LmdbLedger(tmp_path, GENESIS) as ledger:
        assert ledger.height == height
        ledger.commit(commit)
    assert audited(tmp_path).ok


def test_a_disk_that_refuses_ends_writing_for_good(tmp_path):
    child = process("limited", tmp_path)
    said, _ = child.communicate()
    height, same_fault, height_after, *what = said.split()
    assert same_fault == "True"
    assert height == height_after
    assert "cannot be read or written" in " ".join(what)
    with LmdbLedger(tmp_path, GENESIS) as ledger:
        assert ledger.height == int(height)
    assert audited(tmp_path).ok


def test_the_index_is_written_in_slices_and_found_before_and_after(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PENDING_MAX", 60)
    maker, ids = ChainMaker(), []
    with LmdbLedger(tmp_path, GENESIS) as ledger:
        for height in range(1, 41):
            commit = maker.commit([usage(signer(n), height) for n in range(10)])
            ledger.commit(commit)
            ids += [outcome.transaction_id for outcome in commit.block.outcomes]
            assert all(ledger.place(tx_id) is not None for tx_id in ids)
        folded = ledger.sizes()["transactions"].entries
        assert 0 < folded < len(ids)
    with LmdbLedger(tmp_path, GENESIS) as ledger:
        for number, tx_id in enumerate(ids):
            assert ledger.place(tx_id) == TransactionPlace(number // 10 + 1, number % 10)
    assert audited(tmp_path).first_error is None
    assert PENDING_MAX > SLICES


def test_a_later_occurrence_never_hides_the_first_in_the_slices(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PENDING_MAX", 8)
    maker, again = ChainMaker(), usage(signer(1), 1)
    with LmdbLedger(tmp_path, GENESIS) as ledger:
        for height in range(1, 60):
            txs = [usage(signer(2), height), again, usage(signer(3), height)]
            commit = maker.commit(txs)
            ledger.commit(commit)
            assert ledger.place(commit.block.outcomes[1].transaction_id) == TransactionPlace(1, 1)
    with LmdbLedger(tmp_path, GENESIS) as ledger:
        assert ledger.place(commit.block.outcomes[1].transaction_id) == TransactionPlace(1, 1)
    assert audited(tmp_path).first_error is None


def test_old_blocks_leave_memory_even_on_a_quiet_chain(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PENDING_BLOCKS_MAX", 5)
    maker = ChainMaker()
    with LmdbLedger(tmp_path, GENESIS) as ledger:
        for height in range(1, 20):
            ledger.commit(maker.commit([usage(signer(1), height)]))
        assert ledger.sizes()["transactions"].entries >= 14
    assert audited(tmp_path).first_error is None


def test_mapped_pages_are_given_back_while_ids_are_looked_up(tmp_path, monkeypatch):
    released = []
    monkeypatch.setattr(environment.MappedFile, "release", lambda mapped: released.append(mapped))
    with LmdbLedger(tmp_path, GENESIS) as ledger:
        for number in range(3 * tables.SCATTERED_READS_MAX):
            assert ledger.place(number.to_bytes(32, "big")) is None
    assert len(released) == 3


def test_threads_read_whole_blocks_while_one_commits(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PENDING_MAX", 20)
    monkeypatch.setattr(tables, "SCATTERED_READS_MAX", 3)
    maker, known, done, wrong = ChainMaker(), [], threading.Event(), []

    def read(ledger: LmdbLedger) -> None:
        while not done.is_set():
            for height, tx_id in known[-50:]:
                place, block = ledger.place(tx_id), ledger.block(height)
                if place is None or block is None or block.outcomes[place.index].transaction_id != tx_id:
                    wrong.append((height, place))
                if ledger.state(b"a/1").height < height:
                    wrong.append((height, "state"))

    with LmdbLedger(tmp_path, GENESIS) as ledger:
        threads = [threading.Thread(target=read, args=(ledger,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for height in range(1, 150):
            commit = maker.commit([usage(signer(n), height) for n in range(5)], {b"a/1": bytes([height])})
            ledger.commit(commit)
            known += [(height, outcome.transaction_id) for outcome in commit.block.outcomes]
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
