"""A range read speaks of the same blocks as a read of one key: executed ones, durable or not (protocol 5.6)."""

from collections.abc import Iterator

import pytest

from bcami.model.chain import StateEntry
from bcami.node.core.world import WorldState


class Durable:
    """What is on disk."""

    def __init__(self, **entries: int) -> None:
        self.entries = {key.encode(): StateEntry(b"%d" % height, height) for key, height in entries.items()}

    def state(self, key: bytes) -> StateEntry | None:
        return self.entries.get(key)

    def scan(self, prefix: bytes, limit: int) -> Iterator[tuple[bytes, StateEntry]]:
        found = [item for item in sorted(self.entries.items()) if item[0].startswith(prefix)]
        return iter(found[:limit])


@pytest.mark.parametrize("limit", range(7))
def test_a_scan_sees_what_is_not_durable_yet(limit: int) -> None:
    disk = Durable(a1=1, a2=1, a4=1, a6=1, b1=1)
    world = WorldState(disk)
    world.layer(2, {b"a0": StateEntry(b"2", 2), b"a2": None, b"a4": StateEntry(b"2", 2), b"b0": StateEntry(b"2", 2)})
    world.layer(3, {b"a5": StateEntry(b"3", 3), b"a9": StateEntry(b"3", 3), b"a0": None})
    whole = [(b"a1", 1), (b"a4", 2), (b"a5", 3), (b"a6", 1), (b"a9", 3)]
    seen = [(key, entry.height) for key, entry in world.scan(b"a", limit)]
    assert seen == whole[:limit]
    assert all(world.read(key) == entry for key, entry in world.scan(b"", 10))


def test_a_scan_goes_to_the_disk_when_nothing_waits() -> None:
    world = WorldState(Durable(a1=1, a2=1))
    world.layer(2, {b"b1": StateEntry(b"2", 2)})
    assert [key for key, _ in world.scan(b"a", 10)] == [b"a1", b"a2"]
