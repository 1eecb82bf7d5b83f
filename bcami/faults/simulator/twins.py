"""Twins [Bano et al., OPODIS'21]: some nodes run twice with one key, each instance with its own disk and clock.

Two honest instances of one key, cut apart, show most of what a Byzantine node can do with its key: they equivocate as
primary, vote twice, forget in one half what they said in the other. Nobody has to write down an attack.

All schedules of a small size: for each view a leader and a partition of the instances, into any number of parts. Left
out are only those that *symmetry* makes superfluous: the honest nodes differ in nothing but their number, and so do the
two twins of one node. Renaming them maps schedules to schedules; of each class the first in the order of enumeration is
played, and the first of a class begins with the first of a shorter one, so whole branches fall away. What renaming does
change is the order in which the messages of one round arrive; the sample draws that.

The sample: longer ones (7 to 10 views, n = 4 with one twin or n = 7 with two), with the order of messages, nodes
that oversleep and restarts, and asks for agreement in the end.
"""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from random import Random
from typing import Final

from bcami.faults.simulator.agreement import Violation
from bcami.faults.simulator.campaign import Broken, Found
from bcami.faults.simulator.events import stream
from bcami.faults.simulator.rounds import Part, Rounds
from bcami.faults.simulator.signing import in_force

NODES: Final = 4
TWIN: Final = 0
WINDOW: Final = 2
HEALED_ROUNDS: Final = 12
"""Within so many rounds in which everybody hears everybody the honest nodes are in step: views meet, then each of up
to f twin primaries in a row costs one, and each open certificate of a lane at most one."""

Parts = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One view of a schedule."""

    leader: int
    parts: Parts

    def __str__(self) -> str:
        return f"{self.leader}:" + "|".join("".join(map(str, sorted(part))) for part in self.parts)


Schedule = tuple[Choice, ...]


def describe(schedule: Sequence[Choice]) -> str:
    """Return a schedule as `--schedule` takes it: views by `;`, each `leader:part|part`, of instance numbers."""
    return ";".join(map(str, schedule))


def parse(text: str) -> Schedule:
    """Return the schedule of a description. Raises ValueError."""
    found = []
    for view in text.split(";"):
        leader, _, parts = view.partition(":")
        choice = Choice(int(leader), tuple(frozenset(map(int, part)) for part in parts.split("|")))
        members = sorted(member for part in choice.parts for member in part)
        if not 0 <= choice.leader < NODES or members != list(range(NODES + 1)):
            raise ValueError(f"{view!r} does not place {NODES + 1} instances and one leader")
        found.append(choice)
    return tuple(found)


def partitions(members: Sequence[int]) -> Iterator[Parts]:
    """Yield every way to divide the members into parts, in a fixed order."""
    if not members:
        yield ()
        return
    first, rest = members[0], members[1:]
    for smaller in partitions(rest):
        for place, part in enumerate(smaller):
            yield (*smaller[:place], part | {first}, *smaller[place + 1 :])
        yield (frozenset({first}), *smaller)


@lru_cache(maxsize=1)
def choices() -> tuple[Choice, ...]:
    """Return everything that one view can be, in the order of enumeration."""
    found = [
        Choice(leader, tuple(sorted(parts, key=min)))
        for leader in range(NODES)
        for parts in partitions(range(NODES + 1))
    ]
    return tuple(sorted(found, key=lambda item: (item.leader, [sorted(part) for part in item.parts])))


@lru_cache(maxsize=1)
def renamings() -> tuple[tuple[int, ...], ...]:
    """Return, for each renaming, the number of each choice's image: honest nodes among each other, twin and twin."""
    number = {choice: place for place, choice in enumerate(choices())}
    honest = [node for node in range(NODES) if node != TWIN]
    found = []
    for order in permutations(honest):
        for first, second in ((TWIN, NODES), (NODES, TWIN)):
            name = {TWIN: first, NODES: second, **dict(zip(honest, order, strict=True))}
            images = []
            for choice in choices():
                leader = TWIN if choice.leader == TWIN else name[choice.leader]
                parts = sorted((frozenset(name[member] for member in part) for part in choice.parts), key=min)
                images.append(number[Choice(leader, tuple(parts))])
            found.append(tuple(images))
    return tuple(found)


