"""The parties of a ring over HTTP: each meter and the supplier under an address, behind a secure channel.

    POST /v1/ring/{address}      an Envelope → 204
    POST /v1/ring                a Broadcast → 204: what goes to all members alike, which is nothing secret

The paper has TLS with a server certificate on every link. Here each message is sealed to the receiver's registered KEM
key with HPKE and signed by the sender, which protects the same. Numbers stop replays in a ring, and a message is of one
ring. The channel hides messages from others; what the ends learn from them is the protocol's affair.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from time import process_time
from typing import Annotated, Final

import httpx
import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bcami.aggregation.rehearsal import Traffic
from bcami.aggregation.ring_meter import (
    COLLECT,
    CONNECT,
    RING_BACK,
    SEARCH,
    RingEffect,
    RingMeter,
    RingRefusal,
    RingSend,
    RingTimer,
)
from bcami.aggregation.ring_records import (
    RING_CODEC,
    SUPPLIER,
    Address,
    ConcentratorIs,
    RingMessage,
    WhoIsConcentrator,
)
from bcami.aggregation.ring_supplier import RESTART, ROUND, RingSupplier
from bcami.ami.aggregation_metrics import METER, SUPPLIER_PARTY, AggregationMetrics
from bcami.ami.transcript import Transcript
from bcami.codec import Codec
from bcami.crypto.hpke import KemSecretKey, open_from, seal_to
from bcami.crypto.signatures import Signer, verify
from bcami.errors import MalformedError
from bcami.model.ids import U63, KemKey, PublicKey, Signature
from bcami.model.reasons import Reason
from bcami.model.signing import digest, prefixed, u64
from bcami.units import KIB, MIB

POSTS_MAX: Final = 32
ANSWER_S: Final = 5.0


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A sealed and signed message."""

    sender: Address
    number: U63
    encapsulation: KemKey
    sealed: Annotated[bytes, msgspec.Meta(max_length=MIB)]
    signature: Signature


class Broadcast(msgspec.Struct, frozen=True, array_like=True):
    """A signed message to every member."""

    sender: Address
    number: U63
    message: Annotated[bytes, msgspec.Meta(max_length=KIB)]
    signature: Signature


BROADCAST_CODEC: Final[Codec[Broadcast]] = Codec(Broadcast, 2 * KIB)
ENVELOPE_CODEC: Final[Codec[Envelope]] = Codec(Envelope, 2 * MIB)


