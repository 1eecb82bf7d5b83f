"""What is served for a run ends with the run: a signal is the command's, which then closes everything."""

import signal

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from bcami.processes.aggregation_place import client, served


@pytest.mark.anyio
async def test_signals_stay_the_commands() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    application = Starlette(routes=[Route("/", lambda _request: Response())])
    async with served(application) as url, client(url) as http:
        assert (await http.get("/")).status_code == httpx.codes.OK
        assert {number: signal.getsignal(number) for number in before} == before
