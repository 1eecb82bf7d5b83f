"""Submission of transactions and requests for key shares."""

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from bcami.codec import Codec, encode
from bcami.errors import MalformedError
from bcami.gateway.forms import (
    REFUSALS_EXAMPLE,
    REFUSALS_SCHEMA,
    RESULT_EXAMPLE,
    RESULT_SCHEMA,
    Form,
    OneForm,
    SubmissionForm,
    hexed,
    result_form,
)
from bcami.gateway.openapi import JSON, MSGPACK, answers, listing, structure
from bcami.gateway.refusals import REFUSALS, Refused, check_chain, require_chain, service_of
from bcami.model.api import REFUSED, SUBMIT_CODEC, SUBMIT_TRANSACTIONS_MAX, SubmitAnswer
from bcami.model.reasons import Reason
from bcami.model.registration import ContributionRequest
from bcami.model.transaction import TRANSACTION_BYTES_MAX, Transaction
from bcami.node.driver import now_ms

TIMEOUT_MS_MAX = 60_000
_REQUEST_CODEC: Codec[ContributionRequest] = Codec(ContributionRequest, 1024)
_ONE_CODEC: Codec[Transaction] = Codec(Transaction, TRANSACTION_BYTES_MAX)
_BUSY = (Reason.QUEUE_FULL, Reason.RATE_LIMITED, Reason.NOT_READY, Reason.AMNESIA)
_CONTRIBUTION_WAIT_S = 5

router = APIRouter(tags=["transactions"], dependencies=[Depends(require_chain)], responses=REFUSALS)

F = TypeVar("F", bound=Form)
Wait = Annotated[Literal["commit", "accepted"], Query(description="`commit` answers with receipts, or unknown")]
Timeout = Annotated[int, Query(ge=1, le=TIMEOUT_MS_MAX, description="Longest wait for the outcome, milliseconds")]


def _body(form: type[Form] | None, packed: str) -> dict[str, Any]:
    """Return the OpenAPI description of a body that a route reads by itself."""
    content: dict[str, Any] = {
        MSGPACK: {"schema": {"type": "string", "format": "binary", "description": f"`{packed}` of bcami.model"}}
    }
    if form is not None:
        schema = form.model_json_schema(ref_template=f"#/x-{form.__name__}/{{model}}")
        content = {JSON: {"schema": _inlined(schema, schema.pop("$defs", {}))}, **content}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return the schema with each reference replaced by what it names."""
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            return _inlined(definitions[reference.rsplit("/", 1)[1]], definitions)
        return {key: _inlined(value, definitions) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    return schema


@router.post(
    "/v1/transactions",
    responses=answers(
        "One result for each transaction, in order",
        structure(results=listing(RESULT_SCHEMA), refusals=REFUSALS_SCHEMA),
        packed="SubmitAnswer",
        example={"results": [RESULT_EXAMPLE], "refusals": REFUSALS_EXAMPLE},
    ),
    openapi_extra=_body(SubmissionForm, "tuple[Transaction, ...]"),
)
async def submit_many(request: Request, wait: Wait = "commit", timeout_ms: Timeout = 10_000) -> Response:
    """Submit transactions; one result for each, in order. 429 or 503 only when every one was turned away for that.

    The content type says the form of body and answer: msgpack if it is `application/msgpack`, else JSON.
    """
    body = await request.body()
    if _is_msgpack(request):
        transactions = _decode(SUBMIT_CODEC, body)
    else:
        form = _parse(SubmissionForm, body)
        check_chain(service_of(request), form.chain)
        transactions = tuple(item.record() for item in form.transactions)
    if not 1 <= len(transactions) <= SUBMIT_TRANSACTIONS_MAX:
        raise Refused(
            Reason.OVERSIZED if transactions else Reason.MALFORMED,
            f"1 to {SUBMIT_TRANSACTIONS_MAX} transactions, not {len(transactions)}",
            body=body,
        )
    answer = await _submit(request, transactions, wait, timeout_ms)
    if _is_msgpack(request):
        return Response(encode(answer), media_type=MSGPACK)
    return JSONResponse({"results": _result_forms(answer), "refusals": hexed(answer.refusals)})


@router.post(
    "/v1/transaction",
    responses=answers(
        "Its result",
        {**RESULT_SCHEMA, "properties": {**RESULT_SCHEMA["properties"], "refusals": REFUSALS_SCHEMA}},
        packed="SubmitAnswer",
        example={**RESULT_EXAMPLE, "refusals": REFUSALS_EXAMPLE},
    ),
    openapi_extra=_body(OneForm, "Transaction"),
)
async def submit_one(request: Request, wait: Wait = "commit", timeout_ms: Timeout = 10_000) -> Response:
    """Submit one transaction, in JSON or msgpack."""
    body = await request.body()
    if _is_msgpack(request):
        transaction = _decode(_ONE_CODEC, body)
    else:
        form = _parse(OneForm, body)
        check_chain(service_of(request), form.chain)
        transaction = form.record()
    answer = await _submit(request, (transaction,), wait, timeout_ms)
    if _is_msgpack(request):
        return Response(encode(answer), media_type=MSGPACK)
    return JSONResponse({**_result_forms(answer)[0], "refusals": hexed(answer.refusals)})


@router.post(
    "/v1/contribute",
    responses=answers("This node's contribution", None, packed="ContributionAnswer"),
    openapi_extra=_body(None, "ContributionRequest"),
)
async def contribute(request: Request) -> Response:
    """Return this node's share of a new key, sealed to the enrolment KEM key of the asker (design D7)."""
    asked = _decode(_REQUEST_CODEC, await request.body())
    answer = service_of(request).core.contribute(asked, now_ms())
    if answer is Reason.RATE_LIMITED:
        raise Refused(answer, "too many requests for this HID", retry_after_s=_CONTRIBUTION_WAIT_S)
    if isinstance(answer, Reason):
        raise Refused(answer, status=503 if answer in (Reason.NOT_READY, Reason.AMNESIA) else 403)
    return Response(encode(answer), media_type=MSGPACK)


async def _submit(request: Request, transactions: tuple[Transaction, ...], wait: str, timeout_ms: int) -> SubmitAnswer:
    """Hand over to the node. Raises Refused when it took nothing because it is busy."""
    service = service_of(request)
    results, blocks = await service.driver.submit(transactions, wait=wait == "commit", timeout_s=timeout_ms / 1000)
    if all(item.status == REFUSED and item.reason in _BUSY for item in results) and results[0].reason is not None:
        raise Refused(results[0].reason)
    return SubmitAnswer(tuple(results), tuple(blocks), service.core.refusals.sign(results))


def _is_msgpack(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith(MSGPACK)


T = TypeVar("T")


def _decode(codec: Codec[T], body: bytes) -> T:
    if len(body) > codec.bytes_max:
        raise Refused(Reason.OVERSIZED, f"{len(body)} bytes, at most {codec.bytes_max} are allowed", body=body)
    try:
        return codec.decode(body)
    except MalformedError as error:
        raise Refused(Reason.MALFORMED, error.what, body=body) from None


def _parse(form: type[F], body: bytes) -> F:
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        reason = Reason.OVERSIZED if first["type"] in ("too_long", "string_too_long") else Reason.MALFORMED
        raise Refused(reason, f"{where}: {first['msg']}", body=body) from None


def _result_forms(answer: SubmitAnswer) -> list[dict[str, Any]]:
    by_height = {block.header.height: block for block in answer.blocks}
    return [msgspec.to_builtins(result_form(item, by_height)) for item in answer.results]
