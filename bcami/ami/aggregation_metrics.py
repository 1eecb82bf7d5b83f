"""Who said no to what in an aggregation, and how its rounds ended: one count for each party and reason (design D19).

The same counts go into a run's summary and to whoever scrapes `GET /metrics` of the process while it runs.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bcami.model.aggregation import Mode
from bcami.model.reasons import Reason

METER: Final = "meter"
HEAD_END: Final = "head-end"
SUPPLIER_PARTY: Final = "supplier"
_TEXT: Final = "text/plain; version=0.0.4"


class AggregationMetrics(Collector):
    """Counts of one process."""

    def __init__(self) -> None:
        self._noes: Counter[tuple[str, Reason]] = Counter()
        self._rounds: Counter[tuple[Mode, Reason]] = Counter()
        self._seconds: Counter[Mode] = Counter()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def no(self, party: str, reason: Reason, count: int = 1) -> None:
        """Count what a party turned down."""
        if count:
            self._noes[party, reason] += count

    def ended(self, mode: Mode, reason: Reason, seconds: float) -> None:
        """Count a round."""
        self._rounds[mode, reason] += 1
        self._seconds[mode] += round(seconds * 1e6)

    def noes(self) -> dict[str, dict[str, int]]:
        """Return the noes by party and reason."""
        found: dict[str, dict[str, int]] = {}
        for (party, reason), count in sorted(self._noes.items()):
            found.setdefault(party, {})[reason.value] = count
        return found

    def collect(self) -> Iterable[Metric]:
        noes = CounterMetricFamily(
            "bcami_aggregation_refused", "What a party turned down, by reason", labels=["party", "reason"]
        )
        for (party, reason), count in self._noes.items():
            noes.add_metric([party, reason.value], count)
        rounds = CounterMetricFamily("bcami_aggregation_rounds", "Rounds by how they ended", labels=["mode", "reason"])
        for (mode, reason), count in self._rounds.items():
            rounds.add_metric([mode, reason.value], count)
        seconds = CounterMetricFamily("bcami_aggregation_round_seconds", "Time that rounds took", labels=["mode"])
        for mode, micros in self._seconds.items():
            seconds.add_metric([mode], micros / 1e6)
        return [noes, rounds, seconds]

    def exposition(self) -> bytes:
        """Return the counts in the text format of Prometheus."""
        return generate_latest(self._registry)

    def route(self) -> Route:
        """Return the route that serves them."""

        async def metrics(_: Request) -> Response:
            return Response(self.exposition(), media_type=_TEXT)

        return Route("/metrics", metrics)
