"""What only an operator may ask; the credential is made by `bcami init`."""

import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from bcami.gateway.openapi import ANY_NUMBER, HEX, TEXT, answers, listing, structure
from bcami.gateway.refusals import REFUSALS, Refused, service_of
from bcami.gateway.service import NodeService
from bcami.model.reasons import Reason

_bearer = HTTPBearer(auto_error=False, description="Token in HOME/operator.token")


def _operator(
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


_EVIDENCE = listing(structure(replica=ANY_NUMBER, name=TEXT, what=TEXT, first=HEX, second=HEX))


@router.get("/evidence", responses=answers("What was seen", structure(evidence=_EVIDENCE)))
async def evidence(service: Operator) -> JSONResponse:
    """Return pairs of contradicting signed statements that this process has seen."""
    return JSONResponse(
        {
            "evidence": [
                {
                    "replica": item.replica,
                    "name": service.names[item.replica],
                    "what": item.what,
                    "first": item.first.hex(),
                    "second": item.second.hex(),
                }
                for item in service.evidence
            ]
        }
    )
