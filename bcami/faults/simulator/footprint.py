"""I10: what a node keeps in memory is bounded, whatever peers send: each container in entries, all of it in bytes.

The walk follows every attribute and container from the core, so that a queue which somebody adds later is counted too:
it must keep to `_OTHERS` or say here what its limit is. Not counted: what is not the node's own (ledger, contracts,
roster), and what was counted already.

The bytes of real traffic would allow hundreds of MiB (each lane its quota, two windows of the largest votes), and a
leak of the few hundred KiB that a run sends would never show. So the bound is for what a run sends: about three times
the most that was kept in 300 seeds (185 KiB of 4 nodes, 433 KiB of 10).
"""

from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from bcami.endorsement.collector import IN_FLIGHT_MAX
from bcami.endorsement.endorser import LANE_AHEAD_MAX
from bcami.endorsement.pool import BatchPool
from bcami.faults.simulator.agreement import Violation
from bcami.node.core.answers import RECALLED_BLOCKS_MAX
from bcami.node.core.core import NodeCore
from bcami.node.core.dissemination import BEHIND_BATCHES_MAX, OWED_AHEAD_MAX
from bcami.node.core.world import CACHE_ENTRIES_MAX
from bcami.pbft.lanes import LANE_AHEAD_MAX as CERTIFICATES_AHEAD_MAX
from bcami.pbft.slots import AHEAD_PER_REPLICA_MAX
from bcami.pbft.statements import VERIFIED_MAX
from bcami.units import KIB

_NOT_ITS_OWN: Final = frozenset(("ledger", "_ledger", "runtime", "_runtime", "roster", "_roster", "statements"))
_EXECUTED: Final = "BatchPool._executed"
"""The newest executed batches have a limit in bytes of their own, by far above what a seed sends."""
_BATCH_BYTES_MIN: Final = 512
"""A batch is larger: it has a transaction."""
_COUNT_BYTES: Final = 16
"""Of each entry of a container, beside what it holds."""
_ENCODER: Final = msgspec.msgpack.Encoder()


class _Limit(NamedTuple):
    """Most entries of a container."""

    fixed: int = 0
    each_node: int = 0
    each_height: int = 0
    """For each height of the window."""

    def entries(self, n: int, window: int) -> int:
        return self.fixed + self.each_node * n + self.each_height * window


