"""Queries, state, history, meters, blocks, headers, released blocks, the period's proof, status and health."""

from pathlib import Path

import msgspec
import pytest

from bcami.client.periods import MdmsPeriod, verify_period
from bcami.client.receipts import verify_certified_header
from bcami.codec import Codec, encode
from bcami.contract.guard import guard_key
from bcami.crypto.evidence import verify_evidence
from bcami.crypto.roster import Roster
from bcami.crypto.verification import verify_bundle
from bcami.model import events
from bcami.model.api import PROOF_CODEC, QUERY_CODEC, RELEASE_CODEC, CertifiedHeader, QueryAnswer, TransactionProof
from bcami.model.block import header_hash
from bcami.model.chain import BlockBundle
from bcami.model.evidence import EVIDENCE_CODEC, Evidence, KeptEvidence
from bcami.model.genesis import Genesis, Parameters
from bcami.model.reasons import Reason
from bcami.model.registration import Enrolment, MeterState, Period, period_key_id
from bcami.model.wire import Status
from tests.gateway.station import MSGPACK, Station, form, records_of, scene
from tests.unit.crypto.statements import contradiction

pytestmark = pytest.mark.anyio
PACKED = {"accept": MSGPACK}


async def test_genesis_in_both_forms_is_the_one_that_is_trusted() -> None:
    async with Station() as station:
        own = station.identities.genesis
        for accept in (MSGPACK, "*/*"):
            response = await station.http.get("/v1/genesis", headers={"accept": accept})
            assert response.headers["content-type"] == MSGPACK
            assert Codec[Genesis](Genesis, 1 << 20).decode(response.content) == own
        shown = (await station.http.get("/v1/genesis", headers={"accept": "application/json"})).json()
        assert shown["chain"] == station.chain.hex()
        assert records_of(shown["genesis"], Genesis) == own


async def test_blocks_and_headers_verify_from_genesis(tmp_path: Path) -> None:
    async with scene(tmp_path) as (station, [meter]):
        await station.commit(meter.report())
        previous = station.chain
        for height in range(1, station.ledger.certified_height + 1):
            packed = await station.http.get(f"/v1/blocks/{height}", headers=PACKED)
            bundle = Codec[BlockBundle](BlockBundle, 1 << 26).decode(packed.content)
            assert verify_bundle(bundle, station.roster, previous) is None
            previous = header_hash(bundle.block.header)
            shown = (await station.http.get(f"/v1/blocks/{height}")).json()
            assert shown["hash"] == previous.hex()
            assert [item["reason"] for item in shown["outcomes"]] == ["valid"] * len(bundle.block.outcomes)
            header = await station.http.get(f"/v1/headers/{height}", headers=PACKED)
            certified = Codec[CertifiedHeader](CertifiedHeader, 1 << 20).decode(header.content)
            assert verify_certified_header(certified, station.roster) is None
            as_json = (await station.http.get(f"/v1/headers/{height}")).json()
            assert records_of(as_json, CertifiedHeader) == certified


@pytest.mark.parametrize("path", ["/v1/blocks/0", "/v1/blocks/99", "/v1/headers/0", "/v1/headers/99"])
async def test_a_block_that_is_not_there(path: str) -> None:
    async with Station() as station:
        response = await station.http.get(path)
        assert (response.status_code, response.json()["reason"]) == (404, "not_found")


async def test_query_state_and_history_say_the_height_they_speak_of(tmp_path: Path) -> None:
    async with scene(tmp_path) as (station, [meter]):
        key = b"registration/enrolments/" + meter.hid
        enrolled = QUERY_CODEC.decode((await station.http.get(f"/v1/state/{key.hex()}", headers=PACKED)).content)
        assert msgspec.msgpack.decode(enrolled.value, type=Enrolment).enrolment_key == meter.enrolment.public_key
        assert 0 < enrolled.written < enrolled.height == station.ledger.height
        await station.commit(station.utility.revoke(meter))
        revoked = (await station.http.get(f"/v1/state/{key.hex()}")).json()
        assert revoked["written"] == revoked["height"] == station.ledger.height
        history = (await station.http.get(f"/v1/history/{key.hex()}")).json()["versions"]
        assert [item["height"] for item in history] == [enrolled.written, revoked["written"]]
        assert history[-1]["value"] == revoked["value"]
        absent = QUERY_CODEC.decode((await station.http.get("/v1/state/00ff", headers=PACKED)).content)
        assert absent == QueryAnswer(station.ledger.height, None, 0)
        guard = (await station.http.get(f"/v1/history/{guard_key(meter.hid, 0).hex()}")).json()
        assert guard == {"versions": []}


