"""What a node says of its state: hints, each labelled with the height that it speaks of (protocol 5.6).

Reads see executed blocks, durable or not: no strong quorum can decide otherwise any more.
"""

from collections.abc import Iterable

from bcami.model.api import QueryAnswer
from bcami.model.chain import StateEntry
from bcami.model.reasons import Reason
from bcami.node.core.core import NodeCore


def height(node: NodeCore) -> int:
    """Return the height of the state that reads see."""
    return node.executor.height


def state(node: NodeCore, key: bytes) -> QueryAnswer:
    """Return one value of the world state."""
    entry = node.world.read(key)
    if entry is None:
        return QueryAnswer(height(node), None, 0)
    return QueryAnswer(height(node), entry.value, entry.height)


def query(node: NodeCore, contract: str, function: str, argument: bytes) -> QueryAnswer | Reason:
    """Run a contract's query. `written` is the newest of all heights that wrote what it read."""
    written = 0

    def read(key: bytes) -> StateEntry | None:
        nonlocal written
        entry = node.world.read(key)
        if entry is not None:
            written = max(written, entry.height)
        return entry

    def scan(prefix: bytes, limit: int) -> Iterable[tuple[bytes, StateEntry]]:
        nonlocal written
        found = list(node.world.scan(prefix, limit))
        written = max(written, *(entry.height for _, entry in found), 0)
        return found

    answer = node.runtime.query(contract, function, argument, read, scan)
    if isinstance(answer, Reason):
        return answer
    return QueryAnswer(height(node), answer, written)
