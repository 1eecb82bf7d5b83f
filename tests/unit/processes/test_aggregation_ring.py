"""Meters that open new sessions while a ring runs: their old keys are destroyed, and a new ring forms.

Over HTTP in memory and in virtual time: each message takes its time, so that they overtake each other.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from random import Random
from types import SimpleNamespace

import httpx
import pytest

from bcami.aggregation.rehearsal import RehearsalReader
from bcami.ami import ring_parties
from bcami.ami.aggregation_metrics import AggregationMetrics
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.model.aggregation import (
    NO_NOISE,
    RING,
    AggregationHeads,
    FixRosterArgument,
    RosterMember,
    RoundResult,
    RoundView,
    whole_roster_digest,
)
from bcami.model.reasons import Reason
from bcami.processes import aggregation_ring
from bcami.processes.aggregation_place import AggregateOptions, Place
from tests import virtual

FIRST_S = 1_800 * 100_000
MEMBERS = 9
CHAIN = sha256(b"chain").digest()
LATE_S = 0.1
"""A message or its answer takes up to so long."""


class Meters:
    """As much of a fleet as a ring asks for; `renew` is what a new period of the MDMS makes of a meter."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.ids = {sha256(b"meter%d" % number).digest(): f"meter {number}" for number in range(MEMBERS)}
        self._sessions = {meter_id: self._open(1) for meter_id in self.ids.values()}

    def _open(self, number: int) -> SimpleNamespace:
        key, kem = SecretKey.generate(self._random.randbytes(32)), KemSecretKey.generate(self._random.randbytes(32))
        return SimpleNamespace(number=number, key=key, kem=kem)

    def renew(self, meter_id: str) -> None:
        old = self._sessions[meter_id]
        self._sessions[meter_id] = self._open(old.number + 1)
        old.key.destroy()
        old.kem.destroy()

    def meter(self, meter_id: str) -> SimpleNamespace:
        return SimpleNamespace(session=self._sessions[meter_id])

    def kept(self, _table: bytes, _prefix: bytes) -> dict[bytes, bytes]:
        return {}

    async def keep(self, writes) -> None:
        list(writes)

    async def sessions_settled(self) -> None:
        """No meter is between two sessions here."""


class Chain:
    """Records everything; `after` is called with what was recorded."""

    def __init__(self, meters: Meters, after) -> None:
        self._meters = meters
        self._after = after
        self._reader = RehearsalReader(CHAIN)
        self.transactions = self.transaction_bytes = 0
        self.recorded = []

    async def heads(self) -> AggregationHeads:
        return AggregationHeads(0, 0)

    async def members(self, hids) -> tuple[RosterMember, ...]:
        sessions = {hid: self._meters.meter(self._meters.ids[hid]).session for hid in sorted(hids)}
        return tuple(RosterMember(hid, s.number, s.key.public_key, s.kem.public_key) for hid, s in sessions.items())

    async def fix_roster(self, number: int, group: str, members):
        return self._record(
            "fix_roster",
            FixRosterArgument(number, group, len(members), whole_roster_digest(CHAIN, number, members)),
        )

    async def submit(self, function: str, argument):
        return self._record(function, argument)

    def _record(self, function: str, argument):
        self.recorded.append((function, argument))
        proof = self._reader.record(function, argument)
        self._after(function, argument)
        return proof

    async def round(self, number: int) -> RoundView:
        start = next(item for name, item in self.recorded if name == "start" and item.round == number)
        end = next(item for name, item in self.recorded if name in ("claim", "void") and item.round == number)
        is_valid = hasattr(end, "sums")
        sums, count = (end.sums, end.count) if is_valid else ((), 0)
        result = RoundResult(Reason.VALID if is_valid else end.reason, sums, count, False, 0)
        return RoundView(start, "street", None, result)


async def near(_intervals) -> list:
    return []


def place_of(meters: Meters, chain: Chain, intervals: int) -> Place:
    times = tuple(FIRST_S + 1800 * number for number in range(intervals))
    readings = {meter_id: {time: 100 + time % 7 for time in times} for meter_id in meters.ids.values()}
    return Place(
        AggregateOptions("street", RING, times, 0.0, NO_NOISE),
        home=None,
        run=None,
        lock=0,
        fleet=meters,
        chain=chain,
        history=SimpleNamespace(near=near),
        roster=SimpleNamespace(chain=CHAIN, epoch=1),
        meter_ids=meters.ids,
        readings=readings,
        transcript=SimpleNamespace(note=lambda *_: None),
        metrics=AggregationMetrics(),
        show=lambda _text: None,
    )


class Network(httpx.AsyncBaseTransport):
    """Carries each request and each answer as late as chance has it."""

    def __init__(self, application, random: Random) -> None:
        self._inner = httpx.ASGITransport(app=application)
        self._random = random

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(self._random.uniform(0, LATE_S))
        answer = await self._inner.handle_async_request(request)
        await asyncio.sleep(self._random.uniform(0, LATE_S))
        return answer


@pytest.fixture(params=range(3))
def seed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Give keys, dice and delays of this seed."""
    number: int = request.param
    random = Random(number)

    @asynccontextmanager
    async def served(application) -> AsyncIterator[Network]:
        yield Network(application, random)

    monkeypatch.setattr(aggregation_ring, "served", served)
    monkeypatch.setattr(
        aggregation_ring, "client", lambda network: httpx.AsyncClient(transport=network, base_url="http://ring")
    )
    for module in (aggregation_ring, ring_parties):
        monkeypatch.setattr(module, "os", SimpleNamespace(urandom=random.randbytes))
    return number


def test_between_two_rounds(seed: int) -> None:
    meters = Meters(seed)

    def after(function: str, argument) -> None:
        if function == "claim" and argument.round == 1:
            for meter_id in list(meters.ids.values())[:1]:
                meters.renew(meter_id)

    chain = Chain(meters, after)
    report = virtual.run(aggregation_ring.run_ring(place_of(meters, chain, 3)))
    assert [item.reason for item in report.rounds] == [Reason.VALID] * 3
    assert [item.contributors for item in report.rounds] == [MEMBERS] * 3
    assert report.is_exact
    assert [item.roster for name, item in chain.recorded if name in ("fix_roster", "start")] == [1, 1, 2, 2, 2]


def test_in_the_middle_of_a_round(seed: int) -> None:
    """The round is void, with its reason on the chain; nothing waits for timers, and the next round has a sum."""
    meters = Meters(seed)

    def after(function: str, argument) -> None:
        if function == "start" and argument.round == 1:
            for meter_id in meters.ids.values():
                meters.renew(meter_id)

    chain = Chain(meters, after)
    report = virtual.run(aggregation_ring.run_ring(place_of(meters, chain, 2)))
    assert [item.reason for item in report.rounds] == [Reason.SESSION_CLOSED, Reason.VALID]
    assert "new sessions" in report.rounds[0].explanation
    assert report.rounds[1].contributors == MEMBERS
    assert [item.reason for name, item in chain.recorded if name == "void"] == [Reason.SESSION_CLOSED]
