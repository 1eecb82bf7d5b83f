"""Prometheus metrics of one node, fed by its event stream (design D19). Every reason is counted under its own name."""

from typing import assert_never

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from bcami.model import events


class NodeMetrics:
    """One registry for each process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._refused = Counter(
            "bcami_refused", "Refusals by place and reason", ["source", "reason"], registry=self.registry
        )
        self._transactions = Counter("bcami_transactions_executed", "Executed transactions", registry=self.registry)
        self._rejected = Counter(
            "bcami_transactions_rejected", "Rejected outcomes by reason", ["reason"], registry=self.registry
        )
        self._batches = Counter("bcami_batches_certified", "Batch certificates seen", registry=self.registry)
        self._views = Counter("bcami_view_changes", "View changes started", registry=self.registry)
        self._equivocations = Counter("bcami_equivocations", "Contradicting statements seen", registry=self.registry)
        self._syncs = Counter(
            "bcami_sync_requests", "Requests for blocks that this node lacked", registry=self.registry
        )
        self._snapshots = Counter("bcami_snapshots_installed", "World states taken from a peer", registry=self.registry)
        self._height = Gauge("bcami_height", "Executed height", registry=self.registry)
        self._certified = Gauge("bcami_certified_height", "Certified height", registry=self.registry)
        self._view = Gauge("bcami_view", "Current view", registry=self.registry)
        self._suspicions = Counter(
            "bcami_primary_suspected", "Times that the monitor found the primary too slow", registry=self.registry
        )
        self._peers = Gauge("bcami_peers_connected", "Peers that this node can send to", registry=self.registry)
        self._faults = Counter(
            "bcami_contract_faults", "Transactions whose contract broke; the log says where", registry=self.registry
        )
        self._halted = Gauge("bcami_halted", "1 when the node stopped ordering", registry=self.registry)
        self._amnesia = Gauge(
            "bcami_amnesia", "1 when the node lost its vote log and never votes again", registry=self.registry
        )

    def observe(self, observation: events.Observation) -> None:
        """Count one event."""
        match observation:
            case events.Refused(source, reason, _, count, _):
                self._refused.labels(source, reason.value).inc(count)
                if source == "execution":
                    self._rejected.labels(reason.value).inc(count)
            case events.BatchCertified():
                self._batches.inc()
            case events.BlockExecuted(height, _, transactions):
                self._height.set(height)
                self._transactions.inc(transactions)
            case events.BlockCertified(height):
                self._certified.set(height)
            case events.ViewChangeStarted():
                self._views.inc()
            case events.ViewEntered(view, _):
                self._view.set(view)
            case events.PrimarySuspected():
                self._suspicions.inc()
            case events.EquivocationSeen():
                self._equivocations.inc()
            case events.SyncProgress():
                self._syncs.inc()
            case events.SnapshotInstalled(height, _):
                self._snapshots.inc()
                self._height.set(height)
            case events.Halted():
                self._halted.set(1)
            case events.Amnesia():
                self._amnesia.set(1)
            case events.ContractFault():
                self._faults.inc()
            case events.PeerUp():
                self._peers.inc()
            case events.PeerDown():
                self._peers.dec()
            case _:
                assert_never(observation)

    def render(self) -> bytes:
        return generate_latest(self.registry)
