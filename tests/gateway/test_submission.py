"""Submission: JSON and msgpack, one and many, waiting or not; receipts verify from genesis and nothing else."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from bcami.client.receipts import ReceiptVerifier
from bcami.codec import Codec, encode
from bcami.crypto.roster import Roster
from bcami.crypto.verification import verify_receipt
from bcami.model.api import SUBMIT_ANSWER_CODEC
from bcami.model.block import Outcome, Receipt
from bcami.model.genesis import Genesis
from bcami.model.reasons import Reason, explain
from bcami.model.transaction import transaction_id
from tests.gateway.station import MSGPACK, Station, form, records_of, scene

pytestmark = pytest.mark.anyio


def genesis_roster(station: Station) -> Roster:
    """What somebody knows who was given the genesis file only."""
    data = encode(station.identities.genesis)
    return Roster.from_genesis(Codec[Genesis](Genesis, 1 << 20).decode(data))


def json_receipt(result: dict) -> Receipt:
    """Rebuild the record from the JSON form."""
    receipt = result["receipt"]
    outcome = {"transaction_id": result["transaction_id"], "reason": result["reason"]}
    whole = {"outcome": outcome, **{key: receipt[key] for key in ("index", "path", "header", "certificate")}}
    return records_of(whole, Receipt)


async def test_many_in_msgpack_come_back_in_order_with_receipts_that_verify(tmp_path: Path) -> None:
    async with scene(tmp_path, meters=3) as (station, meters):
        reports = [meter.report() for meter in meters for _ in range(4)]
        answer = await station.submit(*reports)
        roster = genesis_roster(station)
        verifier = ReceiptVerifier(roster)
        assert all(verifier.learn(block) is None for block in answer.blocks)
        for tx, result in zip(reports, answer.results, strict=True):
            tx_id = transaction_id(tx, roster.chain, 0)
            assert verifier.outcome(result, tx_id) is Reason.VALID
            receipt = verifier.receipt(result, tx_id)
            assert receipt is not None
            assert verify_receipt(receipt, roster) is None
        assert len(answer.blocks) == len({result.height for result in answer.results})


async def test_many_in_json(tmp_path: Path) -> None:
    async with scene(tmp_path, meters=2) as (station, meters):
        reports = [meter.report() for meter in meters]
        body = {"transactions": [form(tx) for tx in reports], "chain": station.chain.hex()}
        response = await station.http.post("/v1/transactions", json=body)
        assert response.status_code == 200
        results = response.json()["results"]
        assert [item["transaction_id"] for item in results] == [station.id_of(tx).hex() for tx in reports]
        for item in results:
            assert (item["status"], item["reason"], item["detail"]) == ("committed", "valid", explain(Reason.VALID))
            assert verify_receipt(json_receipt(item), genesis_roster(station)) is None


async def test_one_in_json_and_one_in_msgpack() -> None:
    async with scene() as (station, [meter]):
        response = await station.http.post("/v1/transaction", json=form(meter.report()))
        assert response.status_code == 200
        assert verify_receipt(json_receipt(response.json()), genesis_roster(station)) is None
        packed = await station.http.post(
            "/v1/transaction", content=encode(meter.report()), headers={"content-type": MSGPACK}
        )
        answer = SUBMIT_ANSWER_CODEC.decode(packed.content)
        assert [item.reason for item in answer.results] == ["valid"]


@pytest.mark.parametrize("field", ["index", "reason", "path", "header", "certificate"])
async def test_a_receipt_that_is_changed_anywhere_does_not_verify(field: str) -> None:
    async with scene(meters=2) as (station, meters):
        answer = await station.submit(*[meter.report() for meter in meters])
        result, block = answer.results[1], answer.blocks[0]
        good = Receipt(
            Outcome(result.transaction_id, result.reason), result.index, result.path, block.header, block.certificate
        )
        changed = {
            "index": {"index": 0},
            "reason": {"outcome": Outcome(result.transaction_id, Reason.REPLAY)},
            "path": {"path": (bytes(32),)},
            "header": {"header": msgspec.structs.replace(good.header, time_ms=good.header.time_ms + 1)},
            "certificate": {"certificate": msgspec.structs.replace(good.certificate, header_hash=bytes(32))},
        }[field]
        assert verify_receipt(good, station.roster) is None
        assert verify_receipt(msgspec.structs.replace(good, **changed), station.roster) is not None


async def test_the_same_transaction_gets_the_first_receipt_by_bytes_and_by_id(tmp_path: Path) -> None:
    async with scene(tmp_path) as (station, [meter]):
        report = meter.report()
        first = await station.submit(report)
        await station.commit(meter.report())
        assert await station.submit(report) == first
        assert await station.submit(report, wait="accepted") == first
        path = f"/v1/transactions/{station.id_of(report).hex()}"
        packed = await station.http.get(path, headers={"accept": MSGPACK})
        assert SUBMIT_ANSWER_CODEC.decode(packed.content) == first
        shown = (await station.http.get(path)).json()
        assert verify_receipt(json_receipt(shown), genesis_roster(station)) is None
        outcomes = [
            outcome.reason
            for height in range(1, station.ledger.height + 1)
            for outcome in station.ledger.block(height).outcomes
            if outcome.transaction_id == station.id_of(report)
        ]
        assert outcomes == ["valid"]


async def test_twice_in_one_request_is_executed_once() -> None:
    async with scene() as (station, [meter]):
        report = meter.report()
        answer = await station.submit(report, report)
        assert answer.results[0] == answer.results[1]
        assert answer.results[0].reason == "valid"


async def test_accepted_does_not_wait_for_the_outcome_but_says_a_refusal(tmp_path: Path) -> None:
    async with scene(tmp_path, meters=2) as (station, [meter, other]):
        good, bad = meter.report(), msgspec.structs.replace(other.report(), signatures=(bytes(64),))
        answer = await station.submit(good, bad, wait="accepted")
        assert [(item.status, item.reason) for item in answer.results] == [
            ("unknown", None),
            ("refused", "bad_signature"),
        ]
        assert [item.reason for item in (await station.submit(good)).results] == ["valid"]


async def test_without_a_quorum_the_answer_is_unknown_after_the_time_asked_for() -> None:
    async with Station(members=4) as station:
        enrol = station.utility.enrol(station.unregistered("a"))
        response = await station.http.post("/v1/transaction", json=form(enrol), params={"timeout_ms": 30})
        assert response.status_code == 200
        answer = response.json()
        assert (answer["status"], answer["reason"]) == ("unknown", None)
        assert "receipt" not in answer
        assert "again" in answer["detail"]
        by_id = await station.http.get(f"/v1/transactions/{station.id_of(enrol).hex()}")
        assert (by_id.status_code, by_id.json()["reason"]) == (404, "not_found")
        assert station.core.tickets.pending == 1


async def test_a_client_that_goes_away_leaves_nothing_open() -> None:
    async with Station(members=4) as station:
        enrol = station.utility.enrol(station.unregistered("a"))
        task = asyncio.ensure_future(station.driver.submit((enrol,), wait=True, timeout_s=60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not station.core.tickets._tickets


async def test_a_stopped_node_takes_nothing() -> None:
    async with scene() as (station, [meter]):
        station.driver._stopped = True
        response = await station.http.post("/v1/transaction", json=form(meter.report()))
        assert (response.status_code, response.json()["reason"]) == (503, "not_ready")
        assert response.headers["retry-after"] == "1"
