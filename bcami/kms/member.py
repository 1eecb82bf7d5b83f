"""A meter in a group: how it follows the group's keys (the other side of `keying` and `tree`)."""

from bcami.kms.keying import STAR_DEGREE, Place, split_key, stepped_key, unwrap
from bcami.kms.messages import GroupKeys, NodeKey, Rekey
from bcami.kms.profile import Profile
from bcami.kms.records import Membership
from bcami.kms.tree import ancestors
from bcami.model.reasons import Reason


def taken_up(profile: Profile, keys: GroupKeys, epoch: int) -> Membership:
    """Return the membership that a grant gives."""
    return Membership(keys.group, keys.position, keys.degree, keys.version, profile.shared(keys, epoch), keys.path[:-1])


def follow(profile: Profile, place: Place, held: Membership, rekey: Rekey, leaf: bytes) -> Membership | Reason:
    """Return the membership after a rekeying whose maker was checked, or OUT_OF_STEP when it cannot be followed."""
    if rekey.from_version != held.version or held.degree == STAR_DEGREE:
        return Reason.OUT_OF_STEP
    position = held.position
    keys = {node.node: node.key for node in held.path}
    keys[0] = held.channel.key
    for split in rekey.splits:
        if split == position:
            keys[split] = split_key(place, leaf, split, rekey.version)
            position = held.degree * split + 1
    if rekey.wraps:
        if not _unwrap(place, rekey, _chain(position, held.degree), keys, leaf):
            return Reason.OUT_OF_STEP
    else:
        above = {node for joined in rekey.joined for node in ancestors(joined, held.degree)}
        for node in (above & keys.keys()).difference(rekey.splits):
            keys[node] = stepped_key(place, keys[node], node, rekey.version)
    path = tuple(NodeKey(node, keys[node]) for node in ancestors(position, held.degree))
    return taken_up(profile, GroupKeys(rekey.group, position, held.degree, rekey.version, 0, b"", path), rekey.epoch)


def _chain(position: int, degree: int) -> dict[int, int]:
    """Return each inner node above a position with the child through which it is reached."""
    chain, child = {}, position
    for node in ancestors(position, degree):
        chain[node] = child
        child = node
    return chain


def _unwrap(place: Place, rekey: Rekey, chain: dict[int, int], keys: dict[int, bytes], leaf: bytes) -> bool:
    """Replace the keys of the chain's nodes, children first; True when the root's was among them."""
    renewed = False
    for wrapped in rekey.wraps:
        if chain.get(wrapped.node) != wrapped.child:
            continue
        child_key = leaf if wrapped.child not in chain else keys.get(wrapped.child)
        key = None if child_key is None else unwrap(place, rekey.version, wrapped, child_key)
        if key is None:
            return False
        keys[wrapped.node] = key
        renewed = renewed or wrapped.node == 0
    return renewed
