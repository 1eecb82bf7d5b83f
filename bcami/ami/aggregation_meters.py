"""The meters of a fleet as parties of masked rounds, each reached over HTTP under its HID.

    POST /v1/aggregation/{hid}      msgpack ToMeter → msgpack ToHeadEnd, or 204 when there is nothing to say
    POST /v1/aggregation            the same for many meters behind one gateway: Forwarded… → Reply…, in order
    GET  /metrics                   counts of noes and rounds

What a meter wants kept is durable in the fleet's store before its answer leaves; what many want, in one transaction. A
message to many is decoded once, and so are a receipt's signatures checked: the processor is the gateway's here.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from time import process_time
from typing import Annotated, Final, NamedTuple, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bcami.aggregation.bounds import DEFAULT_POLICY, Policy
from bcami.aggregation.meter import MEMORY, MaskedMeter, MeterKeys
from bcami.aggregation.proofs import GenesisReader
from bcami.aggregation.records import (
    MEMORY_CODEC,
    SET_CODEC,
    TO_HEAD_END_CODEC,
    TO_METER_CODEC,
    RosterNotice,
    RoundCall,
    ToMeter,
)
from bcami.aggregation.rehearsal import Traffic
from bcami.ami.aggregation_metrics import METER, AggregationMetrics
from bcami.ami.meter import Meter
from bcami.ami.outbox import AGGREGATION, Write
from bcami.ami.transcript import Transcript
from bcami.codec import Codec
from bcami.errors import InputError, MalformedError
from bcami.model.ids import U32, Hash
from bcami.model.reasons import Reason, explain
from bcami.units import MIB

MSGPACK: Final = "application/msgpack"

Readings = Mapping[int, int]
"""Start of an interval, Unix seconds → energy units."""


_YIELD_EVERY: Final = 8
CALLS_MAX: Final = 64
"""Messages that are posted together, each to one meter."""


class MeterStore(Protocol):
    """What a host of meters needs of a fleet: keys, and what they keep."""

    def meter(self, meter_id: str) -> Meter:
        """Return a meter. Raises InputError when there is none of that id."""

    def kept(self, table: bytes, prefix: bytes) -> dict[bytes, bytes]:
        """Return the records of a table under a prefix."""

    async def keep(self, writes: Iterable[Write]) -> None:
        """Return when the writes are durable."""


class Forwarded(msgspec.Struct, frozen=True, array_like=True):
    """A message to one or several of a gateway's meters."""

    hids: Annotated[tuple[Hash, ...], msgspec.Meta(min_length=1, max_length=CALLS_MAX)]
    message: Annotated[bytes, msgspec.Meta(max_length=4 * MIB)]


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """What became of it: the status and the body that the meter's own address would have given."""

    status: U32
    data: Annotated[bytes, msgspec.Meta(max_length=MIB)]


_Calls = Annotated[tuple[Forwarded, ...], msgspec.Meta(max_length=CALLS_MAX)]
_Replies = Annotated[tuple[Reply, ...], msgspec.Meta(max_length=CALLS_MAX)]
CALLS_CODEC: Final[Codec[tuple[Forwarded, ...]]] = Codec(_Calls, 16 * MIB)
REPLIES_CODEC: Final[Codec[tuple[Reply, ...]]] = Codec(_Replies, 16 * MIB)


class _Given(NamedTuple):
    """A meter's answer before it leaves."""

    status: int
    data: bytes = b""
    writes: tuple[Write, ...] = ()
    reason: Reason | None = None


