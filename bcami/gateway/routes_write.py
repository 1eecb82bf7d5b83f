"""Submission of transactions and requests for key shares."""

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from bcami.codec import Codec, encode
from bcami.errors import MalformedError
from bcami.gateway.forms import RefusalForm, SubmissionForm, TransactionForm, result_form
from bcami.gateway.service import NodeService
from bcami.model.api import (
    REFUSED,
    SUBMIT_CODEC,
    SUBMIT_TRANSACTIONS_MAX,
    CertifiedHeader,
    SubmitAnswer,
    SubmitResult,
)
from bcami.model.reasons import Reason
from bcami.model.registration import ContributionRequest
from bcami.model.transaction import Transaction
from bcami.node.driver import now_ms

MSGPACK = "application/msgpack"
TIMEOUT_MS_MAX = 60_000
_REQUEST_CODEC: Codec[ContributionRequest] = Codec(ContributionRequest, 1024)
_BUSY = {Reason.QUEUE_FULL: 429, Reason.RATE_LIMITED: 429, Reason.NOT_READY: 503}

router = APIRouter(tags=["transactions"])

Wait = Annotated[Literal["commit", "accepted"], Query(description="`commit` answers with receipts, or unknown")]
Timeout = Annotated[int, Query(ge=1, le=TIMEOUT_MS_MAX, description="Longest wait for the outcome, milliseconds")]
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": RefusalForm, "description": "The body is malformed"},
    413: {"model": RefusalForm, "description": "The body is too large"},
    429: {"model": RefusalForm, "description": "Full or too fast: see Retry-After"},
    503: {"model": RefusalForm, "description": "This node cannot order now"},
}


def refusal(reason: Reason, detail: str, status: int, retry_after_s: int = 0) -> JSONResponse:
    headers = {"retry-after": str(retry_after_s)} if retry_after_s else None
    return JSONResponse({"reason": reason, "detail": detail}, status_code=status, headers=headers)


@router.post(
    "/v1/transactions",
    responses=_REFUSALS,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": SubmissionForm.model_json_schema(ref_template="#/components/schemas/{model}")
                },
                MSGPACK: {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
)
async def submit_many(request: Request, wait: Wait = "commit", timeout_ms: Timeout = 10_000) -> Response:
    """Submit transactions; one result for each, in order. 429 or 503 only when every one was turned away for that."""
    service: NodeService = request.app.state.service
    body = await request.body()
    is_msgpack = request.headers.get("content-type", "").startswith(MSGPACK)
    try:
        transactions = SUBMIT_CODEC.decode(body) if is_msgpack else _from_json(body)
    except MalformedError as error:
        service.count(Reason.MALFORMED)
        return refusal(Reason.MALFORMED, error.what, 400)
    if not 1 <= len(transactions) <= SUBMIT_TRANSACTIONS_MAX:
        service.count(Reason.OVERSIZED)
        return refusal(Reason.OVERSIZED, f"1 to {SUBMIT_TRANSACTIONS_MAX} transactions, not {len(transactions)}", 413)
    results, blocks = await service.driver.submit(transactions, wait=wait == "commit", timeout_s=timeout_ms / 1000)
    busy = _all_busy(results)
    if busy is not None:
        return refusal(busy, "every transaction was turned away", _BUSY[busy], 1)
    if is_msgpack:
        return Response(encode(SubmitAnswer(tuple(results), tuple(blocks))), media_type=MSGPACK)
    return JSONResponse(_json_answer(results, blocks))


@router.post("/v1/transaction", responses=_REFUSALS)
async def submit_one(
    request: Request, form: TransactionForm, wait: Wait = "commit", timeout_ms: Timeout = 10_000
) -> Response:
    """Submit one transaction in JSON."""
    service: NodeService = request.app.state.service
    results, blocks = await service.driver.submit((form.record(),), wait=wait == "commit", timeout_s=timeout_ms / 1000)
    busy = _all_busy(results)
    if busy is not None:
        return refusal(busy, "turned away", _BUSY[busy], 1)
    answer: dict[str, Any] = _json_answer(results, blocks)["results"][0]
    return JSONResponse(answer)


@router.post(
    "/v1/contribute",
    responses=_REFUSALS,
    openapi_extra={
        "requestBody": {"required": True, "content": {MSGPACK: {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def contribute(request: Request) -> Response:
    """Return this node's share of a new key, sealed to the enrolment KEM key of the asker (design D7)."""
    service: NodeService = request.app.state.service
    try:
        asked = _REQUEST_CODEC.decode(await request.body())
    except MalformedError as error:
        service.count(Reason.MALFORMED)
        return refusal(Reason.MALFORMED, error.what, 400)
    answer = service.core.contribute(asked, now_ms())
    if isinstance(answer, Reason):
        service.count(answer)
        if answer is Reason.RATE_LIMITED:
            return refusal(answer, "too many requests for this HID", 429, 5)
        return refusal(answer, "no share for this request", 403)
    return Response(encode(answer), media_type=MSGPACK)


def _from_json(body: bytes) -> tuple[Transaction, ...]:
    try:
        form = SubmissionForm.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise MalformedError(f"{where}: {first['msg']}") from None
    return tuple(item.record() for item in form.transactions)


def _all_busy(results: list[SubmitResult]) -> Reason | None:
    """Return the common reason when the node took nothing because it is busy."""
    if any(item.status != REFUSED or item.reason not in _BUSY for item in results):
        return None
    return results[0].reason


def _json_answer(results: list[SubmitResult], blocks: list[CertifiedHeader]) -> dict[str, Any]:
    by_height = {block.header.height: block for block in blocks}
    answer = {"results": [result_form(item, by_height) for item in results]}
    return msgspec.to_builtins(answer)  # type: ignore[no-any-return]
