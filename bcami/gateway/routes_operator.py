"""What only an operator may ask; the credential is made by `bcami init`."""

import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from bcami.gateway.service import NodeService

_bearer = HTTPBearer(auto_error=False, description="Token in HOME/operator.token")


def _operator(
    request: Request, credential: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> NodeService:
    service: NodeService = request.app.state.service
    shown = b"" if credential is None else credential.credentials.encode()
    if not hmac.compare_digest(shown, service.operator_token.encode()):
        raise HTTPException(401, "this endpoint needs the operator's token", {"www-authenticate": "Bearer"})
    return service


Operator = Annotated[NodeService, Depends(_operator)]
router = APIRouter(prefix="/v1/operator", tags=["operator"])


@router.post("/stop")
async def stop(service: Operator) -> JSONResponse:
    """Stop the process cleanly."""
    service.on_stop()
    return JSONResponse({"stopping": True})


@router.get("/evidence")
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
