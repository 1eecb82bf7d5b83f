"""One byte of a stored record changes: the audit names it, the node refuses to start, its peers rebuild it."""

import pytest

from tests.processes.cluster import Cluster


def flip(cluster: Cluster, name: str, pattern: bytes) -> None:
    """Change one byte of every copy of a pattern in a ledger's file: LMDB keeps pages that are no longer in use."""
    path = cluster.home.node(name).ledger / "data.mdb"
    data = bytearray(path.read_bytes())
    place = data.find(pattern)
    assert place >= 0, "the record is in the file"
    while place >= 0:
        data[place + len(pattern) // 2] ^= 1
        place = data.find(pattern, place + 1)
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["value", "key"])
def test_a_flipped_byte_is_found_refused_and_repaired(replayed: Cluster, part: str) -> None:
    height = replayed.json("verify", "--node", "node3")["nodes"][0]["height"]
    replayed.run("up", "--detach")
    block = replayed.json("show", "block", str(height // 2))
    replayed.run("down")
    flip(replayed, "node3", bytes.fromhex(block["hash"]) if part == "value" else b"registration/enrolments/")

    audit = replayed.json("verify", expect=1)
    verdicts = {node["name"]: node for node in audit["nodes"]}
    assert [name for name, node in verdicts.items() if not node["ok"]] == ["node3"]
    assert verdicts["node3"]["first_error"]["reason"]
    assert verdicts["node3"]["first_error"]["table"]
    assert "node3: " in replayed.run("verify", "--node", "node3", expect=1)

    told = replayed.run("up", "--detach", expect=4)
    assert "node3 did not become ready" in told
    assert "damaged" in told

    replayed.run("rebuild", "node3")
    replayed.run("up", "--detach")
    replayed.wait_level()
    assert replayed.json("verify")["ok"]
    assert list(replayed.home.node("node3").folder.glob("ledger.replaced-*"))


def test_a_ledger_cut_short_gives_a_verdict_and_no_crash(replayed: Cluster) -> None:
    path = replayed.home.node("node2").ledger / "data.mdb"
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
    audit = replayed.json("verify", expect=1)
    assert [node["name"] for node in audit["nodes"] if not node["ok"]] == ["node2"]
