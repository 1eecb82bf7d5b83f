"""Frames over real mutual TLS on loopback: who is who, limits, bad bytes, bounded queues."""

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from bcami.codec import encode
from bcami.crypto.keys import SecretKey
from bcami.crypto.roster import Roster
from bcami.crypto.tls import certificate_fingerprint, client_context, make_tls_identity, server_context
from bcami.model import events
from bcami.model.genesis import Genesis, Member, Parameters
from bcami.model.reasons import Reason
from bcami.model.wire import HELLO_CODEC, FetchBlocks, Hello, PeerMessage, Status
from bcami.node.transport import (
    LANES,
    QUEUE_BYTES_MAX,
    RECONNECT_MIN_S,
    OutgoingLane,
    PeerAddress,
    Transport,
    frame,
)
from tests.ports import free_ports


class Listener:
    def __init__(self) -> None:
        self.frames: list[tuple[int, PeerMessage]] = []
        self.up: list[int] = []
        self.down: list[int] = []
        self.seen: list[events.Observation] = []
        self.changed = asyncio.Event()

    def on_frame(self, peer: int, message: PeerMessage) -> None:
        self.frames.append((peer, message))
        self.changed.set()

    def on_peer_up(self, peer: int) -> None:
        self.up.append(peer)
        self.changed.set()

    def on_peer_down(self, peer: int, reason: str) -> None:
        self.down.append(peer)
        self.changed.set()

    def observe(self, observation: events.Observation) -> None:
        self.seen.append(observation)
        self.changed.set()

    async def until(self, condition) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                if condition():
                    return
                await self.changed.wait()


