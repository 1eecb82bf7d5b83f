"""The gateway's price: the same request again and again, as far as the gateway's own limit lets it."""

import asyncio

import httpx
import pytest

from bcami.cli import report_way
from bcami.cli.report_way import _again


def test_a_gateway_at_its_rate_limit_is_waited_for_and_not_counted() -> None:
    answers = iter([429, 429, 200])

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(next(answers), headers={"retry-after": "0"})

    async def work() -> list[float]:
        took: list[float] = []
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            await _again(client, httpx.URL("http://gateway/"), b"", 0.0, took)
        return took

    assert len(asyncio.run(work())) == 1
    assert next(answers, None) is None


def test_a_gateway_that_refuses_everything_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_way, "_RATE_LIMIT_PATIENCE_S", -1.0)

    async def work() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(429, headers={"retry-after": "0"}))
        async with httpx.AsyncClient(transport=transport) as client:
            await _again(client, httpx.URL("http://gateway/"), b"", 0.0, [])

    with pytest.raises(httpx.HTTPStatusError):
        asyncio.run(work())
