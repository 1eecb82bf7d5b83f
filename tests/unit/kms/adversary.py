"""An adversary who keeps every key that it ever had and every ciphertext that it ever saw.

It is given the whole records of the meters that it owns, whenever it owns them, and everything on the wire. It unwraps
with every key that it has, takes every one-way step that is announced, and tries what it has on every message.
"""

from bcami.errors import MalformedError
from bcami.kms import HardenedProfile
from bcami.kms.keying import Place, leaf_key, split_key, stepped_key, unwrap
from bcami.kms.messages import DOWN_CODEC, DOWN_CONTENTS, Direction, DownContents, Envelope, Mode, Rekey
from bcami.kms.profile import Opened
from bcami.kms.records import HardenedChannel, MeterKeysRecord
from bcami.kms.tree import ancestors
from bcami.model.signing import u64
from tests.unit.kms.network import SCOPE

_NETWORK = SCOPE.chain + u64(SCOPE.epoch) + SCOPE.mdms


class Adversary:
    """Knows keys by themselves; for one-way steps also of which node they are and since which version."""

    def __init__(self, degree: int) -> None:
        self.degree = degree
        self.keys: set[bytes] = set()
        self.user_keys: set[bytes] = set()
        self._placed: set[tuple[int, int, int, bytes]] = set()
        """(group, node, version, key)"""
        self._messages: dict[bytes, None] = {}
        self._tried: set[tuple[bytes, bytes]] = set()
        self._stepped: set[tuple[int, int, int, bytes]] = set()

    def own(self, record: MeterKeysRecord) -> None:
        """Take in all that a meter holds at this moment."""
        if record.unicast is not None:
            self.user_keys.add(record.unicast.key)
        for held in record.memberships:
            self._know(held.group, 0, held.version, held.channel.key)
            for node in held.path:
                self._know(held.group, node.node, held.version, node.key)

    def _know(self, group: int, node: int, version: int, key: bytes) -> None:
        self.keys.add(key)
        self._placed.add((group, node, version, key))

    def hear(self, messages: list[bytes]) -> None:
        self._messages.update(dict.fromkeys(messages))

    def work(self) -> None:
        """Derive whatever follows from what it has, until nothing more does."""
        rekeys = [message for message in map(DOWN_CODEC.decode, self._messages) if isinstance(message, Rekey)]
        rekeys.sort(key=lambda rekey: rekey.version)
        while True:
            before = (len(self.keys), len(self._placed))
            for rekey in rekeys:
                place = Place(_NETWORK, rekey.epoch, rekey.group)
                self._unwrap(place, rekey)
                self._step(place, rekey)
            if before == (len(self.keys), len(self._placed)):
                return

    def _unwrap(self, place: Place, rekey: Rekey) -> None:
        leaves = {leaf_key(place, key) for key in self.user_keys}
        for wrapped in rekey.wraps:
            for key in self.keys | leaves:
                if (wrapped.sealed, key) in self._tried:
                    continue
                self._tried.add((wrapped.sealed, key))
                found = unwrap(place, rekey.version, wrapped, key)
                if found is not None:
                    self._know(rekey.group, wrapped.node, rekey.version, found)

    def _step(self, place: Place, rekey: Rekey) -> None:
        stepped = {node for position in rekey.joined for node in ancestors(position, self.degree)}
        for group, node, version, key in list(self._placed):
            known = (group, node, version, key)
            if group == rekey.group and node in stepped and version < rekey.version and known not in self._stepped:
                self._stepped.add(known)  # the first step after it: a node's key takes every step there is
                self._know(group, node, rekey.version, stepped_key(place, key, node, rekey.version))
        for split in rekey.splits:
            for key in self.user_keys:
                leaf = leaf_key(place, key)
                self._know(rekey.group, split, rekey.version, split_key(place, leaf, split, rekey.version))

    def reads(self, data: bytes) -> DownContents | None:
        """Return what a message to a group says, if any key opens it."""
        message = DOWN_CODEC.decode(data)
        if not isinstance(message, Envelope) or message.direction is not Direction.DOWN:
            return None
        profile = HardenedProfile(SCOPE)
        for key in self.keys | self.user_keys:
            channel = HardenedChannel(key, message.epoch, message.version, 0, 0, 0)
            opened = profile._open(channel, message)
            if isinstance(opened, Opened):
                try:
                    return DOWN_CONTENTS.decode(opened.contents)
                except MalformedError:
                    return None
        return None

    @staticmethod
    def is_multicast(data: bytes) -> bool:
        message = DOWN_CODEC.decode(data)
        return isinstance(message, Envelope) and message.mode is not Mode.UNICAST
