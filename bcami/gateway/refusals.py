"""The one form of every answer that is a no: `{"reason": …, "detail": …}`, counted under the same name (design D19)."""

from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from bcami.gateway.service import NodeService
from bcami.model.api import CHAIN_HEADER
from bcami.model.reasons import Reason, explain

_STATUS: Final = {
    Reason.MALFORMED: 400,
    Reason.WRONG_CHAIN: 400,
    Reason.BAD_ARGUMENT: 400,
    Reason.NOT_AUTHORIZED: 401,
    Reason.OVERSIZED: 413,
    Reason.BEHIND: 425,
    Reason.QUEUE_FULL: 429,
    Reason.RATE_LIMITED: 429,
    Reason.NOT_READY: 503,
    Reason.AMNESIA: 503,
}
_RETRY_AFTER_S: Final = {
    Reason.BEHIND: 1,
    Reason.QUEUE_FULL: 1,
    Reason.RATE_LIMITED: 1,
    Reason.NOT_READY: 1,
    Reason.AMNESIA: 60,
}


class RefusalForm(BaseModel):
    """Why the request was not answered. `reason` is the name that metrics, outcomes and reports use."""

    reason: str = Field(examples=["malformed"])
    detail: str = Field(examples=["transactions.0.signer: String should match pattern '^[0-9a-f]{64}$'"])
    replica: int | None = Field(None, description="Who signed; there when a body that was read is turned down whole")
    signature: str | None = Field(None, description="By that replica over chain, epoch, SHA-256 of the body, reason")


REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": RefusalForm, "description": "Refused: `reason` says why; 425 and 429 carry Retry-After"},
    "503": {"model": RefusalForm, "description": "This node cannot do that now: see Retry-After"},
}


class Refused(Exception):
    """Ends a request with a reason."""

    def __init__(
        self,
        reason: Reason,
        detail: str = "",
        *,
        status: int | None = None,
        retry_after_s: int | None = None,
        body: bytes | None = None,
    ) -> None:
        """`body` is that of the request, when it is turned down for what it is: the answer is then signed."""
        super().__init__(reason)
        self.reason = reason
        self.detail = detail or explain(reason)
        self.body = body
        self.status = _STATUS.get(reason, 404) if status is None else status
        self.retry_after_s = _RETRY_AFTER_S.get(reason) if retry_after_s is None else retry_after_s


def service_of(request: Request) -> NodeService:
    service: NodeService = request.app.state.service
    return service


async def require_chain(
    request: Request,
    chain: Annotated[
        str | None,
        Header(
            alias=CHAIN_HEADER,
            pattern="^[0-9a-fA-F]{64}$",
            description="Chain id (hex) of the network that the client means; another one is refused as wrong_chain",
        ),
    ] = None,
) -> None:
    """Refuse a request that is meant for another network. A coroutine: FastAPI hands a plain function to a thread."""
    check_chain(service_of(request), chain)


def check_chain(service: NodeService, meant: str | None) -> None:
    """Refuse unless the chain id that the client means, if it says one, is this network's."""
    own = service.roster.chain.hex()
    if meant is not None and meant.lower() != own:
        raise Refused(Reason.WRONG_CHAIN, f"the request is for chain {meant}, this node serves {own}")


def install(app: FastAPI, service: NodeService) -> None:
    """Let every no of the application have the one form, and be counted."""

    def answer(refused: Refused, headers: dict[str, str] | None = None) -> JSONResponse:
        service.count(refused.reason)
        given = dict(headers or {})
        if refused.retry_after_s:
            given["retry-after"] = str(refused.retry_after_s)
        if refused.status == HTTPStatus.UNAUTHORIZED:
            given["www-authenticate"] = "Bearer"
        detail = refused.detail
        if refused.reason is Reason.AMNESIA and service.others:
            detail += ": " + ", ".join(service.others)
        body: dict[str, Any] = {"reason": refused.reason, "detail": detail}
        signed = None if refused.body is None else service.core.refusals.sign_request(refused.body, refused.reason)
        if signed is not None:
            body |= {"replica": signed.replica, "signature": signed.signature.hex()}
        return JSONResponse(body, status_code=refused.status, headers=given)

    @app.exception_handler(Refused)
    async def refuse(_request: Request, refused: Refused) -> JSONResponse:
        return answer(refused)

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return answer(Refused(Reason.MALFORMED, f"{where}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def unusable(_request: Request, error: HTTPException) -> JSONResponse:
        reason = Reason.NOT_FOUND if error.status_code == HTTPStatus.NOT_FOUND else Reason.MALFORMED
        detail = "no such address" if reason is Reason.NOT_FOUND else error.detail
        return answer(Refused(reason, detail, status=error.status_code), dict(error.headers or {}))
