"""A cluster with an open MDMS period and registered meters: where most tests of the simulation begin."""

from bcami.model.events import Halted
from bcami.model.genesis import Parameters
from bcami.model.transaction import Transaction
from tests.simulation.cluster import Cluster
from tests.simulation.parties import SimpleMdms, SimpleMeter, Utility

WAIT_MS = 60_000


class Scene:
    def __init__(
        self, n: int = 4, seed: int = 1, meters: int = 2, parameters: Parameters | None = None, ready: bool = True
    ) -> None:
        self.cluster = Cluster(n, seed, parameters)
        self.utility = Utility(self.cluster)
        self.mdms = SimpleMdms(self.cluster)
        self.meters = [SimpleMeter(self.cluster, f"meter{i}") for i in range(meters)]
        if not ready:
            return
        assert self.commit(0, [self.utility.enrol(meter) for meter in self.meters]) == ["valid"] * meters
        assert self.commit(1 % n, [self.mdms.register()]) == ["valid"]
        assert self.commit(2 % n, [meter.register(self.mdms) for meter in self.meters]) == ["valid"] * meters

    def reports(self, count: int) -> list[Transaction]:
        return [self.meters[i % len(self.meters)].report() for i in range(count)]

    def commit(self, node: int, transactions: list[Transaction], wait_ms: int = WAIT_MS) -> list[str | None]:
        """Submit to one node and wait for the outcomes; None for what is still unknown."""
        for tx in transactions:
            self.cluster.results.pop(self.cluster.node(node).id_of(tx), None)
        ids = self.cluster.submit(node, transactions)
        self.cluster.run(wait_ms, lambda: all(tx_id in self.cluster.results for tx_id in ids))
        return [self.cluster.outcome(tx_id) for tx_id in ids]

    def settle(self, nodes: list[int] | None = None, wait_ms: int = WAIT_MS) -> None:
        """Run until the nodes are certified at one height, then compare everything."""
        cluster = self.cluster
        chosen = nodes if nodes is not None else list(range(cluster.n))

        def is_settled() -> bool:
            certified = {cluster.certified()[i] for i in chosen}
            executed = {cluster.node(i).executor.height for i in chosen}
            return len(certified) == 1 and certified == {cluster.heights()[i] for i in chosen} == executed

        assert cluster.run(wait_ms, is_settled), (cluster.heights(), cluster.certified())
        cluster.check_agreement(chosen)
        assert len({cluster.disks[i].ledger.lthash() for i in chosen}) == 1
        assert not [seen for i, seen in cluster.observations if i in chosen and isinstance(seen, Halted)]

    def all_certified(self, nodes: list[int], wait_ms: int = WAIT_MS) -> None:
        """Run until every height of the nodes has a certificate of its own: each receipt can be given."""

        def is_whole() -> bool:
            ledgers = [self.cluster.disks[i].ledger for i in nodes]
            return all(ledger.certificate(h) is not None for ledger in ledgers for h in range(1, ledger.height + 1))

        assert self.cluster.run(wait_ms, is_whole)
