"""Merkle trees [RFC 6962 2.1]: leaves and nodes are hashed under different first bytes: neither passes for the other.

RFC 6962 splits n leaves at the largest power of two below n. Pairing from the left, level by level, and carrying an odd
last node up unchanged builds the same tree and needs no recursion.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

EMPTY_ROOT: Final = sha256(b"").digest()


def leaf_node(leaf: bytes) -> bytes:
    """Return SHA-256(0x00 || leaf)."""
    return sha256(b"\x00" + leaf).digest()


class Tree:
    """The tree over a fixed list of leaves: one build, then each audit path in O(log n)."""

    __slots__ = ("_levels",)

    def __init__(self, leaves: Sequence[bytes]) -> None:
        level = [sha256(b"\x00" + leaf).digest() for leaf in leaves]
        self._levels = [level]
        while len(level) > 1:
            level = _level_above(level)
            self._levels.append(level)

    @property
    def size(self) -> int:
        return len(self._levels[0])

    def root(self) -> bytes:
        """Return MTH(leaves) [RFC 6962 2.1]."""
        return self._levels[-1][0] if self.size else EMPTY_ROOT

    def path(self, index: int) -> tuple[bytes, ...]:
        """Return the audit path, leaf to root [RFC 6962 2.1.1]. Raises IndexError outside the tree."""
        if not 0 <= index < self.size:
            raise IndexError(f"leaf {index} of a tree of {self.size}")
        siblings: list[bytes] = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                siblings.append(level[sibling])
            index >>= 1
        return tuple(siblings)


def _level_above(level: list[bytes]) -> list[bytes]:
    pairs = iter(level)
    above = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=False)]
    if len(level) % 2:
        above.append(level[-1])
    return above


def tree(leaves: Sequence[bytes]) -> Tree:
    return Tree(leaves)


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the root; of no leaves SHA-256 of nothing [RFC 6962 2.1]."""
    level = [sha256(b"\x00" + leaf).digest() for leaf in leaves]
    while len(level) > 1:
        level = _level_above(level)
    return level[0] if level else EMPTY_ROOT


def path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return one audit path; for several paths build a `tree`."""
    return Tree(leaves).path(index)


def root_from_path(leaf: bytes, index: int, size: int, siblings: Sequence[bytes]) -> bytes | None:
    """Return the root that a path proves for a leaf [RFC 9162 2.1.3.2]; None when no tree of `size` has such a path."""
    if not 0 <= index < size:
        return None
    node = leaf_node(leaf)
    last = size - 1
    for sibling in siblings:
        if last == 0 or len(sibling) != 32:
            return None
        if index & 1 or index == last:
            node = sha256(b"\x01" + sibling + node).digest()
            while not index & 1 and index:
                index >>= 1
                last >>= 1
        else:
            node = sha256(b"\x01" + node + sibling).digest()
        index >>= 1
        last >>= 1
    return node if last == 0 else None
