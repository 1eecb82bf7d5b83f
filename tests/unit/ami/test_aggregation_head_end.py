"""The head-end's driver and gateways with meters behind them, over HTTP in memory: posts, drop-outs, a gateway that dies."""

from types import SimpleNamespace

import httpx
import pytest

from bcami.aggregation.head_end import MaskedRound
from bcami.aggregation.records import RoundVoid
from bcami.aggregation.rehearsal import Rehearsal
from bcami.ami.aggregation_head_end import HeadEnd, Way
from bcami.ami.aggregation_meters import CALLS_CODEC, MeterHost
from bcami.ami.aggregation_metrics import AggregationMetrics
from bcami.model.reasons import Reason

FIRST_S = 1_800 * 100_000
MEMBERS = 40


class Kept:
    """As much of a fleet as a host of meters asks for."""

    def __init__(self, town: Rehearsal) -> None:
        self._keys = town.keys

    def meter(self, meter_id: str) -> SimpleNamespace:
        keys = self._keys[int(meter_id)]
        return SimpleNamespace(session=SimpleNamespace(number=keys.session, key=keys.signer, kem=keys.kem))

    def kept(self, _table: bytes, _prefix: bytes) -> dict[bytes, bytes]:
        return {}

    async def keep(self, _writes) -> None:
        """Nothing is killed here."""


class Gateway(httpx.AsyncBaseTransport):
    """A host of meters, until it dies after so many posts."""

    def __init__(self, host: MeterHost, posts_max: int = 1 << 30) -> None:
        self._inner = httpx.ASGITransport(app=host.application())
        self._posts_max = posts_max
        self.posts: list[list[int]] = []
        """Meters that each message of a post goes to."""
        self.lost: set[int] = set()
        """Posts that get no answer, by their numbers from 1."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if len(self.posts) >= self._posts_max:
            self.posts.append([])
            raise httpx.ConnectError("nobody is there")
        self.posts.append([len(call.hids) for call in CALLS_CODEC.decode(await request.aread())])
        if len(self.posts) in self.lost:
            raise httpx.ReadTimeout("the answer is lost")
        return await self._inner.handle_async_request(request)


class Town:
    """Half of the meters behind each of two gateways."""

    def __init__(self, posts_max: int = 1 << 30) -> None:
        self.rehearsal = town = Rehearsal(MEMBERS, b"town")
        ids = {keys.hid: str(place) for place, keys in enumerate(town.keys)}
        halves = [dict(list(ids.items())[:20]), dict(list(ids.items())[20:])]
        readings = {meter_id: {FIRST_S: 100 + int(meter_id)} for meter_id in ids.values()}
        hosts = [MeterHost(Kept(town), half, readings, town.reader, AggregationMetrics()) for half in halves]
        self.gateways = [Gateway(hosts[0]), Gateway(hosts[1], posts_max)]
        self.hosts = hosts
        self.ways = [
            Way(httpx.AsyncClient(transport=gateway, base_url="http://gateway"), half)
            for gateway, half in zip(self.gateways, halves, strict=True)
        ]
        self.head_end = HeadEnd(self.ways, town.members, self, SimpleNamespace(note=lambda *_: None))

    async def submit(self, function: str, argument):
        return self.rehearsal.reader.record(function, argument)

    async def record(self, function: str, argument) -> Reason:
        await self.submit(function, argument)
        return Reason.VALID

    async def run(self):
        town = self.rehearsal
        informed = await self.head_end.tell(town.notice)
        start = town.start(1, FIRST_S)
        masked = MaskedRound(town.group, start, town.reader, town.notice, (), informed)
        ended = await self.head_end.run(masked, town.reader.record("start", start))
        return informed, masked, ended


@pytest.mark.anyio
async def test_what_goes_to_all_is_posted_once_for_each_gateway():
    town = Town()
    informed, _, ended = await town.run()
    assert informed == frozenset(range(MEMBERS))
    assert (ended.reason, ended.sums) == (Reason.VALID, (sum(range(100, 100 + MEMBERS)),))
    for gateway in town.gateways:
        assert gateway.posts == [[20], [20], [1] * 20], "the roster, the round, and to each meter the shares for it"


@pytest.mark.anyio
async def test_who_goes_after_its_contribution_is_in_the_sum():
    town = Town()
    gone = {member.hid for member in town.rehearsal.members[:2]}
    town.hosts[0].is_down = lambda hid, is_later: hid in gone and is_later
    _, masked, ended = await town.run()
    assert (ended.reason, masked.left_out()) == (Reason.VALID, {})
    assert town.gateways[0].posts == [[20], [20], [1] * 20], "a gateway's word that nobody is there is an answer"


@pytest.mark.anyio
async def test_a_post_that_is_lost_is_repeated():
    town = Town()
    town.gateways[1].lost = {2, 4, 5}
    informed, _, ended = await town.run()
    assert informed == frozenset(range(MEMBERS))
    assert (ended.reason, ended.sums) == (Reason.VALID, (sum(range(100, 100 + MEMBERS)),))
    assert town.gateways[1].posts == [[20], [20], [20], [1] * 20, [1] * 20, [1] * 20]


@pytest.mark.anyio
@pytest.mark.parametrize("posts_max", [0, 1, 2])
async def test_a_gateway_that_dies_takes_its_meters_along_and_the_round_ends(posts_max):
    """Before the roster, before the contributions, before the shares."""
    town = Town(posts_max)
    informed, masked, ended = await town.run()
    assert len(informed) == (MEMBERS if posts_max else MEMBERS // 2)
    assert ended.reason is (Reason.TOO_FEW_SHARES if posts_max == 2 else Reason.GROUP_TOO_SMALL)
    town.ways[1].is_gone = True
    asked = len(town.gateways[1].posts)
    assert await town.head_end.tell(RoundVoid(town.rehearsal.reader.record("void", town.rehearsal.start(1, 0)))) != ()
    assert len(town.gateways[1].posts) == asked, "once it is known, nothing is asked of it"
