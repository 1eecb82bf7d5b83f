"""A home is made whole or not at all, and never over another one."""

import pickle
from pathlib import Path

import pytest

from bcami.config import default_definition, load_definition, load_network, network_text
from bcami.contract.package import package_id
from bcami.crypto.hid import hid
from bcami.crypto.tls import certificate_fingerprint
from bcami.errors import EnvironmentFault, InputError
from bcami.ledger.lmdb_promises import LmdbPromises
from bcami.model.genesis import Parameters, chain_id
from bcami.paths import HomePaths
from bcami.processes import home as home_module
from bcami.processes.home import (
    create_home,
    load_genesis,
    load_mdms_secrets,
    load_node_secrets,
    load_operator_token,
    load_utility,
    open_home,
)


@pytest.fixture
def home(tmp_path: Path) -> HomePaths:
    paths = HomePaths(tmp_path / "home")
    create_home(paths, default_definition(4), base_port=20_000, allow_faults=True)
    return paths


def test_genesis_pins_what_lies_in_the_home(home: HomePaths) -> None:
    network, genesis = open_home(home)
    assert genesis.faults_allowed
    assert genesis.parameters == Parameters()
    assert genesis.chaincode_package == package_id(home.chaincode)
    for node, member in zip(network.nodes, genesis.members, strict=True):
        secrets = load_node_secrets(home.node(node.name))
        assert secrets.consensus.public_key == member.consensus_key
        assert certificate_fingerprint(home.certificate(node.name).read_bytes()) == member.tls_fingerprint
        with LmdbPromises(home.node(node.name).promises, member.consensus_key) as promises:
            assert list(promises.items()) == []
    utility, mdms = load_utility(home), load_mdms_secrets(home)
    assert utility.signing.public_key == genesis.utility_key
    assert mdms.enrolment.public_key == genesis.mdms_enrolment_key
    assert mdms.enrolment_kem.public_key == genesis.mdms_enrolment_kem_key
    assert mdms.network == utility.network
    assert genesis.mdms_hid == hid(utility.network, "mdms")
    assert len(load_operator_token(home)) >= 32


def test_two_homes_share_no_key(home: HomePaths, tmp_path: Path) -> None:
    other = HomePaths(tmp_path / "other")
    create_home(other, default_definition(4), base_port=20_000)
    first, second = load_genesis(home), load_genesis(other)
    assert chain_id(first) != chain_id(second)
    assert {member.consensus_key for member in first.members}.isdisjoint(
        member.consensus_key for member in second.members
    )
    assert load_operator_token(home) != load_operator_token(other)


def test_nothing_is_overwritten_even_when_only_a_part_is_there(home: HomePaths) -> None:
    home.network.unlink()
    with pytest.raises(InputError, match="not overwritten"):
        create_home(home, default_definition(4))


def test_a_failed_init_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(home_module, "package_id", full)
    paths = HomePaths(tmp_path / "home")
    with pytest.raises(EnvironmentFault, match="No space left"):
        create_home(paths, default_definition(4))
    assert list(paths.folder.iterdir()) == []


def test_parameters_of_a_definition_go_into_genesis(tmp_path: Path) -> None:
    file = tmp_path / "net.toml"
    file.write_text('name = "a"\n[[nodes]]\nname = "n1"\n[parameters]\nwindow = 8\n')
    paths = HomePaths(tmp_path / "home")
    create_home(paths, load_definition(file), definition_file=file)
    assert load_genesis(paths).parameters == Parameters(window=8)


@pytest.mark.parametrize(
    ("line", "says", "do"),
    [
        ("windo = 8", "unknown key 'windo'", "did you mean 'window'?"),
        ("window = 0", "out of its range", ""),
        ("session_gap_ms = 3_600_000", "session_gap_ms must be below", ""),
        ("view_timer_ms = 9000", "must not be above", ""),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(tmp_path: Path, line: str, says: str, do: str) -> None:
    file = tmp_path / "net.toml"
    file.write_text(f'name = "a"\n[[nodes]]\nname = "n1"\n[parameters]\n{line}\n')
    with pytest.raises(InputError, match=says) as caught:
        create_home(HomePaths(tmp_path / "home"), load_definition(file), definition_file=file)
    assert str(file) in caught.value.where
    assert caught.value.do == do


def test_a_damaged_genesis_is_named(home: HomePaths) -> None:
    home.genesis.write_bytes(home.genesis.read_bytes()[:-1])
    with pytest.raises(InputError, match="genesis is damaged"):
        open_home(home)
    home.genesis.unlink()
    with pytest.raises(InputError, match="genesis cannot be read"):
        load_genesis(home)


def test_nodes_in_another_order_than_in_genesis_are_refused(home: HomePaths) -> None:
    network = load_network(home)
    home.network.write_text(network_text(network.model_copy(update={"nodes": network.nodes[::-1]})))
    with pytest.raises(InputError, match="genesis pins node1, node2"):
        open_home(home)


def test_secrets_show_nothing(home: HomePaths) -> None:
    for secrets in (load_utility(home), load_node_secrets(home.node("node1")), load_mdms_secrets(home)):
        assert repr(secrets) == f"{type(secrets).__name__}()"
        with pytest.raises(TypeError):
            pickle.dumps(secrets)
