"""The key graph KMF = (U, K, R) [KMS 4, equations 1 to 5; after Wong, Gouda, Lam].

U are the meters u_1 … u_n (u_0, the MDMS, knows every key and stands apart, as the paper's list of symbols has it),
K the keys, and (u, k) is in R when u knows k. It is read off the membership of groups; nothing is stored twice.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bcami.kms.messages import ROOT_GROUP


class KeyGraph(NamedTuple):
    """A moment's key graph over names of keys: `k_0`, `k_3`, `gk_1`, and `gk_1/5` for inner node 5 of a hierarchy."""

    users: frozenset[int]
    """U, by number."""
    keys: frozenset[str]
    """K."""
    relation: frozenset[tuple[int, str]]
    """R, a subset of U × K."""

    def userset(self, key: str) -> frozenset[int]:
        """Return {u | (u, k) in R} [KMS equation 2]."""
        return frozenset(user for user, known in self.relation if known == key)

    def keyset(self, user: int) -> frozenset[str]:
        """Return the keys that a user knows."""
        return frozenset(known for knower, known in self.relation if knower == user)


def user_key(number: int) -> str:
    return f"k_{number}"


def group_key(group: int, node: int = 0) -> str:
    """Return the name of a group's key, or of a node below it."""
    name = "k_0" if group == ROOT_GROUP else f"gk_{group}"
    return f"{name}/{node}" if node else name


def key_graph(users: Iterable[int], paths: Mapping[int, Mapping[int, Iterable[int]]]) -> KeyGraph:
    """Return the graph of these users; `paths` tells, by group and member, the inner nodes whose keys it holds."""
    everyone = frozenset(users)
    relation = {(user, user_key(user)) for user in everyone}
    keys = {user_key(user) for user in everyone}
    for group, members in paths.items():
        keys.add(group_key(group))
        for member, nodes in members.items():
            for node in nodes:
                keys.add(group_key(group, node))
                relation.add((member, group_key(group, node)))
    return KeyGraph(everyone, frozenset(keys), frozenset(relation))
