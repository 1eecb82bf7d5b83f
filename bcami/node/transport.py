"""Frames between nodes over mutual TLS 1.3 (design D16, D17).

Each node dials each peer twice, once for votes and once for bulk data, and only writes on what it dialled; it only
reads on what it accepted. A frame is a 4-byte big-endian length and that many bytes; the length is checked before
anything is allocated. Who a peer is comes from the fingerprint of its TLS certificate, never from its words. Queues
are bounded in bytes: a full queue drops the new frame and counts it, votes are sent again by the status exchange.
"""

import asyncio
import errno
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from bcami.codec import encode
from bcami.crypto.roster import Roster
from bcami.crypto.tls import certificate_fingerprint
from bcami.errors import MalformedError
from bcami.model import events
from bcami.model.batch import Batch
from bcami.model.chain import BlockBundle
from bcami.model.reasons import Reason
from bcami.model.wire import (
    FRAME_BYTES_MAX,
    HELLO_CODEC,
    PEER_CODEC,
    VOTE_FRAME_BYTES_MAX,
    Hello,
    PeerMessage,
    SnapshotPart,
)
from bcami.units import MIB

QUEUE_BYTES_MAX: Final = {"votes": 4 * MIB, "bulk": 24 * MIB}
RECONNECT_MIN_S: Final = 0.05
RECONNECT_MAX_S: Final = 2.0
STEADY_S: Final = 1.0
"""A connection that lasted so long is made again at once; one that ends sooner counts as a failure."""
CONNECT_TIMEOUT_S: Final = 5.0
STALLED_S: Final = 10.0
"""A peer that takes no bytes for so long is left; otherwise a lost network heals only with TCP's own patience."""
HELLO_TIMEOUT_S: Final = 5.0
"""For the TLS handshake, and then for the greeting."""
HANDSHAKES_MAX: Final = 64
"""Connections whose handshake is not done. One more ends the oldest: an honest one is over in milliseconds."""
ACCEPT_AGAIN_S: Final = 0.2
"""After no connection could be accepted, because no file descriptor is free."""
TURN_S: Final = 0.002
"""Frames that are here already are handled for so long before others get their turn: reading them does not wait."""
WRITE_CHUNK_BYTES: Final = 256 * 1024
LANES: Final = ("votes", "bulk")


class Listener(Protocol):
    """What the transport tells its owner."""

    def on_frame(self, peer: int, message: PeerMessage) -> None: ...

    def on_peer_up(self, peer: int) -> None: ...

    def on_peer_down(self, peer: int, reason: str) -> None: ...

    def observe(self, observation: events.Observation) -> None: ...


@dataclass(frozen=True, slots=True)
class PeerAddress:
    replica: int
    name: str
    host: str
    port: int


