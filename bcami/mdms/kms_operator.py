"""HTTP endpoints with which operators use the symmetric keys: messages of Table 1, projects, rotation, audit log."""

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import BaseModel, Field

from bcami.errors import InconclusiveError
from bcami.kms import FOREVER_MS, Step
from bcami.kms.audit import gaps
from bcami.kms.groups import Group
from bcami.kms.messages import (
    IDS_MAX,
    NAME_CHARACTERS_MAX,
    ROOT_GROUP,
    ControlAction,
    DeliveryId,
    DownPayload,
    MeterDataCall,
    Pricing,
    RemoteControl,
)
from bcami.mdms.access import Operator, Reader
from bcami.mdms.kms_routes import kms_of, named
from bcami.mdms.kms_service import KmsService
from bcami.mdms.service import MdmsService
from bcami.model.reasons import Reason, explain

AUDIT_ENTRIES_MAX: Final = 1_000
METERS_MAX: Final = 20_000
_UNKNOWN: Final = frozenset({Reason.UNKNOWN_HID, Reason.UNKNOWN_GROUP})

router = APIRouter(prefix="/v1/kms")

Seconds = Annotated[int, Field(ge=0, le=2**40)]
Project = Annotated[int, Field(ge=1, le=2**32 - 1)]
Watts = Annotated[int, Field(ge=0, le=2**32 - 1)]


class PriceForm(BaseModel):
    kind: Literal["price"]
    starts_s: Seconds
    interval_s: Annotated[int, Field(ge=1, le=2**32 - 1)] = 1800
    prices: Annotated[list[Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]], Field(min_length=1, max_length=336)]
    """Units of 10^-7 of the currency per kWh."""

    def payload(self) -> DownPayload:
        return Pricing(self.starts_s, self.interval_s, tuple(self.prices))


class ControlForm(BaseModel):
    kind: Literal["control"]
    action: ControlAction
    limit_w: Watts = 0
    starts_s: Seconds
    ends_s: Seconds

    def payload(self) -> DownPayload:
        return RemoteControl(self.action, self.limit_w, self.starts_s, self.ends_s)


class DataCallForm(BaseModel):
    kind: Literal["data_call"]
    from_s: Seconds
    to_s: Seconds

    def payload(self) -> DownPayload:
        return MeterDataCall(self.from_s, self.to_s)


class SendForm(BaseModel):
    """A message for all meters (group 0), for the members of a project, or for one meter."""

    group: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    meter: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    valid_for_s: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """How long meters still take it; always when left out."""
    message: Annotated[PriceForm | ControlForm | DataCallForm, Field(discriminator="kind")]


@router.post("/send")
async def send(request: Request, service: Operator, form: SendForm) -> dict[str, Any]:
    """Send a message of Table 1; its delivery is followed under the id that is answered."""
    kms = kms_of(request)
    hid = None if form.meter is None else service.hid_of(form.meter)

    def work() -> Step:
        now_ms = kms.now_ms()
        until_ms = FOREVER_MS if form.valid_for_s is None else now_ms + 1000 * form.valid_for_s
        return kms.server.send(form.message.payload(), now_ms, group=form.group, hid=hid, until_ms=until_ms)

    sent = await kms.send(work)
    if isinstance(sent, Reason):
        raise _refused(sent, form.meter)
    return {"epoch": sent.epoch, "number": sent.number}


@router.get("/deliveries/{epoch}/{number}")
async def delivery(request: Request, _: Reader, epoch: int, number: int) -> dict[str, Any]:
    """Return what became of a delivery."""
    found = await kms_of(request).delivery(DeliveryId(epoch, number))
    if found is None:
        raise HTTPException(404, "no such delivery is kept")
    return found


@router.get("/deliveries/{epoch}/{number}/meters")
async def delivery_meters(
    request: Request, service: Reader, epoch: int, number: int, limit: Annotated[int, Query(ge=1, le=METERS_MAX)] = 100
) -> dict[str, Any]:
    """Return what became of a delivery at each meter, who still waits first."""
    return {"meters": await named(service, await kms_of(request).delivery_meters(DeliveryId(epoch, number), limit))}


class ProjectForm(BaseModel):
    project: Project
    name: Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS_MAX)]
    excludes: Annotated[list[Project], Field(max_length=IDS_MAX)] = []
    """Projects that a participant of this one cannot take part in."""


