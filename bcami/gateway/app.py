"""Builds the FastAPI application of a node."""

import time

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from bcami import __version__
from bcami.gateway import routes_operator, routes_read, routes_write
from bcami.gateway.limits import LimitsMiddleware, TokenBuckets
from bcami.gateway.service import NodeService
from bcami.model.reasons import Reason

DESCRIPTION = """Door of one data concentrator. Answers are not to be believed: check receipts with genesis.

`application/msgpack` is the machine form of every answer that carries proofs; JSON is for people and small clients.
"""


def create_app(service: NodeService, buckets: TokenBuckets | None = None) -> FastAPI:
    """Return the application; the composition root serves it."""
    app = FastAPI(title="bcami node gateway", version=__version__, description=DESCRIPTION)
    app.state.service = service
    app.include_router(routes_write.router)
    app.include_router(routes_read.router)
    app.include_router(routes_operator.router)
    app.add_middleware(LimitsMiddleware, buckets=buckets or TokenBuckets(), clock=time.monotonic, count=service.count)

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        service.count(Reason.MALFORMED)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"reason": Reason.MALFORMED, "detail": f"{where}: {first['msg']}"}, status_code=400)

    return app
