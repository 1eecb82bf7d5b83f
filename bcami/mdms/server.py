"""The HTTP API of the MDMS: what it stores, its validation findings, and its state.

Readings are personal data: they are answered to programs on this machine (loopback) and to whoever shows the
operator's token. What changes or writes something always needs the token.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import anyio
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from bcami import __version__
from bcami.errors import BcamiError, InputError
from bcami.mdms import kms_operator, kms_routes
from bcami.mdms.access import Operator, Reader, service_of
from bcami.mdms.export import stream_arrow
from bcami.mdms.records import START_S_MAX
from bcami.mdms.service import MdmsService
from bcami.mdms.store import MeterSummary
from bcami.mdms.vee import flag_names
from bcami.units import energy_to_text

QUERIES_AT_ONCE: Final = 2
"""Requests that may work on the store at a time; others wait."""
READINGS_PER_ANSWER_MAX: Final = 20_000
METERS_PER_ANSWER_MAX: Final = 5_000
DIRECTORY_METERS_MAX: Final = 100_000
ARROW_TYPE: Final = "application/vnd.apache.arrow.stream"
DESCRIPTION: Final = """Verified, decrypted and validated readings.

Energy is an integer in units of 10^-7 kWh (`energy`) and the same as decimal text (`kwh`); it is always the value that
the meter sent. Validation findings stand beside it as flags. Times are UTC; `from` is inclusive, `to` exclusive, each
in ISO 8601 or Unix seconds.
"""
T = TypeVar("T")


class Meter(BaseModel):
    """An enrolled meter and the extent of its readings."""

    meter_id: str | None
    hid: str
    readings: int
    first: str | None
    last: str | None


class Meters(BaseModel):
    meters: list[Meter]
    next_after: int | None = Field(description="Value of `after` for the next page; null on the last")


class ReadingRow(BaseModel):
    start: str
    start_s: int
    interval_s: int
    energy: int
    kwh: str
    flags: list[str]
    height: int
    place: int


class Readings(BaseModel):
    meter_id: str | None
    hid: str
    readings: list[ReadingRow]
    next_from: int | None = Field(description="Value of `from` for the next page; null on the last")


class ProfileRow(BaseModel):
    time: str = Field(description="Start of the half-hour of the UTC day", examples=["18:30"])
    readings: int
    mean_kwh: str
    min_kwh: str
    max_kwh: str


class Profile(BaseModel):
    meter_id: str | None
    slots: list[ProfileRow]


class GapRow(BaseModel):
    meter_id: str
    start: str = Field(description="Start of the first missing interval")
    end: str = Field(description="Start of the reading after the gap")
    intervals: int


class Gaps(BaseModel):
    gaps: list[GapRow]
    truncated: bool


class Directory(BaseModel):
    meters: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=DIRECTORY_METERS_MAX)]


class Target(BaseModel):
    path: Annotated[str, Field(min_length=1, max_length=4096, examples=["readings.parquet"])]


router = APIRouter(prefix="/v1")


def parse_time(text: str) -> int:
    """Return Unix seconds of ISO 8601 text (UTC unless it says otherwise) or of a whole number. Raises InputError."""
    try:
        if text.lstrip("-").isdecimal():
            return max(0, min(int(text), START_S_MAX + 1))
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"not a time: {text!r}", do="give ISO 8601 (2013-01-31T12:30) or Unix seconds") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0, min(int(moment.timestamp()), START_S_MAX + 1))


class _Range:
    """The part of time that a request is about."""

    def __init__(
        self,
        start: Annotated[str | None, Query(alias="from", examples=["2013-01-01"])] = None,
        end: Annotated[str | None, Query(alias="to", examples=["2013-02-01"])] = None,
    ) -> None:
        self.from_s = 0 if start is None else parse_time(start)
        self.to_s = START_S_MAX + 1 if end is None else parse_time(end)


Range = Annotated[_Range, Depends()]


@router.get("/status")
async def status(request: Request) -> dict[str, Any]:
    """Return how far this MDMS is, and what it holds."""
    return service_of(request).status()


@router.get("/meters")
async def meters(
    request: Request,
    service: Reader,
    after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=METERS_PER_ANSWER_MAX)] = 500,
) -> Meters:
    """Return enrolled meters, in the order of their enrolment."""
    found = await _query(request, lambda: service.queries.meters(after, limit))
    return Meters(meters=[_meter(row) for row in found], next_after=found[-1].number if len(found) == limit else None)


@router.get("/meters/{meter}")
async def one_meter(request: Request, service: Reader, meter: str) -> Meter:
    """Return one meter by its meter id or its HID."""
    return _meter(await _find(request, service, meter))


@router.get("/meters/{meter}/readings")
async def readings(
    request: Request,
    service: Reader,
    meter: str,
    part: Range,
    limit: Annotated[int, Query(ge=1, le=READINGS_PER_ANSWER_MAX)] = 1_000,
) -> Readings:
    """Return a meter's readings with their validation flags, oldest first."""
    found = await _find(request, service, meter)
    table = await _query(request, lambda: service.queries.readings(found.number, part.from_s, part.to_s, limit))
    rows = [
        ReadingRow(
            start=_time(row["start_s"]),
            start_s=row["start_s"],
            interval_s=row["interval_s"],
            energy=row["energy"],
            kwh=energy_to_text(row["energy"]),
            flags=flag_names(row["flags"]),
            height=row["height"],
            place=row["place"],
        )
        for row in table.to_pylist()
    ]
    following = rows[-1].start_s + 1 if len(rows) == limit else None
    return Readings(meter_id=found.meter_id, hid=found.hid.hex(), readings=rows, next_from=following)