class OutgoingLane:
    """One dialled connection: a bounded queue and the only task that writes to it."""

    def __init__(
        self,
        address: PeerAddress,
        lane: str,
        context: ssl.SSLContext,
        roster: Roster,
        replica: int,
        on_state: Callable[[bool, str], None],
    ) -> None:
        self._address = address
        self._lane = lane
        self._context = context
        self._roster = roster
        self._hello = frame(HELLO_CODEC.encode(Hello(roster.chain, replica, lane)))
        self._on_state = on_state
        self._queue: deque[bytes] = deque()
        self.queued_bytes = 0
        self.dropped = 0
        self.connected = False
        self._wake = asyncio.Event()
        self._is_unreachable = False
        self._is_there = asyncio.Event()

    def enqueue(self, data: bytes) -> bool:
        """Queue a frame; False when the queue is full (the frame is dropped and counted)."""
        if self.queued_bytes + len(data) > QUEUE_BYTES_MAX[self._lane]:
            self.dropped += 1
            return False
        if not self.connected and self._lane == "bulk":
            return False  # bulk data is asked for again; keeping it for a dead peer only costs memory
        self._queue.append(data)
        self.queued_bytes += len(data)
        self._wake.set()
        return True

    async def run(self) -> None:
        """Connect, drain the queue, reconnect with capped backoff, until cancelled."""
        loop = asyncio.get_running_loop()
        delay = RECONNECT_MIN_S
        while True:
            begun = loop.time()
            await self._connect()
            delay = RECONNECT_MIN_S if loop.time() - begun > STEADY_S else min(delay * 2, RECONNECT_MAX_S)
            await self._pause(delay)

    def peer_is_there(self) -> None:
        """Say that the peer has dialled us: one that could not be reached before is dialled at once."""
        if self._is_unreachable:
            self._is_there.set()

    async def _pause(self, delay_s: float) -> None:
        self._is_there.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._is_there.wait()

    async def _connect(self) -> None:
        """Serve one connection until it ends, if there is one."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(
                    self._address.host, self._address.port, ssl=self._context, server_hostname=self._address.name
                )
        except (OSError, ssl.SSLError):
            self._is_unreachable = True
            return
        self._is_unreachable = False
        reason = "closed"
        watch = asyncio.ensure_future(reader.read(1))
        watch.add_done_callback(_take_note)
        try:
            if peer_of(writer, self._roster) == self._address.replica:
                await self._drain(writer, watch)
            else:
                reason = "the certificate is not this peer's"
        except (OSError, ssl.SSLError) as error:
            reason = str(error) or type(error).__name__
        finally:
            watch.cancel()
            self._lost(reason)
            writer.transport.abort()

    async def _drain(self, writer: asyncio.StreamWriter, watch: "asyncio.Future[bytes]") -> None:
        writer.write(self._hello)
        await _flush(writer)
        if self._lane == "votes":
            self._forget_queue()
        self.connected = True
        self._on_state(True, "")
        while not watch.done():
            while self._queue:
                chunk: list[bytes] = []
                size = 0
                while self._queue and size < WRITE_CHUNK_BYTES:
                    data = self._queue.popleft()
                    self.queued_bytes -= len(data)
                    size += len(data)
                    chunk.append(data)
                writer.write(b"".join(chunk))
                await _flush(writer)
            self._wake.clear()
            wake = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait((wake, watch), return_when=asyncio.FIRST_COMPLETED)
            finally:
                wake.cancel()

    def _lost(self, reason: str) -> None:
        if self.connected:
            self.connected = False
            self._on_state(False, reason)
        self._forget_queue()

    def _forget_queue(self) -> None:
        self._queue.clear()
        self.queued_bytes = 0


async def _flush(writer: asyncio.StreamWriter) -> None:
    """Return when the peer has taken enough of what was written. Raises TimeoutError (an OSError) when it stalls."""
    async with asyncio.timeout(STALLED_S):
        await writer.drain()


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _take_note(watch: "asyncio.Future[bytes]") -> None:
    """Look at how the watch ended, so that nobody is told of an error that was not looked at."""
    if not watch.cancelled():
        watch.exception()


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def peer_of(writer: asyncio.StreamWriter, roster: Roster) -> int | None:
    """Return the replica whose certificate the other side showed."""
    tls = writer.get_extra_info("ssl_object")
    shown = None if tls is None else tls.getpeercert(binary_form=True)
    if not shown:
        return None
    fingerprint = certificate_fingerprint(shown)
    for replica, member in enumerate(roster.genesis.members):
        if member.tls_fingerprint == fingerprint:
            return replica
    return None


async def read_frame(reader: asyncio.StreamReader, bytes_max: int) -> bytes:
    """Return one frame's bytes. Raises MalformedError on a length above the limit, IncompleteReadError at the end."""
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > bytes_max:
        raise MalformedError(f"a frame of {size} bytes, at most {bytes_max} are allowed")
    return await reader.readexactly(size)