class MeterHost:
    """Serves a fleet's meters."""

    def __init__(
        self,
        fleet: MeterStore,
        meter_ids: Mapping[bytes, str],
        readings: Mapping[str, Readings],
        reader: GenesisReader,
        metrics: AggregationMetrics,
        policy: Policy = DEFAULT_POLICY,
    ) -> None:
        """`meter_ids` by HID: those of the group, which all have a session."""
        self._fleet = fleet
        self._readings = {hid: readings[meter_id] for hid, meter_id in meter_ids.items()}
        self._metrics = metrics
        self.transcript: Transcript | None = None
        """Where messages are noted."""
        self._meters = {hid: self._make(hid, meter_id, reader, policy) for hid, meter_id in meter_ids.items()}
        self.is_down: Callable[[bytes, bool], bool] = lambda _hid, _is_later: False
        """Tells, of a meter and whether a round goes on after its contribution, if it is gone: for trials."""
        self.traffic = {hid: Traffic() for hid in meter_ids}
        """Without the rosters."""
        self.cpu_s = 0.0
        """Of the meters' steps in rounds, with what is noted and counted of them."""
        self.roster_cpu_s = 0.0
        """Of taking rosters and agreeing on keys."""
        self._turn = asyncio.Lock()
        """Held from a step of a meter until its writes are in line: an answer that is repeated waits for them too."""

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/aggregation/{hid}", self._take, methods=["POST"]),
                Route("/v1/aggregation", self._take_many, methods=["POST"]),
                self._metrics.route(),
            ]
        )

    def _make(self, hid: bytes, meter_id: str, reader: GenesisReader, policy: Policy) -> MaskedMeter:
        session = self._fleet.meter(meter_id).session
        if session is None:
            raise InputError(f"the meter {meter_id} has no session")
        stored = {key[len(hid) :]: value for key, value in self._fleet.kept(AGGREGATION, hid).items()}
        memory = MEMORY_CODEC.decode(stored.pop(MEMORY)) if MEMORY in stored else None
        sets = {key: SET_CODEC.decode(value).hids for key, value in stored.items()}
        return MaskedMeter(MeterKeys(hid, session.number, session.key, session.kem), reader, policy, memory, sets)

    async def _take(self, request: Request) -> Response:
        try:
            hid = bytes.fromhex(request.path_params["hid"])
        except ValueError:
            return self._refuse(400, Reason.MALFORMED)
        body = await self._body(request, TO_METER_CODEC.bytes_max)
        if isinstance(body, Response):
            return body
        async with self._turn:
            message, began = _decoded(body), process_time()
            given = self._receive(hid, message, body)
            self._count_cpu(message, process_time() - began)
            keeping = asyncio.create_task(self._fleet.keep(given.writes))
        await keeping
        if given.reason is not None:
            return self._refuse(given.status, given.reason)
        return Response(given.data, given.status, media_type=MSGPACK)

    async def _take_many(self, request: Request) -> Response:
        body = await self._body(request, CALLS_CODEC.bytes_max)
        if isinstance(body, Response):
            return body
        try:
            calls = CALLS_CODEC.decode(body)
        except MalformedError:
            return self._refuse(400, Reason.MALFORMED)
        if sum(len(call.hids) for call in calls) > CALLS_MAX:
            return self._refuse(413, Reason.OVERSIZED)
        asked = []
        for call in calls:
            message = _decoded(call.message)
            asked += [(hid, message, call.message) for hid in call.hids]
        all_given: list[_Given] = []
        async with self._turn:
            for first in range(0, len(asked), _YIELD_EVERY):
                began = process_time()  # not for each: it takes as long as some of what it measures
                all_given += [self._receive(*item) for item in asked[first : first + _YIELD_EVERY]]
                self._count_cpu(asked[first][1], process_time() - began)
                await asyncio.sleep(0)
            keeping = asyncio.create_task(self._fleet.keep([write for given in all_given for write in given.writes]))
        await keeping
        for given in all_given:
            if given.reason is not None:
                self._metrics.no(METER, given.reason)
        replies = tuple(Reply(given.status, given.data) for given in all_given)
        return Response(REPLIES_CODEC.encode(replies), media_type=MSGPACK)

    def _count_cpu(self, message: ToMeter | None, seconds: float) -> None:
        if isinstance(message, RosterNotice):
            self.roster_cpu_s += seconds
        else:
            self.cpu_s += seconds

    async def _body(self, request: Request, bytes_max: int) -> bytes | Response:
        if int(request.headers.get("content-length", "0")) > bytes_max:
            return self._refuse(413, Reason.OVERSIZED)
        try:
            return await request.body()
        except ClientDisconnect:
            return self._refuse(400, Reason.MALFORMED)

    def _receive(self, hid: bytes, message: ToMeter | None, body: bytes) -> "_Given":
        """Let a meter take a message; nothing of what it answers may leave before its writes are durable."""
        meter = self._meters.get(hid)
        if meter is None:
            return _Given(404, reason=Reason.NOT_A_MEMBER)
        if message is None:
            return _Given(400, reason=Reason.MALFORMED)
        if self.is_down(hid, not isinstance(message, RosterNotice | RoundCall)):
            return _Given(503)  # as if nobody were there: a trial, not a refusal
        if self.transcript is not None:
            self.transcript.note(hid.hex(), "head-end", type(message).__name__, body)
        answer = meter.receive(message, self._readings[hid].get, os.urandom(32))
        writes = tuple(Write(AGGREGATION, hid + key, value) for key, value in answer.writes)
        traffic = self.traffic[hid]
        if not isinstance(message, RosterNotice):
            traffic.received += 1
            traffic.received_bytes += len(body)
        if answer.message is None:
            return _Given(204, writes=writes)
        data = TO_HEAD_END_CODEC.encode(answer.message)
        traffic.sent += 1
        traffic.sent_bytes += len(data)
        return _Given(200, data, writes)

    def _refuse(self, status: int, reason: Reason) -> Response:
        self._metrics.no(METER, reason)
        return JSONResponse({"reason": reason, "explanation": explain(reason)}, status_code=status)


def _decoded(body: bytes) -> ToMeter | None:
    """Return a message, or None when the bytes are none."""
    try:
        return TO_METER_CODEC.decode(body)
    except MalformedError:
        return None
