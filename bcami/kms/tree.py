"""The logical key hierarchy [WGL 3; RFC 2627]: a complete d-ary tree, numbered like a heap.

    root 0; children of x: d·x+1 … d·x+d; inner nodes 0 … I-1, leaves I … d·I

A newcomer takes a vacant leaf; when there is none, the first leaf becomes an inner node, its member moves to that
node's first child, and d-1 leaves are free. So the tree is always balanced, and with N-1 divisible by d-1 it is full:
(d·N-1)/(d-1) keys, and d·h-1 wrapped keys when a member of the lowest level leaves.

    nobody leaves   keys above newcomers take one step of a one-way function: 0 wrapped keys; newcomers get a unicast
    somebody leaves keys above every changed leaf are drawn anew, each wrapped for each of its children, once, however
                    many left or joined (batch rekeying [LYGL])
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence

from bcami.kms.draw import KeyStream
from bcami.kms.keying import Change, LeafKey, Place, split_key, stepped_key, wrap
from bcami.kms.messages import KEY_BYTES, NodeKey, Wrap


class KeyTree:
    """The tree of one group. `place` changes with the KMS epoch."""

    def __init__(self, degree: int, place: Place) -> None:
        if degree < 2:
            raise ValueError("a key tree has degree 2 or more")
        self.degree = degree
        self.place = place
        self._inner = 1
        self._positions: dict[int, int] = {}
        self._at: dict[int, int] = {}
        self._below: dict[int, int] = {}
        """Members below each inner node; absent for none."""
        self._keys: dict[int, bytes] = {0: bytes(KEY_BYTES)}
        self._vacant = list(range(1, degree + 1))

    @property
    def members(self) -> Mapping[int, int]:
        return self._positions

    @property
    def root_key(self) -> bytes:
        return self._keys[0]

    @property
    def height(self) -> int:
        """Levels of keys above the lowest leaf."""
        return sum(1 for _ in self.ancestors(self.degree * self._inner))

    @property
    def key_count(self) -> int:
        """Keys that the MDMS holds for this group: inner nodes and members' leaves."""
        return self._inner + len(self._positions)

    def ancestors(self, position: int) -> Iterable[int]:
        """Yield the inner nodes above a position, the root last."""
        return ancestors(position, self.degree)

    def path(self, member: int) -> tuple[NodeKey, ...]:
        return tuple(NodeKey(node, self._keys[node]) for node in self.ancestors(self._positions[member]))

    def key_of(self, node: int) -> bytes:
        return self._keys[node]

    def nodes(self) -> Iterable[int]:
        return range(self._inner)

    def path_of_root(self) -> tuple[NodeKey, ...]:
        return (NodeKey(0, self._keys[0]),)

    def member_at(self, position: int) -> int | None:
        return self._at.get(position)

    def change(
        self, version: int, joins: Sequence[int], leaves: Sequence[int], draw: KeyStream, leaf_key: LeafKey
    ) -> Change:
        left = [self._vacate(member) for member in leaves]
        splits: list[int] = []
        moved: list[int] = []
        for member in joins:
            split = self._place(member)
            if split is not None:
                splits.append(split)
                moved += (split, self.degree * split + 1)
        joined = sorted(self._positions[member] for member in joins)
        touched = {node for position in (*left, *joined) for node in self.ancestors(position)}
        if left:
            wraps = self._renew(version, touched, set(joins), draw, leaf_key)
        else:
            wraps = []
            self._step(version, touched, splits, draw, leaf_key)
        return Change(
            splits=tuple(splits),
            joined=() if left else tuple(joined),
            wraps=tuple(wraps),
            by_unicast=tuple(joins),
            nodes=tuple(sorted(touched)),
            leaves=tuple(sorted({*left, *joined, *moved})),
            is_multicast=True,
        )

    def renew(self, draw: KeyStream) -> None:
        self._keys = {node: draw.key() for node in range(self._inner)}

    def restore(self, leaves: Iterable[tuple[int, int]], nodes: Iterable[tuple[int, bytes]]) -> None:
        self._keys = dict(nodes) or {0: bytes(KEY_BYTES)}
        self._inner = len(self._keys)
        self._positions, self._at, self._below = {}, {}, {}
        for position, member in leaves:
            self._occupy(position, member)
        self._vacant = [
            position for position in range(self._inner, self.degree * self._inner + 1) if position not in self._at
        ]

    # Places.

    def _vacate(self, member: int) -> int:
        position = self._positions.pop(member)
        del self._at[position]
        heapq.heappush(self._vacant, position)
        for node in self.ancestors(position):
            self._below[node] -= 1
            if not self._below[node]:
                del self._below[node]
        return position

    def _place(self, member: int) -> int | None:
        """Give a newcomer a leaf; return the leaf that was split for it."""
        split = None
        if not self._vacant:
            split = self._inner
            self._inner += 1
            mover = self._at.pop(split)
            first = self.degree * split + 1
            self._at[first] = mover
            self._positions[mover] = first
            self._below[split] = 1
            self._vacant = list(range(first + 1, first + self.degree))
        self._occupy(heapq.heappop(self._vacant), member)
        return split

    def _occupy(self, position: int, member: int) -> None:
        self._at[position] = member
        self._positions[member] = position
        for node in self.ancestors(position):
            self._below[node] = self._below.get(node, 0) + 1

    # Keys.

    def _step(self, version: int, touched: set[int], splits: Sequence[int], draw: KeyStream, leaf_key: LeafKey) -> None:
        for node in touched.difference(splits):
            self._keys[node] = stepped_key(self.place, self._keys[node], node, version)
        for node in splits:
            mover = self._mover(node)
            leaf = None if mover is None else leaf_key(mover)
            # Without keys of its own the mover cannot follow anyway; it gets all by bootstrap.
            self._keys[node] = draw.key() if leaf is None else split_key(self.place, leaf, node, version)

    def _mover(self, node: int) -> int | None:
        """Return the member who was at a leaf before it was split: the one reached by first children."""
        while node < self._inner:
            node = self.degree * node + 1
        return self._at.get(node)

    def _renew(
        self, version: int, touched: set[int], newcomers: set[int], draw: KeyStream, leaf_key: LeafKey
    ) -> list[Wrap]:
        wraps = []
        for node in sorted(touched, reverse=True):
            key = self._keys[node] = draw.key()
            for child in range(self.degree * node + 1, self.degree * node + self.degree + 1):
                child_key = self._child_key(child, newcomers, leaf_key)
                if child_key is not None:
                    wraps.append(wrap(self.place, version, node, child, child_key, key))
        return wraps

    def _child_key(self, child: int, newcomers: set[int], leaf_key: LeafKey) -> bytes | None:
        """Return the key under which a child's members get their parent's; None when nobody needs it."""
        if child < self._inner:
            return self._keys[child] if child in self._below else None
        member = self._at.get(child)
        return None if member is None or member in newcomers else leaf_key(member)


def ancestors(position: int, degree: int) -> Iterable[int]:
    """Yield the inner nodes above a position, the root last."""
    while position:
        position = (position - 1) // degree
        yield position
