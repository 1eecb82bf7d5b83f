"""Token buckets: how often each of many clients may do something. Pure; the time comes in."""

from collections import OrderedDict
from typing import Final

CLIENTS_MAX: Final = 10_000


class TokenBuckets:
    """One bucket for each client (an address, a HID), bounded in number: the one not seen for longest is forgotten."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str | bytes, tuple[float, float]] = OrderedDict()

    def take(self, client: str | bytes, now_s: float) -> float:
        """Take one token. Returns 0 when it was there, else the seconds until it will be."""
        tokens, at = self._buckets.pop(client, (self._burst, now_s))
        tokens = min(self._burst, tokens + max(0.0, now_s - at) * self._rate)
        wait = 0.0 if tokens >= 1.0 else (1.0 - tokens) / self._rate
        if len(self._buckets) >= CLIENTS_MAX:
            self._buckets.popitem(last=False)
        self._buckets[client] = (tokens - (0.0 if wait else 1.0), now_s)
        return wait
