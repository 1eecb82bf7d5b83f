"""Reads: status, blocks, receipts, state, events. Each answer is labelled with the height it speaks of."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import format_sse_event

from bcami.codec import encode
from bcami.gateway.forms import BLOCK_SCHEMA, RESULT_SCHEMA, block_form, hexed, result_form
from bcami.gateway.openapi import (
    ANY_NUMBER,
    JSON,
    MSGPACK,
    TEXT,
    answers,
    example_of,
    listing,
    optional,
    schema_of,
    structure,
)
from bcami.gateway.refusals import REFUSALS, Refused, require_chain, service_of
from bcami.gateway.service import STATUS_SCHEMA, NodeService
from bcami.model.api import CertifiedHeader, QueryAnswer, ReleaseAnswer, SubmitAnswer, TransactionProof
from bcami.model.block import header_hash
from bcami.model.chain import BlockBundle, StateVersion
from bcami.model.genesis import Genesis
from bcami.model.ids import Hash
from bcami.model.reasons import Reason, explain
from bcami.model.registration import MeterState
from bcami.units import MIB

RELEASE_BYTES_MAX: Final = 8 * MIB
_TRANSACTION_OVERHEAD_BYTES: Final = 320
EVENT_WAIT_S: Final = 10.0
"""A stream on which nothing happens says so this often, so that a client can tell quiet from gone."""

router = APIRouter(tags=["reads"], dependencies=[Depends(require_chain)], responses=REFUSALS)
own = APIRouter(tags=["node"], responses=REFUSALS)
"""What is asked of this process, whatever network is meant."""

HexHash = Annotated[str, Path(pattern="^[0-9a-f]{64}$", examples=["7d" * 32])]
HexKey = Annotated[str, Path(pattern="^([0-9a-f]{2})+$", max_length=1000, examples=["6d646d73"])]
Name = Annotated[str, Path(pattern="^[a-z][a-z0-9_-]{0,31}$")]
Height = Annotated[int, Path(ge=0, le=2**63 - 1, examples=[1])]
Cursor = Annotated[int, Query(ge=0, le=2**63 - 1, description="Only what is above this height")]
AtLeast = Annotated[int, Query(ge=0, le=2**63 - 1, description="Answer 425 while this node is below that height")]


def _wants_msgpack(request: Request) -> bool:
    return MSGPACK in request.headers.get("accept", "")


def _packed(record: Any) -> Response:
    return Response(encode(record), media_type=MSGPACK)


def _json(value: Any) -> JSONResponse:
    return JSONResponse(msgspec.to_builtins(value))


def _either(request: Request, record: Any) -> Response:
    return _packed(record) if _wants_msgpack(request) else _json(hexed(record))


_GENESIS = answers(
    "Genesis: msgpack unless JSON is asked for",
    structure(chain=schema_of(Hash), genesis=schema_of(Genesis)),
    packed="Genesis",
)


@own.get("/v1/genesis", responses=_GENESIS)
async def genesis(request: Request) -> Response:
    """Return genesis: to look at, or to compare with the one that is trusted."""
    roster = service_of(request).roster
    if JSON in request.headers.get("accept", ""):
        return _json({"chain": roster.chain.hex(), "genesis": hexed(roster.genesis)})
    return _packed(roster.genesis)


@router.get(
    "/v1/transactions/{tx_id}", responses=answers("The outcome and its receipt", RESULT_SCHEMA, packed="SubmitAnswer")
)
async def transaction(request: Request, tx_id: HexHash) -> Response:
    """Return the receipt of a transaction; 404 while this node knows no certified outcome of it."""
    known = service_of(request).core.known_result(bytes.fromhex(tx_id))
    if known is None:
        raise Refused(Reason.NOT_FOUND, "no certified outcome of this transaction is known here")
    result, block = known
    if _wants_msgpack(request):
        return _packed(SubmitAnswer((result,), (block,)))
    return _json(result_form(result, {block.header.height: block}))


@router.get("/v1/blocks/{height}", responses=answers("A certified block", BLOCK_SCHEMA, packed="BlockBundle"))
async def block(request: Request, height: Height) -> Response:
    """Return a certified block."""
    bundle = service_of(request).ledger.bundle(height)
    if bundle is None:
        raise Refused(Reason.NOT_FOUND, "no certified block of this height is here")
    return _packed(bundle) if _wants_msgpack(request) else _json(block_form(bundle))


@router.get(
    "/v1/headers/{height}",
    responses=answers(
        "A certified header",
        schema_of(CertifiedHeader),
        packed="CertifiedHeader",
        example=example_of(CertifiedHeader),
    ),
)
async def header(request: Request, height: Height) -> Response:
    """Return a certified header."""
    ledger = service_of(request).ledger
    found, certificate = ledger.header(height), ledger.certificate(height)
    if found is None or certificate is None:
        raise Refused(Reason.NOT_FOUND, "no certified block of this height is here")
    return _either(request, CertifiedHeader(found, certificate))


@router.get("/v1/released", responses=answers("Released blocks in order", None, packed="ReleaseAnswer"))
async def released(
    request: Request,
    after: Cursor = 0,
    limit: Annotated[int, Query(ge=1, le=256)] = 64,
) -> Response:
    """Return released blocks above `after` (design D11): at least one if there is one, then up to about 8 MiB."""
    service = service_of(request)
    top = service.released_height
    bundles: list[BlockBundle] = []
    size = 0
    for number in range(after + 1, min(top, after + limit) + 1):
        bundle = service.ledger.bundle(number)
        if bundle is None:
            break
        size += _size_of(bundle)
        if bundles and size > RELEASE_BYTES_MAX:
            break
        bundles.append(bundle)
    return _packed(ReleaseAnswer(top, service.core.certified_height, tuple(bundles)))


def _size_of(bundle: BlockBundle) -> int:
    """Return about how many bytes the block takes in an answer."""
    transactions = (tx for stored in bundle.batches for tx in stored.batch.transactions)
    return sum(len(tx.argument) + _TRANSACTION_OVERHEAD_BYTES for tx in transactions)


@router.get(
    "/v1/events",
    response_class=StreamingResponse,
    responses={
        200: {"description": "One event `block` for each certified block", "content": {"text/event-stream": {}}}
    },
)
async def events(
    request: Request,
    after: Cursor = 0,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=2**63 - 1, description="Resumes after this height; goes before `after`")
    ] = None,
) -> StreamingResponse:
    """Stream one event for each certified block (server-sent events); its id is the height."""
    start = after if last_event_id is None else last_event_id
    return StreamingResponse(
        _events(service_of(request), start), media_type="text/event-stream", headers={"cache-control": "no-store"}
    )


async def _events(service: NodeService, after: int) -> AsyncIterator[bytes]:
    height = after
    while not service.is_stopping:
        while height < service.core.certified_height and not service.is_stopping:
            found = service.ledger.header(height + 1)
            if found is None:
                break
            height += 1
            event = {
                "height": height,
                "hash": header_hash(found).hex(),
                "transactions": found.transaction_count,
                "time_ms": found.time_ms,
            }
            yield format_sse_event(data_str=msgspec.json.encode(event).decode(), event="block", id=str(height))
        if not await service.next_block(EVENT_WAIT_S) and not service.is_stopping:
            yield b": still here\n\n"


@router.get(
    "/v1/query/{contract}/{function}",
    responses=answers("The answer", schema_of(QueryAnswer), packed="QueryAnswer", example=example_of(QueryAnswer)),
)
async def query(
    request: Request,
    contract: Annotated[Name, Path(examples=["mdms"])],
    function: Annotated[Name, Path(examples=["period"])],
    argument: Annotated[str, Query(pattern="^([0-9a-f]{2})*$", max_length=65_536)] = "",
    at_least: AtLeast = 0,
) -> Response:
    """Run a contract's query on this node's state: a hint, labelled with its height (protocol 5.6)."""
    service = service_of(request)
    _require_height(service, at_least)
    answer = service.query(contract, function, bytes.fromhex(argument))
    if isinstance(answer, Reason):
        raise Refused(answer, f"{contract}.{function}: {explain(answer)}")
    return _either(request, answer)


@router.get(
    "/v1/state/{key}",
    responses=answers("The value", schema_of(QueryAnswer), packed="QueryAnswer", example=example_of(QueryAnswer)),
)
async def state(request: Request, key: HexKey, at_least: AtLeast = 0) -> Response:
    """Return one value of the world state: a hint, labelled with its height."""
    service = service_of(request)
    _require_height(service, at_least)
    return _either(request, service.state(bytes.fromhex(key)))


@router.get(
    "/v1/history/{key}", responses=answers("Oldest first", structure(versions=schema_of(tuple[StateVersion, ...])))
)
async def history(request: Request, key: HexKey) -> Response:
    """Return all versions of a key, oldest first; what the node keeps for itself has no history."""
    return _json({"versions": hexed(service_of(request).ledger.history(bytes.fromhex(key)))})


@router.get("/v1/period", responses=answers("The registration", schema_of(TransactionProof), packed="TransactionProof"))
async def period(request: Request) -> Response:
    """Return the newest registration of an MDMS period with its receipt (protocol 2.5)."""
    proof = service_of(request).period_proof()
    if proof is None:
        raise Refused(Reason.NOT_FOUND, "no MDMS period is registered yet")
    return _either(request, proof)


_PLACE = structure(height=ANY_NUMBER, index=ANY_NUMBER, transaction_id=schema_of(Hash))


@router.get(
    "/v1/meters/{hid}",
    responses=answers(
        "Enrolment, current session, newest transactions",
        structure(hid=schema_of(Hash), height=ANY_NUMBER, state=schema_of(MeterState), transactions=listing(_PLACE)),
    ),
)
async def meter(request: Request, hid: HexHash, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> Response:
    """Return what the chain says of one HID: enrolment, current session, newest transactions."""
    service = service_of(request)
    key = bytes.fromhex(hid)
    answer = service.query("registration", "meter", key)
    if isinstance(answer, Reason) or answer.value is None:
        raise Refused(answer if isinstance(answer, Reason) else Reason.UNKNOWN_HID, status=404)
    listed = service.ledger.by_signer(key, limit)
    return _json(
        {
            "hid": hid,
            "height": answer.height,
            "state": hexed(msgspec.msgpack.decode(answer.value, type=MeterState)),
            "transactions": [
                {"height": height, "index": index, "transaction_id": tx_id.hex()} for height, index, tx_id in listed
            ],
        }
    )


@own.get("/v1/status", responses=answers("Where this node stands", STATUS_SCHEMA))
async def status(request: Request) -> JSONResponse:
    """Return where this node stands."""
    return _json(service_of(request).status())


def _alarm(description: str, schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {503: {"description": description, "content": {JSON: {"schema": schema}}}}


_HEALTH = structure(ok={"type": "boolean"}, halted=optional(TEXT))
_READY = structure(ready={"type": "boolean"}, why=optional(TEXT), amnesia={"type": "boolean"})


@own.get("/healthz", responses={**answers("Alive", _HEALTH), **_alarm("Halted", _HEALTH)})
async def healthz(request: Request) -> JSONResponse:
    """200 while the process lives and has not halted."""
    halted = service_of(request).core.halted
    return JSONResponse({"ok": halted is None, "halted": halted}, status_code=200 if halted is None else 503)


@own.get("/readyz", responses={**answers("Ready", _READY), **_alarm("Not ready", _READY)})
async def readyz(request: Request) -> JSONResponse:
    """200 when this node can reach a quorum and is not behind the window.

    With `amnesia` it is ready for reads only: it has lost its vote log, and refuses what it would have to sign.
    """
    service = service_of(request)
    why = service.why_not_ready
    told = {"ready": why is None, "why": why, "amnesia": service.core.is_amnesiac}
    return JSONResponse(told, status_code=200 if why is None else 503)


@own.get("/metrics", responses={200: {"description": "Prometheus text", "content": {"text/plain": {"schema": TEXT}}}})
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(service_of(request).metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _require_height(service: NodeService, at_least: int) -> None:
    if service.height < at_least:
        raise Refused(Reason.BEHIND, f"this node is at height {service.height}")
