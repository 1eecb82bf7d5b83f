"""What only an operator may ask; the credential is made by `bcami init`."""

import hmac
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from bcami.codec import encode
from bcami.gateway.openapi import ANY_NUMBER, HEX, TEXT, answers, listing, optional, structure
from bcami.gateway.refusals import REFUSALS, Refused, service_of
from bcami.gateway.service import NodeService
from bcami.model.evidence import KeptEvidence, evidence_id
from bcami.model.reasons import Reason

_bearer = HTTPBearer(auto_error=False, description="Token in HOME/operator.token")


async def _operator(
    request: Request, credential: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> NodeService:
    service = service_of(request)
    shown = b"" if credential is None else credential.credentials.encode()
    if not hmac.compare_digest(shown, service.operator_token.encode()):
        raise Refused(Reason.NOT_AUTHORIZED, "this endpoint needs the operator's token")
    return service


Operator = Annotated[NodeService, Depends(_operator)]
router = APIRouter(prefix="/v1/operator", tags=["operator"], responses=REFUSALS)


@router.post("/stop", responses=answers("The process is stopping", structure(stopping={"type": "boolean"})))
async def stop(service: Operator) -> JSONResponse:
    """Stop the process cleanly."""
    service.on_stop()
    return JSONResponse({"stopping": True})


_EVIDENCE = listing(
    structure(
        evidence_id=HEX,
        replica=ANY_NUMBER,
        name=TEXT,
        what=TEXT,
        epoch=ANY_NUMBER,
        view=ANY_NUMBER,
        height=ANY_NUMBER,
        seen_ms=ANY_NUMBER,
        first=HEX,
        second=HEX,
        evidence=HEX,
        outcome=optional(TEXT),
    )
)


@router.get("/evidence", responses=answers("What this node keeps", structure(evidence=_EVIDENCE)))
async def evidence(service: Operator) -> JSONResponse:
    """Return the contradictions of members that this node keeps.

    `evidence` is the encoded `Evidence` of bcami.model, which genesis verifies. `outcome` is `valid` when the chain
    holds it, null while it is to be reported.
    """
    return JSONResponse({"evidence": [_shown(service, item) for item in service.held_evidence()]})


def _shown(service: NodeService, kept: KeptEvidence) -> dict[str, Any]:
    place, roster = kept.evidence.place, service.roster
    return {
        "evidence_id": evidence_id(roster.chain, kept.evidence).hex(),
        "replica": place.replica,
        "name": service.names[place.replica],
        "what": place.kind,
        "epoch": place.epoch,
        "view": place.view,
        "height": place.height,
        "seen_ms": kept.seen_ms,
        "first": encode(kept.evidence.first).hex(),
        "second": encode(kept.evidence.second).hex(),
        "evidence": encode(kept.evidence).hex(),
        "outcome": kept.outcome,
    }
