"""A cluster in virtual time in which every node can be told to misbehave."""

from typing import Any

import pytest

from bcami.faults.behaviour import AnyBehaviour
from bcami.faults.catalogue import make_behaviour
from bcami.faults.node import FaultyNode
from bcami.model.events import EquivocationSeen, Halted, ViewEntered
from bcami.model.transaction import Transaction
from tests.simulation import cluster as cluster_module
from tests.simulation.scene import Scene


class Attack:
    """A scene, its liars, and what must hold all the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n: int = 4, seed: int = 1, meters: int = 2) -> None:
        monkeypatch.setattr(cluster_module, "NodeCore", FaultyNode)
        self.scene = Scene(n, seed, meters)
        self.cluster = self.scene.cluster
        self.liars: set[int] = set()
        self.pending: list[bytes] = []
        heard = self.cluster.discipline.heard
        self.cluster.discipline.heard = lambda sender, message: (  # type: ignore[method-assign]
            None if sender in self.liars else heard(sender, message)
        )

    @property
    def honest(self) -> list[int]:
        return [i for i in range(self.cluster.n) if i not in self.liars]

    def node(self, i: int) -> FaultyNode:
        node = self.cluster.node(i)
        assert isinstance(node, FaultyNode)
        return node

    def inject(self, i: int, name: str, for_ms: int = 5_000, seed: int = 1, **options: Any) -> AnyBehaviour:
        behaviour = make_behaviour(name, options, seed)
        if behaviour.is_byzantine:
            self.liars.add(i)
        self.node(i).inject(behaviour, for_ms, self.cluster.now_ms)
        return behaviour

    def submit(self, i: int, transactions: list[Transaction]) -> None:
        self.pending += self.cluster.submit(i, transactions)

    def load(self, for_ms: int = 5_000, nodes: list[int] | None = None, every_ms: int = 250) -> None:
        """Offer a report every now and then, to each of the nodes in turn."""
        chosen = self.honest if nodes is None else nodes
        for turn in range(for_ms // every_ms):
            self.submit(chosen[turn % len(chosen)], self.scene.reports(2))
            self.cluster.run(every_ms)

    def check(self, wait_ms: int = 60_000) -> None:
        """Everything that honest nodes took is committed; they agree, none halted, and none is accused."""
        cluster = self.cluster
        assert cluster.run(wait_ms, lambda: all(tx_id in cluster.results for tx_id in self.pending))
        assert {cluster.outcome(tx_id) for tx_id in self.pending} == {"valid"}
        self.scene.settle(self.honest)
        seen = [item for i, item in cluster.observations if i in self.honest]
        assert not [item for item in seen if isinstance(item, Halted)]
        accused = {item.replica for item in seen if isinstance(item, EquivocationSeen)}
        assert accused <= self.liars

    def accused(self) -> set[int]:
        return {
            item.replica
            for i, item in self.cluster.observations
            if i in self.honest and isinstance(item, EquivocationSeen)
        }

    def views(self) -> set[int]:
        return {item.view for i, item in self.cluster.observations if isinstance(item, ViewEntered)}
