"""What a fleet did: counts by reason, and latencies from the intended send time."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from bcami.client.courier import NodeStatistics

_BUCKETS: Final = 60_000
"""One for each millisecond up to a minute; later ones share the last."""


class Latencies:
    """A histogram with a resolution of one millisecond, in constant memory."""

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * (_BUCKETS + 1)))
        self.count = 0
        self.ms_max = 0

    def add(self, latency_ms: int) -> None:
        latency_ms = max(latency_ms, 0)
        self._counts[min(latency_ms, _BUCKETS)] += 1
        self.count += 1
        self.ms_max = max(self.ms_max, latency_ms)

    def percentile_ms(self, percent: float) -> int | None:
        """Return the smallest latency that `percent` of all do not exceed; None when there are none."""
        if not self.count:
            return None
        wanted = max(1, -(-self.count * percent // 100))
        seen = 0
        for latency_ms, count in enumerate(self._counts):
            seen += count
            if seen >= wanted:
                return latency_ms if latency_ms < _BUCKETS else self.ms_max
        return self.ms_max

    def summary(self) -> dict[str, int | None]:
        """Return the percentiles that `latency_ms` has in JSON."""
        return {name: self.percentile_ms(percent) for name, percent in (("p50", 50), ("p95", 95), ("p99", 99))}


@dataclass(slots=True)
class FleetStatistics:
    """Live counts; read them at any time."""

    taken: int = 0
    """Reports taken by `submit`."""
    readings_taken: int = 0
    sent: int = 0
    """Transactions made and handed to a node, each once; repeats are in `nodes`."""
    readings_sent: int = 0
    """Readings in them, each counted once however often it was sealed."""
    committed: int = 0
    """Reports whose transaction is proven valid."""
    readings_committed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Proven outcomes other than valid, by reason. Their readings are sealed again unless the meter is stopped."""
    refused: Counter[str] = field(default_factory=Counter)
    """Numbers abandoned after weak refusals, by reason."""
    resealed: int = 0
    """Reports sealed again under another number."""
    stopped: Counter[str] = field(default_factory=Counter)
    """Reports kept in the store because nothing more can be done for them now, by reason."""
    sessions_opened: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    """From the intended send time to the proven commit, of reports taken in this run."""
    nodes: dict[str, NodeStatistics] = field(default_factory=dict)
    """By the address of the node."""
