"""The door through which an operator tells a live node to misbehave.

Loaded only where genesis says `faults_allowed` (design D14); elsewhere these paths do not exist.
"""

import secrets
from typing import Annotated, Any, Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from bcami.errors import InputError
from bcami.faults.catalogue import make_behaviour
from bcami.faults.node import FaultyNode, describe
from bcami.faults.scenario import resolve_options
from bcami.gateway.refusals import REFUSALS, Refused
from bcami.gateway.routes_operator import Operator
from bcami.model.reasons import Reason
from bcami.node.driver import now_ms

FOR_S_MAX: Final = 3_600.0


class FaultForm(BaseModel):
    """What to show, and for how long: a fault without an end is not taken."""

    model_config = ConfigDict(extra="forbid")

    behaviour: str = Field(max_length=64, examples=["mute"])
    for_s: Annotated[float, Field(gt=0, le=FOR_S_MAX)]
    options: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    """Source of all that the behaviour draws; a random one when left out."""


def fault_router(node: FaultyNode) -> APIRouter:
    """Return the routes by which this node is told to misbehave and to stop."""
    router = APIRouter(prefix="/v1/operator/faults", tags=["faults"], responses=REFUSALS)

    @router.get("")
    async def shown(service: Operator) -> JSONResponse:
        """Return what this node shows now, and the newest of what is over."""
        at_ms = now_ms()
        active = [describe(lease, at_ms) for lease in node.leases(at_ms)]
        return JSONResponse({"faults": active, "ended": [describe(lease, at_ms) for lease in node.ended_leases()]})

    @router.post("")
    async def inject(service: Operator, form: FaultForm) -> JSONResponse:
        """Show a behaviour for a while."""
        at_ms = now_ms()
        seed = secrets.randbits(63) if form.seed is None else form.seed
        try:
            behaviour = make_behaviour(form.behaviour, resolve_options(form.options, service.names, _no_meter), seed)
        except InputError as error:
            detail = f"{error.what}; {error.do}" if error.do else error.what
            raise Refused(Reason.BAD_ARGUMENT, detail) from None
        lease = node.inject(behaviour, round(form.for_s * 1000), at_ms)
        return JSONResponse({**describe(lease, at_ms), "seed": seed})

    @router.delete("")
    async def stop(service: Operator) -> JSONResponse:
        """End all faults; what they did is told once more."""
        at_ms = now_ms()
        ended = [describe(lease, at_ms) for lease in node.leases(at_ms)]
        node.stop_faults()
        return JSONResponse({"stopped": ended})

    return router


def _no_meter(_meter: str | int) -> bytes:
    raise InputError("a node cannot tell meters apart by name", do="say `signer`, an HID in hex")
