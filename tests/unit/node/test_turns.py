"""Peers get their turns: one that talks without end stops nobody, one that comes back is met at once."""

import asyncio
from pathlib import Path

import pytest

from bcami.codec import encode
from bcami.model.wire import HELLO_CODEC, FetchBlocks, Hello
from bcami.node import transport as transport_module
from bcami.node.transport import frame
from tests.unit.node.test_transport import Pair


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_a_peer_that_dials_is_dialled_at_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a restarted node waits for the others' backoff before anything reaches it."""
    monkeypatch.setattr(transport_module, "RECONNECT_MIN_S", 60.0)
    monkeypatch.setattr(transport_module, "RECONNECT_MAX_S", 60.0)

    async def scene() -> None:
        a, b = pair.transport(0), pair.transport(1)
        await a.start()
        lanes = [lane for (peer, _), lane in a._lanes.items() if peer == 1]
        async with asyncio.timeout(60):
            while not all(lane._is_unreachable for lane in lanes):  # noqa: ASYNC110 - nobody is told of it
                await asyncio.sleep(0.01)
        await b.start()
        await pair.listeners[0].until(lambda: pair.listeners[0].up == [1])
        await pair.listeners[1].until(lambda: pair.listeners[1].up == [0])
        await b.stop()
        await a.stop()

    asyncio.run(scene())


def test_frames_of_one_peer_do_not_hold_up_the_loop(pair: Pair) -> None:
    async def scene() -> None:
        a = pair.transport(0)
        await a.start()
        loop = asyncio.get_running_loop()
        turns: list[int] = []
        listener = pair.listeners[0]

        def slow(_peer: int, _message: object) -> None:
            end = loop.time() + 0.005
            while loop.time() < end:
                pass
            handled.append(len(turns))

        handled: list[int] = []
        listener.on_frame = slow
        _, client = pair.contexts("node2")
        address = pair.addresses[0]
        reader, writer = await asyncio.open_connection(
            address.host, address.port, ssl=client, server_hostname=address.name
        )
        flood = frame(encode(FetchBlocks(1, 2))) * 100
        writer.write(frame(HELLO_CODEC.encode(Hello(pair.roster.chain, 1, "votes"))) + flood)
        await writer.drain()
        async with asyncio.timeout(60):
            while len(handled) < 100:
                turns.append(len(handled))
                await asyncio.sleep(0)
        assert max(after - before for before, after in zip(turns, turns[1:], strict=False)) <= 10
        writer.transport.abort()
        await a.stop()

    asyncio.run(scene())
