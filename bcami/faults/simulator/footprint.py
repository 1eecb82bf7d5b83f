"""I10: what a node keeps in memory is bounded, whatever peers send.

The walk follows every attribute and container from the core, so that a queue which somebody adds later is counted too.
Not counted: what is not the node's own (ledger, contracts, roster), and what was counted already.
"""

from typing import Any, Final

import msgspec
import numpy as np

from bcami.faults.simulator.agreement import Violation
from bcami.model.batch import BATCH_BYTES_MAX
from bcami.model.wire import VOTE_FRAME_BYTES_MAX
from bcami.node.core.core import NodeCore
from bcami.units import MIB

_NOT_ITS_OWN: Final = frozenset(("ledger", "_ledger", "runtime", "_runtime", "roster", "_roster", "statements"))
_COUNT_BYTES: Final = 16
"""Of each entry of a container, beside what it holds."""
_ENCODER: Final = msgspec.msgpack.Encoder()


def bound_bytes(node: NodeCore) -> int:
    """Return what a node may keep: lanes within their quotas, two windows of votes, and fixed queues."""
    n, parameters = node.roster.quorum.n, node.roster.genesis.parameters
    lanes = (n + 1) * (parameters.lane_quota_bytes + 8 * BATCH_BYTES_MAX)
    votes = 2 * n * VOTE_FRAME_BYTES_MAX
    return lanes + votes + 64 * MIB


class Scale:
    """Weighs nodes. Records that travel are shared by all nodes of a simulation, so each is weighed once for all."""

    def __init__(self) -> None:
        self._weighed: dict[int, tuple[msgspec.Struct, int]] = {}
        """By identity; the record is kept, so that no other takes its place."""
        self._mixed: set[type] = set()
        """Kinds of records that hold more than what can be encoded: they are followed."""

    def check(self, index: int, node: NodeCore) -> None:
        """Raise Violation when the node keeps more than its bound."""
        kept = self.footprint(node)
        if kept > bound_bytes(node):
            raise Violation("I10", f"node {index} keeps {kept} bytes, more than {bound_bytes(node)}")

    def footprint(self, root: object) -> int:
        """Return the bytes that hang on an object, each object counted once; a record as its encoding."""
        seen: set[int] = set()
        waiting: list[Any] = [root]
        total = 0
        while waiting:
            item = waiting.pop()
            if isinstance(item, bytes | str):
                total += len(item)
                continue
            if item is None or isinstance(item, int | float | type) or callable(item) or id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, dict):
                total += _COUNT_BYTES * len(item)
                waiting += item.keys()
                waiting += item.values()
            elif isinstance(item, np.ndarray):
                total += item.nbytes
            elif hasattr(item, "__iter__"):
                found = list(item)
                total += _COUNT_BYTES * len(found)
                waiting += found
            elif (weight := self._weight(item)) is not None:
                total += weight
            else:
                waiting += _attributes(item)
        return total

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


def _attributes(item: object) -> list[Any]:
    if isinstance(item, msgspec.Struct):
        return [getattr(item, name) for name in item.__struct_fields__]
    names = [*getattr(item, "__dict__", ())]
    for kind in type(item).__mro__:
        names += [name for name in getattr(kind, "__slots__", ()) if isinstance(name, str)]
    return [getattr(item, name) for name in names if name not in _NOT_ITS_OWN and hasattr(item, name)]
