"""A key without its vote log is dead for good, and every command says so (protocol 6.3)."""

import json
import shutil
from pathlib import Path

import pytest

from bcami.config import default_definition
from bcami.errors import EnvironmentFault, InputError
from bcami.ledger.lmdb_promises import LmdbPromises
from bcami.paths import HomePaths
from bcami.processes.amnesia import (
    amnesia_lines,
    amnesia_summary,
    has_lost_votes,
    lost_votes,
    mark_path,
    settle_amnesia,
)
from bcami.processes.home import create_home, load_genesis

OWNER = b"\x02" * 33


@pytest.fixture
def home(tmp_path: Path) -> HomePaths:
    paths = HomePaths(tmp_path / "home")
    create_home(paths, default_definition(4), definition_file=None, base_port=20_000, allow_faults=False)
    return paths


def test_a_node_with_its_votes_is_left_alone(home: HomePaths) -> None:
    node = home.node("node1")
    assert settle_amnesia(node, OWNER) is None
    assert not mark_path(node).exists()


def test_the_mark_outlives_a_store_made_anew(home: HomePaths) -> None:
    node = home.node("node2")
    owner = load_genesis(home).members[1].consensus_key
    kept = home.folder / "backup"
    shutil.copytree(node.promises, kept)
    shutil.rmtree(node.promises)
    assert has_lost_votes(node), "before its next start too"
    mark = settle_amnesia(node, owner)
    assert mark is not None
    assert mark.key == owner.hex()
    assert not node.promises.exists(), "nothing is made in its place"

    LmdbPromises.create(node.promises, owner)
    assert settle_amnesia(node, owner) == mark, "an empty store remembers nothing"
    shutil.rmtree(node.promises)
    shutil.copytree(kept, node.promises)
    assert settle_amnesia(node, owner) == mark, "a backup is older than the votes"


def test_a_store_without_its_data_file_is_no_store(home: HomePaths) -> None:
    node = home.node("node3")
    for file in node.promises.iterdir():
        file.unlink()
    assert settle_amnesia(node, OWNER) is not None


@pytest.mark.parametrize("damage", [b"", b"{", b'{"key": 3}'])
def test_a_damaged_mark_is_a_mark(home: HomePaths, damage: bytes) -> None:
    node = home.node("node1")
    mark_path(node).write_bytes(damage)
    mark = settle_amnesia(node, OWNER)
    assert mark is not None
    assert "damaged" in mark.why


def test_a_node_does_not_start_when_the_mark_cannot_be_written(
    home: HomePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = home.node("node1")
    shutil.rmtree(node.promises)

    def refuse(*_: object, **__: object) -> None:
        raise EnvironmentFault("the disk is full")

    monkeypatch.setattr("bcami.processes.amnesia.write_private", refuse)
    with pytest.raises(EnvironmentFault):
        settle_amnesia(node, OWNER)


def test_init_makes_no_second_store(home: HomePaths) -> None:
    shutil.rmtree(home.node("node1").promises)
    with pytest.raises(InputError):
        create_home(home, default_definition(4), definition_file=None, base_port=20_000, allow_faults=False)
    assert not home.node("node1").promises.exists()


def test_operators_are_told_how_many_losses_are_left(home: HomePaths) -> None:
    from bcami.config import load_network

    network = load_network(home)
    assert amnesia_lines(amnesia_summary(lost_votes(home, network), 4)) == []
    shutil.rmtree(home.node("node2").promises)
    one = amnesia_summary(lost_votes(home, network), 4)
    assert one == {"nodes": ["node2"], "tolerated": 1, "can_order": True}
    assert "new key" in amnesia_lines(one)[0]
    assert "1 of 1" in amnesia_lines(one)[-1]
    shutil.rmtree(home.node("node4").promises)
    two = amnesia_summary(lost_votes(home, network), 4)
    assert two["can_order"] is False
    assert "cannot order" in amnesia_lines(two)[-1]


def test_a_node_of_another_machine_has_lost_nothing(home: HomePaths) -> None:
    from bcami.config import load_network

    network = load_network(home)
    shutil.rmtree(home.node("node3").folder)
    assert lost_votes(home, network) == []


def test_status_and_doctor_say_it(
    home: HomePaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from tests.unit.cli.test_main import run

    for name in ("node2", "node3"):
        shutil.rmtree(home.node(name).promises)
        run(monkeypatch, "status", "--json", "--home", str(home.folder))
        told = json.loads(capsys.readouterr().out)
        assert next(node for node in told["nodes"] if node["name"] == name)["amnesia"] is True
        code = run(monkeypatch, "doctor", "--json", "--home", str(home.folder))
        findings = json.loads(capsys.readouterr().out)["findings"]
        verdicts = {item["verdict"] for item in findings if item["check"] == "vote logs"}
        assert (verdicts, code) == (({"warning"}, 0) if name == "node2" else ({"fault"}, 4))
    assert told["amnesia"] == {"nodes": ["node2", "node3"], "tolerated": 1, "can_order": False}
