"""Pulling from nodes that lie, lag, fail or have pruned."""

import asyncio

import httpx
import msgspec
import pytest
import structlog

from bcami.client.retry import Backoff
from bcami.codec import encode
from bcami.mdms.metrics import MdmsMetrics
from bcami.mdms.puller import HttpSource, Puller, PullPolicy, SourceUnavailableError
from bcami.model.api import ReleaseAnswer
from bcami.model.report import Reading
from tests.chain import prune
from tests.unit.mdms.conftest import World

T0 = 1_356_998_400


class Source:
    """A node that serves a list of bundles, or what `lie` makes of its answer."""

    def __init__(self, name: str, bundles, lie=None) -> None:
        self.name = name
        self.bundles = bundles
        self.lie = lie
        self.asked: list[int] = []

    async def released(self, after: int, limit: int) -> bytes:
        self.asked.append(after)
        if self.lie is not None:
            return self.lie(after)
        height = len(self.bundles)
        return encode(ReleaseAnswer(height, height, tuple(self.bundles[after : after + limit])))

    async def close(self) -> None:
        return


def puller(world: World, *sources: Source, strong: int = 3) -> Puller:
    return Puller(
        sources,
        world.follower(),
        world.store,
        MdmsMetrics(),
        structlog.get_logger(),
        strong=strong,
        policy=PullPolicy(poll_s=0.0, backoff=Backoff(first_ms=1, cap_ms=2)),
    )


def steps(made: Puller, count: int) -> None:
    async def run() -> None:
        for _ in range(count):
            await made.step()

    asyncio.run(run())


def run_until_stored(world: World, made: Puller) -> None:
    """Let the puller run until the store has the whole chain."""

    async def run() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()

        def stored() -> None:
            if world.store.cursor.height == world.chain.height:
                loop.call_soon_threadsafe(stop.set)

        made._after_stored = stored
        async with asyncio.timeout(60):
            await made.run(stop)

    asyncio.run(run())


@pytest.fixture
def bundles(world: World):
    world.chain.block([world.meter.report([Reading(T0 + place * 1800, place) for place in range(48)])])
    return world.chain.bundles


def answer(*bundles, height: int = 0) -> bytes:
    return encode(ReleaseAnswer(height, height, bundles))


def tamper(bundle):
    tx = bundle.batches[0].batch.transactions[0]
    altered = msgspec.structs.replace(tx, argument=bytes(len(tx.argument)))
    batch = msgspec.structs.replace(bundle.batches[0].batch, transactions=(altered,))
    return msgspec.structs.replace(bundle, batches=(msgspec.structs.replace(bundle.batches[0], batch=batch),))


def test_a_lying_node_is_left_for_another(world: World, bundles) -> None:
    liar = Source("liar", bundles, lambda after: answer(*bundles[after:-1], tamper(bundles[-1])))
    honest = Source("honest", bundles)
    made = puller(world, liar, honest)
    steps(made, 2)
    assert honest.asked == [world.chain.height - 1]
    assert world.store.cursor.height == world.chain.height
    assert len(world.readings()) == 48
    text = made._metrics.render(world.store).decode()
    assert 'bcami_mdms_offers_refused_total{node="liar",reason="bad_digest"} 1.0' in text


@pytest.mark.parametrize("kind", ["garbage", "empty bytes", "silent", "failing"])
def test_a_broken_node_is_left_for_another(world: World, bundles, kind: str) -> None:
    def failing(_after: int) -> bytes:
        raise SourceUnavailableError("HTTP 500")

    lies = {
        "garbage": lambda _: b"\xc1" * 100,
        "empty bytes": lambda _: b"",
        "silent": lambda _: answer(),
        "failing": failing,
    }
    made = puller(world, Source("broken", bundles, lies[kind]), Source("honest", bundles))
    steps(made, 2)
    assert world.store.cursor.height == world.chain.height


def test_old_blocks_replayed_by_a_node_change_nothing(world: World, bundles) -> None:
    made = puller(world, Source("one", bundles, lambda _: answer(*bundles)))
    steps(made, 3)
    assert world.store.counts.readings == 48
    assert world.store.counts.repeated_equal == 0


def test_blocks_out_of_order_are_refused(world: World, bundles) -> None:
    made = puller(world, Source("one", bundles, lambda _: answer(*reversed(bundles))), Source("two", bundles))
    steps(made, 3)
    assert world.store.counts.readings == 48


def test_a_payload_is_given_up_only_when_a_strong_quorum_pruned_it(world: World, bundles) -> None:
    pruned = [*bundles[:-1], prune(bundles[-1])]
    sources = [Source(f"node{place}", pruned) for place in range(3)]
    last = Source("node4", pruned)
    last.lie = lambda _: (_ for _ in ()).throw(SourceUnavailableError("down"))
    made = puller(world, *sources, last)
    asyncio.run(made.step())
    asyncio.run(made.step())
    assert world.store.cursor.height == world.chain.height - 1
    asyncio.run(made.step())  # the third says so too
    assert world.store.cursor.height == world.chain.height - 1

    run_until_stored(world, made)
    assert world.store.counts.unreadable == 1


def test_one_node_that_still_has_the_payload_is_enough(world: World, bundles) -> None:
    pruned = [*bundles[:-1], prune(bundles[-1])]
    made = puller(world, Source("a", pruned), Source("b", pruned), Source("c", bundles))
    steps(made, 3)
    assert world.store.counts.readings == 48


def test_runs_until_it_is_told_to_stop(world: World, bundles) -> None:
    made = puller(world, Source("one", bundles))
    run_until_stored(world, made)
    assert world.store.cursor.height == world.chain.height


def test_http_source_limits_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcami.mdms.puller.ANSWER_BYTES_MAX", 1000)

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/released"
        after = int(request.url.params["after"])
        assert request.headers["accept-encoding"] == "identity"

        async def content():
            for _ in range(after):
                yield bytes(500)

        return httpx.Response(200 if after < 9 else 503, content=content())

    async def run() -> None:
        source = HttpSource("node1", "http://node1", transport=httpx.MockTransport(handle))
        assert await source.released(2, 64) == bytes(1000)
        for after in (3, 9):
            with pytest.raises(SourceUnavailableError):
                await source.released(after, 64)
        await source.close()

    asyncio.run(run())
