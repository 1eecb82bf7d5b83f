"""The channel of a ring: what was said once, or in another ring of the same meters, is not said again."""

from hashlib import sha256
from types import SimpleNamespace

import httpx
import pytest

from bcami.aggregation.ring_meter import RingMeter
from bcami.aggregation.ring_records import SUPPLIER, ConcentratorIs, Delta, ring_number
from bcami.aggregation.ring_supplier import RingSupplier
from bcami.ami.aggregation_history import half_hour
from bcami.ami.aggregation_metrics import AggregationMetrics
from bcami.ami.ring_memory import RingMemories
from bcami.ami.ring_parties import RingParties, Secrets
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.model.aggregation import RING
from bcami.model.reasons import Reason

CHAIN = sha256(b"chain").digest()
ADDRESSES = (b"\x01" * 32, b"\x02" * 32)


class Wire(httpx.AsyncBaseTransport):
    """Carries requests, and keeps them as whoever listens would."""

    def __init__(self, application) -> None:
        self._inner = httpx.ASGITransport(app=application)
        self.heard: list[tuple[str, bytes]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.heard.append((request.url.path, await request.aread()))
        return await self._inner.handle_async_request(request)


def parties_of(ring: bytes) -> tuple[RingParties, httpx.AsyncClient, Wire]:
    names = (SUPPLIER, *ADDRESSES)
    secrets = {name: Secrets(SecretKey.generate(name), KemSecretKey.generate(name[:31] + b"\x07")) for name in names}
    meters = {address: RingMeter(address, lambda _: 1, address) for address in ADDRESSES}
    transcript = SimpleNamespace(note=lambda *_: None)
    supplier = RingSupplier({}, CHAIN, 1, 1, 8)
    parties = RingParties(meters, supplier, secrets, CHAIN, 1, sha256(ring).digest(), transcript, AggregationMetrics())
    wire = Wire(parties.application())
    http = httpx.AsyncClient(transport=wire, base_url="http://ring")
    parties.connect(http)
    return parties, http, wire


class InMemory:
    """As much of a fleet as memories of rings ask for."""

    def kept(self, _table: bytes, _prefix: bytes) -> dict[bytes, bytes]:
        return {}

    async def keep(self, writes) -> None:
        list(writes)


@pytest.mark.anyio
async def test_a_meter_gives_what_it_has_noted_and_nothing_else() -> None:
    """A δ may name any interval: one that stands against no masked sum later would not be in the meter's memory."""
    memories = RingMemories(InMemory(), ADDRESSES)
    first, second = half_hour(1800, RING), half_hour(3600, RING)
    await memories.remember(ADDRESSES[:1], first)
    assert [memories.keeps_back(ADDRESSES[0], start) for start in (first, second)] == [None, Reason.UNKNOWN_ROUND]
    assert memories.keeps_back(ADDRESSES[1], first) is Reason.UNKNOWN_ROUND


@pytest.mark.anyio
@pytest.mark.parametrize("is_to_all", [False, True])
async def test_replays(is_to_all: bool) -> None:
    (parties, http, wire), (_, other, _) = parties_of(b"one"), parties_of(b"other")
    if is_to_all:
        await parties._send_to_all(ADDRESSES[0], ConcentratorIs(1))
    else:
        await parties._send(ADDRESSES[0], ADDRESSES[1], Delta(1, 1, 0, ring_number(5)))
    ((path, body),) = wire.heard
    for client, reason in ((http, Reason.REPLAY), (other, Reason.BAD_SIGNATURE)):
        answer = await client.post(path, content=body)
        assert (answer.status_code, answer.json()) == (403, {"reason": reason})
    await parties.close()
