"""Bad input: each kind has its own reason, in the answer and in the metrics, and costs nobody a reading.

A case does something wrong to a registered meter's next report (or to a request) and is then sent. Afterwards the
honest report of the same number is accepted: what was refused used nothing up.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import httpx
import msgspec
import pytest

from bcami.client.nodes import NodeClient, NodeUnavailable
from bcami.client.refusals import signer_of_refusals, signer_of_request_refusal
from bcami.codec import Codec, encode
from bcami.crypto.keys import SecretKey
from bcami.gateway.limits import BODY_BYTES_MAX
from bcami.model.api import CHAIN_HEADER, SUBMIT_TRANSACTIONS_MAX, RefusalSignature
from bcami.model.genesis import Parameters
from bcami.model.reasons import Reason, explain
from bcami.model.registration import ContributionRequest, RegisterArgument, contribution_request_digest
from bcami.model.transaction import Transaction, argument_digest, transaction_id
from tests.gateway.station import MSGPACK, Station, form, scene
from tests.simulation.cluster import entropy
from tests.simulation.parties import SimpleMeter

pytestmark = pytest.mark.anyio

Honest = Callable[[], Sequence[Transaction]]
"""What the meter sends next, one after the other; all of it has to be accepted."""
Make = Callable[[Station, SimpleMeter], Awaitable[tuple[Transaction, Honest]]]
REFUSED, COMMITTED = "refused", "committed"
SKEW_MS = 60_000


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def resigned(station: Station, keys: Sequence[SecretKey], tx: Transaction, **changes: object) -> Transaction:
    """Return the transaction with other fields, signed anew by whoever holds the keys."""
    changed = msgspec.structs.replace(tx, **changes)
    tx_id = transaction_id(changed, station.chain, 0)
    return msgspec.structs.replace(changed, signatures=tuple(key.sign(tx_id) for key in keys))


def a_report(**changes: Callable[[Transaction], object]) -> Make:
    """A report whose fields were changed on the way; the original still counts."""

    async def make(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
        report = meter.report()
        bad = msgspec.structs.replace(report, **{name: change(report) for name, change in changes.items()})
        return bad, lambda: [report]

    return make


def a_signed_report(**changes: Callable[[Transaction], object]) -> Make:
    """A report that the meter itself signed in the wrong form; its number is not used up."""

    async def make(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
        report = meter.report()
        bad = resigned(station, [meter.key], report, **{name: change(report) for name, change in changes.items()})
        return bad, lambda: [report]

    return make


async def wrong_length(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    report = meter.report()
    argument = report.argument[:-1]
    bad = resigned(station, [meter.key], report, argument=argument, argument_hash=argument_digest(argument))
    return bad, lambda: [report]


async def altered_ciphertext_and_hash(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    report = meter.report()
    argument = flipped(report.argument, 100)
    bad = msgspec.structs.replace(report, argument=argument, argument_hash=sha256(argument).digest())
    return bad, lambda: [report]


async def signed_by_a_stranger(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    report = meter.report()
    return resigned(station, [SecretKey.generate(entropy("stranger"))], report), lambda: [report]


async def signed_for_another_chain(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    report = meter.report()
    other = meter.key.sign(transaction_id(report, b"\x01" * 32, 0))
    return msgspec.structs.replace(report, signatures=(other,)), lambda: [report]


async def hid_that_nobody_enrolled(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    register = meter.register(station.mdms)
    bad = resigned(station, [meter.enrolment, meter.key], register, signer=b"\x09" * 32)
    return bad, lambda: [register, meter.report()]


async def revoked(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    await station.commit(station.utility.revoke(meter))
    return meter.report(), list


async def revoked_registers(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    register = meter.register(station.mdms)
    await station.commit(station.utility.revoke(meter))
    return register, list


async def closed_session(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    late = meter.report()
    await station.commit(meter.register(station.mdms))
    return late, lambda: [meter.report()]


async def unknown_period(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    station.mdms.period += 5
    bad = meter.register(station.mdms)
    station.mdms.period -= 5
    return bad, lambda: [meter.register(station.mdms), meter.report()]


async def key_of_another_period(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    old = station.mdms.period_kem
    await station.open_period()
    newest, station.mdms.period_kem = station.mdms.period_kem, old
    bad = meter.register(station.mdms)
    station.mdms.period_kem = newest
    return bad, lambda: [meter.register(station.mdms), meter.report()]


async def expired_period(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    bad = meter.report()
    await station.open_period()
    return bad, lambda: [meter.register(station.mdms), meter.report()]


async def replay(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    report = meter.report()
    await station.commit(report)
    bad = resigned(station, [meter.key], report, timestamp_ms=report.timestamp_ms - 1)
    return bad, lambda: [meter.report()]


async def below_the_window(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    late, held_back = meter.report(sequence=1), meter.report(sequence=4_999)
    await station.commit(meter.report(sequence=5_000))
    return late, lambda: [held_back]


async def meter_that_enrols(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    enrol = station.utility.enrol(station.unregistered("friend"))
    return resigned(station, [meter.enrolment], enrol, signer=meter.hid), lambda: [enrol, meter.report()]


async def enrolled_twice(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    return station.utility.enrol(meter), lambda: [meter.report()]


async def session_not_above(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    overtaken = meter.register(station.mdms)
    await station.commit(meter.register(station.mdms))
    return overtaken, lambda: [meter.report()]


async def key_that_is_no_sum(station: Station, meter: SimpleMeter) -> tuple[Transaction, Honest]:
    """The holder of the enrolment key brings a key of its own choice (protocol 2.2)."""
    register = meter.register(station.mdms)
    argument = Codec[RegisterArgument](RegisterArgument, 1 << 14).decode(register.argument)
    chosen = SecretKey.generate(entropy("chosen"))
    data = encode(msgspec.structs.replace(argument, public_key=chosen.public_key))
    keys = [meter.enrolment, chosen]
    bad = resigned(station, keys, register, argument=data, argument_hash=argument_digest(data))
    return bad, lambda: [meter.register(station.mdms), meter.report()]


@dataclass(frozen=True)
class Case:
    name: str
    make: Make
    reason: Reason
    status: str = REFUSED
    parameters: Parameters = Parameters(clock_skew_ms=SKEW_MS, session_gap_ms=0)


SHORT_GRACE = Parameters(period_grace_ms=1, session_gap_ms=0)
CASES = [
    Case("unknown HID", a_signed_report(signer=lambda tx: b"\x07" * 32), Reason.UNKNOWN_HID),
    Case("unknown HID registers", hid_that_nobody_enrolled, Reason.UNKNOWN_HID),
    Case("revoked HID", revoked, Reason.REVOKED_HID),
    Case("revoked HID registers", revoked_registers, Reason.REVOKED_HID),
    Case("session never opened", a_signed_report(session=lambda tx: 7), Reason.UNKNOWN_SESSION),
    Case("session 0", a_signed_report(session=lambda tx: 0), Reason.UNKNOWN_SESSION),
    Case("closed session", closed_session, Reason.SESSION_CLOSED),
    Case("session not above", session_not_above, Reason.SESSION_NOT_ABOVE),
    Case("unknown MDMS period", unknown_period, Reason.UNKNOWN_PERIOD, COMMITTED),
    Case("key of another MDMS period", key_of_another_period, Reason.KEY_MISMATCH, COMMITTED),
    Case("expired MDMS period", expired_period, Reason.PERIOD_EXPIRED, COMMITTED, SHORT_GRACE),
    Case("bad signature", a_report(signatures=lambda tx: (flipped(tx.signatures[0], 77),)), Reason.BAD_SIGNATURE),
    Case("signature of a stranger", signed_by_a_stranger, Reason.BAD_SIGNATURE),
    Case("no signature", a_report(signatures=lambda tx: ()), Reason.BAD_SIGNATURE),
    Case("two signatures", a_report(signatures=lambda tx: tx.signatures * 2), Reason.BAD_SIGNATURE),
    Case("signed for another chain", signed_for_another_chain, Reason.BAD_SIGNATURE),
    Case("altered ciphertext", a_report(argument=lambda tx: flipped(tx.argument, 100)), Reason.HASH_MISMATCH),
    Case("altered hash", a_report(argument_hash=lambda tx: flipped(tx.argument_hash, 3)), Reason.HASH_MISMATCH),
    Case("altered ciphertext with its hash", altered_ciphertext_and_hash, Reason.BAD_SIGNATURE),
    Case("altered timestamp", a_report(timestamp_ms=lambda tx: tx.timestamp_ms - 1), Reason.BAD_SIGNATURE),
    Case("altered sequence", a_report(sequence=lambda tx: tx.sequence + 9), Reason.BAD_SIGNATURE),
    Case("replay", replay, Reason.REPLAY),
    Case("below the window", below_the_window, Reason.SEQUENCE_TOO_OLD),
    Case(
        "timestamp ahead",
        a_signed_report(timestamp_ms=lambda tx: tx.timestamp_ms + SKEW_MS + 30_000),
        Reason.TIMESTAMP_AHEAD,
    ),
    Case("report of no possible length", wrong_length, Reason.BAD_ARGUMENT),
    Case("unknown contract", a_signed_report(contract=lambda tx: "billing"), Reason.UNKNOWN_CONTRACT),
    Case("unknown function", a_signed_report(function=lambda tx: "read"), Reason.UNKNOWN_FUNCTION),
    Case("a meter enrols", meter_that_enrols, Reason.NOT_AUTHORIZED),
    Case("enrolled twice", enrolled_twice, Reason.ALREADY_ENROLLED),
    Case("key that is no sum", key_that_is_no_sum, Reason.KEY_MISMATCH, COMMITTED),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("packed", [False, True], ids=["json", "msgpack"])
async def test_a_bad_transaction_has_its_reason_and_costs_nobody_a_reading(case: Case, packed: bool) -> None:
    async with scene(parameters=case.parameters) as (station, [meter]):
        bad, honest = await case.make(station, meter)
        await station.commit(station.utility.enrol(station.unregistered("bystander")))
        source = "admission" if case.status == REFUSED else "execution"
        counted = station.count("bcami_refused_total", source=source, reason=case.reason.value)
        neighbour = station.utility.enrol(station.unregistered("neighbour"))
        if packed:
            answer = await station.submit(bad, neighbour)
            seen = [(item.status, item.reason) for item in answer.results]
            expected = station.core.replica if case.status == REFUSED else None
            assert signer_of_refusals(answer, station.core.roster) == expected
        else:
            body = {"transactions": [form(bad), form(neighbour)]}
            shown = (await station.http.post("/v1/transactions", json=body)).json()["results"]
            seen = [(item["status"], item["reason"]) for item in shown]
            assert shown[0]["detail"] == explain(case.reason)
            assert ("receipt" in shown[0]) == (case.status == COMMITTED)
        assert seen == [(case.status, case.reason), (COMMITTED, "valid")]
        assert station.count("bcami_refused_total", source=source, reason=case.reason.value) == counted + 1
        for tx in honest():
            await station.commit(tx)
        assert f'reason="{case.reason.value}"' in (await station.http.get("/metrics")).text


async def test_sessions_in_a_row_need_time_between_them() -> None:
    async with scene(parameters=Parameters(session_gap_ms=100)) as (station, [meter]):
        answer = await station.submit(meter.register(station.mdms))
        assert [item.reason for item in answer.results] == [Reason.SESSION_TOO_SOON]
        assert station.count("bcami_transactions_rejected_total", reason="session_too_soon") == 1
        meter.session -= 1


@pytest.mark.parametrize("skew_ms", [0, 5_000, 3_600_000])
async def test_how_far_ahead_a_timestamp_may_be_is_a_parameter_of_genesis(
    skew_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(parameters=Parameters(clock_skew_ms=skew_ms)) as (station, [meter]):
        monkeypatch.setattr("bcami.node.driver.now_ms", lambda: station.now_ms)
        last, over = meter.report(), meter.report()
        at = station.now_ms + skew_ms
        answer = await station.submit(
            resigned(station, [meter.key], last, timestamp_ms=at),
            resigned(station, [meter.key], over, timestamp_ms=at + 1),
        )
        assert [item.reason for item in answer.results] == ["valid", "timestamp_ahead"]
        monkeypatch.setattr("bcami.node.driver.now_ms", lambda: station.now_ms + 1)
        await station.commit(resigned(station, [meter.key], over, timestamp_ms=at + 1))


async def test_age_is_no_reason() -> None:
    async with scene() as (station, [meter]):
        report = meter.report()
        await station.commit(resigned(station, [meter.key], report, timestamp_ms=1_356_998_400_000))


GOOD = {
    "contract": "usage",
    "function": "report",
    "signer": "00" * 32,
    "session": 1,
    "sequence": 1,
    "timestamp_ms": 1,
    "argument_hash": "00" * 32,
    "argument": "00",
    "signatures": [],
}
BODIES: dict[str, tuple[str, bytes]] = {
    "nothing": ("application/json", b""),
    "no JSON": ("application/json", b"{"),
    "another JSON": ("application/json", b"[1, 2]"),
    "not UTF-8": ("application/json", b'{"transactions": ["\xff"]}'),
    "too deep": ("application/json", b"[" * 100_000),
    "no transactions": ("application/json", b'{"transactions": []}'),
    "a missing field": ("application/json", msgspec.json.encode({"transactions": [{**GOOD, "signer": None}]})),
    "an extra field": ("application/json", msgspec.json.encode({"transactions": [{**GOOD, "note": 1}]})),
    "odd hex": ("application/json", msgspec.json.encode({"transactions": [{**GOOD, "argument": "0"}]})),
    "capital hex": ("application/json", msgspec.json.encode({"transactions": [{**GOOD, "signer": "AA" * 32}]})),
    "a number as text": ("application/json", msgspec.json.encode({"transactions": [{**GOOD, "session": "1"}]})),
    "a negative number": ("application/json", msgspec.json.encode({"transactions": [{**GOOD, "sequence": -1}]})),
    "a huge number": ("application/json", msgspec.json.encode({"transactions": [{**GOOD, "sequence": 2**63}]})),
    "a fraction": ("application/json", msgspec.json.encode({"transactions": [{**GOOD, "sequence": 1.5}]})),
    "three signatures": (
        "application/json",
        msgspec.json.encode({"transactions": [{**GOOD, "contract": "Usage!"}]}),
    ),
    "empty msgpack": (MSGPACK, b""),
    "no msgpack": (MSGPACK, b"\xc1"),
    "msgpack of something else": (MSGPACK, encode({"a": 1})),
    "an empty list": (MSGPACK, encode(())),
    "not canonical": (MSGPACK, b"\xdc\x00\x00"),
    "bytes behind the end": (MSGPACK, encode(()) + b"\x00"),
    "JSON said to be msgpack": (MSGPACK, b'{"transactions": []}'),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_malformed_body(name: str) -> None:
    kind, body = BODIES[name]
    async with Station() as station:
        for count, path in enumerate(("/v1/transactions", "/v1/transaction"), 1):
            response = await station.http.post(path, content=body, headers={"content-type": kind})
            assert response.status_code == 400, response.text
            answer = response.json()
            assert answer["reason"] == "malformed"
            assert answer["detail"]
            signed = RefusalSignature(answer["replica"], bytes.fromhex(answer["signature"]))
            for said, signer in ((body, station.core.replica), (body + b" ", None)):
                roster = station.core.roster
                assert signer_of_request_refusal(said, Reason.MALFORMED, signed, roster) == signer
            assert station.count("bcami_refused_total", source="gateway", reason="malformed") == count


async def test_a_malformed_question() -> None:
    async with Station() as station:
        for path in (
            "/v1/transactions/xyz",
            "/v1/blocks/one",
            "/v1/blocks/-1",
            "/v1/state/0",
            "/v1/meters/00",
            "/v1/released?after=x",
        ):
            response = await station.http.get(path)
            assert (response.status_code, response.json()["reason"]) == (400, "malformed"), path
        for method, path, status, reason in (
            ("GET", "/v1/nothing", 404, "not_found"),
            ("DELETE", "/v1/status", 405, "malformed"),
        ):
            response = await station.http.request(method, path)
            assert (response.status_code, response.json()["reason"]) == (status, reason)
        response = await station.http.post("/v1/transactions?wait=forever", content=b"")
        assert (response.status_code, response.json()["reason"]) == (400, "malformed")


@pytest.mark.parametrize("kind", ["application/json", MSGPACK])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_oversized_body(kind: str, chunked: bool) -> None:
    sent = []

    async def chunks():
        for _ in range(200):
            sent.append(1)
            yield b" " * 65_536

    async with Station() as station:
        for count, path in enumerate(("/v1/transactions", "/v1/transaction", "/v1/contribute"), 1):
            sent.clear()
            content = chunks() if chunked else b" " * (BODY_BYTES_MAX + 1)
            response = await station.http.post(path, content=content, headers={"content-type": kind})
            assert (response.status_code, response.json()["reason"]) == (413, "oversized")
            assert str(BODY_BYTES_MAX) in response.json()["detail"]
            assert station.count("bcami_refused_total", source="gateway", reason="oversized") == count
            assert len(sent) < 70


@pytest.mark.parametrize("length", ["-5", "9" * 5_000, "ten", str(BODY_BYTES_MAX + 1)])
async def test_a_body_with_an_absurd_length(length: str) -> None:
    async with Station() as station:
        response = await station.http.post("/v1/transactions", content=b"", headers={"content-length": length})
        assert (response.status_code, response.json()["reason"]) == (413, "oversized")


async def test_too_many_transactions_in_one_request() -> None:
    async with scene() as (station, [meter]):
        small = msgspec.structs.replace(meter.report(), argument=b"", signatures=())
        many = [small] * (SUBMIT_TRANSACTIONS_MAX + 1)
        packed = await station.http.post("/v1/transactions", content=encode(many), headers={"content-type": MSGPACK})
        shown = await station.http.post("/v1/transactions", json={"transactions": [form(tx) for tx in many]})
        for response in (packed, shown):
            assert (response.status_code, response.json()["reason"]) == (413, "oversized")
        large = msgspec.structs.replace(small, argument=bytes(20_000))
        response = await station.http.post("/v1/transaction", json=form(large))
        assert (response.status_code, response.json()["reason"]) == (413, "oversized")
        response = await station.http.post("/v1/transaction", content=encode(large), headers={"content-type": MSGPACK})
        assert (response.status_code, response.json()["reason"]) == (413, "oversized")
        await station.commit(*[meter.report() for _ in range(3)])


@pytest.mark.parametrize("how", ["header", "JSON"])
async def test_a_request_for_another_network(how: str) -> None:
    async with scene() as (station, [meter]):
        report, other = meter.report(), "ab" * 32
        for chain, reason in ((other, "wrong_chain"), (station.chain.hex(), "valid")):
            headers = {CHAIN_HEADER: chain} if how == "header" else {}
            said = {"chain": chain} if how == "JSON" else {}
            one = await station.http.post("/v1/transaction", json={**form(report), **said}, headers=headers)
            many = await station.http.post(
                "/v1/transactions", json={"transactions": [form(report)], **said}, headers=headers
            )
            if reason == "valid":
                assert one.json()["reason"] == many.json()["results"][0]["reason"] == "valid"
                continue
            for response in (one, many):
                assert (response.status_code, response.json()["reason"]) == (400, "wrong_chain")
                assert other in response.json()["detail"]
                assert station.chain.hex() in response.json()["detail"]
            assert station.count("bcami_refused_total", source="gateway", reason="wrong_chain") == 2
        bad = await station.http.post("/v1/transaction", json=form(report), headers={CHAIN_HEADER: "xyz"})
        assert (bad.status_code, bad.json()["reason"]) == (400, "malformed")


async def test_a_client_of_another_network_is_told_and_gives_nothing_up() -> None:
    async with scene() as (station, [meter]):
        report = meter.report()
        transport = httpx.ASGITransport(station.app)
        async with NodeClient("http://node1.test", chain=b"\xab" * 32, transport=transport) as stranger:
            for ask in (stranger.submit([report]), stranger.transaction(bytes(32)), stranger.released(0, 1)):
                with pytest.raises(NodeUnavailable, match="another network") as caught:
                    await ask
                assert caught.value.refuses is None
            assert (await stranger.genesis()) == station.identities.genesis
        async with NodeClient("http://node1.test", chain=station.chain, transport=transport) as client:
            assert [item.reason for item in (await client.submit([report])).results] == ["valid"]


async def test_requests_for_key_shares() -> None:
    async with scene(parameters=Parameters(contribution_rate_per_minute=3)) as (station, [meter]):

        def request(hid: bytes, session: int, key: SecretKey, nonce: bytes = b"n" * 32) -> bytes:
            digest = contribution_request_digest(station.chain, 0, hid, session, nonce)
            return encode(ContributionRequest(hid, session, nonce, key.sign(digest)))

        good = request(meter.hid, 2, meter.enrolment)
        for body, status, reason in (
            (b"", 400, "malformed"),
            (request(b"\x01" * 32, 1, meter.enrolment), 403, "unknown_hid"),
            (request(meter.hid, 2, meter.key), 403, "bad_signature"),
            (request(meter.hid, 1, meter.enrolment), 403, "session_not_above"),
        ):
            response = await station.http.post("/v1/contribute", content=body)
            assert (response.status_code, response.json()["reason"]) == (status, reason)
            assert station.count("bcami_refused_total", source="gateway", reason=reason) == 1
        first = await station.http.post("/v1/contribute", content=good)
        assert first.status_code == 200
        assert (await station.http.post("/v1/contribute", content=good)).content == first.content
        limited = await station.http.post("/v1/contribute", content=good)
        assert (limited.status_code, limited.json()["reason"]) == (429, "rate_limited")
        assert int(limited.headers["retry-after"]) >= 1
