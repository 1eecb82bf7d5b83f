"""The door of a node that lost its vote log: reads are open, what would need its word is turned away with a pointer."""

import pytest

from bcami.client.nodes import NodeUnavailable
from bcami.codec import encode
from bcami.model.reasons import Reason
from tests.gateway.station import MSGPACK, Station
from tests.simulation.parties import SimpleMeter

pytestmark = pytest.mark.anyio

OTHERS = ("node2 at http://node2.test", "node3 at http://node3.test")


async def test_a_submission_is_turned_away_with_a_pointer_to_the_others() -> None:
    async with Station(members=4, is_amnesiac=True, others=OTHERS) as station:
        tx = station.utility.enrol(SimpleMeter(station, "meter"))
        response = await station.http.post("/v1/transactions", content=encode((tx,)), headers={"content-type": MSGPACK})
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 1
        told = response.json()
        assert told["reason"] == "amnesia"
        assert all(other in told["detail"] for other in OTHERS)
        metrics = (await station.http.get("/metrics")).text
        assert 'bcami_refused_total{reason="amnesia",source="admission"} 1.0' in metrics
        assert "bcami_amnesia 1.0" in metrics


async def test_its_client_moves_on_and_counts_no_refusal() -> None:
    async with Station(members=4, is_amnesiac=True) as station:
        client = station.client()
        with pytest.raises(NodeUnavailable) as caught:
            await client.submit_encoded([encode(station.utility.enrol(SimpleMeter(station, "meter")))])
        await client.close()
        assert caught.value.refuses is None
        assert caught.value.retry_after_ms > 1_000


async def test_it_says_so_wherever_an_operator_looks() -> None:
    async with Station(members=4, is_amnesiac=True) as station:
        assert (await station.http.get("/v1/status")).json()["amnesia"] is True
        assert (await station.http.get("/readyz")).json()["amnesia"] is True
        assert (await station.http.get("/healthz")).status_code == 200
    async with Station() as station:
        assert (await station.http.get("/v1/status")).json()["amnesia"] is False
        assert "bcami_amnesia 0.0" in (await station.http.get("/metrics")).text


async def test_what_it_refuses_for_other_reasons_is_not_signed() -> None:
    async with Station(members=4, is_amnesiac=True) as station:
        response = await station.http.post("/v1/transactions", content=b"\xc1", headers={"content-type": MSGPACK})
        assert (response.status_code, response.json()["reason"]) == (400, Reason.MALFORMED)
        assert "signature" not in response.json()


async def test_it_signs_no_contribution() -> None:
    async with Station(members=4, is_amnesiac=True, others=OTHERS) as station:
        request = encode([b"h" * 32, 1, b"n" * 32, b"s" * 64])
        response = await station.http.post("/v1/contribute", content=request, headers={"content-type": MSGPACK})
        assert (response.status_code, response.json()["reason"]) == (503, Reason.AMNESIA)
        assert OTHERS[0] in response.json()["detail"]
