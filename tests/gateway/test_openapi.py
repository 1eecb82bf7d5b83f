"""The description of the API is valid, has examples that work, and tells the truth about every answer (schemathesis)."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from jsonschema_rs import validator_for
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from bcami.gateway.app import create_app
from bcami.gateway.forms import OneForm, SubmissionForm
from bcami.gateway.limits import REQUESTS_PER_SECOND
from bcami.token_buckets import TokenBuckets
from tests.gateway.station import MSGPACK, Server, Station, form

DESCRIPTION = create_app(SimpleNamespace(count=lambda reason: None)).openapi()
ENDLESS = "/v1/events"
CHECKS = (not_a_server_error, response_schema_conformance)


class Background:
    """A station with a meter, served from a thread with its own event loop."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),))
        self._thread.start()
        assert self._ready.wait(120)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with Station(buckets=TokenBuckets(REQUESTS_PER_SECOND, 1e9)) as station:
            await station.open_period()
            meter = await station.meter("a")
            self.report = form(meter.report())
            config = uvicorn.Config(station.app, log_config=None, access_log=False, lifespan="off")
            server = Server(config, station.service)
            serving = asyncio.create_task(server.serve(sockets=[self._listening]))
            await server.is_up.wait()
            self._ready.set()
            await self._stop.wait()
            server.stop()
            await serving
            self.fatal = station.fatal

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(120)
        assert not self.fatal


@pytest.fixture(scope="module")
def served() -> Iterator[Background]:
    background = Background()
    yield background
    background.stop()


@schemathesis.serializer(MSGPACK)
def packed(_context: schemathesis.SerializationContext, value: object) -> bytes:
    """Bytes go out as they are; whatever else is tried, as msgpack."""
    raw = getattr(value, "data", value)
    return raw if isinstance(raw, bytes) else msgspec.msgpack.encode(raw)


schema = schemathesis.openapi.from_dict(DESCRIPTION).exclude(path=ENDLESS)


@schema.parametrize()
@settings(
    max_examples=8,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described_and_none_is_an_error_of_the_server(
    case: schemathesis.Case, served: Background
) -> None:
    response = case.call(base_url=f"http://127.0.0.1:{served.port}", timeout=120)
    case.validate_response(response, checks=CHECKS)


def test_the_description_is_valid_openapi() -> None:
    assert DESCRIPTION["openapi"].startswith("3.1")
    operations = [
        (path, method, operation)
        for path, methods in DESCRIPTION["paths"].items()
        for method, operation in methods.items()
    ]
    names = [operation["operationId"] for _, _, operation in operations]
    assert len(names) == len(set(names)) == len(operations)
    for path, method, operation in operations:
        assert operation["description"], path
        assert "422" not in operation["responses"], path
        for response in operation["responses"].values():
            assert response["description"], path
            for content in response.get("content", {}).values():
                validator_for({**content.get("schema", {}), "components": DESCRIPTION["components"]})
        if method == "post" and "operator" not in path:
            assert operation["requestBody"]["content"], path


def examples() -> Iterator[tuple[str, dict, object]]:
    """Every example of a JSON answer, with its schema."""
    for path, methods in DESCRIPTION["paths"].items():
        for operation in methods.values():
            content = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
            if "example" in content:
                yield path, content["schema"], content["example"]


def test_examples_are_valid_against_what_they_are_examples_of() -> None:
    found = list(examples())
    assert {path for path, _, _ in found} >= {"/v1/transaction", "/v1/transactions", "/v1/state/{key}"}
    for path, of, example in found:
        assert validator_for(of).is_valid(example), path
    for kind, path in ((OneForm, "/v1/transaction"), (SubmissionForm, "/v1/transactions")):
        body = DESCRIPTION["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["examples"]
        for example in body["examples"]:
            assert validator_for(body).is_valid(example)
            kind.model_validate_json(json.dumps(example))


def test_a_real_report_fits_the_described_form(served: Background) -> None:
    body = DESCRIPTION["paths"]["/v1/transaction"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert validator_for(body).is_valid(served.report)


def test_operator_endpoints_are_marked_as_needing_a_credential() -> None:
    for path, methods in DESCRIPTION["paths"].items():
        for operation in methods.values():
            assert bool(operation.get("security")) == path.startswith("/v1/operator"), path
