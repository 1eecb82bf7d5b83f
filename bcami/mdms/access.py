"""Who may ask an endpoint of the MDMS: local programs read, whoever shows the operator's token may do everything.

Coroutines, since FastAPI hands a plain function to a thread.
"""

import ipaddress
from typing import Annotated

from fastapi import Depends, HTTPException, Request

from bcami.mdms.service import MdmsService


def service_of(request: Request) -> MdmsService:
    service: MdmsService = request.app.state.service
    return service


async def _operator(request: Request) -> MdmsService:
    service = service_of(request)
    if not service.is_operator(request.headers.get("authorization")):
        raise HTTPException(401, "this endpoint needs the operator's token", {"www-authenticate": "Bearer"})
    return service


async def _reader(request: Request) -> MdmsService:
    """Let local programs and operators read."""
    try:
        local = request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        local = False
    return service_of(request) if local else await _operator(request)


Reader = Annotated[MdmsService, Depends(_reader)]
Operator = Annotated[MdmsService, Depends(_operator)]
