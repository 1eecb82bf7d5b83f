"""Prometheus metrics of the MDMS (design D19). Every reason and fault is counted under its own name."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from bcami.mdms.records import Stored, UnreadableReport
from bcami.mdms.store import MdmsStore
from bcami.model.reasons import Reason


class MdmsMetrics:
    """One registry for each process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._readings = Counter("bcami_mdms_readings", "Readings stored", registry=self.registry)
        self._repeats = Counter(
            "bcami_mdms_repeats", "Readings of stored intervals that came again", ["kind"], registry=self.registry
        )
        self._unreadable = Counter(
            "bcami_mdms_unreadable_reports", "Reports that could not be stored", ["fault"], registry=self.registry
        )
        self._blocks = Counter("bcami_mdms_blocks", "Blocks verified and stored", registry=self.registry)
        self._refused = Counter(
            "bcami_mdms_offers_refused", "Blocks of a node not taken", ["node", "reason"], registry=self.registry
        )
        self._unavailable = Counter(
            "bcami_mdms_nodes_unavailable",
            "Requests to a node without a usable answer",
            ["node"],
            registry=self.registry,
        )
        self._acknowledgements = Counter(
            "bcami_mdms_acknowledgements", "Acknowledgements settled", ["reason"], registry=self.registry
        )
        self._height = Gauge("bcami_mdms_height", "Height of the cursor", registry=self.registry)
        self._released = Gauge("bcami_mdms_released_height", "Highest released height seen", registry=self.registry)
        self._acknowledged = Gauge("bcami_mdms_acknowledged_height", "Acknowledged height", registry=self.registry)
        self._stored = Gauge("bcami_mdms_readings_stored", "Readings in the store", registry=self.registry)

    def followed(self, blocks: int, stored: Stored, unreadable: Sequence[UnreadableReport]) -> None:
        self._blocks.inc(blocks)
        self._readings.inc(stored.new)
        self._repeats.labels("equal").inc(stored.repeated_equal)
        self._repeats.labels("different").inc(stored.repeated_different)
        for row in unreadable:
            self._unreadable.labels(row.fault.value).inc()

    def released(self, height: int) -> None:
        self._released.set(height)

    def refused(self, node: str, reason: Reason) -> None:
        self._refused.labels(node, reason.value).inc()

    def unavailable(self, node: str) -> None:
        self._unavailable.labels(node).inc()

    def acknowledged(self, reason: Reason) -> None:
        self._acknowledgements.labels(reason.value).inc()

    def render(self, store: MdmsStore) -> bytes:
        """Return the text form, with what the store holds now."""
        self._height.set(store.cursor.height)
        self._acknowledged.set(store.acknowledged_height)
        self._stored.set(store.counts.readings)
        return generate_latest(self.registry)
