"""Builds the FastAPI application of a node."""

import time

from fastapi import FastAPI

from bcami import __version__
from bcami.gateway import refusals, routes_operator, routes_read, routes_write
from bcami.gateway.limits import BURST, REQUESTS_PER_SECOND, LimitsMiddleware
from bcami.gateway.service import NodeService
from bcami.token_buckets import TokenBuckets

DESCRIPTION = """Door of one data concentrator. Answers are not to be believed: check receipts with genesis.

`application/msgpack` is the machine form of every answer that carries proofs; JSON is for people and small clients,
with bytes as lower-case hex.

The HTTP status says whether the request was understood. What became of a transaction is in its `status` and `reason`:
`committed` (with a receipt; the reason is `valid` or why it was rejected), `refused` (it was not ordered and may be
sent again), `unknown` (taken, no receipt yet: send the same bytes again, or ask by id). A no to a whole request is
`{"reason": …, "detail": …}`. Every reason is counted in `/metrics` under the same name.

A request may say which network it means in the header `X-Bcami-Chain` (or `chain` in a JSON body).
"""


def create_app(service: NodeService, buckets: TokenBuckets | None = None) -> FastAPI:
    """Return the application; the composition root serves it."""
    app = FastAPI(title="bcami node gateway", version=__version__, description=DESCRIPTION)
    app.state.service = service
    app.include_router(routes_write.router)
    app.include_router(routes_read.router)
    app.include_router(routes_read.own)
    app.include_router(routes_operator.router)
    refusals.install(app, service)
    limits = buckets or TokenBuckets(REQUESTS_PER_SECOND, BURST)
    app.add_middleware(LimitsMiddleware, buckets=limits, clock=time.monotonic, count=service.count)
    return app
