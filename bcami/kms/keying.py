"""How the members of a group come by its next key: a strategy (design D15).

`flat` is the paper's star: a new key goes to each member by unicast [KMS Figure 10]. `lkh` is the logical key hierarchy
[WGL, RFC 2627] of degree d: a member holds the keys from its leaf to the root, so that one multicast of about d·log_d N
wrapped keys shuts a leaver out, and a joiner costs one unicast.

A strategy keeps who is where and every inner key. It knows nothing of meters' keys but what `leaf_key` tells: a leaf's
key comes from the member's user key, so it is never sent.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bcami.crypto import hkdf
from bcami.kms.draw import KeyStream
from bcami.kms.messages import KEY_BYTES, NodeKey, Wrap
from bcami.model.signing import u64

NONCE_BYTES: Final = 12
STAR_DEGREE: Final = 0

LeafKey = Callable[[int], bytes | None]
"""Key of the leaf of the meter with this number in this group; None while the meter has no keys."""


class Change(NamedTuple):
    """What a batch of joins and leaves did to a group's keys."""

    splits: tuple[int, ...] = ()
    joined: tuple[int, ...] = ()
    """Positions; only when old members step their keys themselves."""
    wraps: tuple[Wrap, ...] = ()
    by_unicast: tuple[int, ...] = ()
    """Meters that are sent what they need by unicast."""
    nodes: tuple[int, ...] = ()
    """Inner nodes whose keys changed."""
    leaves: tuple[int, ...] = ()
    """Positions whose members changed."""
    is_multicast: bool = False
    """The others follow by one `Rekey`."""


class Keying(Protocol):
    """Members of one group, and its keys."""

    degree: int

    @property
    def members(self) -> Mapping[int, int]:
        """Return meter number → position."""

    @property
    def root_key(self) -> bytes: ...

    def path(self, member: int) -> tuple[NodeKey, ...]:
        """Return the keys from a member's parent up to the root."""

    def change(
        self, version: int, joins: Sequence[int], leaves: Sequence[int], draw: KeyStream, leaf_key: LeafKey
    ) -> Change:
        """Take newcomers in and leavers out; afterwards no leaver can follow and no newcomer can look back."""

    def renew(self, draw: KeyStream) -> None:
        """Draw every key anew, telling nobody: members get theirs by bootstrap (protocol 8)."""

    def key_of(self, node: int) -> bytes: ...

    def nodes(self) -> Iterable[int]:
        """Return all inner nodes."""

    def path_of_root(self) -> tuple[NodeKey, ...]:
        """Return the path of who holds the group key and no other."""

    def member_at(self, position: int) -> int | None: ...

    def restore(self, leaves: Iterable[tuple[int, int]], nodes: Iterable[tuple[int, bytes]]) -> None:
        """Take up (position, meter number) and (inner node, key) pairs as they were stored."""


class Star:
    """The paper's strategy."""

    degree = STAR_DEGREE

    def __init__(self) -> None:
        self._members: dict[int, int] = {}
        self._root = bytes(KEY_BYTES)

    @property
    def members(self) -> Mapping[int, int]:
        return self._members

    @property
    def root_key(self) -> bytes:
        return self._root

    def path(self, member: int) -> tuple[NodeKey, ...]:
        del member
        return (NodeKey(0, self._root),)

    def change(
        self, version: int, joins: Sequence[int], leaves: Sequence[int], draw: KeyStream, leaf_key: LeafKey
    ) -> Change:
        for member in leaves:
            del self._members[member]
        for member in joins:
            self._members[member] = member
        self._root = draw.key()
        return Change(by_unicast=tuple(self._members), nodes=(0,), leaves=(*leaves, *joins))

    def renew(self, draw: KeyStream) -> None:
        self._root = draw.key()

    def key_of(self, node: int) -> bytes:
        return self._root

    def nodes(self) -> Iterable[int]:
        return (0,)

    def path_of_root(self) -> tuple[NodeKey, ...]:
        return (NodeKey(0, self._root),)

    def member_at(self, position: int) -> int | None:
        return self._members.get(position)

    def restore(self, leaves: Iterable[tuple[int, int]], nodes: Iterable[tuple[int, bytes]]) -> None:
        self._members = {member: position for position, member in leaves}
        for _, key in nodes:
            self._root = key


# Keys of a hierarchy. All derivations name group, version and place, so that no two of them give the same key.


class Place(NamedTuple):
    """Of what a key is derived: network, KMS epoch and group."""

    network: bytes
    epoch: int
    group: int

    def info(self, *numbers: int) -> bytes:
        return b"".join((self.network, u64(self.epoch), u64(self.group), *map(u64, numbers)))


def leaf_key(place: Place, user_key: bytes) -> bytes:
    """Return the key of a member's leaf."""
    return hkdf.derive(user_key, b"bcami/kms_leaf/1", place.info(), KEY_BYTES)


def stepped_key(place: Place, key: bytes, node: int, version: int) -> bytes:
    """Return a node's next key when somebody joins below it: from the old key one gets the new one, not back."""
    return hkdf.derive(key, b"bcami/kms_step/1", place.info(node, version), KEY_BYTES)


def split_key(place: Place, leaf: bytes, node: int, version: int) -> bytes:
    """Return the first key of an inner node that was the leaf of the member with this leaf key."""
    return hkdf.derive(leaf, b"bcami/kms_split/1", place.info(node, version), KEY_BYTES)


def wrap(place: Place, version: int, node: int, child: int, child_key: bytes, key: bytes) -> Wrap:
    """Return a node's new key under a child's key; each place and version has its own AEAD key and nonce."""
    info = place.info(version, node, child)
    drawn = hkdf.derive(child_key, b"bcami/kms_wrap/1", info, KEY_BYTES + NONCE_BYTES)
    return Wrap(node, child, AESGCM(drawn[:KEY_BYTES]).encrypt(drawn[KEY_BYTES:], key, info))


def unwrap(place: Place, version: int, wrapped: Wrap, child_key: bytes) -> bytes | None:
    """Return the node's new key, None when it was wrapped under another key or for another place."""
    info = place.info(version, wrapped.node, wrapped.child)
    drawn = hkdf.derive(child_key, b"bcami/kms_wrap/1", info, KEY_BYTES + NONCE_BYTES)
    try:
        return AESGCM(drawn[:KEY_BYTES]).decrypt(drawn[KEY_BYTES:], wrapped.sealed, info)
    except InvalidTag:
        return None
