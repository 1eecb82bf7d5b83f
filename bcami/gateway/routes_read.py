"""Reads: status, blocks, receipts, state, events. Each answer is labelled with the height it speaks of."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import format_sse_event

from bcami.codec import encode
from bcami.gateway.forms import block_form, hexed, result_form
from bcami.gateway.routes_write import MSGPACK, refusal
from bcami.gateway.service import NodeService
from bcami.model.api import CertifiedHeader, QueryAnswer, ReleaseAnswer, SubmitAnswer
from bcami.model.block import header_hash
from bcami.model.chain import BlockBundle
from bcami.model.reasons import Reason
from bcami.model.registration import MeterState
from bcami.units import MIB

RELEASE_BYTES_MAX = 8 * MIB
EVENT_WAIT_S = 10.0

router = APIRouter(tags=["reads"])

HexHash = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
HexKey = Annotated[str, Path(pattern="^([0-9a-f]{2})+$", max_length=1000)]
Height = Annotated[int, Path(ge=0, le=2**63 - 1)]
AtLeast = Annotated[int, Query(ge=0, le=2**63 - 1, description="Answer 425 while this node is below that height")]


def _service(request: Request) -> NodeService:
    service: NodeService = request.app.state.service
    return service


def _wants_msgpack(request: Request) -> bool:
    return MSGPACK in request.headers.get("accept", "")


def _packed(record: Any) -> Response:
    return Response(encode(record), media_type=MSGPACK)


def _json(value: Any) -> JSONResponse:
    return JSONResponse(msgspec.to_builtins(value))


def _absent(what: str) -> JSONResponse:
    return JSONResponse({"reason": "not_found", "detail": what}, status_code=404)


@router.get("/v1/genesis")
async def genesis(request: Request) -> Response:
    """Return genesis: to look at, or to compare with the one that is trusted."""
    service = _service(request)
    if _wants_msgpack(request) or "json" not in request.headers.get("accept", ""):
        return _packed(service.roster.genesis)
    return _json({"chain": service.roster.chain.hex(), "genesis": hexed(service.roster.genesis)})


@router.get("/v1/transactions/{tx_id}")
async def transaction(request: Request, tx_id: HexHash) -> Response:
    """Return the receipt of a transaction; 404 while this node knows no certified outcome of it."""
    known = _service(request).core.known_result(bytes.fromhex(tx_id))
    if known is None:
        return _absent("no certified outcome of this transaction is known here")
    result, block = known
    if _wants_msgpack(request):
        return _packed(SubmitAnswer((result,), (block,)))
    return _json(result_form(result, {block.header.height: block}))


@router.get("/v1/blocks/{height}")
async def block(request: Request, height: Height) -> Response:
    """Return a certified block."""
    bundle = _service(request).ledger.bundle(height)
    if bundle is None:
        return _absent("no certified block of this height is here")
    if _wants_msgpack(request):
        return _packed(bundle)
    header = bundle.block.header
    return _json(block_form(header, header_hash(header), bundle.certificate, bundle))


@router.get("/v1/headers/{height}")
async def header(request: Request, height: Height) -> Response:
    """Return a certified header."""
    ledger = _service(request).ledger
    found, certificate = ledger.header(height), ledger.certificate(height)
    if found is None or certificate is None:
        return _absent("no certified block of this height is here")
    certified = CertifiedHeader(found, certificate)
    return _packed(certified) if _wants_msgpack(request) else _json(hexed(certified))


@router.get("/v1/released")
async def released(
    request: Request,
    after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=256)] = 64,
) -> Response:
    """Return released blocks above `after` (msgpack): as many as fit into about 8 MiB."""
    service = _service(request)
    top = service.released_height
    bundles: list[BlockBundle] = []
    size = 0
    for number in range(after + 1, min(top, after + limit) + 1):
        bundle = service.ledger.bundle(number)
        if bundle is None or (bundles and size > RELEASE_BYTES_MAX):
            break
        size += 400 * bundle.block.header.transaction_count
        bundles.append(bundle)
    return _packed(ReleaseAnswer(top, service.core.certified_height, tuple(bundles)))


@router.get("/v1/events")
async def events(
    request: Request,
    after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Stream one event for each certified block (server-sent events); resumes after `Last-Event-ID`."""
    if last_event_id is not None and last_event_id.isdigit():
        after = int(last_event_id)
    return StreamingResponse(_events(_service(request), after), media_type="text/event-stream")


