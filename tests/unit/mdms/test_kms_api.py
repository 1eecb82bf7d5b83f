"""The HTTP endpoints of the symmetric keys, in process: what they refuse, and to whom they answer."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from bcami.codec import encode
from bcami.kms.subscription import SUBSCRIBED_MAX, Subscriber, Subscription
from bcami.kms.wire import UP_BYTES_MAX
from bcami.mdms import head_end, kms_routes
from bcami.mdms.kms_service import KmsService
from bcami.mdms.server import create_app
from bcami.model.reasons import Reason
from tests.unit.mdms.test_kms_service import Desk, desk, keys, wanted

__all__ = ["desk"]
TOKEN = {"authorization": "Bearer right"}
PRICE = {"kind": "price", "starts_s": 0, "prices": [1]}


def client_of(desk: Desk, service: KmsService, address: str = "127.0.0.1") -> httpx.AsyncClient:
    app = create_app(
        SimpleNamespace(  # type: ignore[arg-type]
            kms=service,
            is_operator=lambda shown: shown == "Bearer right",
            hid_of=lambda name: desk.host.hid if name == "m1" else bytes(32),
        )
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 1)), base_url="http://mdms")


@pytest.mark.parametrize("path", ["messages", "stream"])
@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, Reason.MALFORMED),
        (b"\xc1", 400, Reason.MALFORMED),
        (encode(7), 400, Reason.MALFORMED),
        (encode(("text",)), 400, Reason.MALFORMED),
        (bytes(UP_BYTES_MAX + 1), 413, Reason.OVERSIZED),
    ],
)
def test_bodies_of_another_form_are_refused_and_counted(
    desk: Desk, path: str, body: bytes, status: int, reason: Reason
) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        async with client_of(desk, service) as client:
            answer = await client.post(f"/v1/kms/{path}", content=body)
        assert answer.status_code == status, answer.text
        assert answer.json()["detail"].startswith(reason)
        assert desk.count(reason) == 1
        assert (service.requests, service.head_end.listeners) == (0, 0)

    desk.run(work)


def test_more_than_can_be_held_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        async with client_of(desk, service) as client:
            monkeypatch.setattr(kms_routes, "REQUESTS_MAX", 0)
            assert (await client.post("/v1/kms/messages", content=encode(()))).status_code == 503
            monkeypatch.setattr(head_end, "SUBSCRIBED_MAX", 0)
            shown = encode(wanted(desk, service.admission.challenge()))
            assert (await client.post("/v1/kms/stream", content=shown)).status_code == 503
            monkeypatch.setattr(kms_routes, "REQUESTS_MAX", 1)
            assert (await client.post("/v1/kms/stream", content=shown)).status_code == 503
            assert desk.count(Reason.QUEUE_FULL) == 3
            one = Subscriber(bytes(32), 1, bytes(64))
            many = encode(Subscription(bytes(32), (one,) * (SUBSCRIBED_MAX + 1)))
            assert (await client.post("/v1/kms/stream", content=many)).status_code == 400

    desk.run(work)


COMMANDS: list[tuple[str, dict[str, Any]]] = [
    ("send", {"group": 0, "message": PRICE}),
    ("projects", {"project": 1, "name": "peak"}),
    ("projects/1/join", {"meter": "m1"}),
    ("projects/1/leave", {"meter": "m1"}),
    ("rotate", {}),
]


def test_commands_need_the_operators_token_and_readers_are_local(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        before = service.server.counts
        async with client_of(desk, service) as local, client_of(desk, service, "192.0.2.1") as remote:
            for path, body in COMMANDS:
                for shown in ({}, {"authorization": "Bearer wrong"}):
                    assert (await local.post(f"/v1/kms/{path}", json=body, headers=shown)).status_code == 401
            assert (await local.get("/v1/kms/audit")).status_code == 401
            assert service.server.counts == before
            for path in ("status", "projects"):
                assert (await local.get(f"/v1/kms/{path}")).status_code == 200
                assert (await remote.get(f"/v1/kms/{path}")).status_code == 401
            for path, body in COMMANDS:
                answer = await remote.post(f"/v1/kms/{path}", json=body, headers=TOKEN)
                assert answer.status_code == 200, answer.text

    desk.run(work)


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("send", {"message": PRICE}, 409, Reason.BAD_ARGUMENT),
        ("send", {"group": 0, "meter": "m1", "message": PRICE}, 409, Reason.BAD_ARGUMENT),
        ("send", {"meter": "m1", "message": PRICE}, 409, Reason.WRONG_MODE),
        ("send", {"group": 9, "message": PRICE}, 404, Reason.UNKNOWN_GROUP),
        ("projects/9/join", {"meter": "m1"}, 404, Reason.UNKNOWN_GROUP),
        ("projects/0/leave", {"meter": "m1"}, 404, Reason.UNKNOWN_GROUP),
        ("projects/9/join", {"meter": "nobody"}, 404, Reason.UNKNOWN_HID),
    ],
)
def test_a_command_that_is_refused_says_why(
    desk: Desk, path: str, body: dict[str, Any], status: int, reason: Reason
) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        async with client_of(desk, service) as client:
            answer = await client.post(f"/v1/kms/{path}", json=body, headers=TOKEN)
        assert (answer.status_code, answer.json()["detail"].split(":")[0]) == (status, reason)
        assert desk.count(reason) == 1

    desk.run(work)
