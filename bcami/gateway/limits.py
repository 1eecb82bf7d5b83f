"""What one client may ask of a gateway: bytes in a body, requests in a second. Plain ASGI, streaming untouched."""

import math
from typing import Any, Final

import msgspec

from bcami.model.reasons import Reason
from bcami.units import MIB

BODY_BYTES_MAX: Final = 4 * MIB
REQUESTS_PER_SECOND: Final = 400.0
BURST: Final = 1_000.0
CLIENTS_MAX: Final = 10_000

Scope = Any
Receive = Any
Send = Any
App = Any


class TokenBuckets:
    """One bucket for each client address, bounded in number."""

    def __init__(self, rate: float = REQUESTS_PER_SECOND, burst: float = BURST) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, client: str, now_s: float) -> float:
        """Take one token. Returns 0 when it was there, else the seconds until it will be."""
        tokens, at = self._buckets.get(client, (self._burst, now_s))
        tokens = min(self._burst, tokens + (now_s - at) * self._rate)
        wait = 0.0 if tokens >= 1.0 else (1.0 - tokens) / self._rate
        if len(self._buckets) >= CLIENTS_MAX and client not in self._buckets:
            self._buckets.clear()
        self._buckets[client] = (tokens - (0.0 if wait else 1.0), now_s)
        return wait


class LimitsMiddleware:
    """Answers 413 and 429 before a route runs; counts both."""

    def __init__(self, app: App, *, buckets: TokenBuckets, clock: Any, count: Any) -> None:
        self._app = app
        self._buckets = buckets
        self._clock = clock
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        wait = self._buckets.take(client[0] if client else "", self._clock())
        if wait:
            await self._refuse(send, 429, Reason.RATE_LIMITED, math.ceil(wait))
            return
        for name, value in scope["headers"]:
            if name == b"content-length" and (not value.isdigit() or int(value) > BODY_BYTES_MAX):
                await self._refuse(send, 413, Reason.OVERSIZED, 0)
                return
        await self._app(scope, self._bounded(receive), send)

    def _bounded(self, receive: Receive) -> Receive:
        """Stop a body without a length once it is over the limit: the route sees a client that went away."""
        seen = 0

        async def bounded() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > BODY_BYTES_MAX:
                self._count(Reason.OVERSIZED)
                return {"type": "http.disconnect"}
            return message

        return bounded

    async def _refuse(self, send: Send, status: int, reason: Reason, retry_after_s: int) -> None:
        self._count(reason)
        headers = [(b"content-type", b"application/json")]
        if retry_after_s:
            headers.append((b"retry-after", str(retry_after_s).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        limit = f"at most {BODY_BYTES_MAX} bytes" if status == 413 else f"try again in {retry_after_s} s"
        await send({"type": "http.response.body", "body": msgspec.json.encode({"reason": reason, "detail": limit})})
