"""Merkle proofs at every small size, and the state hash against a model in plain integers."""

from hashlib import sha256

import numpy as np
import pytest
from blake3 import blake3

from bcami.crypto import merkle
from bcami.crypto.lthash import STATE_BYTES, LtHash, state_element
from bcami.errors import MalformedError


def leaves_of(size: int) -> list[bytes]:
    return [b"leaf %d" % place for place in range(size)]


def reference_root(leaves: list[bytes]) -> bytes:
    """MTH, word for word [RFC 6962 2.1]."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while 2 * split < len(leaves):
        split *= 2
    return sha256(b"\x01" + reference_root(leaves[:split]) + reference_root(leaves[split:])).digest()


def reference_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """PATH, word for word [RFC 6962 2.1.1]."""
    if len(leaves) == 1:
        return []
    split = 1
    while 2 * split < len(leaves):
        split *= 2
    if index < split:
        return [*reference_path(index, leaves[:split]), reference_root(leaves[split:])]
    return [*reference_path(index - split, leaves[split:]), reference_root(leaves[:split])]


@pytest.mark.parametrize("size", range(34))
def test_trees_match_the_definition(size):
    leaves = leaves_of(size)
    tree = merkle.tree(leaves)
    assert tree.size == size
    assert tree.root() == merkle.root(leaves) == reference_root(leaves)
    for index in range(size):
        path = tree.path(index)
        assert list(path) == reference_path(index, leaves)
        assert path == merkle.path(leaves, index)
        assert merkle.root_from_path(leaves[index], index, size, path) == tree.root()


@pytest.mark.parametrize("size", range(1, 34))
def test_a_path_proves_its_own_leaf_and_place_only(size):
    leaves = leaves_of(size)
    tree = merkle.tree(leaves)
    for index in range(size):
        path = tree.path(index)
        for other in range(-1, size + 2):
            if other != index:
                assert merkle.root_from_path(leaves[index], other, size, path) != tree.root()
                if 0 <= other < size:
                    assert merkle.root_from_path(leaves[other], index, size, path) != tree.root()
        for wrong in (path[:-1], (*path, tree.root()), path[::-1]):
            if wrong != path:
                assert merkle.root_from_path(leaves[index], index, size, wrong) != tree.root()


def test_paths_that_no_tree_has():
    leaves = leaves_of(5)
    path = merkle.path(leaves, 2)
    assert merkle.root_from_path(leaves[2], 2, 0, path) is None
    assert merkle.root_from_path(leaves[2], 5, 5, path) is None
    assert merkle.root_from_path(leaves[2], -1, 5, path) is None
    assert merkle.root_from_path(leaves[2], 2, 5, path[:2]) is None
    assert merkle.root_from_path(leaves[2], 2, 5, (*path, path[0])) is None
    assert merkle.root_from_path(leaves[2], 2, 5, (path[0][:31], *path[1:])) is None
    assert merkle.root_from_path(leaves[2], 2, 5, [path[0]] * 1000) is None
    for index in (-1, 5):
        with pytest.raises(IndexError):
            merkle.path(leaves, index)
    with pytest.raises(IndexError):
        merkle.path([], 0)


def test_no_node_passes_for_a_leaf():
    """Second preimage: the two children of a node, taken as one leaf, hash to something else."""
    leaves = leaves_of(4)
    nodes = [merkle.leaf_node(leaf) for leaf in leaves]
    forged = [nodes[0] + nodes[1], nodes[2] + nodes[3]]
    assert merkle.root(forged) != merkle.root(leaves)
    assert merkle.root([b"\x01" + item for item in forged]) != merkle.root(leaves)
    root = merkle.root(leaves)
    assert merkle.root_from_path(forged[0], 0, 2, [merkle.leaf_node(forged[1])]) != root
    upper = merkle.path(leaves, 0)[1]
    assert merkle.root_from_path(forged[0], 0, 2, [upper]) != root


def test_a_repeated_last_leaf_is_another_tree():
    """Trees that double an odd last node have two leaf lists with one root (CVE-2012-2459); this one has not."""
    leaves = leaves_of(3)
    assert merkle.root(leaves) != merkle.root([*leaves, leaves[-1]])


# LtHash.


def model(elements: list[bytes]) -> bytes:
    lanes = [0] * 1024
    for element in elements:
        stretched = blake3(element).digest(2048)
        for lane in range(1024):
            lanes[lane] = (lanes[lane] + int.from_bytes(stretched[2 * lane : 2 * lane + 2], "little")) % 65536
    return b"".join(lane.to_bytes(2, "little") for lane in lanes)


def elements_of(count: int) -> list[bytes]:
    return [state_element(b"guard/%d" % place, b"value" * place, place) for place in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 40])
def test_lthash_matches_the_model(count):
    hashed = LtHash()
    hashed.update(elements_of(count), [])
    assert hashed.to_bytes() == model(elements_of(count))
    assert hashed.root() == sha256(b"bcami/state_root/1" + hashed.to_bytes()).digest()


def test_lthash_of_nothing():
    assert LtHash().to_bytes() == bytes(STATE_BYTES)
    assert LtHash().root() == sha256(b"bcami/state_root/1" + bytes(2048)).digest()


def test_lthash_wraps_in_both_directions():
    element = elements_of(3)[2]
    once = np.frombuffer(blake3(element).digest(2048), dtype="<u2").astype(np.int64)
    below = LtHash()
    below.update([], [element])
    assert below.to_bytes() == ((-once) % 65536).astype("<u2").tobytes()
    many = LtHash()
    many.update([element] * 1000, [])  # more than one chunk, and every lane passes 2^16 many times
    assert many.to_bytes() == ((once * 1000) % 65536).astype("<u2").tobytes()
    many.update([], [element] * 1000)
    assert many.to_bytes() == bytes(2048)


def test_lthash_order_steps_and_storage_do_not_matter():
    elements = elements_of(20)
    whole, stepped = LtHash(), LtHash()
    whole.update(elements, [])
    for element in reversed(elements):
        stepped.update([element], [])
        stepped = LtHash(stepped.to_bytes())
    assert stepped.root() == whole.root()
    changed = whole.copy()
    changed.update([b"new"], [elements[3]])
    assert changed.root() != whole.root()
    changed.update([elements[3]], [b"new"])
    assert changed.root() == whole.root()


def test_lthash_sees_multiplicity_and_content():
    roots = set()
    for elements in ([], [b"a"], [b"a", b"a"], [b"b"], [b"a", b"b"], [b"ab"]):
        hashed = LtHash()
        hashed.update(elements, [])
        roots.add(hashed.root())
    assert len(roots) == 6


@pytest.mark.parametrize("size", [0, 32, 2047, 2049])
def test_lthash_refuses_another_size(size):
    with pytest.raises(MalformedError, match="2048 bytes"):
        LtHash(bytes(size))


def test_state_elements_have_one_reading():
    elements = {
        state_element(b"ab", b"c", 1),
        state_element(b"a", b"bc", 1),
        state_element(b"", b"abc", 1),
        state_element(b"abc", b"", 1),
        state_element(b"ab", b"c", 2),
        state_element(b"ab", b"", 1),
    }
    assert len(elements) == 6
    assert state_element(b"k", b"v", 5) == b"bcami/state/1\x00\x00\x00\x01k\x00\x00\x00\x01v" + b"\x00" * 7 + b"\x05"
