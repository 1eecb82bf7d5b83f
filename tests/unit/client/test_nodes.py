"""What a node's answers are turned into: a value, or `NodeUnavailable`, and nothing else."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest

from bcami.client import nodes
from bcami.client.nodes import NodeClient, NodeUnavailable, RequestRefusal, retry_after_ms
from bcami.codec import encode
from bcami.model.api import SubmitAnswer
from bcami.model.reasons import Reason
from bcami.model.registration import ContributionRequest
from tests.unit.client.cluster import Cluster
from tests.virtual import run


def ask(answer: Callable[[httpx.Request], httpx.Response], question: Callable[[NodeClient], Awaitable[Any]]) -> Any:
    async def work() -> Any:
        async with NodeClient("http://node1", transport=httpx.MockTransport(answer)) as node:
            return await question(node)

    return run(work())


@pytest.mark.parametrize(
    ("header", "expected"),
    [(None, 0), ("2", 2000), (" 3 ", 3000), ("-1", 0), ("1.5", 0), ("Wed, 21 Oct", 0), ("9" * 12, 3_600_000)],
)
def test_retry_after(header: str | None, expected: int) -> None:
    assert retry_after_ms(header) == expected


@pytest.mark.parametrize(
    ("status", "headers", "retry_ms", "refuses"),
    [
        (429, {"retry-after": "4"}, 4000, None),
        (503, {}, 0, None),
        (500, {}, 0, None),
        (400, {}, 0, RequestRefusal(Reason.MALFORMED, b"\x91\xc0", None)),
        (413, {}, 0, RequestRefusal(Reason.OVERSIZED, b"\x91\xc0", None)),
        (302, {"location": "http://elsewhere"}, 0, None),
    ],
)
def test_no_answer_is_one_exception(status: int, headers: dict, retry_ms: int, refuses: RequestRefusal | None) -> None:
    with pytest.raises(NodeUnavailable) as unavailable:
        ask(lambda _: httpx.Response(status, headers=headers), lambda node: node.submit_encoded([b"\xc0"]))
    assert (unavailable.value.retry_after_ms, unavailable.value.refuses) == (retry_ms, refuses)
    assert str(status) in str(unavailable.value)
    assert "http://node1" in str(unavailable.value)


def test_an_endless_answer_is_cut_off() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(1 << 16)

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=endless())

    for question in (lambda node: node.status(), lambda node: node.genesis(), lambda node: node.period()):
        taken = 0
        with pytest.raises(NodeUnavailable, match="more than"):
            ask(answer, question)
        assert taken < 1 << 8


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xc0", encode((1, 2, 3)), b"\xdc\x00\x02\x90\x90"])
def test_nonsense_is_no_answer(content: bytes) -> None:
    for question in (
        lambda node: node.submit_encoded([b"\xc0"]),
        lambda node: node.genesis(),
        lambda node: node.period(),
        lambda node: node.block(1),
        lambda node: node.header(1),
        lambda node: node.released(0, 1),
        lambda node: node.state(b"key"),
        lambda node: node.query("mdms", "period", b""),
        lambda node: node.transaction(bytes(32)),
        lambda node: node.status(),
        lambda node: node.contribute(ContributionRequest(bytes(32), 1, bytes(32), bytes(64))),
    ):
        with pytest.raises(NodeUnavailable):
            ask(lambda _: httpx.Response(200, content=content), question)


def test_an_answer_has_a_result_for_each_transaction() -> None:
    empty = encode(SubmitAnswer((), ()))
    with pytest.raises(NodeUnavailable, match="0 results to 1"):
        ask(lambda _: httpx.Response(200, content=empty), lambda node: node.submit_encoded([b"\xc0"]))


def test_stored_bytes_are_sent_as_they_are() -> None:
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        return httpx.Response(503)

    stored = [encode(["a", index]) for index in range(20)]
    with pytest.raises(NodeUnavailable):
        ask(answer, lambda node: node.submit_encoded(stored))
    assert seen == [b"\xdc\x00\x14" + b"".join(stored)]
    assert [encode(item) for item in msgspec.msgpack.decode(seen[0])] == stored


def test_a_silent_node_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_GRACE_S", 0.05)
    cluster = Cluster()
    cluster.faults[0].is_silent = True

    async def work() -> None:
        await cluster.clients()[0].submit_encoded([b"\xc0"], timeout_ms=10)

    with pytest.raises(NodeUnavailable, match="no answer within"):
        run(work())


@pytest.mark.parametrize("body", [{"reason": "unknown_hid"}, {"reason": "because"}, {}, []])
def test_a_refused_contribution_has_a_known_reason(body: Any) -> None:
    request = ContributionRequest(bytes(32), 1, bytes(32), bytes(64))

    def question(node: NodeClient) -> Awaitable[Any]:
        return node.contribute(request)

    if body == {"reason": "unknown_hid"}:
        assert ask(lambda _: httpx.Response(403, json=body), question) is Reason.UNKNOWN_HID
    else:
        with pytest.raises(NodeUnavailable):
            ask(lambda _: httpx.Response(403, json=body), question)


def test_what_is_not_there_is_none() -> None:
    for question in (
        lambda node: node.transaction(bytes(32)),
        lambda node: node.period(),
        lambda node: node.block(5),
        lambda node: node.header(5),
    ):
        assert ask(lambda _: httpx.Response(404), question) is None


def test_events_end_as_an_exception() -> None:
    stream = b'id: 5\ndata: {"height": 5}\n\n: ping\n\nid: 6\ndata: {"height": 6}\n\n'
    heights: list[int] = []

    async def follow(node: NodeClient) -> None:
        async for event in node.events(4):
            heights.append(event["height"])

    with pytest.raises(NodeUnavailable, match="ended"):
        ask(lambda _: httpx.Response(200, content=stream), follow)
    assert heights == [5, 6]