_LIMITS: Final = {
    "Statements._verified": _Limit(VERIFIED_MAX),
    "WorldState._cache": _Limit(CACHE_ENTRIES_MAX),
    "Ahead._kept": _Limit(each_node=1),
    "Ahead._kept[]": _Limit(AHEAD_PER_REPLICA_MAX),
    "Ordering.slots": _Limit(each_height=2),
    "VoteLog._keys": _Limit(each_height=2),
    "Slot.rounds": _Limit(3),
    "Round.prepares": _Limit(each_node=1),
    "Round.commits": _Limit(each_node=1),
    "ViewChanges.latest": _Limit(each_node=1),
    "Checkpoints.collected": _Limit(each_height=2),
    "Checkpoints.collected[]": _Limit(each_node=1),
    "Checkpoints._beyond": _Limit(each_node=1),
    "Checkpoints._known": _Limit(1, each_height=1),
    "Collector.own": _Limit(IN_FLIGHT_MAX),
    "OwnBatch.votes": _Limit(each_node=1),
    "Endorser._taken": _Limit(each_node=LANE_AHEAD_MAX),
    "Dissemination._owed": _Limit(each_node=OWED_AHEAD_MAX),
    "Dissemination._behind": _Limit(each_node=BEHIND_BATCHES_MAX),
    "Lanes._waiting": _Limit(each_node=1),
    "Lanes._waiting[]": _Limit(CERTIFICATES_AHEAD_MAX),
    "Answers._blocks": _Limit(RECALLED_BLOCKS_MAX, each_height=1),
    _EXECUTED: _Limit(BatchPool.EXECUTED_KEPT_BYTES // _BATCH_BYTES_MIN),
}
"""By class and attribute; `[]` for what is in it."""


_OTHERS: Final = _Limit(64, each_node=16, each_height=4)
"""Any other container: every node, every height, each request of a run."""


def bound_bytes(node: NodeCore) -> int:
    """Return what a node may keep of what a run sends."""
    return (512 + 96 * node.roster.quorum.n) * KIB


class Scale:
    """Weighs nodes. Records that travel are shared by all nodes of a simulation, so each is weighed once for all."""

    def __init__(self) -> None:
        self._weighed: dict[int, tuple[msgspec.Struct, int]] = {}
        """By identity; the record is kept, so that no other takes its place."""
        self._mixed: set[type] = set()
        """Kinds of records that hold more than what can be encoded: they are followed."""

    def check(self, index: int, node: NodeCore) -> None:
        """Raise Violation when the node keeps more than its bound."""
        n, window = node.roster.quorum.n, node.roster.genesis.parameters.window
        kept, longest, executed = self._walk(node)
        if executed > 2 * BatchPool.EXECUTED_KEPT_BYTES:  # with ids and digests
            raise Violation("I10", f"node {index} keeps {executed} bytes of executed batches")
        for name, entries in longest.items():
            limit = _LIMITS.get(name, _OTHERS).entries(n, window)
            if entries > limit:
                raise Violation("I10", f"node {index} keeps {entries} entries in {name}, more than {limit}")
        if kept > bound_bytes(node):
            raise Violation("I10", f"node {index} keeps {kept} bytes, more than {bound_bytes(node)}")

    def footprint(self, root: object) -> int:
        """Return the bytes that hang on an object, each object counted once; a record as its encoding."""
        return self._walk(root)[0]

    def _walk(self, root: object) -> tuple[int, dict[str, int], int]:
        """Return the bytes, the entries of the longest container of each name, and the bytes of executed batches."""
        seen: set[int] = set()
        waiting: list[tuple[Any, str]] = [(root, "")]
        longest: dict[str, int] = {}
        total = executed = 0
        while waiting:
            item, name = waiting.pop()
            if name == _EXECUTED:
                longest[name] = len(item)
                executed += self._walk(list(item.values()))[0]
                continue
            if isinstance(item, bytes | str):
                total += len(item)
                continue
            if item is None or isinstance(item, int | float | type) or callable(item) or id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, np.ndarray):
                total += item.nbytes
            elif hasattr(item, "__iter__"):
                found = list(item)
                total += _COUNT_BYTES * len(found)
                if len(found) > longest.get(name, 0):
                    longest[name] = len(found)
                waiting += [(inner, name + "[]") for inner in found]
                if isinstance(item, dict):
                    waiting += [(inner, name + "[]") for inner in item.values()]
            elif (weight := self._weight(item)) is not None:
                total += weight
            else:
                waiting += _attributes(item)
        return total, longest, executed

    def _weight(self, item: object) -> int | None:
        """Return the length of a record's encoding; None for what is not a record, or holds what is none."""
        if not isinstance(item, msgspec.Struct) or type(item) in self._mixed or not type(item).__struct_config__.frozen:
            return None
        known = self._weighed.get(id(item))
        if known is not None:
            return known[1]
        try:
            weight = len(_ENCODER.encode(item))
        except TypeError:
            self._mixed.add(type(item))
            return None
        self._weighed[id(item)] = (item, weight)
        return weight


def _attributes(item: object) -> list[tuple[Any, str]]:
    kind = type(item).__name__
    if isinstance(item, msgspec.Struct):
        return [(getattr(item, name), f"{kind}.{name}") for name in item.__struct_fields__]
    names = [*getattr(item, "__dict__", ())]
    for base in type(item).__mro__:
        names += [name for name in getattr(base, "__slots__", ()) if isinstance(name, str)]
    return [
        (getattr(item, name), f"{kind}.{name}") for name in names if name not in _NOT_ITS_OWN and hasattr(item, name)
    ]