async def test_a_query_runs_the_contract_and_a_refused_one_says_why() -> None:
    async with scene() as (station, [meter]):
        url = "/v1/query/registration/meter"
        answer = QUERY_CODEC.decode(
            (await station.http.get(url, params={"argument": meter.hid.hex()}, headers=PACKED)).content
        )
        state = msgspec.msgpack.decode(answer.value, type=MeterState)
        assert state.session is not None
        assert state.session.public_key == meter.key.public_key
        assert answer.written == answer.height == station.ledger.height
        for path, params, status, reason in (
            (url, {"argument": "00" * 32}, 404, "unknown_hid"),
            (url, {"argument": "00"}, 400, "bad_argument"),
            ("/v1/query/registration/nothing", {}, 404, "unknown_function"),
            ("/v1/query/nothing/meter", {}, 404, "unknown_contract"),
            ("/v1/query/registration/enrol", {}, 404, "unknown_function"),
            ("/v1/query/registration/contribute", {"argument": "00"}, 400, "bad_argument"),
            (url, {"argument": "0g"}, 400, "malformed"),
            (url, {"at_least": station.ledger.height + 1}, 425, "behind"),
            ("/v1/state/00", {"at_least": station.ledger.height + 1}, 425, "behind"),
        ):
            response = await station.http.get(path, params=params)
            assert (response.status_code, response.json()["reason"]) == (status, reason), path
            assert response.json()["detail"]
            assert ("retry-after" in response.headers) == (status == 425)


async def test_at_least_gives_read_your_writes() -> None:
    async with scene() as (station, [meter]):
        answer = await station.submit(meter.report())
        height = answer.results[0].height
        response = await station.http.get(
            f"/v1/state/{guard_key(meter.hid, 1).hex()}", params={"at_least": height}, headers=PACKED
        )
        assert QUERY_CODEC.decode(response.content).written == height


async def test_a_meter_shows_enrolment_session_and_newest_transactions(tmp_path: Path) -> None:
    async with scene(tmp_path) as (station, [meter]):
        reports = [meter.report() for _ in range(3)]
        for report in reports:
            await station.commit(report)
        shown = (await station.http.get(f"/v1/meters/{meter.hid.hex()}", params={"limit": 2})).json()
        assert shown["state"]["session"]["number"] == 1
        assert shown["state"]["enrolment"]["revoked"] is False
        assert [item["transaction_id"] for item in shown["transactions"]] == [
            station.id_of(tx).hex() for tx in reversed(reports[1:])
        ]
        missing = await station.http.get(f"/v1/meters/{'00' * 32}")
        assert (missing.status_code, missing.json()["reason"]) == (404, "unknown_hid")


async def test_only_released_blocks_are_handed_out_and_by_number_or_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_000_000]
    monkeypatch.setattr("bcami.gateway.service.now_ms", lambda: clock[0])

    async def released(station: Station, **params: int) -> tuple[int, list[int]]:
        response = await station.http.get("/v1/released", params=params)
        answer = RELEASE_CODEC.decode(response.content)
        assert answer.certified_height == station.ledger.certified_height
        return answer.released_height, [bundle.block.header.height for bundle in answer.bundles]

    async with scene(release_ms=2_000, release_blocks=4) as (station, [meter]):
        assert station.ledger.certified_height == 3
        assert await released(station) == (0, [])
        await station.commit(meter.report())
        await station.commit(meter.report())
        assert await released(station) == (1, [1])  # four newer ones exist
        clock[0] += 1_999
        assert await released(station) == (1, [1])
        clock[0] += 1
        assert await released(station) == (5, [1, 2, 3, 4, 5])
        assert await released(station, after=2, limit=2) == (5, [3, 4])
        assert await released(station, after=5) == (5, [])
        assert await released(station, after=77) == (5, [])
        bad = await station.http.get("/v1/released", params={"limit": 257})
        assert (bad.status_code, bad.json()["reason"]) == (400, "malformed")


