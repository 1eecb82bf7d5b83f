"""The MDMS's symmetric keys at rest: encrypted, all or nothing, and usable after a crash."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bcami.errors import EnvironmentFault, InputError
from bcami.kms import Write
from bcami.kms.audit import AUDIT_ENTRY, check_log
from bcami.kms.messages import JoinProject, Pricing
from bcami.kms.records import AUDIT, GROUPS, METERS, NODES, TABLES
from bcami.mdms.kms_store import STORE_KEY_VARIABLE, KmsStore, load_store_key
from tests.unit.kms.network import Network

KEY, CHAIN = b"k" * 32, b"c" * 32
PRICE = Pricing(0, 1800, (1,))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KmsStore]:
    with KmsStore(tmp_path / "kms", KEY, CHAIN) as opened:
        yield opened


def test_an_mdms_goes_on_from_its_store(store: KmsStore) -> None:
    network = Network(3, start=False)
    network.store = store  # type: ignore[assignment]
    network.server = network._made()
    network.do(network.server.enrol([meter.identity for meter in network.meters], network.now_ms, network.entropy()))
    network.open_epoch()
    network.flow()
    network.publish(1)
    for meter in network.meters[:2]:
        network.ask(meter, JoinProject(1))
        network.flow()
    network.send(PRICE, group=1)
    network.down.clear()  # on its way when the MDMS stopped
    before = network.server
    network.restart_server()
    network.settle()
    after = network.server
    assert after.graph == before.graph
    assert after.counts.audit_length == before.counts.audit_length + 1
    assert [len([event for event in meter.accepted if event.payload == PRICE]) for meter in network.meters] == [1, 1, 0]
    entries = [AUDIT_ENTRY.decode(value) for _, value in store.rows(AUDIT)]
    assert check_log(entries) is None
    assert check_log(entries, before.counts.audit_head, before.counts.audit_length) is None
    assert [entry.action for entry in entries] == ["enrol", "epoch", "publish", "send", "join", "join", "send", "epoch"]


def test_no_key_lies_on_the_disk(store: KmsStore, tmp_path: Path) -> None:
    network = Network(3)
    network.publish(1)
    for name, rows in network.store.tables.items():
        store.apply([Write(name, key, value) for key, value in rows.items()])
    assert store.rows(METERS) == network.store.rows(METERS)
    on_disk = (tmp_path / "kms" / "data.mdb").read_bytes()
    secrets = [value for _, value in store.rows(NODES)]
    secrets += [record.channel.key for record in network.server.roll if record.channel is not None]
    assert len(secrets) >= 5
    assert not any(secret in on_disk for secret in secrets)
    assert network.meters[0].hid in on_disk, "the search would find something"
    assert oct((tmp_path / "kms" / "data.mdb").stat().st_mode & 0o777) == "0o600"


def test_equal_values_look_different_on_the_disk(store: KmsStore) -> None:
    store.apply([Write(NODES, bytes([place]), bytes(16)) for place in range(4)])
    with store._environment.begin() as unit, unit.cursor(db=store._tables[NODES]) as cursor:
        assert len({value for _, value in cursor}) == 4


def test_a_step_is_stored_whole_or_not_at_all(store: KmsStore) -> None:
    def breaks() -> Iterator[Write]:
        yield Write(GROUPS, b"1", b"one")
        raise RuntimeError("stopped in between")

    with pytest.raises(RuntimeError):
        store.apply(breaks())
    assert not store.rows(GROUPS)


CHILD = """
import os, sys
from pathlib import Path
from bcami.kms import Write
from bcami.kms.records import GROUPS
from bcami.mdms.kms_store import KmsStore

store = KmsStore(Path(sys.argv[1]), b"k" * 32, b"c" * 32)
store.apply([Write(GROUPS, b"1", b"one"), Write(GROUPS, b"2", b"two")])

def writes():
    yield Write(GROUPS, b"1", None)
    yield Write(GROUPS, b"3", b"three")
    os._exit(9)

store.apply(writes())
"""


def test_a_process_killed_in_the_middle_of_a_step_leaves_the_one_before(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "kms")], check=False, timeout=60)
    assert child.returncode == 9
    with KmsStore(tmp_path / "kms", KEY, CHAIN) as store:
        assert store.rows(GROUPS) == [(b"1", b"one"), (b"2", b"two")]


def test_the_audit_log_only_grows(store: KmsStore) -> None:
    store.apply([Write(AUDIT, b"1", b"first")])
    for write in (Write(AUDIT, b"1", b"other"), Write(AUDIT, b"1", None)):
        with pytest.raises(ValueError, match="append-only"):
            store.apply([write])
    assert store.rows(AUDIT) == [(b"1", b"first")]


def test_another_key_opens_nothing(tmp_path: Path) -> None:
    KmsStore(tmp_path / "kms", KEY, CHAIN).close()
    with pytest.raises(InputError, match="does not open") as raised:
        KmsStore(tmp_path / "kms", b"x" * 32, CHAIN)
    assert KEY.hex() not in str(raised.value)


def test_a_record_does_not_open_in_anothers_place(store: KmsStore) -> None:
    store.apply([Write(NODES, b"a", b"value")])
    with store._environment.begin(write=True) as unit:
        sealed = unit.get(b"a", db=store._tables[NODES])
        unit.put(b"b", sealed, db=store._tables[NODES])
    with pytest.raises(InputError, match="does not open"):
        store.rows(NODES)


@pytest.mark.parametrize("stored", [b"", bytes(16), bytes(40)])
def test_a_damaged_record_is_named(store: KmsStore, stored: bytes) -> None:
    with store._environment.begin(write=True) as unit:
        unit.put(b"\x07", stored, db=store._tables[METERS])
    with pytest.raises(InputError, match="kms_meters of 07"):
        store.rows(METERS)


def test_the_store_of_another_network(tmp_path: Path) -> None:
    KmsStore(tmp_path / "kms", KEY, CHAIN).close()
    with pytest.raises(InputError, match="another network"):
        KmsStore(tmp_path / "kms", KEY, b"d" * 32)


def test_the_key_comes_from_the_environment_or_from_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "kms.key"
    assert load_store_key(path, {STORE_KEY_VARIABLE: "ab" * 32}) == bytes.fromhex("ab" * 32)
    assert not path.exists()
    made = load_store_key(path, {})
    assert len(made) == 32
    assert load_store_key(path, {}) == made
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(EnvironmentFault, match="others may read"):
        load_store_key(path, {})


@pytest.mark.parametrize("given", ["", "xyz", "ab" * 31, "ab" * 33])
def test_a_malformed_key_in_the_environment(tmp_path: Path, given: str) -> None:
    with pytest.raises(InputError, match=STORE_KEY_VARIABLE):
        load_store_key(tmp_path / "kms.key", {STORE_KEY_VARIABLE: given})


def test_all_tables_of_the_rules_are_there(store: KmsStore) -> None:
    assert all(store.rows(table) == [] for table in TABLES)
    assert os.listdir(store._folder)


def test_a_store_is_for_the_policy_that_it_was_made_with(tmp_path: Path) -> None:
    for _ in range(2):
        with KmsStore(tmp_path / "kms", KEY, CHAIN) as store:
            store.require("hardened lkh 4")
    with KmsStore(tmp_path / "kms", KEY, CHAIN) as store, pytest.raises(InputError, match="made as hardened lkh 4"):
        store.require("paper lkh 4")