class Pair:
    """Two members, and a stranger with a certificate that no genesis names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pems = []
        for name in ("node1", "node2", "stranger"):
            key, certificate = make_tls_identity(name)
            (folder / f"{name}.key").write_bytes(key)
            (folder / f"{name}.key").chmod(0o600)
            (folder / f"{name}.pem").write_bytes(certificate)
            self.pems.append(certificate)
        keys = [SecretKey.generate(bytes([i]) * 32) for i in range(2)]
        key = keys[0]
        members = tuple(
            Member(f"node{i + 1}", keys[i].public_key, certificate_fingerprint(self.pems[i])) for i in range(2)
        )
        genesis = Genesis(
            "t",
            0,
            0,
            members,
            key.public_key,
            bytes(32),
            key.public_key,
            bytes([4]) * 65,
            bytes(32),
            1,
            Parameters(),
            False,
        )
        self.roster = Roster.from_genesis(genesis)
        self.addresses = [PeerAddress(i, f"node{i + 1}", "127.0.0.1", free_ports()) for i in range(2)]
        self.listeners = [Listener(), Listener()]

    def contexts(self, name: str):
        files = (self.folder / f"{name}.pem", self.folder / f"{name}.key", self.pems[:2])
        return server_context(*files), client_context(*files)

    def transport(self, i: int) -> Transport:
        server, client = self.contexts(f"node{i + 1}")
        return Transport(self.roster, i, self.addresses, server, client, self.listeners[i])


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def status(replica: int, height: int = 1) -> Status:
    return Status(0, replica, 0, False, height, height, (0, 0))


def test_messages_arrive_in_order_from_the_peer_that_the_certificate_names(pair: Pair) -> None:
    async def scene() -> None:
        a, b = pair.transport(0), pair.transport(1)
        await a.start()
        await b.start()
        await pair.listeners[0].until(lambda: 1 in pair.listeners[0].up)
        for height in range(50):
            a.send(1, status(0, height))
        a.broadcast(FetchBlocks(1, 2))
        received = pair.listeners[1]
        await received.until(lambda: len(received.frames) == 51)
        assert [peer for peer, _ in received.frames] == [0] * 51
        assert [message.executed for _, message in received.frames[:50]] == list(range(50))
        await b.stop()
        await pair.listeners[0].until(lambda: 1 in pair.listeners[0].down)
        await a.stop()

    asyncio.run(scene())


def test_a_name_with_several_addresses_is_served_on_all_that_are_here(pair: Pair, monkeypatch) -> None:
    """As a name with an IPv4 and an IPv6 address; a peer may try any of them first."""
    port = pair.addresses[0].port
    known = [("192.0.2.1", port), ("127.0.0.2", port), ("127.0.0.1", port), ("127.0.0.1", port)]  # one is elsewhere

    async def resolved(*_, **__) -> list:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in known]

    async def scene() -> None:
        a = pair.transport(0)
        with monkeypatch.context() as patch:
            patch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)
            await a.start()
            for address in known[1:3]:
                socket.create_connection(address, timeout=5).close()
            await a.stop()
            for address in known[1:3]:
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(address, timeout=5)
            del known[1:]
            with pytest.raises(OSError, match="no address of 127.0.0.1 is one of this machine's"):
                await pair.transport(0).start()

    asyncio.run(scene())


def test_a_peer_that_comes_back_is_found_again(pair: Pair) -> None:
    async def scene() -> None:
        a, b = pair.transport(0), pair.transport(1)
        await a.start()
        await b.start()
        listener = pair.listeners[0]
        await listener.until(lambda: listener.up == [1])
        await b.stop()
        await listener.until(lambda: listener.down == [1])
        again = pair.transport(1)
        await again.start()
        await listener.until(lambda: listener.up == [1, 1])
        await again.stop()
        await a.stop()

    asyncio.run(scene())


async def dial(pair: Pair, name: str, data: list[bytes]) -> bytes:
    _, client = pair.contexts(name)
    address = pair.addresses[0]
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=client, server_hostname="node1")
    for part in data:
        writer.write(part)
    answer = await reader.read()
    writer.close()
    return answer


def test_a_stranger_is_turned_away_and_no_frame_of_it_is_read(pair: Pair) -> None:
    async def scene() -> None:
        a = pair.transport(0)
        await a.start()
        with pytest.raises((ConnectionError, OSError)):
            hello = frame(HELLO_CODEC.encode(Hello(pair.roster.chain, 1, "votes")))
            await dial(pair, "stranger", [hello, frame(encode(status(1)))])
            raise ConnectionError("closed without an answer")
        assert pair.listeners[0].frames == []
        await a.stop()

    asyncio.run(scene())


def refused(pair: Pair, reason: Reason) -> list[str]:
    seen = [item for item in pair.listeners[0].seen if isinstance(item, events.Refused)]
    return [item.detail for item in seen if item.reason is reason]


@pytest.mark.parametrize("after_handshake", [False, True])
def test_who_says_nothing_is_cut_off_and_counted(
    pair: Pair, after_handshake: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F6: a handshake, or a greeting, that stalls."""

    async def scene() -> None:
        a = pair.transport(0)
        serve = a._serve

        def impatient() -> None:
            monkeypatch.setattr("bcami.node.transport.HELLO_TIMEOUT_S", 0.2)

        def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> object:
            impatient()  # only now: a busy machine may take its time for the handshake that is not to fail
            return serve(reader, writer)

        if after_handshake:
            monkeypatch.setattr(a, "_serve", served)
        else:
            impatient()
        await a.start()
        context = pair.contexts("node2")[1] if after_handshake else None
        name = "node1" if after_handshake else None
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", pair.addresses[0].port, ssl=context, server_hostname=name
        )
        async with asyncio.timeout(60):
            assert await _is_over(reader)
        await pair.listeners[0].until(lambda: refused(pair, Reason.MALFORMED))
        assert not a._handshakes and not a._accepted and not a._reading
        writer.close()
        await a.stop()

    asyncio.run(scene())


