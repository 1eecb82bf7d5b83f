"""A backup is consistent, whole or absent, and a store put back from it goes on."""

import shutil
import stat

import pytest

from bcami.crypto.keyfile import write_secret
from bcami.errors import InputError
from bcami.kms import Write
from bcami.kms.records import GROUPS
from bcami.mdms.backup import check_backup, make_backup
from bcami.mdms.duckdb_store import DuckDbStore
from bcami.mdms.keyring import PERIOD_KIND, PeriodKeyring
from bcami.mdms.kms_store import KmsStore, load_store_key
from bcami.model.report import Reading
from tests.chain import entropy
from tests.unit.mdms.conftest import World

T0 = 1_356_998_400


@pytest.fixture
def keyring(tmp_path) -> PeriodKeyring:
    keyring = PeriodKeyring(tmp_path / "periods")
    write_secret(keyring.folder / "00000001.key", PERIOD_KIND, entropy("a") + entropy("b"))
    return keyring


def test_backup_and_restore(world: World, keyring: PeriodKeyring, tmp_path) -> None:
    world.chain.block([world.meter.report([Reading(T0, 1), Reading(T0 + 1800, 2)])])
    world.follower().follow(world.chain.bundles)
    folder = tmp_path / "backup"
    row = make_backup(world.store, keyring, folder, 123)
    assert (row.height, row.made_ms, row.path) == (world.chain.height, 123, str(folder))
    assert world.store.last_backup() == row
    assert check_backup(folder) == world.chain.height
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.name == "manifest.json"
    world.chain.block([world.meter.report([Reading(T0 + 3600, 3)])])
    world.follower().follow(world.chain.bundles)
    world.store.close()
    shutil.copy(folder / "store.duckdb", world.folder / "store.duckdb")
    (world.folder / "store.duckdb.wal").unlink(missing_ok=True)
    world.store = world.open_store()
    assert world.store.cursor.height == world.chain.height - 1
    assert world.follower().follow(world.chain.bundles).stored.new == 1
    assert len(world.readings()) == 3
    restored = PeriodKeyring(folder / "periods")
    assert restored.kem(1).public_key == keyring.kem(1).public_key


def test_the_symmetric_keys_and_their_key_are_in_it(world: World, keyring: PeriodKeyring, tmp_path) -> None:
    key = load_store_key(tmp_path / "kms.key", {})
    with KmsStore(tmp_path / "kms", key, b"chain") as kms:
        kms.apply([Write(GROUPS, b"1", b"one")])
        make_backup(world.store, keyring, tmp_path / "backup", 1, kms=kms, kms_key=tmp_path / "kms.key")
        kms.apply([Write(GROUPS, b"2", b"two")])
    folder = tmp_path / "backup"
    check_backup(folder)
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.name == "manifest.json"
    with KmsStore(folder / "kms", load_store_key(folder / "kms.key", {}), b"chain") as kms:
        assert kms.rows(GROUPS) == [(b"1", b"one")]


def test_a_damaged_backup_is_found(world: World, keyring: PeriodKeyring, tmp_path) -> None:
    folder = tmp_path / "backup"
    make_backup(world.store, keyring, folder, 1)
    with pytest.raises(InputError, match="exists already"):
        make_backup(world.store, keyring, folder, 2)
    key = folder / "periods" / "00000001.key"
    key.write_bytes(key.read_bytes().replace(b"period", b"perioD"))
    with pytest.raises(InputError, match="damaged"):
        check_backup(folder)
    with pytest.raises(InputError, match="no whole backup"):
        check_backup(tmp_path)


def test_a_backup_that_fails_leaves_nothing(world: World, keyring: PeriodKeyring, tmp_path, monkeypatch) -> None:
    def fails(self, path):
        path.write_bytes(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(DuckDbStore, "copy_to", fails)
    with pytest.raises(RuntimeError):
        make_backup(world.store, keyring, tmp_path / "backup", 1)
    assert [path.name for path in tmp_path.iterdir() if "backup" in path.name] == []
    assert world.store.last_backup() is None
