"""Limits: requests in a second, a full queue; each says when to come back."""

from types import SimpleNamespace

import msgspec
import pytest

from bcami.client.nodes import NodeUnavailable
from bcami.codec import encode
from bcami.token_buckets import CLIENTS_MAX, TokenBuckets
from tests.gateway.station import MSGPACK, Station, form, scene

pytestmark = pytest.mark.anyio


async def test_a_client_that_asks_too_often_is_told_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcami.gateway.app.time", SimpleNamespace(monotonic=lambda: 1000.0))
    buckets = TokenBuckets(rate=0.5, burst=3)
    async with Station(buckets=buckets) as station:
        seen = [await station.http.get("/v1/status") for _ in range(5)]
        assert [response.status_code for response in seen] == [200, 200, 200, 429, 429]
        assert seen[3].json()["reason"] == "rate_limited"
        assert seen[3].headers["retry-after"] == "2"
        assert station.count("bcami_refused_total", source="gateway", reason="rate_limited") == 2
        async with station.client() as other:  # another address
            assert (await other.status())["name"] == "node1"


def test_buckets_fill_again_and_stay_few() -> None:
    buckets = TokenBuckets(rate=10, burst=2)
    assert [buckets.take("a", 0.0) for _ in range(3)] == [0, 0, 0.1]
    assert buckets.take("b", 0.0) == 0
    assert buckets.take("a", 0.1) == 0
    assert buckets.take("a", 0.1) > 0
    assert buckets.take("a", 100.0) == 0
    assert buckets.take("a", 50.0) == 0, "a clock that was set back takes no tokens away"
    for number in range(CLIENTS_MAX + 10):
        buckets.take(f"c{number}", 100.0)
        buckets.take("a", 100.0)
    assert len(buckets._buckets) == CLIENTS_MAX
    assert buckets.take("a", 100.0) > 0


@pytest.mark.parametrize("kind", ["one", "JSON", "msgpack"])
async def test_a_full_queue_turns_away_and_says_when_to_come_back(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bcami.node.core.submissions", "bcami.endorsement.collector"):
        monkeypatch.setattr(f"{module}.QUEUE_BYTES_MAX", 0)
    async with Station() as station:
        enrol = station.utility.enrol(station.unregistered("a"))
        if kind == "one":
            response = await station.http.post("/v1/transaction", json=form(enrol))
        elif kind == "JSON":
            response = await station.http.post("/v1/transactions", json={"transactions": [form(enrol)]})
        else:
            response = await station.http.post(
                "/v1/transactions", content=encode([enrol]), headers={"content-type": MSGPACK}
            )
        assert (response.status_code, response.json()["reason"]) == (429, "queue_full")
        assert response.headers["retry-after"] == "1"
        assert station.count("bcami_refused_total", source="gateway", reason="queue_full") == 1
        async with station.client() as client:
            with pytest.raises(NodeUnavailable) as caught:
                await client.submit([enrol])
            assert (caught.value.retry_after_ms, caught.value.refuses) == (1000, None)
        monkeypatch.undo()
        await station.commit(enrol)


async def test_a_node_that_halted_says_so() -> None:
    async with scene() as (station, [meter]):
        report = meter.report()
        station.core.chain.halt("a certificate contradicts this node's own block")
        response = await station.http.post("/v1/transaction", json=form(report))
        assert (response.status_code, response.json()["reason"]) == (503, "not_ready")
        assert response.headers["retry-after"] == "1"


async def test_busy_for_some_is_an_answer_for_each() -> None:
    async with scene() as (station, [meter]):
        report = meter.report()
        await station.commit(report)
        station.core.chain.halt("x")
        answer = await station.submit(report, msgspec.structs.replace(report, sequence=99))
        assert [(item.status, item.reason) for item in answer.results] == [
            ("committed", "valid"),
            ("refused", "not_ready"),
        ]
