"""HTTP endpoints of the symmetric keys: for whoever carries meters' messages, and for operators.

What meters send protects itself (bcami.kms), so `messages` asks for nothing; a stream is given to who proves to be the
meter that it is for (bcami.kms.subscription). Both are bounded.
"""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Header, HTTPException, Query, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from starlette.types import Receive, Scope, Send

from bcami.codec import Codec, encode
from bcami.errors import MalformedError
from bcami.kms.inbox import INBOX_MAX, KINDS
from bcami.kms.subscription import SUBSCRIPTION
from bcami.kms.wire import EPOCH_EVENT, GAP_EVENT, LEFT_OUT_EVENT, MESSAGE_EVENT, UP_BATCH
from bcami.mdms.access import Operator, Reader, service_of
from bcami.mdms.head_end import Epoch, Gap, HeadEnd, Heard, Message
from bcami.mdms.kms_admission import CHALLENGE_S, Admitted
from bcami.mdms.kms_service import KmsService, received_form
from bcami.mdms.requests_in_hand import BODY_S, REQUESTS_MAX, NoRoom, Place, TooLarge, TooLate
from bcami.mdms.service import MdmsService
from bcami.model.reasons import Reason, explain

LAST_WORDS_S: Final = 1.0
"""How long a stream that the head-end ended may take to tell its reader."""

T = TypeVar("T")

router = APIRouter(prefix="/v1/kms")


def kms_of(request: Request) -> KmsService:
    kms = service_of(request).kms
    if kms is None:
        raise HTTPException(404, "this MDMS has no symmetric keys")
    return kms


@router.post("/messages")
async def messages(request: Request) -> dict[str, Any]:
    """Take messages of meters: the body is msgpack `bcami.kms.wire.UpBatch`. Answers what was refused, by reason."""
    kms = kms_of(request)
    with _in_hand(kms) as place:
        batch = await _decoded(request, UP_BATCH, kms, place)
        refused = await kms.receive(batch, "" if request.client is None else request.client.host)
    return {"taken": len(batch), "refused": dict(refused)}


@router.post("/stream", response_class=StreamingResponse)
async def stream(
    request: Request, last_event_id: Annotated[str | None, Header(max_length=64)] = None
) -> StreamingResponse:
    """Stream what is for some meters (server-sent events): the body is msgpack `bcami.kms.subscription.Subscription`.

    With Last-Event-ID a stream goes on where it ended; an event `gap` says when it cannot.
    """
    kms = kms_of(request)
    with _in_hand(kms) as place:
        wanted = await _decoded(request, SUBSCRIPTION, kms, place)
        admitted = await kms.admission.admit(wanted)
    if isinstance(admitted, Reason):
        raise HTTPException(503 if admitted is Reason.QUEUE_FULL else 403, f"{admitted}: {explain(admitted)}")
    return _Stream(kms.head_end, admitted, last_event_id)


class _Stream(StreamingResponse):
    """A stream whose place is given up however it ends, also when its reader went before the first event."""

    def __init__(self, head_end: HeadEnd, admitted: Admitted, after: str | None) -> None:
        super().__init__(
            _events(head_end, admitted, after), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )
        self._head_end = head_end
        self._listener = admitted.listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the reader or the head-end ends it; a reader that does not read is not waited for then."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "a response is sent by a task"
        cutting: list[asyncio.TimerHandle] = []
        self._listener.on_end = lambda: cutting.append(loop.call_later(LAST_WORDS_S, task.cancel))
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            if not self._listener.is_over:
                raise
            task.uncancel()
        finally:
            self._listener.on_end = lambda: None
            for handle in cutting:
                handle.cancel()
            self._head_end.leave(self._listener)


async def _events(head_end: HeadEnd, admitted: Admitted, after: str | None) -> AsyncIterator[bytes]:
    if admitted.left_out:
        data = b64encode(encode(admitted.left_out)).decode()
        yield format_sse_event(data_str=data, event=LEFT_OUT_EVENT)
    async for heard in head_end.listen(admitted.listener, after):
        yield _event(heard)


def _event(heard: Heard | None) -> bytes:
    match heard:
        case None:
            return b": still here\n\n"
        case Epoch(proof):
            return format_sse_event(data_str=b64encode(proof).decode(), event=EPOCH_EVENT)
        case Gap():
            return format_sse_event(data_str="", event=GAP_EVENT)
        case Message(name, item):
            return format_sse_event(data_str=b64encode(encode(item)).decode(), event=MESSAGE_EVENT, id=name)


@router.post("/challenge")
async def challenge(request: Request) -> dict[str, Any]:
    """Return what meters sign to get a stream; good for one subscription."""
    return {"challenge": kms_of(request).admission.challenge().hex(), "valid_s": CHALLENGE_S}


@router.get("/keys")
async def keys(request: Request, _: Reader) -> dict[str, Any]:
    """Return who has keys of the open epoch: of all meters, and of those that somebody carries now."""
    return await kms_of(request).keys()


@router.get("/inbox")
async def inbox(
    request: Request, service: Operator, limit: Annotated[int, Query(ge=1, le=len(KINDS) * INBOX_MAX)] = 100
) -> dict[str, Any]:
    """Return the newest notifications and meter data that meters sent, oldest first."""
    kms = kms_of(request)
    newest = (await kms.look(lambda: kms.server.inbox))[-limit:]
    return {"received": await named(service, [received_form(item) for item in newest])}


async def named(service: MdmsService, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows about meters with their meter ids, None where the directory has none."""
    hids = [bytes.fromhex(row["hid"]) for row in rows]
    names = await asyncio.to_thread(service.names_of, hids) if hids else {}
    return [{**row, "meter_id": names.get(hid)} for row, hid in zip(rows, hids, strict=True)]


@router.get("/status")
async def status(request: Request, _: Reader) -> dict[str, Any]:
    """Return how the symmetric keys stand, and what became of the newest deliveries."""
    kms = kms_of(request)
    return await kms.status()


async def _decoded(request: Request, codec: Codec[T], kms: KmsService, place: Place) -> T:
    """Return what a body holds; one that does not decode, or does not come, is refused."""
    try:
        return codec.decode(await place.body(request.stream(), codec.bytes_max))
    except MalformedError as error:
        raise _refusal(kms, 400, Reason.MALFORMED, error.what) from None
    except TooLarge:
        raise _refusal(kms, 413, Reason.OVERSIZED, f"more than {codec.bytes_max} bytes") from None
    except TooLate:
        raise _refusal(kms, 408, Reason.TIMED_OUT, f"no whole body within {BODY_S:.0f} s") from None


@contextmanager
def _in_hand(kms: KmsService) -> Iterator[Place]:
    """Bound how many requests with bodies there are."""
    try:
        with kms.requests.place() as place:
            yield place
    except NoRoom:
        raise _refusal(kms, 503, Reason.QUEUE_FULL, f"{REQUESTS_MAX} requests are in hand") from None


def _refusal(kms: KmsService, status: int, reason: Reason, detail: str) -> HTTPException:
    kms.metrics.refused(reason)
    return HTTPException(status, f"{reason}: {explain(reason)}: {detail}")
