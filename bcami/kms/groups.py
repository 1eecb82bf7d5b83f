"""The groups of the MDMS: all meters, and the demand-response projects with their members (design D15)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from bcami.crypto.signatures import Signer
from bcami.kms.draw import KeyStream
from bcami.kms.keying import STAR_DEGREE, Change, Keying, Place, Star
from bcami.kms.messages import (
    DOWN_CONTENTS,
    ROOT_GROUP,
    Delivery,
    Dismissed,
    GroupKeys,
    Rekey,
    group_party,
    mode_of,
)
from bcami.kms.profile import Profile, Scope
from bcami.kms.records import (
    CHANGES,
    CHANNELS,
    GROUP,
    GROUP_CHANNEL,
    GROUPS,
    LEAVES,
    NODES,
    PROJECTS_MAX,
    Channel,
    GroupChannel,
    GroupRecord,
    Step,
    ToGroup,
    Write,
)
from bcami.kms.roll import Roll
from bcami.kms.tree import KeyTree
from bcami.model.reasons import Reason
from bcami.model.signing import u32, u64

Rows = Callable[[bytes], Iterable[tuple[bytes, bytes]]]
"""Returns the keys and values of a table."""
PROJECTS_OF_METER_MAX: Final = 32
"""Projects of one meter: all its keys go into one bootstrap, and into one record of its store. The paper has 15."""
_JOIN, _LEAVE = b"\x01", b"\x00"


class Group:
    """One group. Members are numbers of meters."""

    __slots__ = ("channel", "joining", "keying", "leaving", "noted", "place", "record", "version")

    def __init__(self, record: GroupRecord, degree: int, place: Place) -> None:
        self.record = record
        self.place = place
        self.keying: Keying = Star() if degree == STAR_DEGREE else KeyTree(degree, place)
        self.version = 0
        self.channel: Channel | None = None
        self.joining: dict[int, None] = {}
        """Changes that wait for the end of the period, in order."""
        self.leaving: dict[int, None] = {}
        self.noted: set[int] = set()
        """Members whose changes wait in the store too."""

    @property
    def number(self) -> int:
        return self.record.number

    def takes_part(self, member: int) -> bool:
        """Tell whether a meter is a member, or will be when the period ends."""
        return (member in self.keying.members and member not in self.leaving) or member in self.joining


class GroupBook:
    """All groups of one MDMS, under one strategy."""

    def __init__(self, scope: Scope, profile: Profile, roll: Roll, degree: int) -> None:
        self._profile = profile
        self._roll = roll
        self._degree = degree
        self._network = scope.chain + u64(scope.epoch) + scope.mdms
        self._epoch = 0
        self._groups: dict[int, Group] = {}
        self._add(GroupRecord(ROOT_GROUP, "all meters", (), 0))

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def get(self, number: int) -> Group | None:
        return self._groups.get(number)

    @property
    def root(self) -> Group:
        return self._groups[ROOT_GROUP]

    def _add(self, record: GroupRecord) -> Group:
        place = Place(self._network, self._epoch, record.number)
        group = self._groups[record.number] = Group(record, self._degree, place)
        return group

    def restore(self, rows: Rows, epoch: int) -> None:
        """Take up what was stored; the keys serve nobody until the next epoch opens."""
        self._epoch = epoch
        self._groups.clear()
        self._add(GroupRecord(ROOT_GROUP, "all meters", (), 0))
        for _, value in rows(GROUPS):
            self._add(GROUP.decode(value))
        leaves: dict[int, list[tuple[int, int]]] = {}
        nodes: dict[int, list[tuple[int, bytes]]] = {}
        for key, value in rows(LEAVES):
            leaves.setdefault(_u32(key), []).append((_u32(key[4:]), _u32(value)))
        for key, value in rows(NODES):
            nodes.setdefault(_u32(key), []).append((_u32(key[4:]), value))
        for number, group in self._groups.items():
            group.keying.restore(leaves.get(number, ()), nodes.get(number, ()))
        for key, value in rows(CHANNELS):
            held = GROUP_CHANNEL.decode(value)
            group = self._groups[_u32(key)]
            group.version, group.channel = held.version, held.channel
        for key, value in rows(CHANGES):
            group, member = self._groups[_u32(key)], _u32(key[4:])
            group.noted.add(member)
            (group.joining if value == _JOIN else group.leaving)[member] = None

    def open_epoch(self, step: Step, epoch: int, draw: KeyStream) -> dict[int, list[int]]:
        """Draw every key of every group anew; return who joined which group by that."""
        self._epoch = epoch
        joined = {group.number: list(group.joining) for group in self._groups.values()}
        for group in self._groups.values():
            self._apply_pending_members(step, group, draw)
            group.place = Place(self._network, epoch, group.number)
            if isinstance(group.keying, KeyTree):
                group.keying.place = group.place
            group.keying.renew(draw)
            self._save_nodes(step, group, group.keying.nodes())
            self._next_version(step, group, draw)
        return joined

    def _apply_pending_members(self, step: Step, group: Group, draw: KeyStream) -> None:
        """Change the members and tell nobody: the keys of an epoch are new for everybody."""
        change = group.keying.change(group.version + 1, list(group.joining), list(group.leaving), draw, lambda _: None)
        self._forget_changes(step, group)
        self._save_leaves(step, group, change.leaves)
        self._save_nodes(step, group, change.nodes)

    def place_all(self, step: Step, group: Group, members: Sequence[int], draw: KeyStream) -> None:
        """Put meters into a group whose keys nobody has yet."""
        group.joining.update(dict.fromkeys(members))
        self._apply_pending_members(step, group, draw)

    def publish(self, step: Step, record: GroupRecord, draw: KeyStream) -> Reason | None:
        """Make a group for a new project; nobody is in it."""
        if record.number in self._groups:
            return Reason.GROUP_EXISTS
        if len(self._groups) > PROJECTS_MAX:
            return Reason.OVER_QUOTA
        group = self._add(record)
        step.put(GROUPS, u32(record.number), GROUP, record)
        group.keying.renew(draw)
        self._save_nodes(step, group, group.keying.nodes())
        self._next_version(step, group, draw)
        return None

    def conflicts(self, number: int, member: int) -> list[int]:
        """Return the projects of a member that exclude this one, or that it excludes."""
        wanted = self._groups[number].record
        return [
            other.number
            for other in self._groups.values()
            if other.number not in (ROOT_GROUP, number)
            and other.takes_part(member)
            and (other.number in wanted.excludes or number in other.record.excludes)
        ]

    def ask(self, step: Step, number: int, member: int, *, join: bool) -> Reason:
        """Note a member's wish for the end of the period, durably; VALID when it will be met [KMS Figure 9, step 3]."""
        group = self._groups.get(number)
        if group is None or number == ROOT_GROUP:
            return Reason.UNKNOWN_GROUP
        if join == group.takes_part(member):
            return Reason.ALREADY_MEMBER if join else Reason.NOT_A_MEMBER
        if join and self.conflicts(number, member):
            return Reason.INCOMPATIBLE_PROJECT
        if join and sum(other.takes_part(member) for other in self._groups.values()) > PROJECTS_OF_METER_MAX:
            return Reason.OVER_QUOTA
        if join:
            if group.leaving.pop(member, 0) == 0:
                group.joining[member] = None
        elif group.joining.pop(member, 0) == 0:
            group.leaving[member] = None
        self._note_change(step, group, member)
        return Reason.VALID

    def expel(self, step: Step, group: Group, member: int) -> bool:
        """Note that a meter is to be shut out, whatever it wished; True when it is in the group."""
        group.joining.pop(member, None)
        is_in = member in group.keying.members
        if is_in:
            group.leaving[member] = None
        self._note_change(step, group, member)
        return is_in

    def _note_change(self, step: Step, group: Group, member: int) -> None:
        value = _JOIN if member in group.joining else _LEAVE if member in group.leaving else None
        group.noted.add(member)
        step.writes.append(Write(CHANGES, u32(group.number) + u32(member), value))

    def _forget_changes(self, step: Step, group: Group) -> None:
        """The changes that waited are carried out in this step."""
        step.writes += [Write(CHANGES, u32(group.number) + u32(member), None) for member in group.noted]
        group.noted.clear()
        group.joining.clear()
        group.leaving.clear()

    def settle(self, step: Step, group: Group, draw: KeyStream, signer: Signer) -> list[int] | None:
        """Carry out what waits for a group: one rekeying for all of it [KMS Figure 10].

        Returns who joined; None when nothing waited.
        """
        joins, leaves = list(group.joining), list(group.leaving)
        if not joins and not leaves:
            return None
        self._forget_changes(step, group)
        before = group.version
        change = group.keying.change(
            before + 1, joins, leaves, draw, lambda number: self._roll.leaf_key(group.place, number)
        )
        self._save_leaves(step, group, change.leaves)
        self._save_nodes(step, group, change.nodes)
        self._next_version(step, group, None if change.is_multicast else draw)
        for member in leaves:  # first, so that the rekeying is nothing to them any more
            record = self._roll.numbered(member)
            self._roll.send(step, record.hid, Dismissed(group.number, group.version))
        self._tell(step, group, before, change, signer)
        return joins

    def _tell(self, step: Step, group: Group, before: int, change: Change, signer: Signer) -> None:
        """Send each member what it needs [KMS Figure 10, steps 8 to 10]."""
        for member in change.by_unicast:
            self._roll.send(step, self._roll.numbered(member).hid, self.grant(group, member))
        if change.is_multicast:
            step.encryptions += len(change.wraps)
            rekey = Rekey(
                group.number,
                self._epoch,
                before,
                group.version,
                change.splits,
                change.joined,
                change.wraps,
                b"",
            )
            step.sends.append(ToGroup(group.number, self._profile.sign_rekey(rekey, signer)))

    def grant(self, group: Group, member: int) -> GroupKeys:
        """Return all that a member needs of a group, whatever it missed."""
        count, floor = self._counts(group)
        position = group.keying.members[member]
        path = group.keying.path(member)
        return GroupKeys(group.number, position, group.keying.degree, group.version, floor, count, path)

    def grants(self, member: int) -> list[GroupKeys]:
        """Return the same for all groups of a member."""
        return [self.grant(group, member) for group in self._groups.values() if member in group.keying.members]

    def audience(self, number: int) -> list[bytes]:
        """Return the HIDs of a group's members: who is to hear what is sent to it."""
        return [self._roll.numbered(member).hid for member in self._groups[number].keying.members]

    def send(self, step: Step, group: Group, delivery: Delivery, signer: Signer) -> None:
        """Send a delivery to all members at once."""
        if group.channel is None:
            raise ValueError("a group has keys once an epoch is open")
        party, contents = group_party(group.number), DOWN_CONTENTS.encode(delivery)
        channel, envelope = self._profile.protect_shared(group.channel, mode_of(group.number), party, contents, signer)
        self._save_channel(step, group, channel)
        step.sends.append(ToGroup(group.number, envelope))
        step.encryptions += 1

    def refresh(self, step: Step, group: Group) -> None:
        """Carry out the periodic refresh that both ends make alone (profile `paper`)."""
        after = None if group.channel is None else self._profile.refreshed(group.channel)
        if after is not None:
            self._save_channel(step, group, after)

    def _counts(self, group: Group) -> tuple[bytes, int]:
        if group.channel is None:
            raise ValueError("a group has keys once an epoch is open")
        return self._profile.counts(group.channel)

    def _next_version(self, step: Step, group: Group, draw: KeyStream | None) -> None:
        """Begin a version of a group's keys: its counter starts anew, at a drawn value where members are told it."""
        group.version += 1
        count = b"" if draw is None or self._profile.is_guarded else draw.key()
        root = group.keying.path_of_root()
        keys = GroupKeys(group.number, 0, group.keying.degree, group.version, 0, count, root)
        self._save_channel(step, group, self._profile.shared(keys, self._epoch))

    def _save_channel(self, step: Step, group: Group, channel: Channel) -> None:
        group.channel = channel
        step.put(CHANNELS, u32(group.number), GROUP_CHANNEL, GroupChannel(group.version, channel))

    def _save_leaves(self, step: Step, group: Group, positions: Iterable[int]) -> None:
        for position in positions:
            member = group.keying.member_at(position)
            value = None if member is None else u32(member)
            step.writes.append(Write(LEAVES, u32(group.number) + u32(position), value))

    def _save_nodes(self, step: Step, group: Group, nodes: Iterable[int]) -> None:
        for node in nodes:
            step.writes.append(Write(NODES, u32(group.number) + u32(node), group.keying.key_of(node)))


def _u32(data: bytes) -> int:
    return int.from_bytes(data[:4], "big")