async def test_an_answer_of_released_blocks_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcami.gateway.routes_read.RELEASE_BYTES_MAX", 1)
    async with scene() as (station, _):
        answer = RELEASE_CODEC.decode((await station.http.get("/v1/released", params={"after": 1})).content)
        assert [bundle.block.header.height for bundle in answer.bundles] == [2]


async def test_the_period_is_proven_to_be_the_mdmss(tmp_path: Path) -> None:
    async with Station(tmp_path) as station:
        none = await station.http.get("/v1/period")
        assert (none.status_code, none.json()["reason"]) == (404, "not_found")
        genesis = station.identities.genesis
        for number in (1, 2):
            await station.open_period()
            height = station.ledger.height
            await station.commit(station.utility.enrol(station.unregistered(f"m{number}")))
            packed = PROOF_CODEC.decode((await station.http.get("/v1/period", headers=PACKED)).content)
            assert records_of((await station.http.get("/v1/period")).json(), TransactionProof) == packed
            key = station.mdms.period_kem.public_key
            expected = MdmsPeriod(number, key, period_key_id(key), height)
            assert verify_period(packed, genesis, Roster.from_genesis(genesis)) == expected
        other = msgspec.structs.replace(packed, transaction=msgspec.structs.replace(packed.transaction, argument=b""))
        assert verify_period(other, genesis, station.roster) is Reason.HASH_MISMATCH


async def test_the_former_period_is_shown_until_the_next_is_certified() -> None:
    async with Station() as station:
        await station.open_period()
        first = (await station.http.get("/v1/period", headers=PACKED)).content
        real = station.ledger.bundle
        station.ledger.bundle = lambda height: None  # as long as the certificate is on its way
        await station.open_period()
        assert (await station.http.get("/v1/period", headers=PACKED)).content == first
        station.ledger.bundle = real
        assert (await station.http.get("/v1/period", headers=PACKED)).content != first


async def test_the_period_is_found_at_once_behind_many_acknowledgements() -> None:
    async with scene() as (station, [meter]):
        first = station.service.period_proof()
        for _ in range(5):
            await station.commit(meter.report())
        reads = []
        real = station.ledger.bundle
        station.ledger.bundle = lambda height: reads.append(height) or real(height)
        assert station.service.period_proof() == first
        assert reads == []
        station.service._period = None
        assert station.service.period_proof() == first
        assert reads == [1]


async def test_status_health_and_readiness() -> None:
    async with scene() as (station, _):
        status = (await station.http.get("/v1/status")).json()
        header = station.ledger.header(station.ledger.height)
        assert status["block_hash"] == header_hash(header).hex()
        assert status["state_root"] == header.state_root.hex()
        assert (status["name"], status["primary"], status["view"]) == ("node1", "node1", 0)
        assert status["height"] == status["certified_height"] == station.ledger.height
        assert (status["lag"], status["pending"], status["queued"], status["halted"]) == (0, 0, 0, None)
        assert (await station.http.get("/healthz")).json() == {"ok": True, "halted": None}
        assert (await station.http.get("/readyz")).json() == {
            "ready": True,
            "why": None,
            "amnesia": False,
        }
        far = station.ledger.height + Parameters().window + 1
        station.core.catchup.heard(Status(0, 1, 0, False, far, far, (0,)))
        late = await station.http.get("/readyz")
        assert late.status_code == 503
        assert "behind" in late.json()["why"]
        station.core.chain.halt("a certificate contradicts")
        for path in ("/healthz", "/readyz"):
            assert (await station.http.get(path)).status_code == 503


