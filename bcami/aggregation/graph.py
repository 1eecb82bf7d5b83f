"""Who masks with whom: a random graph that everybody draws alike from a block hash [Bell et al., CCS 2020, section 3].

The graph is the union of h random cycles through all members, so nobody has more than 2h neighbours. Bell et al. take
one permuted Harary graph; there, k members that are withheld once the graph is known cut out a piece of any length. A
small piece of a union of random cycles borders on almost everybody (`bounds` counts it). With 2h ≥ n − 1 everybody
is everybody's neighbour.
"""

from functools import lru_cache
from hashlib import shake_256

import numpy as np

from bcami.aggregation.bounds import Plan, Policy, plan_for, plan_on

Graph = tuple[tuple[int, ...], ...]
"""Each member's neighbours, ascending."""


Ranks = tuple[dict[int, int], ...]
"""Of each member: neighbour → its place among all of them, from 1 on, which is where its share stands."""


def ranks_of(graph: Graph) -> Ranks:
    return tuple({other: place for place, other in enumerate(near, 1)} for near in graph)


@lru_cache(maxsize=16)
def draw_graph(seed: bytes, members: int, degree: int) -> Graph:
    """Return the graph of `degree`/2 cycles drawn from the seed, or the complete one."""
    if degree >= members - 1:
        return tuple(tuple(other for other in range(members) if other != member) for member in range(members))
    found: list[set[int]] = [set() for _ in range(members)]
    for cycle in range(degree // 2):
        # Members in the order of 64-bit random keys: uniform but for equal keys, n²·2^-65.
        data = shake_256(b"bcami/aggregation/graph/1" + cycle.to_bytes(4, "big") + seed).digest(8 * members)
        order = np.argsort(np.frombuffer(data, dtype=">u8"), kind="stable").tolist()
        for member, after in zip(order, order[1:] + order[:1], strict=True):
            found[member].add(after)
            found[after].add(member)
    return tuple(tuple(sorted(neighbours)) for neighbours in found)


@lru_cache(maxsize=16)
def draw_plan(seed: bytes, members: int, policy: Policy) -> tuple[Plan, Graph]:
    """Return a group's graph and its plan, whose threshold fits the graph. Raises ValueError as `plan_for` does."""
    graph = draw_graph(seed, members, plan_for(members, policy).degree)
    return plan_on(plan_for(members, policy), [len(neighbours) for neighbours in graph]), graph