class MemberForm(BaseModel):
    meter: Annotated[str, Field(min_length=1, max_length=64)]


@router.get("/projects")
async def projects(request: Request, _: Reader) -> dict[str, Any]:
    """Return the demand-response projects and how many meters take part."""
    kms = kms_of(request)
    return {
        "projects": await kms.look(
            lambda: [_project(group) for group in kms.server.groups if group.number != ROOT_GROUP]
        )
    }


def _project(group: Group) -> dict[str, Any]:
    return {
        "project": group.number,
        "name": group.record.name,
        "excludes": list(group.record.excludes),
        "published_ms": group.record.published_ms,
        "members": len(group.keying.members),
        "version": group.version,
    }


@router.post("/projects")
async def publish(request: Request, _: Operator, form: ProjectForm) -> dict[str, Any]:
    """Open a project and tell all meters."""
    kms, excludes = kms_of(request), tuple(form.excludes)
    await _command(kms, lambda: kms.server.publish(form.project, form.name, excludes, kms.now_ms(), kms.entropy()))
    return {"project": form.project}


@router.post("/projects/{project}/join")
async def join(request: Request, service: Operator, project: int, form: MemberForm) -> dict[str, Any]:
    """Let a meter take part; it has the keys within about a second."""
    return await _change(kms_of(request), service, project, form, join=True)


@router.post("/projects/{project}/leave")
async def leave(request: Request, service: Operator, project: int, form: MemberForm) -> dict[str, Any]:
    """Take a meter out of a project; those who stay get keys within about a second that it cannot have."""
    return await _change(kms_of(request), service, project, form, join=False)


async def _change(
    kms: KmsService, service: MdmsService, project: int, form: MemberForm, *, join: bool
) -> dict[str, Any]:
    hid = service.hid_of(form.meter)

    def work() -> Step:
        return kms.server.change(hid, project, kms.now_ms(), kms.entropy(), join=join)

    await _command(kms, work, form.meter)
    return {"hid": hid.hex(), "project": project}


@router.post("/rotate")
async def rotate(request: Request, _: Operator) -> dict[str, Any]:
    """Have a new epoch opened: every key is drawn anew."""
    kms = kms_of(request)
    counts = await kms.look(lambda: kms.server.counts)
    kms.rotate()
    return {"after_epoch": counts.epoch}


@router.get("/audit")
async def audit(
    request: Request, _: Operator, limit: Annotated[int, Query(ge=1, le=AUDIT_ENTRIES_MAX)] = 100
) -> dict[str, Any]:
    """Check the whole audit log against the anchor on the chain; return its newest entries."""
    try:
        anchor, entries, fault = await kms_of(request).audit.audit()
    except InconclusiveError as error:
        raise HTTPException(503, f"the chain cannot be read: {error.what}") from None
    return {
        "entries": [
            {"sequence": e.sequence, "time_ms": e.time_ms, "action": e.action, "subject": e.subject, "detail": e.detail}
            for e in entries[-limit:]
        ],
        "length": entries[-1].sequence if entries else 0,
        "anchored_length": anchor.length,
        "anchored_head": anchor.head.hex(),
        "gaps": [{"before": e.sequence, "time_ms": e.time_ms, "what": e.subject} for e in gaps(entries)],
        "fault": fault,
    }


@router.post("/audit/resume")
async def resume_audit(request: Request, _: Operator) -> dict[str, Any]:
    """Go on with the audit log after an old backup was restored, leaving a visible gap."""
    try:
        reason = await kms_of(request).resume_audit()
    except InconclusiveError as error:
        raise HTTPException(503, f"the chain cannot be read: {error.what}") from None
    if reason is not Reason.VALID:
        raise HTTPException(409, "the log is what the chain has: there is nothing to resume")
    return {"resumed": True}


async def _command(kms: KmsService, work: Callable[[], Step], meter: str | None = None) -> None:
    reason = await kms.command(work)
    if reason is not Reason.VALID:
        raise _refused(reason, meter)


def _refused(reason: Reason, meter: str | None = None) -> HTTPException:
    """Return the answer to a command that is refused, with the meter as it was named."""
    status = 404 if reason in _UNKNOWN else 503 if reason is Reason.NOT_READY else 409
    whom = f": {meter}" if meter is not None and reason is Reason.UNKNOWN_HID else ""
    return HTTPException(status, f"{reason}: {explain(reason)}{whom}")
