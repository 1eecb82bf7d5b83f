"""Server-sent events over a real server: order, resume, and a stop while somebody listens."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn

from tests.gateway.station import Server, Station, scene

pytestmark = pytest.mark.anyio
LIMIT_S = 120.0
"""For what must never take long; nothing here is decided by a time."""


@contextlib.asynccontextmanager
async def served(station: Station) -> AsyncIterator[tuple[httpx.AsyncClient, Server, "asyncio.Task[None]"]]:
    """Serve the station as the node process does, but wait without end for requests that do not end by themselves."""
    config = uvicorn.Config(station.app, log_config=None, access_log=False, lifespan="off")
    server = Server(config, station.service)
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    task = asyncio.create_task(server.serve(sockets=[listening]))
    await server.is_up.wait()
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=LIMIT_S) as http:
        yield http, server, task
        if not task.done():
            server.stop()
            await task


async def read_events(lines: AsyncIterator[str], count: int) -> list[dict]:
    """Return the next events, with the id and the type that they came under."""
    found, current = [], {}
    async for line in lines:
        name, _, value = line.partition(": ")
        if name == "data":
            current.update(json.loads(value))
        elif name in ("id", "event"):
            current[name] = value
        elif not line and current:
            found.append(current)
            current = {}
            if len(found) == count:
                return found
    return found


async def test_every_block_is_told_once_in_order_and_live() -> None:
    async with scene() as (station, [meter]), served(station) as (http, _, _), asyncio.timeout(LIMIT_S):
        async with http.stream("GET", "/v1/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.aiter_lines()
            past = await read_events(lines, 3)
            await station.commit(meter.report(), meter.report())
            live = await read_events(lines, 1)
        assert [item["height"] for item in past + live] == [1, 2, 3, 4]
        assert [item["id"] for item in past + live] == ["1", "2", "3", "4"]
        assert {item["event"] for item in past + live} == {"block"}
        assert live[0]["transactions"] == 2
        assert live[0]["hash"] == (await http.get("/v1/status")).json()["block_hash"]


@pytest.mark.parametrize(
    ("headers", "params", "first"),
    [({"last-event-id": "2"}, {}, 3), ({}, {"after": 1}, 2), ({"last-event-id": "1"}, {"after": 2}, 2), ({}, {}, 1)],
)
async def test_a_stream_resumes_after_the_last_event(headers: dict, params: dict, first: int) -> None:
    async with scene() as (station, _), served(station) as (http, _, _), asyncio.timeout(LIMIT_S):
        async with http.stream("GET", "/v1/events", headers=headers, params=params) as response:
            events = await read_events(response.aiter_lines(), 3 - first + 1)
        assert [item["height"] for item in events] == list(range(first, 4))


@pytest.mark.parametrize("cursor", ["²", "x", "-1", "9" * 5000, "9223372036854775808", "1.5"])
async def test_a_cursor_that_is_no_height_is_refused(cursor: str) -> None:
    async with Station() as station:
        response = await station.http.get("/v1/events", headers={"last-event-id": cursor.encode("latin-1")})
        assert (response.status_code, response.json()["reason"]) == (400, "malformed")


async def test_a_stop_ends_open_streams_at_once() -> None:
    async with scene() as (station, _), served(station) as (http, server, task), asyncio.timeout(LIMIT_S):
        async with http.stream("GET", "/v1/events") as response:
            lines = response.aiter_lines()
            await read_events(lines, 3)
            server.stop()
            assert await read_events(lines, 1) == []
        await task
        assert (await station.http.get("/readyz")).json() == {
            "ready": False,
            "why": "stopping",
            "amnesia": False,
        }


async def test_a_reader_that_does_not_read_does_not_hold_the_node() -> None:
    async with scene() as (station, [meter]), served(station) as (http, _, _), asyncio.timeout(LIMIT_S):
        async with http.stream("GET", "/v1/events") as response:
            for _ in range(5):
                await station.commit(meter.report())
            events = await read_events(response.aiter_lines(), 8)
        assert [item["height"] for item in events] == list(range(1, 9))


async def test_a_quiet_stream_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcami.gateway.routes_read.EVENT_WAIT_S", 0.02)
    async with Station() as station, served(station) as (http, _, _), asyncio.timeout(LIMIT_S):
        async with http.stream("GET", "/v1/events") as response:
            async for line in response.aiter_lines():
                assert line == ": still here"
                break