async def _events(service: NodeService, after: int) -> AsyncIterator[bytes]:
    height = after
    while not service.is_stopping:
        while height < service.core.certified_height:
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
        try:
            async with asyncio.timeout(EVENT_WAIT_S):
                await service.driver.next_block()
        except TimeoutError:
            yield b": still here\n\n"


@router.get("/v1/query/{contract}/{function}")
async def query(
    request: Request,
    contract: Annotated[str, Path(pattern="^[a-z][a-z0-9_-]{0,31}$")],
    function: Annotated[str, Path(pattern="^[a-z][a-z0-9_-]{0,31}$")],
    argument: Annotated[str, Query(pattern="^([0-9a-f]{2})*$", max_length=65_536)] = "",
    at_least: AtLeast = 0,
) -> Response:
    """Run a contract's query on this node's state: a hint, labelled with its height (protocol 5.6)."""
    service = _service(request)
    if service.core.height < at_least:
        return _too_early(service)
    answer = service.query(contract, function, bytes.fromhex(argument))
    if isinstance(answer, Reason):
        service.count(answer)
        return refusal(answer, f"{contract}.{function}", 404)
    return _answer(request, answer)


@router.get("/v1/state/{key}")
async def state(request: Request, key: HexKey, at_least: AtLeast = 0) -> Response:
    """Return one value of the world state: a hint, labelled with its height."""
    service = _service(request)
    if service.core.height < at_least:
        return _too_early(service)
    return _answer(request, service.state(bytes.fromhex(key)))


@router.get("/v1/history/{key}")
async def history(request: Request, key: HexKey) -> Response:
    """Return all versions of a key, oldest first."""
    return _json({"versions": hexed(_service(request).ledger.history(bytes.fromhex(key)))})


@router.get("/v1/period")
async def period(request: Request) -> Response:
    """Return the newest registration of an MDMS period with its receipt (protocol 2.5)."""
    proof = _service(request).period_proof()
    if proof is None:
        return _absent("no MDMS period is registered yet")
    return _packed(proof) if _wants_msgpack(request) else _json(hexed(proof))


@router.get("/v1/meters/{hid}")
async def meter(request: Request, hid: HexHash, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> Response:
    """Return what the chain says of one HID: enrolment, current session, newest transactions."""
    service = _service(request)
    key = bytes.fromhex(hid)
    answer = service.query("registration", "meter", key)
    if isinstance(answer, Reason):
        service.count(answer)
        return refusal(answer, "no such HID is enrolled", 404)
    listed = service.ledger.by_signer(key, limit)
    found = None if answer.value is None else msgspec.msgpack.decode(answer.value, type=MeterState)
    return _json(
        {
            "hid": hid,
            "height": answer.height,
            "state": hexed(found),
            "transactions": [
                {"height": height, "index": index, "transaction_id": tx_id.hex()} for height, index, tx_id in listed
            ],
        }
    )


@router.get("/v1/status")
async def status(request: Request) -> JSONResponse:
    """Return where this node stands."""
    return _json(_service(request).status())


@router.get("/healthz")
async def healthz(request: Request) -> JSONResponse:
    """200 while the process lives and has not halted."""
    halted = _service(request).core.halted
    return JSONResponse({"ok": halted is None, "halted": halted}, status_code=200 if halted is None else 503)


@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """200 when this node can reach a quorum."""
    ready = _service(request).is_ready
    return JSONResponse({"ready": ready}, status_code=200 if ready else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(_service(request).metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _answer(request: Request, answer: QueryAnswer) -> Response:
    return _packed(answer) if _wants_msgpack(request) else _json(hexed(answer))


def _too_early(service: NodeService) -> JSONResponse:
    return refusal(Reason.BEHIND, f"this node is at height {service.core.height}", 425, 1)