@router.get("/meters/{meter}/profile")
async def profile(request: Request, service: Reader, meter: str, part: Range) -> Profile:
    """Return a meter's load profile: what it used at each half-hour of the UTC day."""
    found = await _find(request, service, meter)
    slots = await _query(request, lambda: service.queries.profile(found.number, part.from_s, part.to_s))
    rows = [
        ProfileRow(
            time=f"{slot.second_of_day // 3600:02d}:{slot.second_of_day // 60 % 60:02d}",
            readings=slot.readings,
            mean_kwh=energy_to_text((2 * slot.energy_sum + slot.readings) // (2 * slot.readings)),
            min_kwh=energy_to_text(slot.energy_min),
            max_kwh=energy_to_text(slot.energy_max),
        )
        for slot in slots
    ]
    return Profile(meter_id=found.meter_id, slots=rows)


@router.get("/gaps")
async def gaps(
    request: Request,
    service: Reader,
    part: Range,
    meter: str | None = None,
    limit: Annotated[int, Query(ge=1, le=READINGS_PER_ANSWER_MAX)] = 1_000,
) -> Gaps:
    """Return missing intervals between readings, of one meter or of all."""
    number = None if meter is None else (await _find(request, service, meter)).number
    found = await _query(request, lambda: service.queries.gaps(number, part.from_s, part.to_s, limit))
    rows = [
        GapRow(meter_id=gap.meter, start=_time(gap.from_s), end=_time(gap.to_s), intervals=gap.intervals)
        for gap in found
    ]
    return Gaps(gaps=rows, truncated=len(rows) == limit)


@router.get("/unreadable")
async def unreadable(
    request: Request, service: Reader, limit: Annotated[int, Query(ge=1, le=1_000)] = 100
) -> dict[str, Any]:
    """Return the newest committed reports that could not be stored, each with its fault."""
    table = await _query(request, lambda: service.queries.unreadable(limit))
    return {"reports": table.to_pylist()}


@router.get("/readings.arrow")
async def readings_arrow(
    service: Reader,
    part: Range,
    meters: Annotated[str | None, Query(description="Meter ids, separated by commas; all when left out")] = None,
) -> StreamingResponse:
    """Stream meter_id, start_s, energy as Arrow IPC, sorted by (meter_id, start_s), all of one consistent state."""
    named = None if meters is None else [name for name in meters.split(",") if name]

    def pieces() -> Iterator[bytes]:
        yield from stream_arrow(service.queries.sorted_readings(named, part.from_s, part.to_s, flags=False))

    return StreamingResponse(pieces(), media_type=ARROW_TYPE)


@router.post("/export")
async def export(request: Request, service: Operator, target: Target) -> dict[str, Any]:
    """Write meter_id, start_s, energy, flags of all readings to a Parquet file on the MDMS's machine."""
    path, rows = await _query(request, lambda: service.export(Path(target.path)))
    return {"path": str(path), "readings": rows}


@router.post("/backup")
async def backup(request: Request, service: Operator, target: Target) -> dict[str, Any]:
    """Make a consistent copy of the store and the period keys in a new folder on the MDMS's machine."""
    row = await _query(request, lambda: service.backup(Path(target.path)))
    return {"path": row.path, "height": row.height}


@router.post("/directory")
async def directory(request: Request, service: Operator, names: Directory) -> dict[str, int]:
    """Name enrolled meters, before or after their enrolment; the MDMS computes each HID itself."""
    return {"changed": await _query(request, lambda: service.add_to_directory(names.meters))}


def create_app(service: MdmsService) -> FastAPI:
    """Return the application; the composition root serves it."""
    app = FastAPI(title="bcami MDMS", version=__version__, description=DESCRIPTION)
    app.state.service = service
    app.state.limiter = None
    app.include_router(router)
    app.include_router(kms_routes.router)
    app.include_router(kms_operator.router)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """Answer 200 while the MDMS follows the chain, 503 when it stopped doing so."""
        return JSONResponse({"following": service.following()}, status_code=200 if service.following() else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return Prometheus metrics."""
        return Response(service.metrics.render(service.store), media_type="text/plain; version=0.0.4")

    @app.exception_handler(BcamiError)
    async def explained(_request: Request, error: BcamiError) -> JSONResponse:
        code = 400 if isinstance(error, InputError) else 503
        detail = {"detail": error.what, "where": error.where, "likely": error.likely, "do": error.do}
        return JSONResponse({key: value for key, value in detail.items() if value}, status_code=code)

    return app


async def _query(request: Request, work: Callable[[], T]) -> T:
    """Run blocking work on the store in a thread, a few at a time."""
    state = request.app.state
    if state.limiter is None:
        state.limiter = anyio.CapacityLimiter(QUERIES_AT_ONCE)
    return await anyio.to_thread.run_sync(work, limiter=state.limiter)


async def _find(request: Request, service: MdmsService, name: str) -> MeterSummary:
    found = await _query(request, lambda: service.queries.find_meter(name))
    if found is None:
        raise HTTPException(404, f"no enrolled meter is called {name!r}")
    return found


def _meter(row: MeterSummary) -> Meter:
    return Meter(
        meter_id=row.meter_id,
        hid=row.hid.hex(),
        readings=row.readings,
        first=None if row.first_start_s is None else _time(row.first_start_s),
        last=None if row.last_start_s is None else _time(row.last_start_s),
    )


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
