"""Drives the head-end's side of a masked round over HTTP (`bcami.aggregation.head_end` decides).

Calls to different members go out together, as to a gateway that has them all behind it; calls to one member in order. A
call that gets no answer is repeated, byte by byte the same; when all calls have ended and something is still awaited,
the phase is over.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from time import process_time
from typing import Any, Final, assert_never

import httpx

from bcami.aggregation.head_end import Call, Effect, Ended, MaskedRound, Submit, Wait
from bcami.aggregation.records import TO_HEAD_END_CODEC, TO_METER_CODEC, ToHeadEnd, ToMeter
from bcami.ami.aggregation_chain import AggregationChain
from bcami.ami.aggregation_meters import CALLS_CODEC, REPLIES_CODEC, Forwarded, Reply
from bcami.ami.transcript import Transcript
from bcami.errors import MalformedError
from bcami.model.aggregation import RosterMember
from bcami.model.api import TransactionProof
from bcami.units import MIB

ATTEMPTS: Final = 3
ANSWER_S: Final = 30.0
POSTS_MAX: Final = 4
POST_CALLS_MAX: Final = 64
POST_BYTES_MAX: Final = 8 * MIB
_PAUSE_S: Final = 0.05


class HeadEnd:
    """Carries out the effects of rounds of one group."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        members: tuple[RosterMember, ...],
        chain: AggregationChain,
        transcript: Transcript,
    ) -> None:
        """`http` has the base address under which all members are reached."""
        self._http = http
        self._hids = [member.hid for member in members]
        self._chain = chain
        self._transcript = transcript
        self._queue: deque[_Waiting] = deque()
        self._posting: set[asyncio.Task[None]] = set()
        self._encoded: dict[type[ToMeter], tuple[ToMeter, bytes]] = {}
        self._orders = [asyncio.Lock() for _ in members]
        self.cpu_s = 0.0
        self.malformed = 0
        """Answers that did not decode."""

    async def run(self, masked: MaskedRound, proof: TransactionProof) -> Ended:
        """Run a round to its end; `proof` is the receipt of its start."""
        running: set[asyncio.Task[list[Effect]]] = set()
        effects = deque(masked.begin(proof))
        phase = ""
        ended: Ended | None = None
        try:
            while True:
                while effects:
                    match effects.popleft():
                        case Call() as call:
                            running.add(asyncio.create_task(self._call(masked, call)))
                        case Submit() as submit:
                            running.add(asyncio.create_task(self._submit(masked, submit)))
                        case Wait(name):
                            phase = name
                        case Ended() as last:
                            ended = last
                        case never:
                            assert_never(never)
                if running:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        effects.extend(task.result())
                elif ended is not None:
                    return ended
                else:
                    effects.extend(self._decide(masked.timed_out, phase))
        finally:
            for task in running:
                task.cancel()

    async def tell(self, message: ToMeter) -> None:
        """Send a message to every member; who is not there does not hear it."""

        async def one(member: int) -> None:
            async with self._orders[member]:
                await self._ask(member, message)

        await asyncio.gather(*(one(member) for member in range(len(self._hids))))

    def _decide(self, what: Any, *arguments: Any) -> list[Effect]:
        began = process_time()
        effects: list[Effect] = what(*arguments)
        self.cpu_s += process_time() - began
        return effects

    async def _submit(self, masked: MaskedRound, submit: Submit) -> list[Effect]:
        outcome = await self._chain.submit(submit.function, submit.argument)
        return self._decide(masked.recorded, submit.function, outcome)

    async def _call(self, masked: MaskedRound, call: Call) -> list[Effect]:
        async with self._orders[call.member]:
            answer = await self._ask(call.member, call.message)
        return [] if answer is None else self._decide(masked.receive, call.member, answer)

    async def _ask(self, member: int, message: ToMeter) -> ToHeadEnd | None:
        """Return the member's answer; None when it has none or is not reached."""
        body = self._encode(message)
        for _ in range(ATTEMPTS):
            reply = await self._forward(member, body)
            if reply is None or reply.status == httpx.codes.SERVICE_UNAVAILABLE:
                await asyncio.sleep(_PAUSE_S)
                continue
            if reply.status != httpx.codes.OK:
                return None
            try:
                answer = TO_HEAD_END_CODEC.decode(reply.data)
            except MalformedError:
                self.malformed += 1
                return None
            self._transcript.note("head-end", self._hids[member].hex(), type(answer).__name__, reply.data)
            return answer
        return None

    def _encode(self, message: ToMeter) -> bytes:
        """Return a message's bytes; one that goes to all members is encoded once."""
        known = self._encoded.get(type(message))
        if known is None or known[0] is not message:
            known = self._encoded[type(message)] = (message, TO_METER_CODEC.encode(message))
        return known[1]

    def _forward(self, member: int, body: bytes) -> "asyncio.Future[Reply | None]":
        """Let a message go with the next post; the future is its reply, or None when the post failed."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(Forwarded(self._hids[member], body), loop.create_future())
        self._queue.append(waiting)
        loop.call_soon(self._post_more)
        return waiting.reply

    def _post_more(self) -> None:
        while self._queue and len(self._posting) < POSTS_MAX:
            taken: list[_Waiting] = []
            size = 0
            while self._queue and len(taken) < POST_CALLS_MAX and size < POST_BYTES_MAX:
                taken.append(self._queue.popleft())
                size += len(taken[-1].call.message)
            task = asyncio.create_task(self._post(taken))
            self._posting.add(task)
            task.add_done_callback(self._posted)

    def _posted(self, task: "asyncio.Task[None]") -> None:
        self._posting.discard(task)
        self._post_more()

    async def _post(self, taken: list["_Waiting"]) -> None:
        replies: tuple[Reply | None, ...] = (None,) * len(taken)
        body = CALLS_CODEC.encode(tuple(item.call for item in taken))
        try:
            response = await self._http.post("/v1/aggregation", content=body, timeout=ANSWER_S)
            decoded = REPLIES_CODEC.decode(response.content) if response.status_code == httpx.codes.OK else ()
        except httpx.HTTPError:
            decoded = ()
        except MalformedError:
            self.malformed += 1
            decoded = ()
        if len(decoded) == len(taken):
            replies = decoded
        for item, reply in zip(taken, replies, strict=True):
            if not item.reply.done():
                item.reply.set_result(reply)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A message that is to be posted."""

    call: Forwarded
    reply: "asyncio.Future[Reply | None]"