def test_a_flood_of_silent_connections_is_bounded_and_keeps_no_member_out(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcami.node.transport.HANDSHAKES_MAX", 8)

    async def scene() -> None:
        a = pair.transport(0)
        await a.start()
        strangers = [await asyncio.open_connection("127.0.0.1", pair.addresses[0].port) for _ in range(30)]
        await pair.listeners[0].until(lambda: len(refused(pair, Reason.OVER_QUOTA)) >= 22)
        assert len(a._handshakes) <= 8
        b = pair.transport(1)
        await b.start()
        await pair.listeners[1].until(lambda: pair.listeners[1].up == [0])
        for _, writer in strangers:
            writer.close()
        await b.stop()
        await a.stop()

    asyncio.run(scene())


def test_connections_that_wait_together_are_bounded_too(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are all accepted before the first handshake has its turn, unless somebody sees to it."""

    async def scene() -> None:
        a = pair.transport(0)
        await a.start()
        monkeypatch.setattr("bcami.node.transport.HANDSHAKES_MAX", 8)
        strangers = [socket.create_connection(("127.0.0.1", pair.addresses[0].port)) for _ in range(30)]
        most = 0
        while len(refused(pair, Reason.OVER_QUOTA)) < 22:
            most = max(most, len(a._handshakes))
            await asyncio.sleep(0)
        assert most <= 8
        for stranger in strangers:
            stranger.close()
        await a.stop()
        assert len(refused(pair, Reason.OVER_QUOTA)) == 22, "the end of this node is no refusal"

    asyncio.run(asyncio.wait_for(scene(), 60))


def test_a_handshake_that_is_cut_off_as_it_is_done_closes_no_socket_under_its_transport(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop would keep its number, and the next connection that gets this number would never be read."""

    async def scene() -> None:
        a = pair.transport(0)
        serve, begun = a._serve, asyncio.Event()

        def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> object:
            for handshake in a._handshakes:
                handshake.cancel()
            begun.set()
            return serve(reader, writer)

        monkeypatch.setattr(a, "_serve", cut_off)
        await a.start()
        _, client = pair.contexts("node2")
        _, writer = await asyncio.open_connection(
            "127.0.0.1", pair.addresses[0].port, ssl=client, server_hostname="node1"
        )
        await begun.wait()
        await asyncio.gather(*a._handshakes, return_exceptions=True)
        for number in asyncio.get_running_loop()._selector.get_map():
            os.fstat(number)
        writer.close()
        await a.stop()

    asyncio.run(asyncio.wait_for(scene(), 60))


def test_an_expired_certificate_of_a_member_opens_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcami.crypto.tls.VALID_DAYS", -1)
    monkeypatch.setattr("bcami.crypto.tls.CLOCK_SKEW_DAYS", 10)
    expired = Pair(pair.folder)

    async def scene() -> None:
        a, b = expired.transport(0), expired.transport(1)
        await a.start()
        await b.start()
        listener = expired.listeners[0]
        await listener.until(lambda: len(refused(expired, Reason.MALFORMED)) >= 2)
        assert not listener.up and not listener.frames
        await b.stop()
        await a.stop()

    asyncio.run(scene())


def test_without_file_descriptors_the_node_says_so_and_accepts_again_later(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F16: EMFILE; what is open goes on, and peers come in again when there is room."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        accept, failures = loop.sock_accept, [errno.EMFILE, errno.ENFILE]

        async def full(listening: socket.socket) -> object:
            if failures and listening.getsockname()[1] == pair.addresses[0].port:
                raise OSError(failures.pop(), "Too many open files")
            return await accept(listening)

        monkeypatch.setattr(loop, "sock_accept", full)
        a, b = pair.transport(0), pair.transport(1)
        await a.start()
        await b.start()
        await pair.listeners[1].until(lambda: 0 in pair.listeners[1].up)
        assert [detail.rpartition("] ")[2] for detail in refused(pair, Reason.OVER_QUOTA)] == [
            "Too many open files"
        ] * 2
        await b.stop()
        await a.stop()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("hello", "rest"),
    [
        (lambda pair: Hello(bytes(32), 1, "votes"), []),
        (lambda pair: Hello(pair.roster.chain, 0, "votes"), []),
        (lambda pair: Hello(pair.roster.chain, 1, "gossip"), []),
        (lambda pair: Hello(pair.roster.chain, 1, "votes"), [frame(b"\xc1garbage")]),
        (lambda pair: Hello(pair.roster.chain, 1, "votes"), [(2**31).to_bytes(4, "big")]),
        (lambda pair: Hello(pair.roster.chain, 1, "votes"), [frame(encode(status(1))[:-1])]),
    ],
)
def test_malformed_bytes_end_the_connection_and_are_counted(pair: Pair, hello, rest) -> None:
    async def scene() -> None:
        a = pair.transport(0)
        await a.start()
        greeting = frame(HELLO_CODEC.encode(hello(pair)))
        assert await dial(pair, "node2", [greeting, *rest]) == b""
        listener = pair.listeners[0]
        await listener.until(lambda: any(isinstance(item, events.Refused) for item in listener.seen))
        assert listener.seen[-1].reason is Reason.MALFORMED
        assert listener.frames == []
        await a.stop()

    asyncio.run(scene())


def test_of_many_connections_of_one_peer_and_lane_the_newest_stays(pair: Pair) -> None:
    """Each may hold a frame of 80 MiB that never ends: a member with a thousand of them would fill the memory."""

    async def run() -> None:
        node = pair.transport(0)
        await node.start()
        _, context = pair.contexts("node2")
        hello = frame(HELLO_CODEC.encode(Hello(pair.roster.chain, 1, "bulk")))
        opened = []
        for number in range(5):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", pair.addresses[0].port, ssl=context, server_hostname="node1"
            )
            writer.write(hello + frame(encode(status(1, number))) + (1000).to_bytes(4, "big") + b"begun")
            await pair.listeners[0].until(lambda: len(pair.listeners[0].frames) == number + 1)  # noqa: B023
            opened.append((reader, writer))
        for reader, _ in opened[:-1]:
            async with asyncio.timeout(60):
                assert await _is_over(reader)
        assert len(node._reading) == 1 and len(node._accepted) == 1
        opened[-1][1].write(bytes(995))
        await pair.listeners[0].until(lambda: pair.listeners[0].seen)
        assert pair.listeners[0].seen[-1].reason is Reason.MALFORMED, "the newest was still read"
        for _, writer in opened:
            writer.close()
        await node.stop()

    asyncio.run(run())


async def _is_over(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True


def test_a_full_queue_drops_and_counts_instead_of_growing(pair: Pair) -> None:
    _, client = pair.contexts("node1")
    for lane in LANES:
        outgoing = OutgoingLane(pair.addresses[1], lane, client, pair.roster, 0, lambda up, reason: None)
        outgoing.connected = True
        size = QUEUE_BYTES_MAX[lane] // 4
        accepted = [outgoing.enqueue(bytes(size)) for _ in range(6)]
        assert accepted == [True] * 4 + [False] * 2
        assert outgoing.queued_bytes <= QUEUE_BYTES_MAX[lane] and outgoing.dropped == 2


def test_a_peer_that_closes_at_once_is_not_dialled_in_a_tight_loop(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: dict[str, list[float]] = {lane: [] for lane in LANES}
    enough = asyncio.Event()
    pause = OutgoingLane._pause

    async def noted(lane: OutgoingLane, delay_s: float) -> None:
        waits[lane._lane].append(delay_s)
        if all(len(delays) >= 4 for delays in waits.values()):
            enough.set()
        await pause(lane, delay_s / 10)

    monkeypatch.setattr(OutgoingLane, "_pause", noted)
    monkeypatch.setattr("bcami.node.transport.STEADY_S", 60.0)

    async def scene() -> None:
        async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server_context, _ = pair.contexts("node2")
        address = pair.addresses[1]
        server = await asyncio.start_server(close, address.host, address.port, ssl=server_context)
        a = pair.transport(0)
        await a.start()
        async with asyncio.timeout(60):
            await enough.wait()
        for delays in waits.values():
            assert delays[:4] == [RECONNECT_MIN_S * factor for factor in (2, 4, 8, 16)], "longer every time"
        await a.stop()
        server.close()

    asyncio.run(scene())


def test_a_peer_that_takes_no_bytes_is_left(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcami.node.transport.STALLED_S", 0.2)

    async def scene() -> None:
        held: list[asyncio.StreamWriter] = []

        async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.pause_reading()
            held.append(writer)

        server_context, _ = pair.contexts("node2")
        address = pair.addresses[1]
        server = await asyncio.start_server(deaf, address.host, address.port, ssl=server_context)
        a, listener = pair.transport(0), pair.listeners[0]
        await a.start()
        await listener.until(lambda: listener.up == [1])
        lane = a._lanes[1, "votes"]
        async with asyncio.timeout(60):
            while listener.down != [1]:
                lane.enqueue(bytes(1 << 20))  # until the buffers of both kernels are full too
                await asyncio.sleep(0)
        await a.stop()
        assert lane.queued_bytes == 0
        server.close()
        for writer in held:
            writer.transport.abort()

    asyncio.run(scene())
