"""Design D17: memory stays flat, in a long run and against a peer that wants it not to."""

from collections import deque
from typing import Any

import msgspec

from bcami.ledger.memory import MemoryLedger
from bcami.model.batch import Refusal
from bcami.model.consensus import Checkpoint
from bcami.model.reasons import Reason
from bcami.model.wire import FetchBatch
from tests.simulation.byzantine import Puppet, block_certificate, certify, sign_endorsement
from tests.simulation.scene import WAIT_MS, Scene

BOUNDED = {"_cache", "_verified", "_executed"}
"""Caches with a limit of their own, which they fill."""
IMMUTABLE = (bytes, str, int, float, type, type(None), msgspec.Struct, MemoryLedger)


def sizes(root: Any) -> dict[str, int]:
    """Return the number of entries of every container that can be reached from a core, by its path."""
    found: dict[str, int] = {}
    seen: set[int] = set()

    def walk(item: Any, path: str) -> None:
        if isinstance(item, IMMUTABLE) or callable(item) or id(item) in seen:
            return
        seen.add(id(item))
        if isinstance(item, dict | list | set | deque):
            found[path] = len(item)
            for inner in list(item.values() if isinstance(item, dict) else item):
                walk(inner, path + "[]")
            return
        names = list(getattr(item, "__dict__", ())) + [
            name for kind in type(item).__mro__ for name in getattr(kind, "__slots__", ())
        ]
        if type(item).__module__.startswith("bcami"):
            for name in names:
                if name not in BOUNDED:
                    walk(getattr(item, name, None), f"{path}.{name}")

    walk(root, "core")
    return found


def grown(before: dict[str, int], after: dict[str, int], slack: int = 4) -> dict[str, tuple[int, int]]:
    return {
        path: (before.get(path, 0), size)
        for path, size in after.items()
        if size > before.get(path, 0) + slack and size > 2 * before.get(path, 0)
    }


def test_a_long_run_leaves_nothing_behind() -> None:
    scene = Scene()
    for node in range(24):
        assert scene.commit(node % 4, scene.reports(2)) == ["valid"] * 2
    scene.settle()
    before = [sizes(core) for core in scene.cluster.cores]
    assert len(before[0]) > 20, "the walk sees the core"
    for node in range(120):
        scene.cluster.submit((node + 1) % 4, report := scene.reports(2))
        assert scene.commit(node % 4, report) == ["valid"] * 2
    scene.settle()
    scene.cluster.run(2_000)
    for core, small in zip(scene.cluster.cores, before, strict=True):
        assert grown(small, sizes(core)) == {}


def test_a_long_run_with_a_peer_that_wants_memory_leaves_nothing_behind() -> None:
    """Numbers and heights far ahead, two batches for each number, certificates and votes for nothing, false claims."""
    scene = Scene()
    cluster = scene.cluster
    liar = Puppet(cluster, 3)
    key = cluster.identities.consensus[3]

    def press(turn: int) -> None:
        number = liar.lane()
        first, second = liar.batch(scene.reports(1), number), liar.batch(scene.reports(1), number)
        for i in range(17, 22):
            liar.say(liar.batch(scene.reports(1), number + i).batch)
        liar.say(first.batch, [0, 1])
        liar.say(second.batch, [2])
        certificate = liar.gather(first)
        assert certificate is not None
        liar.say(certificate)
        far = liar.batch(scene.reports(1), number + 10**6 + turn)
        liar.say(certify([sign_endorsement(cluster, far, i) for i in (0, 1, 3)]))
        liar.say(liar.endorse(far, [Refusal(0, Reason.REPLAY)]))
        height = max(cluster.heights())
        for far_height in (height + 10, height + 1_000 + turn, 2**60 + turn):
            vote = block_certificate(cluster, far_height, bytes(32), [3]).votes[0]
            liar.say(Checkpoint(0, far_height, bytes(32), 3, vote.signature))
        anchored = liar.batch(scene.reports(1), number + 20, block_certificate(cluster, height + 3, bytes(32), [3]))
        liar.say(anchored.batch)
        liar.say(liar.status(2**60 + turn))
        liar.say(FetchBatch(0, turn, bytes(32)))
        assert key is not None
        assert scene.commit(turn % 3, scene.reports(1)) == ["valid"]

    def rest() -> list[dict[str, int]]:
        scene.settle([0, 1, 2])
        assert scene.commit(0, scene.reports(1)) == ["valid"]
        scene.settle([0, 1, 2])
        return [sizes(cluster.node(i)) for i in (0, 1, 2)]

    for turn in range(12):
        press(turn)
    before = rest()
    for turn in range(12, 40):
        press(turn)
    after = rest()
    for small, large in zip(before, after, strict=True):
        assert grown(small, large) == {}
    assert cluster.run(WAIT_MS, lambda: True)
