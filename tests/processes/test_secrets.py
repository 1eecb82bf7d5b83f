"""No private key is on a ledger, in a log or in another process's files: the files are searched for all of them."""

import json
from pathlib import Path

import lmdb

from bcami.ami.outbox import FACTORY, ISSUANCES, SESSIONS
from bcami.ami.records import FACTORY_CODEC, SESSION_CODEC
from tests.processes.cluster import Cluster


def long_term_secrets(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in (*folder.rglob("*.key"), *folder.rglob("*.kem")):
        if path.name != "tls.key":
            found[path.relative_to(folder).as_posix()] = bytes.fromhex(json.loads(path.read_text())["secret"])
    return found


def meter_secrets(folder: Path) -> dict[str, bytes]:
    """Factory and session keys of every meter, as the fleet keeps them."""
    found = {}
    environment = lmdb.open(str(folder / "fleet"), max_dbs=16, readonly=True, lock=False)
    try:
        with environment.begin() as unit:
            for table in (FACTORY, SESSIONS, ISSUANCES):
                database = environment.open_db(table, txn=unit)
                for key, stored in unit.cursor(db=database):
                    value = bytes(stored[4:])
                    name = f"{table.decode()} {bytes(key).hex()[:12]}"
                    if table == FACTORY:
                        factory = FACTORY_CODEC.decode(value)
                        found |= {f"{name} signing": factory.signing_secret, f"{name} kem": factory.kem_secret}
                    elif table == SESSIONS:
                        session = SESSION_CODEC.decode(value)
                        found |= {f"{name} key": session.key, f"{name} kem": session.kem_secret}
    finally:
        environment.close()
    return found


def test_no_private_key_is_where_it_does_not_belong(replayed: Cluster) -> None:
    folder = replayed.home.folder
    secrets = {**long_term_secrets(folder), **meter_secrets(folder)}
    assert len(secrets) > 4 * 2 + 2 * 30
    nodes = [path for path in (folder / "nodes").rglob("*") if path.is_file() and path.suffix != ".key"]
    public = [*nodes, *folder.rglob("*.log"), *(folder / "certificates").iterdir(), replayed.home.genesis]
    public += [path for path in (folder / "mdms").glob("store.duckdb*") if path.is_file()]
    assert any(path.name == "data.mdb" for path in public)
    for path in public:
        data = path.read_bytes()
        for name, secret in secrets.items():
            assert secret not in data, f"{name} is in {path.relative_to(folder)}"
            assert secret.hex().encode() not in data, f"{name} is in {path.relative_to(folder)}, in hex"


def test_the_search_would_find_a_key(replayed: Cluster) -> None:
    name, secret = next(iter(meter_secrets(replayed.home.folder).items()))
    assert secret in (replayed.home.folder / "fleet" / "data.mdb").read_bytes(), name