@dataclass(frozen=True, slots=True)
class Party:
    """What everybody knows of a party, from the chain."""

    public_key: PublicKey
    kem_key: KemKey


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a party knows of itself."""

    signer: Signer
    kem: KemSecretKey


class RingParties:
    """Serves the meters of one group and its supplier, and carries their messages."""

    def __init__(
        self,
        meters: Mapping[bytes, RingMeter],
        supplier: RingSupplier,
        secrets: Mapping[bytes, Secrets],
        chain: bytes,
        epoch: int,
        ring: bytes,
        transcript: Transcript,
        metrics: AggregationMetrics,
    ) -> None:
        """`secrets` by address; the supplier's is SUPPLIER. `ring` is the roster's digest, which no two have."""
        self._meters = dict(meters)
        self._supplier = supplier
        self._secrets = dict(secrets)
        self._known = {address: Party(item.signer.public_key, item.kem.public_key) for address, item in secrets.items()}
        self._chain = chain
        self._epoch = epoch
        self._ring = ring
        self._transcript = transcript
        self._metrics = metrics
        self._http: httpx.AsyncClient | None = None
        self._turns = asyncio.Semaphore(POSTS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[tuple[bytes, str], asyncio.TimerHandle] = {}
        self._numbers: Counter[bytes] = Counter()
        self._taken: set[tuple[bytes, bytes, int]] = set()
        self.changed = asyncio.Event()
        """Set after every step of the supplier."""
        self.is_outdated = False
        """Set when a party's keys turn out to be destroyed: it opened a new session, and this ring is of the old."""
        self.down: set[bytes] = set()
        self.traffic = {address: Traffic() for address in secrets}
        self.cpu_s = 0.0
        hop_s = 0.05 * (len(meters) + 1)
        # A complete ring closes at once: these are for what does not come, and long enough for a busy machine.
        self._timers_s = {
            CONNECT: 3.0 + hop_s,
            SEARCH: 1.0 + hop_s / 2,
            COLLECT: 4.0 + 3 * hop_s,
            RING_BACK: 4.0 + hop_s,
            ROUND: 5.0 + hop_s,
            RESTART: 15.0 + 10 * hop_s,
        }

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/ring/{address}", self._take, methods=["POST"]),
                Route("/v1/ring", self._take_broadcast, methods=["POST"]),
                self._metrics.route(),
            ]
        )

    def connect(self, http: httpx.AsyncClient) -> None:
        """Use this client to reach the parties; its base address is where they are served."""
        self._http = http

    def begin(self, address: bytes, session: int) -> None:
        """Let a meter ask for its licence."""
        signer = self._secrets[address].signer
        self._carry_out(address, self._meters[address].connect(signer, session, self._chain, self._epoch))

    def request(self, first_s: int) -> None:
        """Let the supplier ask for an interval."""
        self._carry_out(SUPPLIER, self._supplier.request(first_s))

    async def until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Return True as soon as the condition on the supplier holds, False when it does not within the limit."""
        try:
            async with asyncio.timeout(limit_s):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        self._http = None  # what still comes in is answered with nothing
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, request: Request) -> Response:
        try:
            address = bytes.fromhex(request.path_params["address"])
            envelope = ENVELOPE_CODEC.decode(await request.body())
        except (ValueError, ClientDisconnect, MalformedError):
            return self._refuse(400, Reason.MALFORMED)
        if address not in self._secrets:
            return self._refuse(404, Reason.NOT_A_MEMBER)
        if address in self.down:
            return Response(status_code=503)  # as if nobody were there: a trial, not a refusal
        try:
            message = self._opened(address, envelope)
        except ValueError:
            self._note_outdated()
            message = Reason.SESSION_CLOSED
        if isinstance(message, Reason):
            return self._refuse(403, message)
        self._deliver(address, envelope.sender, message)
        return Response(status_code=204)

    async def _take_broadcast(self, request: Request) -> Response:
        try:
            broadcast = BROADCAST_CODEC.decode(await request.body())
            message = RING_CODEC.decode(broadcast.message)
        except (ClientDisconnect, MalformedError):
            return self._refuse(400, Reason.MALFORMED)
        sender = self._known.get(broadcast.sender)
        if sender is None or not isinstance(message, WhoIsConcentrator | ConcentratorIs):
            return self._refuse(403, Reason.NOT_A_MEMBER)
        if not verify(sender.public_key, broadcast.signature, self._broadcast_statement(broadcast)):
            return self._refuse(403, Reason.BAD_SIGNATURE)
        mark = (broadcast.sender, b"", broadcast.number)
        if mark in self._taken:
            return self._refuse(403, Reason.REPLAY)
        self._taken.add(mark)
        for address in self._meters:
            if address != broadcast.sender and address not in self.down:
                self._deliver(address, broadcast.sender, message)
        return Response(status_code=204)

    def _deliver(self, address: bytes, sender: bytes, message: RingMessage) -> None:
        data = RING_CODEC.encode(message)
        self._transcript.note(_name(address), _name(sender), type(message).__name__, data)
        traffic = self.traffic[address]
        traffic.received += 1
        traffic.received_bytes += len(data)
        began = process_time()
        effects = self._party(address).receive(sender, message)
        self.cpu_s += process_time() - began
        self._carry_out(address, effects)

    def _opened(self, address: bytes, envelope: Envelope) -> RingMessage | Reason:
        sender = self._known.get(envelope.sender)
        if sender is None:
            return Reason.NOT_A_MEMBER
        if not verify(sender.public_key, envelope.signature, self._statement(address, envelope)):
            return Reason.BAD_SIGNATURE
        mark = (envelope.sender, address, envelope.number)
        if mark in self._taken:
            return Reason.REPLAY
        self._taken.add(mark)
        info = self._info(envelope.sender, address)
        try:
            return RING_CODEC.decode(
                open_from(envelope.encapsulation, self._secrets[address].kem, info, b"", envelope.sealed)
            )
        except MalformedError:
            return Reason.MALFORMED

    def _party(self, address: bytes) -> RingMeter | RingSupplier:
        return self._supplier if address == SUPPLIER else self._meters[address]

    def _carry_out(self, address: bytes, effects: Iterable[RingEffect]) -> None:
        to_all: RingMessage | None = None
        for effect in effects:
            match effect:
                case RingSend(to, WhoIsConcentrator() | ConcentratorIs() as message) if to != SUPPLIER:
                    if message != to_all:
                        to_all = message
                        self._start(self._send_to_all(address, message))
                case RingSend(to, message):
                    self._start(self._send(address, to, message))
                case RingTimer(name):
                    self._arm(address, name)
                case RingRefusal(reason):
                    self._metrics.no(SUPPLIER_PARTY if address == SUPPLIER else METER, reason)
        if address == SUPPLIER:
            self.changed.set()

    def _start(self, sending: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(sending)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _arm(self, address: bytes, name: str) -> None:
        former = self._timers.pop((address, name), None)
        if former is not None:
            former.cancel()

        def over() -> None:
            if address not in self.down:
                self._carry_out(address, self._party(address).timed_out(name))

        self._timers[address, name] = asyncio.get_running_loop().call_later(self._timers_s[name], over)

    async def _send(self, sender: bytes, to: bytes, message: RingMessage) -> None:
        """Post a message once: what does not arrive is the protocol's affair."""
        if sender in self.down:
            return
        data = RING_CODEC.encode(message)
        self._numbers[sender] += 1
        info = self._info(sender, to)
        encapsulation, sealed = seal_to(self._known[to].kem_key, info, b"", data, os.urandom(32))
        unsigned = Envelope(sender, self._numbers[sender], encapsulation, sealed, bytes(64))
        signature = self._sign(sender, self._statement(to, unsigned))
        if signature is None:
            return
        envelope = msgspec.structs.replace(unsigned, signature=signature)
        traffic = self.traffic[sender]
        traffic.sent += 1
        traffic.sent_bytes += len(data)
        await self._post(f"/v1/ring/{to.hex()}", ENVELOPE_CODEC.encode(envelope))

    async def _send_to_all(self, sender: bytes, message: RingMessage) -> None:
        data = RING_CODEC.encode(message)
        self._numbers[sender] += 1
        unsigned = Broadcast(sender, self._numbers[sender], data, bytes(64))
        signature = self._sign(sender, self._broadcast_statement(unsigned))
        if signature is None:
            return
        self.traffic[sender].sent += 1
        self.traffic[sender].sent_bytes += len(data)
        await self._post("/v1/ring", BROADCAST_CODEC.encode(msgspec.structs.replace(unsigned, signature=signature)))

    def _sign(self, sender: bytes, statement: bytes) -> bytes | None:
        """Return the sender's signature; None when its session is over and its key destroyed."""
        try:
            return self._secrets[sender].signer.sign(statement)
        except ValueError:
            self._note_outdated()
            self._metrics.no(METER, Reason.SESSION_CLOSED)
            return None

    def _note_outdated(self) -> None:
        self.is_outdated = True
        self.changed.set()

    async def _post(self, path: str, body: bytes) -> None:
        http = self._http
        if http is None:
            return
        async with self._turns:
            try:
                await http.post(path, content=body, timeout=ANSWER_S)
            except httpx.HTTPError:
                self._metrics.no(METER, Reason.NOT_READY)

    def _broadcast_statement(self, item: Broadcast) -> bytes:
        parts = (self._ring, item.sender, u64(item.number), prefixed(item.message))
        return digest(b"bcami/aggregation/broadcast/1", self._chain, self._epoch, *parts)

    def _info(self, sender: bytes, to: bytes) -> bytes:
        return b"bcami/aggregation/channel/1" + self._chain + self._ring + sender + to

    def _statement(self, to: bytes, envelope: Envelope) -> bytes:
        parts = (
            self._ring,
            envelope.sender,
            to,
            u64(envelope.number),
            envelope.encapsulation,
            prefixed(envelope.sealed),
        )
        return digest(b"bcami/aggregation/channel/1", self._chain, self._epoch, *parts)

    def _refuse(self, status: int, reason: Reason) -> Response:
        self._metrics.no(METER, reason)
        return JSONResponse({"reason": reason}, status_code=status)


def _name(address: bytes) -> str:
    return "supplier" if address == SUPPLIER else address.hex()
