"""What a change of members costs: counted on the real code, and by formula.

N members (after a join, before a leave), d degree, h = ceil(log_d N), r leavers, a joiners.

                 flat (the paper's star)     lkh
    join         N unicasts                  0 wrapped keys, 1 unicast with h keys
    leave        N - 1 unicasts              d·h - 1 wrapped keys, 1 multicast
    batch        N - r + a unicasts          as `lkh_batch`
    MDMS stores  1 key                       (d·N - 1)/(d - 1) keys
"""

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import comb
from typing import Final, NamedTuple

from msgspec.structs import replace

from bcami.codec import encode
from bcami.crypto.signatures import Signer
from bcami.kms.draw import KeyStream
from bcami.kms.profile import Profile, Scope
from bcami.kms.records import Step, ToGroup, ToMeter
from bcami.kms.roll import Identity
from bcami.kms.server import KeyServer

PROJECT: Final = 1

Clock = Callable[[], float]
"""CPU seconds."""


class Cost(NamedTuple):
    """Of one step of the MDMS."""

    unicasts: int
    multicasts: int
    wrapped_keys: int
    """Keys encrypted under other keys in multicasts."""
    wire_bytes: int
    """Each message once; a multicast is sent once."""
    cpu_s: float

    @property
    def encryptions(self) -> int:
        return self.wrapped_keys + self.unicasts


def height(members: int, degree: int) -> int:
    """Return ceil(log_d N), at least 1."""
    levels, reach = 1, degree
    while reach < members:
        levels += 1
        reach *= degree
    return levels


def star_join(members: int) -> int:
    return members


def star_leave(members: int) -> int:
    return members - 1


def star_batch(members: int, leavers: int, joiners: int) -> int:
    return members - leavers + joiners


def lkh_leave(members: int, degree: int) -> int:
    """Return wrapped keys when a member of the lowest level of a full tree leaves."""
    return degree * height(members, degree) - 1


def lkh_keys(members: int, degree: int) -> int:
    """Return the keys of a full tree, leaves included."""
    return (degree * members - 1) // (degree - 1)


def lkh_batch(members: int, degree: int, replaced: int) -> Fraction:
    """Return the expected wrapped keys when `replaced` random members of a full tree make room for as many.

    An inner node's key is wrapped for each of its children when a member below it changed. Raises ValueError when the
    tree is not full.
    """
    whole = comb(members, replaced)
    return sum(
        (
            degree * count * (1 - Fraction(comb(members - below, replaced), whole))
            for below, count in _members_below(members, degree).items()
        ),
        Fraction(0),
    )


def _members_below(members: int, degree: int) -> Counter[int]:
    """Return how many inner nodes of a full tree, numbered like a heap, have so many members below them."""
    inner, rest = divmod(members - 1, degree - 1)
    if rest:
        raise ValueError(f"a tree of degree {degree} is not full with {members} members")
    below = [0] * inner + [1] * members
    for node in reversed(range(inner)):
        below[node] = sum(below[degree * node + 1 : degree * (node + 1) + 1])
    return Counter(below[:inner])


def lkh_batch_worst(members: int, degree: int, replaced: int) -> float:
    """Return the same for members spread as evenly as can be; `replaced` is a power of the degree."""
    levels = height(members, degree) - height(replaced, degree) if replaced > 1 else height(members, degree)
    return degree * replaced * levels + degree * (replaced - 1) / (degree - 1)


# Counted.


class Laboratory:
    """An MDMS with N meters that have keys, all of them in one project, and `spare` that are not."""

    def __init__(
        self, scope: Scope, profile: Profile, signer: Signer, members: int, *, degree: int, spare: int = 1
    ) -> None:
        self._draw = KeyStream(b"bcami/kms_costs/1".ljust(32, b"."))
        self.server = KeyServer(scope, profile, degree=degree, changes_wait=True)
        identities = [
            Identity(number.to_bytes(32, "big"), 1, bytes(33), bytes(65)) for number in range(1, members + spare + 1)
        ]
        self.server.enrol(identities, 0, self._draw.block())
        self.server.open_epoch(1, signer, 0, self._draw.block())
        self.server.publish(PROJECT, "laboratory", (), 0, self._draw.block())
        step = Step()
        for record in list(self.server.roll):
            channel = profile.unicast(self._draw.key(), self._draw.key(), 1, 1)
            self.server.roll.save(step, replace(record, generation=1, channel=channel))
        self.hids = [identity.hid for identity in identities]
        self.change(joins=self.hids[:members])

    def change(self, joins: Sequence[bytes] = (), leaves: Sequence[bytes] = (), clock: Clock = lambda: 0.0) -> Cost:
        """Carry a batch of changes out and return what the MDMS did and sent for it; telling leavers is not counted."""
        for hid in leaves:
            self.server.change(hid, PROJECT, 0, self._draw.block(), join=False)
        for hid in joins:
            self.server.change(hid, PROJECT, 0, self._draw.block(), join=True)
        entropy = self._draw.block()
        began = clock()
        step = self.server.end_period(0, entropy)
        ended = clock()
        told = set(leaves)
        unicasts = [send.message for send in step.sends if isinstance(send, ToMeter) and send.hid not in told]
        multicasts = [send.message for send in step.sends if isinstance(send, ToGroup)]
        dismissed = sum(isinstance(send, ToMeter) and send.hid in told for send in step.sends)
        return Cost(
            len(unicasts),
            len(multicasts),
            step.encryptions - len(unicasts) - dismissed,
            sum(len(encode(message)) for message in (*unicasts, *multicasts)),
            ended - began,
        )