async def test_a_node_without_peers_is_not_ready_and_an_empty_chain_has_a_status() -> None:
    async with Station(members=4) as station:
        response = await station.http.get("/readyz")
        assert (response.status_code, response.json()["ready"]) == (503, False)
        status = (await station.http.get("/v1/status")).json()
        assert (status["height"], status["block_hash"], status["state_root"]) == (0, station.chain.hex(), "")


async def test_every_reason_and_event_is_counted_under_its_own_name() -> None:
    async with scene(meters=2) as (station, meters):
        await station.commit(*[meter.report() for meter in meters])
        assert station.count("bcami_transactions_executed_total") == 1 + 2 + 2 + 2
        assert station.count("bcami_height") == station.count("bcami_certified_height") == station.ledger.height
        assert station.count("bcami_batches_certified_total") > 0
        for reason in Reason:
            before = station.count("bcami_refused_total", source="gateway", reason=reason.value)
            station.service.count(reason)
            assert station.count("bcami_refused_total", source="gateway", reason=reason.value) == before + 1
        station._observe(events.EquivocationSeen(0, "prepare", b"a", b"b"))
        station._observe(events.ViewChangeStarted(1, "timer"))
        station._observe(events.PeerUp(1))
        station._observe(events.PeerUp(2))
        station._observe(events.PeerDown(1, "closed"))
        station._observe(events.Halted("x"))
        text = (await station.http.get("/metrics")).text
        for line in (
            "bcami_equivocations_total 1.0",
            "bcami_view_changes_total 1.0",
            "bcami_peers_connected 1.0",
            "bcami_halted 1.0",
        ):
            assert line in text


async def test_operator_endpoints_need_the_credential() -> None:
    async with Station() as station:
        for method, path in (("POST", "/v1/operator/stop"), ("GET", "/v1/operator/evidence")):
            for headers in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": "Bearer "},
                {"authorization": "Basic b3BlcmF0b3I="},
                {"authorization": b"Bearer \xff"},
            ):
                response = await station.http.request(method, path, headers=headers)
                assert (response.status_code, response.json()["reason"]) == (401, "not_authorized")
                assert response.headers["www-authenticate"] == "Bearer"
        assert station.stops == 0
        assert station.count("bcami_refused_total", source="gateway", reason="not_authorized") == 10
        good = {"authorization": f"Bearer {station.service.operator_token}"}
        assert (await station.http.get("/v1/operator/evidence", headers=good)).json() == {"evidence": []}
        pair = contradiction(station.roster, station.identities.consensus[0], 0)
        evidence = verify_evidence(*pair, station.roster)
        assert isinstance(evidence, Evidence)
        station.service.held_evidence = lambda: [KeptEvidence(evidence, 5, None, Reason.VALID)]
        (shown,) = (await station.http.get("/v1/operator/evidence", headers=good)).json()["evidence"]
        assert EVIDENCE_CODEC.decode(bytes.fromhex(shown["evidence"])) == evidence
        assert (shown["name"], shown["what"], shown["view"], shown["height"]) == ("node1", "prepare", 2, 9)
        assert (shown["seen_ms"], shown["outcome"]) == (5, "valid")
        assert (await station.http.post("/v1/operator/stop", headers=good)).json() == {"stopping": True}
        assert station.stops == 1


async def test_current_period_in_a_query() -> None:
    async with Station() as station:
        await station.open_period()
        shown = (await station.http.get("/v1/query/mdms/period")).json()
        period = msgspec.msgpack.decode(bytes.fromhex(shown["value"]), type=Period)
        assert (period.number, period.superseded_ms) == (1, 0)
        assert encode(period).hex() == shown["value"]
        assert form(period)["number"] == 1


async def test_one_liar_cannot_make_a_node_look_behind() -> None:
    async with Station(members=4) as station:
        far = Parameters().window + 1
        station.core.catchup.heard(Status(0, 3, 0, False, 2**62, 2**62, (0,) * 4))
        assert station.service.lag == 0
        station.core.catchup.heard(Status(0, 2, 0, False, far, far, (0,) * 4))
        assert station.service.lag == far