class Transport:
    """All connections of one node."""

    def __init__(
        self,
        roster: Roster,
        replica: int,
        addresses: list[PeerAddress],
        server_context: ssl.SSLContext,
        client_context: ssl.SSLContext,
        listener: Listener,
    ) -> None:
        self._roster = roster
        self._replica = replica
        self._own = addresses[replica]
        self._server_context = server_context
        self._listener = listener
        self._lanes: dict[tuple[int, str], OutgoingLane] = {}
        for address in addresses:
            if address.replica == replica:
                continue
            for lane in LANES:
                on_state = self._state_of(address.replica, lane)
                self._lanes[address.replica, lane] = OutgoingLane(
                    address, lane, client_context, roster, replica, on_state
                )
        self._tasks: list[asyncio.Task[None]] = []
        self._listening: list[socket.socket] = []
        self._handshakes: dict[asyncio.Task[None], None] = {}
        self._accepted: set[asyncio.StreamWriter] = set()
        self._reading: dict[tuple[int, str], asyncio.StreamWriter] = {}
        """The newest connection of each peer and lane: an older one is closed, or a member could fill the memory."""
        self.bytes_sent = 0
        self.frames_sent = 0

    def _state_of(self, peer: int, lane: str) -> Callable[[bool, str], None]:
        def on_state(up: bool, reason: str) -> None:
            if lane != "votes":
                return
            if up:
                self._listener.on_peer_up(peer)
            else:
                self._listener.on_peer_down(peer, reason)

        return on_state

    @property
    def peers_connected(self) -> int:
        return sum(lane.connected for (_, name), lane in self._lanes.items() if name == "votes")

    async def start(self) -> None:
        """Listen, on all addresses of the own name, and dial. Raises OSError when the port is taken."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._own.host, self._own.port, type=socket.SOCK_STREAM)
        try:
            for family, address in sorted({(item[0], item[4]) for item in found}):
                self._listen(family, address)
            if not self._listening:
                raise OSError(errno.EADDRNOTAVAIL, f"no address of {self._own.host} is one of this machine's")
        except OSError:
            self._close_listening()
            raise
        for number, listening in enumerate(self._listening):
            self._tasks.append(asyncio.create_task(self._accept(listening), name=f"accept-{number}"))
        for (peer, lane), outgoing in self._lanes.items():
            self._tasks.append(asyncio.create_task(outgoing.run(), name=f"peer-{peer}-{lane}"))

    async def stop(self) -> None:
        await _end(self._tasks)
        await _end(list(self._handshakes))  # each has begun by now, and its transport closes its socket
        self._close_listening()
        for writer in list(self._accepted):
            writer.transport.abort()

    def _listen(self, family: int, address: Any) -> None:
        """Listen on one address; one that this machine does not have, as of IPv6 where there is none, is left out."""
        try:
            listening = socket.create_server(address, family=family, backlog=HANDSHAKES_MAX)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            return
        listening.setblocking(False)
        self._listening.append(listening)

    def _close_listening(self) -> None:
        for listening in self._listening:
            listening.close()

    def send(self, peer: int, message: PeerMessage) -> None:
        self._enqueue(peer, message, frame(encode(message)))

    def broadcast(self, message: PeerMessage) -> None:
        """Encode once, queue for every peer."""
        data = frame(encode(message))
        for peer in range(self._roster.quorum.n):
            if peer != self._replica:
                self._enqueue(peer, message, data)

    def _enqueue(self, peer: int, message: PeerMessage, data: bytes) -> None:
        lane = "bulk" if isinstance(message, Batch | BlockBundle | SnapshotPart) else "votes"
        outgoing = self._lanes.get((peer, lane))
        if outgoing is None:
            return
        if outgoing.enqueue(data):
            self.bytes_sent += len(data)
            self.frames_sent += 1
        elif outgoing.connected:
            self._listener.observe(events.Refused("transport", Reason.QUEUE_FULL, peer))

    async def _accept(self, listening: socket.socket) -> None:
        """Take connections, each with a handshake of its own; what a stranger sends costs a bounded number of them."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                self._refuse(Reason.OVER_QUOTA, f"no connection can be accepted: {error}")
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            while len(self._handshakes) >= HANDSHAKES_MAX:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]  # now: it ends in a later turn, and this may not hit it twice
                oldest.cancel()
                self._refuse(Reason.OVER_QUOTA, "TLS handshake: too many are under way")
            handshake = asyncio.create_task(self._shake_hands(connection))
            self._handshakes[handshake] = None
            handshake.add_done_callback(lambda done: self._handshakes.pop(done, None))
            await asyncio.sleep(0)  # asyncio's own loop accepts what waits without a turn for anybody else

    async def _shake_hands(self, connection: socket.socket) -> None:
        """Do the TLS handshake; `_serve` gets the connection when it is done.

        When this is cancelled the loop's transport, which has the socket by then, closes it: a socket that is closed
        under its transport leaves its number in the selector, and the next connection with that number is never read.
        """
        loop = asyncio.get_running_loop()

        def make_protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), self._serve, loop=loop)

        try:
            await loop.connect_accepted_socket(
                make_protocol, connection, ssl=self._server_context, ssl_handshake_timeout=HELLO_TIMEOUT_S
            )
        except OSError as error:  # ssl.SSLError, ConnectionError and TimeoutError are such
            connection.close()
            self._refuse(Reason.MALFORMED, f"TLS handshake: {error}")

    async def _greeting(self, reader: asyncio.StreamReader) -> Hello:
        """Return the first frame. Raises MalformedError when it is none, or does not come in time."""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                return HELLO_CODEC.decode(await read_frame(reader, HELLO_CODEC.bytes_max))
        except TimeoutError:
            raise MalformedError(f"no greeting within {HELLO_TIMEOUT_S:g} s") from None

    def _refuse(self, reason: Reason, detail: str, peer: int | None = None) -> None:
        self._listener.observe(events.Refused("transport", reason, peer, detail=detail[:200]))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: int | None = None
        self._accepted.add(writer)
        try:
            peer = peer_of(writer, self._roster)
            hello = await self._greeting(reader)
            if peer is None or hello.chain != self._roster.chain or hello.replica != peer or hello.lane not in LANES:
                raise MalformedError("the greeting is not of a member of this network")
            earlier = self._reading.get((peer, hello.lane))
            self._reading[peer, hello.lane] = writer
            if earlier is not None:
                earlier.transport.abort()
            for lane in LANES:
                self._lanes[peer, lane].peer_is_there()
            limit = VOTE_FRAME_BYTES_MAX if hello.lane == "votes" else FRAME_BYTES_MAX
            loop = asyncio.get_running_loop()
            turn_s = loop.time()
            while True:
                data = await read_frame(reader, limit)
                self._listener.on_frame(peer, PEER_CODEC.decode(data))
                if loop.time() - turn_s > TURN_S:
                    await asyncio.sleep(0)
                    turn_s = loop.time()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError, TimeoutError):
            return
        except MalformedError as error:
            self._refuse(Reason.MALFORMED, str(error), peer)
        finally:
            self._accepted.discard(writer)
            for lane in LANES:
                if peer is not None and self._reading.get((peer, lane)) is writer:
                    del self._reading[peer, lane]
            writer.close()