def is_first(schedule: Sequence[int]) -> bool:
    """Tell whether no renaming of the schedule comes earlier in the order of enumeration."""
    chosen = tuple(schedule)
    return all(tuple(images[item] for item in chosen) >= chosen for images in renamings())


def play(schedule: Sequence[Choice]) -> Rounds:
    """Play one schedule from its beginning. Raises Violation."""
    with in_force(real=False):
        group = Rounds(NODES, WINDOW, (TWIN,))
        for choice in schedule:
            group.play(choice.leader, choice.parts)
    return group


def beginnings(views: int) -> list[tuple[int, ...]]:
    """Return the first two views, or one, of all schedules that symmetry leaves: shared out among processes."""
    found: list[tuple[int, ...]] = [()]
    for _ in range(min(2, views)):
        found = [(*item, last) for item in found for last in range(len(choices())) if is_first((*item, last))]
    return found


@dataclass(frozen=True, slots=True)
class Everything:
    """Plays all schedules of a number of views that begin in one way."""

    views: int

    def __call__(self, beginning: tuple[int, ...]) -> Found:
        found = Found()
        with in_force(real=False):
            _walk(Rounds(NODES, WINDOW, (TWIN,)), (), beginning, self.views, found)
        return found


def _walk(group: Rounds, before: tuple[int, ...], ahead: tuple[int, ...], views: int, found: Found) -> None:
    """Go down the tree of schedules, along `ahead` and then everywhere; a round is played once for all below it."""
    if len(before) == views:
        found.schedules += 1
        found.views += max(item.pbft.view for item in group.instances)
        found.convicted += bool(group.convicted)
        return
    state = b"" if ahead else pickle.dumps(group)
    for last in ahead[:1] or range(len(choices())):
        schedule = (*before, last)
        if not is_first(schedule):
            continue
        after: Rounds = group if ahead else pickle.loads(state)  # noqa: S301  made three lines above
        steps = after.steps
        try:
            after.play(choices()[last].leader, choices()[last].parts)
        except Violation as violation:
            named = describe([choices()[item] for item in schedule])
            found.broken.append(Broken(violation.invariant, violation.what, named))
        else:
            _walk(after, schedule, ahead[1:], views, found)
        found.played += 1
        found.steps += after.steps - steps


# Longer ones, drawn.


def draw_parts(draw: Random, instances: int) -> Parts:
    """Return a division into one to three parts, mostly two."""
    count = draw.choice((1, 1, 2, 2, 2, 2, 3))
    sides = [draw.randrange(count) for _ in range(instances)]
    found = (frozenset(member for member in range(instances) if sides[member] == side) for side in range(count))
    return tuple(part for part in found if part)


def play_seed(seed: int) -> Found:
    """Play the schedule of a seed, then let everybody hear everybody."""
    draw = stream(seed, "twins")
    nodes, twins = draw.choices(((4, 1), (7, 2)), (85, 15))[0]
    views = draw.randint(7, 10)
    found = Found(schedules=1, played=views)
    with in_force(real=False):
        group = Rounds(nodes, draw.choice((2, 4)), draw.sample(range(nodes), twins))
        try:
            _play_drawn(group, draw, views)
            group.choose = None
            group.heal(HEALED_ROUNDS)
        except Violation as violation:
            found.broken.append(Broken(violation.invariant, violation.what, str(seed)))
    found.steps = group.steps
    found.views = max(item.pbft.view for item in group.instances)
    found.convicted = int(bool(group.convicted))
    return found


def _play_drawn(group: Rounds, draw: Random, views: int) -> None:
    count = len(group.instances)
    is_shuffled, oversleep, restart = draw.random() < 0.5, draw.choice((0.0, 0.2)), draw.choice((0.0, 0.2))
    if is_shuffled:
        group.choose = draw.randrange
    for _ in range(views):
        leader = draw.choice(sorted(group.excused)) if draw.random() < 0.4 else draw.randrange(group.nodes)
        asleep = [index for index in range(count) if draw.random() < oversleep]
        group.play(leader, draw_parts(draw, count), asking=draw.random() < 0.6, asleep=asleep)
        if draw.random() < restart:
            group.restart(draw.randrange(count))
