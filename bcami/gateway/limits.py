"""What one client may ask of a gateway: bytes in a body, requests in a second. Plain ASGI, streaming untouched."""

import math
from typing import Any, Final

import msgspec

from bcami.model.reasons import Reason
from bcami.token_buckets import TokenBuckets
from bcami.units import MIB

BODY_BYTES_MAX: Final = 4 * MIB
REQUESTS_PER_SECOND: Final = 400.0
BURST: Final = 1_000.0
_LENGTH_DIGITS_MAX: Final = 18

Scope = Any
Receive = Any
Send = Any
App = Any


class LimitsMiddleware:
    """Answers 413 and 429 by itself; counts both."""

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
            if name == b"content-length" and _is_too_long(value):
                await self._refuse(send, 413, Reason.OVERSIZED, 0)
                return
        body = _BoundedBody(receive, send)
        try:
            await self._app(scope, body.receive, body.send)
        except Exception:
            if not body.is_over:
                raise
        if body.is_over and not body.is_answered:
            await self._refuse(send, 413, Reason.OVERSIZED, 0)

    async def _refuse(self, send: Send, status: int, reason: Reason, retry_after_s: int) -> None:
        self._count(reason)
        headers = [(b"content-type", b"application/json")]
        if retry_after_s:
            headers.append((b"retry-after", str(retry_after_s).encode()))
        if status == 413:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        limit = f"at most {BODY_BYTES_MAX} bytes" if status == 413 else f"try again in {retry_after_s} s"
        await send({"type": "http.response.body", "body": msgspec.json.encode({"reason": reason, "detail": limit})})


class _BoundedBody:
    """Stops a body that came without its length: the route sees a client that went away, and is not heard any more."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._seen = 0
        self.is_over = False
        self.is_answered = False

    async def receive(self) -> Any:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > BODY_BYTES_MAX:
            self.is_over = True
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Any) -> None:
        if self.is_over and not self.is_answered:
            return
        self.is_answered = True
        await self._send(message)


def _is_too_long(length: bytes) -> bool:
    return not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX or int(length) > BODY_BYTES_MAX
