"""Prometheus metrics of the symmetric keys. Every refusal is counted under the name of its reason."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from bcami.kms import Accepted, Delivered, Refused
from bcami.kms.messages import TABLE_1
from bcami.kms.server import ServerCounts
from bcami.model.reasons import Reason

_LATENCY_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0)


class KmsMetrics:
    """Counts in the registry of the MDMS."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refused = Counter("bcami_kms_refused", "Messages and commands refused", ["reason"], registry=registry)
        self._accepted = Counter(
            "bcami_kms_accepted", "Messages of meters taken", ["title", "in_time"], registry=registry
        )
        self._delivered = Counter("bcami_kms_delivered", "Acknowledged deliveries", ["in_time"], registry=registry)
        self._latency = Histogram(
            "bcami_kms_delivery_seconds", "From sending to the meter's receipt", buckets=_LATENCY_S, registry=registry
        )
        self._encryptions = Counter("bcami_kms_encryptions", "Keys and messages encrypted", registry=registry)
        self._epoch = Gauge("bcami_kms_epoch", "Height that opened the epoch", registry=registry)
        self._meters = Gauge("bcami_kms_meters", "Meters in the key graph", registry=registry)
        self._confirmed = Gauge("bcami_kms_meters_confirmed", "Meters with keys of this epoch", registry=registry)
        self._audit = Gauge("bcami_kms_audit_entries", "Entries of the audit log", registry=registry)

    def happened(self, events: Iterable[Accepted | Delivered | Refused], encryptions: int) -> None:
        self._encryptions.inc(encryptions)
        for event in events:
            match event:
                case Accepted():
                    self._accepted.labels(TABLE_1[type(event.payload)].title, str(event.in_time).lower()).inc()
                case Delivered():
                    self._delivered.labels(str(event.in_time).lower()).inc()
                    self._latency.observe(max(0, event.latency_ms) / 1000)
                case Refused():
                    self.refused(event.reason)

    def refused(self, reason: Reason, count: int = 1) -> None:
        self._refused.labels(reason.value).inc(count)

    def stand(self, counts: ServerCounts) -> None:
        self._epoch.set(counts.epoch)
        self._meters.set(counts.meters)
        self._confirmed.set(counts.confirmed)
        self._audit.set(counts.audit_length)
