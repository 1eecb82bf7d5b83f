"""The key hierarchy by itself, with more members than a network of the tests has: everybody follows every batch."""

import random

import pytest

from bcami.kms.draw import KeyStream
from bcami.kms.keying import Change, Keying, Place, Star, leaf_key
from bcami.kms.member import follow, taken_up
from bcami.kms.messages import GroupKeys, Rekey
from bcami.kms.records import Membership
from bcami.kms.tree import KeyTree, ancestors
from bcami.model.reasons import Reason
from tests.unit.kms.network import Entropy, make_profile

PLACE = Place(b"network", 1, 7)
PROFILE = make_profile("hardened")


class Members:
    """What each member of a tree holds, kept only by what it is sent."""

    def __init__(self, degree: int, seed: int) -> None:
        self.tree = KeyTree(degree, PLACE)
        self.entropy = Entropy(f"{degree} {seed}")
        self.tree.renew(KeyStream(self.entropy()))
        self.version = 0
        self.held: dict[int, Membership] = {}

    def leaf(self, member: int) -> bytes:
        return leaf_key(PLACE, member.to_bytes(16, "big"))

    def change(self, joins: list[int], leaves: list[int]) -> Change:
        before, self.version = self.version, self.version + 1
        change = self.tree.change(self.version, joins, leaves, KeyStream(self.entropy()), self.leaf)
        rekey = Rekey(7, 1, before, self.version, change.splits, change.joined, change.wraps, b"")
        for member in leaves:
            left = follow(PROFILE, PLACE, self.held.pop(member), rekey, self.leaf(member))
            assert isinstance(left, Reason) or left.channel.key != self.tree.root_key
        for member, held in list(self.held.items()):
            after = follow(PROFILE, PLACE, held, rekey, self.leaf(member))
            assert not isinstance(after, Reason)
            self.held[member] = after
        for member in joins:
            path = self.tree.path(member)
            grant = GroupKeys(7, self.tree.members[member], self.tree.degree, self.version, 0, b"", path)
            self.held[member] = taken_up(PROFILE, grant, 1)
        return change

    def check(self) -> None:
        """Compare what members hold with what the tree has; all of it, not only the root."""
        assert set(self.held) == set(self.tree.members)
        for member, held in self.held.items():
            mine = [(node.node, node.key) for node in held.path] + [(0, held.channel.key)]
            assert mine == [(node.node, node.key) for node in self.tree.path(member)]
            assert held.position == self.tree.members[member]
        inner = len(list(self.tree.nodes()))
        positions = sorted(self.tree.members.values())
        assert len(set(positions)) == len(positions)
        assert all(inner <= position <= self.tree.degree * inner for position in positions)


@pytest.mark.parametrize("degree", [2, 3, 4, 16])
@pytest.mark.parametrize("seed", range(3))
def test_every_member_follows_every_batch(degree: int, seed: int) -> None:
    draws = random.Random(seed)
    members, next_member = Members(degree, seed), 1
    for _ in range(40):
        joins = list(range(next_member, next_member + draws.choice([0, 1, 1, 2, 12])))
        next_member += len(joins)
        present = list(members.held)
        leaves = draws.sample(present, min(len(present), draws.choice([0, 0, 1, 2, 9])))
        members.change(joins, leaves)
        members.check()


@pytest.mark.parametrize("degree", [2, 4])
def test_a_tree_that_is_stored_is_the_same_tree(degree: int) -> None:
    draws = random.Random(9)
    members = Members(degree, 9)
    members.change(list(range(30)), [])
    members.change([40, 41], draws.sample(range(30), 11))
    tree = members.tree
    again = KeyTree(degree, PLACE)
    again.restore(
        [(position, member) for member, position in tree.members.items()],
        [(node, tree.key_of(node)) for node in tree.nodes()],
    )
    assert dict(again.members) == dict(tree.members)
    assert [again.path(member) for member in again.members] == [tree.path(member) for member in again.members]
    arguments = (99, [50, 51, 52, 53], list(tree.members)[:3], KeyStream(bytes(32)), members.leaf)
    assert again.change(*arguments) == tree.change(99, *arguments[1:3], KeyStream(bytes(32)), members.leaf)


def test_a_member_who_missed_a_batch_is_out_of_step_and_one_who_saw_it_is_not() -> None:
    members = Members(4, 1)
    members.change(list(range(20)), [])
    behind = members.held[3]
    members.change([30], [])
    members.version += 1
    change = members.tree.change(members.version, [], [7], KeyStream(members.entropy()), members.leaf)
    rekey = Rekey(7, 1, 2, 3, change.splits, change.joined, change.wraps, b"")
    assert follow(PROFILE, PLACE, behind, rekey, members.leaf(3)) is Reason.OUT_OF_STEP
    assert not isinstance(follow(PROFILE, PLACE, members.held[3], rekey, members.leaf(3)), Reason)


def test_a_star_cannot_be_followed_by_multicast() -> None:
    star: Keying = Star()
    change = star.change(1, [1, 2], [], KeyStream(bytes(32)), lambda _: None)
    assert (change.is_multicast, change.by_unicast) == (False, (1, 2))
    held = taken_up(PROFILE, GroupKeys(7, 1, 0, 1, 0, b"", star.path(1)), 1)
    assert follow(PROFILE, PLACE, held, Rekey(7, 1, 1, 2, (), (), (), b""), bytes(16)) is Reason.OUT_OF_STEP


def test_ancestors_end_at_the_root() -> None:
    assert list(ancestors(21, 4)) == [5, 1, 0]
    assert list(ancestors(0, 4)) == []


def test_keys_are_drawn_once_and_need_entropy() -> None:
    stream = KeyStream(bytes(32))
    assert len({stream.key() for _ in range(1000)}) == 1000
    with pytest.raises(ValueError, match="32 bytes"):
        KeyStream(bytes(31))
