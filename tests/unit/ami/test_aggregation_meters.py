"""A gateway's meters over HTTP: one by one and many together; what is not a message to one of them is counted."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest

from bcami.aggregation.records import TO_HEAD_END_CODEC, TO_METER_CODEC, Contribution, RoundCall
from bcami.aggregation.rehearsal import Rehearsal
from bcami.ami.aggregation_meters import CALLS_CODEC, REPLIES_CODEC, Forwarded, MeterHost
from bcami.ami.aggregation_metrics import AggregationMetrics
from bcami.ami.outbox import Write
from bcami.model.ids import HASH_BYTES

FIRST_S = 1_800 * 100_000


class KeptInMemory:
    """As much of a fleet as a host of meters asks for."""

    def __init__(self, street: Rehearsal) -> None:
        self._keys = street.keys
        self.commits: list[list[Write]] = []

    def meter(self, meter_id: str) -> SimpleNamespace:
        keys = self._keys[int(meter_id)]
        return SimpleNamespace(session=SimpleNamespace(number=keys.session, key=keys.signer, kem=keys.kem))

    def kept(self, table: bytes, prefix: bytes) -> dict[bytes, bytes]:
        return {}

    async def keep(self, writes) -> None:
        self.commits.append(list(writes))


@pytest.fixture
def street() -> Rehearsal:
    return Rehearsal(9, b"street")


@pytest.fixture
def host(street) -> MeterHost:
    ids = {keys.hid: str(place) for place, keys in enumerate(street.keys)}
    readings = {meter_id: {FIRST_S: 7} for meter_id in ids.values()}
    return MeterHost(KeptInMemory(street), ids, readings, street.reader, AggregationMetrics())


async def post(host: MeterHost, path: str, body: bytes) -> httpx.Response:
    transport = httpx.ASGITransport(app=host.application())
    async with httpx.AsyncClient(transport=transport, base_url="http://meters") as http:
        return await http.post(path, content=body)


@pytest.mark.anyio
async def test_many_at_once_are_durable_in_one_transaction(street, host):
    notice = TO_METER_CODEC.encode(street.notice)
    call = TO_METER_CODEC.encode(RoundCall(street.reader.record("start", street.start(1, FIRST_S))))
    host.is_down = lambda hid, _: hid == street.members[8].hid
    everybody = tuple(member.hid for member in street.members)
    calls = [Forwarded(everybody, notice), Forwarded(everybody, call)]
    strangers = [Forwarded((bytes(HASH_BYTES),), call), Forwarded(everybody[:1], b"\xc1")]
    response = await post(host, "/v1/aggregation", CALLS_CODEC.encode((*calls, *strangers)))
    replies = REPLIES_CODEC.decode(response.content)
    assert [reply.status for reply in replies] == [204] * 8 + [503] + [200] * 8 + [503, 404, 400]
    sent = [TO_HEAD_END_CODEC.decode(reply.data) for reply in replies if reply.status == 200]
    assert [(type(item), item.member) for item in sent] == [(Contribution, member) for member in range(8)]
    assert [len(commit) for commit in host._fleet.commits] == [8]
    assert host._metrics.noes() == {"meter": {"malformed": 1, "not_a_member": 1}}


@pytest.mark.anyio
@pytest.mark.parametrize("is_alone", [True, False])
async def test_a_repeated_answer_does_not_leave_before_the_first_is_durable(street, host, is_alone):
    """The same question comes again while the gateway is busy with others that came along with it."""
    hids = tuple(member.hid for member in street.members)
    notice = TO_METER_CODEC.encode(street.notice)
    await post(host, "/v1/aggregation", CALLS_CODEC.encode((Forwarded(hids, notice),)))
    call = TO_METER_CODEC.encode(RoundCall(street.reader.record("start", street.start(1, FIRST_S))))
    path, again = f"/v1/aggregation/{hids[0].hex()}", call
    if not is_alone:
        path, again = "/v1/aggregation", CALLS_CODEC.encode((Forwarded(hids[:1], call),))
    host._fleet.commits.clear()
    whole = post(host, "/v1/aggregation", CALLS_CODEC.encode((Forwarded(hids, call),)))
    await asyncio.gather(whole, post(host, path, again))
    assert [len(commit) for commit in host._fleet.commits] == [len(hids), 0]


@pytest.mark.anyio
async def test_what_is_no_message_to_a_meter(street, host):
    hid = street.members[0].hid.hex()
    for path, body, status in (
        ("/v1/aggregation", b"\xc1", 400),
        ("/v1/aggregation/xyz", b"", 400),
        (f"/v1/aggregation/{hid}", b"\x00", 400),
        (f"/v1/aggregation/{bytes(HASH_BYTES).hex()}", TO_METER_CODEC.encode(street.notice), 404),
        (f"/v1/aggregation/{hid}", bytes(TO_METER_CODEC.bytes_max + 1), 413),
    ):
        assert (await post(host, path, body)).status_code == status, path
    assert host._metrics.noes() == {"meter": {"malformed": 3, "not_a_member": 1, "oversized": 1}}
    transport = httpx.ASGITransport(app=host.application())
    async with httpx.AsyncClient(transport=transport, base_url="http://meters") as http:
        counted = (await http.get("/metrics")).text
    assert 'bcami_aggregation_refused_total{party="meter",reason="oversized"} 1.0' in counted
