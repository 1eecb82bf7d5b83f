"""Network definitions: what is filled in, and what an error tells."""

import tomllib
from pathlib import Path

import pytest

from bcami.bundled import find_bundled
from bcami.config import addresses, default_definition, load_definition, load_network, network_text
from bcami.errors import EnvironmentFault, InputError
from bcami.paths import HomePaths

NODE = '[[nodes]]\nname = "n1"\n'


@pytest.mark.parametrize("count", [4, 7])
def test_the_bundled_definitions_say_what_the_default_says(count: int) -> None:
    bundled = load_definition(find_bundled("network") / f"local-{count}.toml")
    assert bundled.nodes == default_definition(count).nodes
    assert bundled.name == default_definition(count).name


def test_a_resolved_network_is_read_back_as_it_was(tmp_path: Path) -> None:
    network = default_definition(4).resolve(20_000)
    home = HomePaths(tmp_path)
    home.network.write_text(network_text(network))
    assert load_network(home) == network
    ports = [port for _, _, port in addresses(network)]
    assert len(set(ports)) == 9
    assert min(ports) == 20_000


def test_what_a_definition_says_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "net.toml"
    file.write_text(
        'name = "far"\nrelease_seconds = 0.5\nretention_seconds = 60.0\n[[nodes]]\nname = "a"\nhost = "10.0.0.7"\npeer_port = 9000\n'
        "[mdms]\nhttp_port = 9100\n[parameters]\nwindow = 8\n"
    )
    definition = load_definition(file)
    network = definition.resolve()
    assert network.nodes[0].url == "http://10.0.0.7:27101"
    assert network.mdms.http_port == 9100
    assert definition.parameters == {"window": 8}
    assert tomllib.loads(network_text(network))["retention_seconds"] == 60.0


@pytest.mark.parametrize(
    ("text", "line", "says", "do"),
    [
        (
            'name = "a"\nrelease_second = 1.0\n' + NODE,
            2,
            "unknown key 'release_second'",
            "did you mean 'release_seconds'?",
        ),
        (
            'name = "a"\n' + NODE + '[[nodes]]\nname = "n2"\npeer_prt = 3\n',
            6,
            "unknown key 'peer_prt'",
            "did you mean 'peer_port'?",
        ),
        ('name = "a"\n' + NODE + '[mdms]\nhots = "x"\n', 5, "unknown key 'hots'", "did you mean 'host'?"),
        ('name = "a"\n' + NODE + '[[nodes]]\nnme = "n2"\n', 4, "key 'name' is missing", "rename 'nme'"),
        ('name = "a"\n' + NODE + "[[nodes]]\npeer_port = 4000\n", 4, "key 'name' is missing", "add it"),
        ('name = "a"\nbase_port = "3"\n' + NODE, 2, "valid integer", ""),
        ('name = "a"\nbase_port = 80\n' + NODE, 2, "greater than or equal to 1024", ""),
        ('name = "a"\nrelease_seconds = nan\n' + NODE, 2, "release_seconds", ""),
        ('name = "a\n' + NODE, 1, "not valid TOML", ""),
        ('name = "A b"\n' + NODE, 1, "pattern", ""),
    ],
)
def test_an_error_names_file_line_and_nearest_key(tmp_path: Path, text: str, line: int, says: str, do: str) -> None:
    file = tmp_path / "net.toml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_definition(file)
    assert says in caught.value.what
    assert caught.value.where == f"{file}:{line}"
    assert caught.value.do == do


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "a"\n' + NODE + NODE, "two nodes are called 'n1'"),
        ('name = "a"\n' + NODE + "peer_port = 5000\nhttp_port = 5000\n", "would both listen on 127.0.0.1:5000"),
        ('name = "a"\nnodes = []\n', "nodes"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "net.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=says):
        load_definition(file)


def test_a_missing_or_binary_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_definition(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        load_definition(tmp_path / "b.toml")


def test_a_home_without_a_network_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        load_network(HomePaths(tmp_path))
    assert caught.value.do.startswith("bcami init")


def test_an_unknown_node_is_named_with_its_nearest() -> None:
    with pytest.raises(InputError) as caught:
        default_definition(4).resolve().node("node5x")
    assert "did you mean 'node" in caught.value.do


@pytest.mark.parametrize("count", [0, 65])
def test_a_network_has_one_to_sixty_four_nodes(count: int) -> None:
    with pytest.raises(InputError, match="1 to 64"):
        default_definition(count)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", ("hardened", "lkh", 4)),
        ('profile = "paper"\nrekeying = "flat"', ("paper", "flat", 0)),
        ('profile = "paper"', ("paper", "lkh", 4)),
        ('rekeying = "flat"', ("hardened", "flat", 0)),
        ("degree = 8", ("hardened", "lkh", 8)),
    ],
)
def test_symmetric_keys_are_as_the_definition_says(tmp_path: Path, said: str, expected: tuple[str, str, int]) -> None:
    file = tmp_path / "net.toml"
    file.write_text('name = "a"\n' + NODE + f"[kms]\n{said}\n")
    network = load_definition(file).resolve()
    assert (network.kms.profile, network.kms.rekeying, network.kms.tree_degree) == expected
    home = HomePaths(tmp_path)
    home.network.write_text(network_text(network))
    assert load_network(home) == network


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ('rekeying = "flat"\ndegree = 4', "flat rekeying has no tree"),
        ("degree = 1", "degree"),
        ('profile = "secure"', "profile"),
        ('strategy = "lkh"', "unknown key 'strategy'"),
    ],
)
def test_symmetric_keys_that_do_not_go_together(tmp_path: Path, said: str, says: str) -> None:
    file = tmp_path / "net.toml"
    file.write_text('name = "a"\n' + NODE + f"[kms]\n{said}\n")
    with pytest.raises(InputError, match=says):
        load_definition(file)
