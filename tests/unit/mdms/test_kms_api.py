"""The HTTP endpoints of the symmetric keys, in process: what they refuse, and to whom they answer."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from bcami.cli.ask import post_json
from bcami.codec import encode
from bcami.errors import InputError
from bcami.kms import ToMdms
from bcami.kms.messages import (
    UP_CONTENTS,
    Confirm,
    Direction,
    Envelope,
    EventKind,
    JoinProject,
    Mode,
    Notification,
    UpPayload,
    group_party,
)
from bcami.kms.records import HardenedChannel
from bcami.kms.subscription import SUBSCRIBED_MAX, Subscriber, Subscription
from bcami.kms.wire import UP_BYTES_MAX
from bcami.mdms import head_end, requests_in_hand
from bcami.mdms.head_end import STREAMS_OF_METER_MAX
from bcami.mdms.kms_routes import LAST_WORDS_S
from bcami.mdms.kms_service import KmsService
from bcami.mdms.server import create_app
from bcami.model.reasons import Reason, explain
from tests.unit.mdms.test_kms_service import Desk, desk, keys, wanted

__all__ = ["desk"]
TOKEN = {"authorization": "Bearer right"}
PRICE = {"kind": "price", "starts_s": 0, "prices": [1]}
CONTROL = {"kind": "control", "action": "connect", "starts_s": 0, "ends_s": 1}


def client_of(desk: Desk, service: KmsService, address: str = "127.0.0.1") -> httpx.AsyncClient:
    app = create_app(
        SimpleNamespace(  # type: ignore[arg-type]
            kms=service,
            is_operator=lambda shown: shown == "Bearer right",
            hid_of=lambda name: desk.host.hid if name == "m1" else bytes(32),
            names_of=lambda hids: {desk.host.hid: "m1"},
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
        assert (service.requests.count, service.head_end.listeners) == (0, 1), "the desk's own stream"

    desk.run(work)


def test_more_than_can_be_held_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        async with client_of(desk, service) as client:
            monkeypatch.setattr(requests_in_hand, "REQUESTS_MAX", 0)
            assert (await client.post("/v1/kms/messages", content=encode(()))).status_code == 503
            monkeypatch.setattr(head_end, "SUBSCRIBED_MAX", 0)
            shown = encode(wanted(desk, service.admission.challenge()))
            assert (await client.post("/v1/kms/stream", content=shown)).status_code == 503
            monkeypatch.setattr(requests_in_hand, "REQUESTS_MAX", 1)
            assert (await client.post("/v1/kms/stream", content=shown)).status_code == 503
            assert desk.count(Reason.QUEUE_FULL) == 3
            one = Subscriber(bytes(32), 1, bytes(64))
            many = encode(Subscription(bytes(32), (one,) * (SUBSCRIBED_MAX + 1)))
            assert (await client.post("/v1/kms/stream", content=many)).status_code == 400

    desk.run(work)


@pytest.mark.parametrize("path", ["messages", "stream"])
def test_slow_bodies_of_strangers_take_nobody_s_place(desk: Desk, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests_in_hand, "REQUESTS_MAX", 4)

    async def work(desk: Desk, service: KmsService) -> None:
        begun, never = asyncio.Semaphore(0), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"\x90"
            begun.release()
            await never.wait()

        async with client_of(desk, service) as client:
            strangers = [asyncio.create_task(client.post(f"/v1/kms/{path}", content=slow())) for _ in range(4)]
            for _ in strangers:
                await begun.acquire()
            assert service.requests.count == 4
            answer = await client.post("/v1/kms/messages", content=encode(()))
            assert answer.status_code == 200, answer.text
            first = await strangers[0]
            assert (first.status_code, first.json()["detail"][:10]) == (503, Reason.QUEUE_FULL)
            assert service.requests.count == 3, "the others have their time"
            for stranger in strangers[1:]:
                stranger.cancel()
            await asyncio.gather(*strangers, return_exceptions=True)
            assert service.requests.count == 0

    desk.run(work)


def test_a_reader_that_goes_before_its_stream_begins_leaves_no_place_taken(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        app = create_app(SimpleNamespace(kms=service))  # type: ignore[arg-type]
        body = encode(wanted(desk, service.admission.challenge()))
        events = [{"type": "http.request", "body": body}]
        blocked = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if events:
                return events.pop()
            await blocked.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            assert service.head_end.listeners == 2
            blocked.set()
            await asyncio.Event().wait()  # the connection takes nothing more

        scope = {"type": "http", "method": "POST", "path": "/v1/kms/stream", "query_string": b"", "headers": []}
        await app(scope, receive, send)
        assert blocked.is_set()
        assert service.head_end.listeners == 1, "the desk's own stream"

    desk.run(work)


def test_a_meter_that_opens_many_streams_has_its_newest_whether_it_reads_them_or_not(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        app = create_app(SimpleNamespace(kms=service))  # type: ignore[arg-type]
        scope = {"type": "http", "method": "POST", "path": "/v1/kms/stream", "query_string": b"", "headers": []}

        async def open_stream() -> None:
            events = [{"type": "http.request", "body": encode(wanted(desk, service.admission.challenge()))}]

            async def receive() -> dict[str, Any]:
                if not events:
                    await asyncio.Event().wait()
                return events.pop()

            async def send(message: Any) -> None:
                await asyncio.Event().wait()  # the connection takes nothing more

            await app(scope, receive, send)

        tasks = []
        for _ in range(6):
            tasks.append(asyncio.create_task(open_stream()))
            await asyncio.sleep(LAST_WORDS_S + 1)
        assert [task.done() for task in tasks] == [True] * 4 + [False] * 2
        assert [task.result() for task in tasks[:4]] == [None] * 4
        assert service.head_end.listeners == STREAMS_OF_METER_MAX, "the desk's own stream was the oldest"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert service.head_end.listeners == 0

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
        with pytest.raises(
            InputError, match=re.escape(f"{reason}: {explain(reason)}")
        ):  # what the command shows, exit code 2
            post_json(Answering(answer), "http://mdms", f"/v1/kms/{path}")  # type: ignore[arg-type]

    desk.run(work)


class Answering:
    """A client that was answered already."""

    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer

    def request(self, *_: object, **__: object) -> httpx.Response:
        return self._answer


def test_a_revoked_meter_is_told_by_its_reason_to_operators(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        await service.do(lambda: service.server.remove(desk.host.hid, desk.now_ms, desk.entropy()))
        async with client_of(desk, service) as client:
            body = {"meter": "m1", "message": CONTROL}
            answer = await client.post("/v1/kms/send", json=body, headers=TOKEN)
        assert (answer.status_code, desk.count(Reason.REVOKED_HID)) == (409, 1)
        with pytest.raises(InputError, match="^revoked_hid: "):
            post_json(Answering(answer), "http://mdms", "/v1/kms/send")  # type: ignore[arg-type]

    desk.run(work)


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("send", {"meter": "", "message": CONTROL}, "meter"),
        ("send", {"group": 2**32, "message": CONTROL}, "group"),
        ("send", {"group": 0, "message": {**CONTROL, "limit_w": 2**32}}, "limit_w"),
        ("projects", {"project": 1, "name": ""}, "name"),
        ("projects", {"project": 2**32, "name": "peak"}, "project"),
        ("projects", {"project": 1, "name": "peak", "excludes": [2, 0]}, "excludes"),
    ],
)
def test_an_argument_out_of_its_range_is_the_users_fault_and_named(
    desk: Desk, path: str, body: dict[str, Any], named: str
) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        async with client_of(desk, service) as client:
            answer = await client.post(f"/v1/kms/{path}", json=body, headers=TOKEN)
        with pytest.raises(InputError, match=rf"^{named}: \w"):
            post_json(Answering(answer), "http://mdms", f"/v1/kms/{path}")  # type: ignore[arg-type]

    desk.run(work)


def sealed(desk: Desk, payload: UpPayload = Notification(EventKind.TAMPERED, 1)) -> Envelope:
    """Return a request as the meter sends it; nobody got it yet."""
    _, step = desk.meter.request(payload, desk.now_ms, desk.entropy())
    (message,) = [send.message for send in step.sends if isinstance(send, ToMdms)]
    assert isinstance(message, Envelope)
    return message


BAD_UP: list[tuple[Reason, Callable[[Envelope], bytes]]] = [
    (Reason.MALFORMED, lambda good: encode(good)[:-1]),
    (Reason.UNKNOWN_HID, lambda good: encode(replace(good, party=bytes(32)))),
    (Reason.WRONG_KEY, lambda good: encode(replace(good, body=bytes(64)))),
    (Reason.WRONG_KMS_EPOCH, lambda good: encode(replace(good, epoch=0))),
    (Reason.OUT_OF_STEP, lambda good: encode(replace(good, version=9))),
    (Reason.WRONG_MODE, lambda good: encode(replace(good, direction=Direction.DOWN))),
    (Reason.MEMBER_CANNOT_SEND, lambda good: encode(replace(good, mode=Mode.MULTICAST, party=group_party(1)))),
    (Reason.MEMBER_CANNOT_SEND, lambda good: encode(replace(good, mode=Mode.BROADCAST, party=group_party(0)))),
]


def test_each_bad_message_of_a_meter_has_its_reason_in_the_answer_and_in_the_metrics(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        async with client_of(desk, service) as client:

            async def refused(data: bytes) -> dict[str, int]:
                answer = await client.post("/v1/kms/messages", content=encode((data,)))
                told: dict[str, int] = answer.json()["refused"]
                return told

            for reason, make in BAD_UP:
                before = desk.count(reason)
                assert await refused(make(sealed(desk))) == {reason: 1}
                assert desk.count(reason) == before + 1
            old, good = encode(sealed(desk)), encode(sealed(desk))
            assert [await refused(good), await refused(good)] == [{}, {Reason.REPLAY: 1}]
            assert await refused(encode(sealed(desk, JoinProject(9)))) == {Reason.UNKNOWN_GROUP: 1}
            channel = desk.meter.record.unicast
            assert isinstance(channel, HardenedChannel)
            far = replace(channel, sent=channel.sent + 100)
            _, ahead = desk.meter._profile.protect(far, Direction.UP, desk.host.hid, UP_CONTENTS.encode(Confirm(())))
            assert [await refused(encode(ahead)), await refused(old)] == [{}, {Reason.SEQUENCE_TOO_OLD: 1}]
            last = encode(sealed(desk))
            await service.do(lambda: service.server.remove(desk.host.hid, desk.now_ms, desk.entropy()))
            assert await refused(last) == {Reason.REVOKED_HID: 1}
            for reason in (Reason.REPLAY, Reason.UNKNOWN_GROUP, Reason.SEQUENCE_TOO_OLD, Reason.REVOKED_HID):
                assert desk.count(reason) == 1
            inbox = (await client.get("/v1/kms/inbox", headers=TOKEN)).json()["received"]
            assert [(row["meter_id"], row["message"], row["kind"]) for row in inbox] == [
                ("m1", "notification", "tampered")
            ]

    desk.run(work)
