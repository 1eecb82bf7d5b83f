"""Promises are kept, and a node that lost them is told that its key is dead (protocol 6.3)."""

import lmdb
import pytest

from bcami.errors import EnvironmentFault
from bcami.ledger.audit import check_promises
from bcami.ledger.lmdb_promises import LmdbPromises
from bcami.ledger.memory import MemoryPromises
from tests.unit.ledger.committer import OWNER
from tests.unit.ledger.test_lmdb_ledger import process


@pytest.fixture(params=["memory", "lmdb"])
def promises(request, tmp_path):
    if request.param == "memory":
        yield MemoryPromises()
    else:
        LmdbPromises.create(tmp_path / "promises", OWNER)
        with LmdbPromises(tmp_path / "promises", OWNER) as made:
            yield made


def made_in(folder, records=20):
    LmdbPromises.create(folder, OWNER)
    with LmdbPromises(folder, OWNER) as promises:
        promises.apply([(b"vote/" + bytes([n]), b"value" * n) for n in range(records)])
    return folder


def test_a_group_is_kept_and_deleted(promises):
    promises.apply([(b"a/1", b"x"), (b"a/2", b"y"), (b"b/1", b"z")])
    promises.apply([(b"a/1", b"w")], [b"a/2", b"not there"])
    promises.put(b"c", b"")
    assert promises.get(b"a/1") == b"w"
    assert promises.get(b"a/2") is None
    assert list(promises.items()) == [(b"a/1", b"w"), (b"b/1", b"z"), (b"c", b"")]
    assert list(promises.items(b"b/")) == [(b"b/1", b"z")]
    promises.delete(b"c")
    assert promises.get(b"c") is None


def test_deletes_come_after_puts_of_the_same_group(promises):
    promises.apply([(b"k", b"v")], [b"k"])
    assert promises.get(b"k") is None


def test_they_are_there_after_reopening(tmp_path):
    made_in(tmp_path)
    with LmdbPromises(tmp_path, OWNER) as promises:
        assert promises.get(b"vote/\x07") == b"value" * 7
        assert sum(1 for _ in promises.items()) == 20


def test_a_large_batch_fits(promises):
    promises.put(b"batch", bytes(2**20))
    assert promises.get(b"batch") == bytes(2**20)


def test_a_key_without_its_store_is_amnesia(tmp_path):
    with pytest.raises(EnvironmentFault, match="amnesia") as caught:
        LmdbPromises(tmp_path / "promises", OWNER)
    assert "never vote again" in str(caught.value)
    assert not (tmp_path / "promises").exists()


def test_the_store_of_another_key_is_refused(tmp_path):
    made_in(tmp_path)
    with pytest.raises(EnvironmentFault, match="another key"):
        LmdbPromises(tmp_path, b"\x03" * 33)


def test_a_store_is_made_once(tmp_path):
    made_in(tmp_path)
    with pytest.raises(EnvironmentFault, match="already"):
        LmdbPromises.create(tmp_path, OWNER)


def test_one_process_at_a_time(tmp_path):
    made_in(tmp_path)
    with LmdbPromises(tmp_path, OWNER), pytest.raises(EnvironmentFault, match="in use"):
        LmdbPromises(tmp_path, OWNER)


@pytest.mark.parametrize("how", ["value", "key", "deleted", "added", "owner"])
def test_damage_is_amnesia_too(tmp_path, how):
    made_in(tmp_path)
    env = lmdb.open(str(tmp_path), max_dbs=3)
    table = env.open_db(b"meta" if how == "owner" else b"promises")
    with env.begin(write=True, db=table) as txn:
        key = b"owner" if how == "owner" else b"vote/\x09"
        stored = txn.get(key)
        if how == "added":
            txn.put(b"vote/\x99", stored)
        elif how in {"value", "owner"}:
            txn.put(key, bytes([stored[0] ^ 1]) + stored[1:])
        else:
            txn.delete(key)
            if how == "key":
                txn.put(b"vote/\x89", stored)
    env.close()
    with pytest.raises(EnvironmentFault, match="damaged"):
        LmdbPromises(tmp_path, OWNER)


def test_kill_leaves_whole_groups(tmp_path):
    LmdbPromises.create(tmp_path, OWNER)
    child = process("promise_on", tmp_path)
    for _ in range(30):
        child.stdout.readline()
    child.send_signal(9)
    said = int((["30", *child.stdout.read().split()])[-1])
    child.communicate()
    assert child.returncode == -9
    with LmdbPromises(tmp_path, OWNER) as promises:
        (last,) = [int.from_bytes(key[1:], "big") for key, _ in promises.items(b"b")]
        assert said <= last <= said + 1
        assert sum(1 for _ in promises.items(b"a")) == last


def test_a_full_map_ends_promising(tmp_path):
    LmdbPromises.create(tmp_path, OWNER, map_bytes=200_000)
    with LmdbPromises(tmp_path, OWNER, map_bytes=200_000) as promises:
        with pytest.raises(EnvironmentFault, match="map size"):
            promises.put(b"k", bytes(300_000))
        assert promises.get(b"k") is None


def test_a_check_in_another_process_counts_what_is_there(tmp_path):
    assert check_promises(made_in(tmp_path), OWNER) == 20
    with LmdbPromises(tmp_path, OWNER) as promises:
        assert len(promises) == 20
        with pytest.raises(EnvironmentFault, match="in use"):
            check_promises(tmp_path, OWNER)


def test_a_check_passes_on_what_is_wrong(tmp_path):
    with pytest.raises(EnvironmentFault, match="amnesia") as caught:
        check_promises(tmp_path / "promises", OWNER)
    assert "never vote again" in caught.value.do
    with pytest.raises(EnvironmentFault, match="another key"):
        check_promises(made_in(tmp_path), b"\x03" * 33)


def test_a_damaged_page_of_promises_is_amnesia_and_no_crash(tmp_path):
    made_in(tmp_path, 200)
    with (tmp_path / "data.mdb").open("r+b") as file:
        file.truncate(3 * 4096)
    with pytest.raises(EnvironmentFault, match="damaged") as caught:
        check_promises(tmp_path, OWNER)
    assert "never vote again" in caught.value.do
