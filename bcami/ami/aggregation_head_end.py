"""Drives the head-end's side of a masked round over HTTP (`bcami.aggregation.head_end` decides).

Members are reached through *ways*: gateways with many meters behind each. What goes to all members alike is encoded
once and posted once for each group of them. A post that gets no answer is repeated, byte by byte the same; a gateway's
word that a meter does not answer is one. When all calls have ended and something is still awaited, the phase is over.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import suppress
from time import process_time
from typing import Any, Final, assert_never

import httpx

from bcami.aggregation.head_end import UNPROVEN, Call, Effect, Ended, MaskedRound, Submit, Wait
from bcami.aggregation.records import TO_HEAD_END_CODEC, TO_METER_CODEC, Declined, ToHeadEnd, ToMeter
from bcami.ami.aggregation_chain import AggregationChain
from bcami.ami.aggregation_meters import CALLS_CODEC, CALLS_MAX, REPLIES_CODEC, Forwarded, Reply
from bcami.ami.transcript import Transcript
from bcami.errors import MalformedError
from bcami.model.aggregation import RosterMember
from bcami.model.api import TransactionProof
from bcami.model.reasons import Reason
from bcami.units import MIB

ATTEMPTS: Final = 3
ANSWER_S: Final = 30.0
POSTS_MAX: Final = 2
"""To one gateway at a time: while one is answered, the next is there."""
POST_BYTES_MAX: Final = 8 * MIB
_PAUSE_S: Final = 0.05


class Way:
    """A gateway and how to reach it."""

    def __init__(self, http: httpx.AsyncClient, hids: Iterable[bytes]) -> None:
        """`http` has the base address; `hids` are the meters behind it."""
        self.http = http
        self.hids = frozenset(hids)
        self.turns = asyncio.Semaphore(POSTS_MAX)
        self.is_gone = False
        """Set by whoever knows that nobody is there any more: nothing is asked then."""


class HeadEnd:
    """Carries out the effects of rounds of one group."""

    def __init__(
        self,
        ways: Sequence[Way],
        members: tuple[RosterMember, ...],
        chain: AggregationChain,
        transcript: Transcript,
    ) -> None:
        """Every member is behind one of the ways. Raises KeyError when one is not."""
        self._hids = [member.hid for member in members]
        way_of = {hid: way for way in ways for hid in way.hids}
        self._ways = [way_of[hid] for hid in self._hids]
        self._chain = chain
        self._transcript = transcript
        self.cpu_s = 0.0
        self.malformed = 0
        """Answers that did not decode."""

    async def run(self, masked: MaskedRound, proof: TransactionProof) -> Ended:
        """Run a round to its end; `proof` is the receipt of its start."""
        running: set[asyncio.Task[list[Effect]]] = set()
        effects = deque(self._decide(masked.begin, proof))
        phase = ""
        ended: Ended | None = None
        try:
            while True:
                calls: list[Call] = []
                while effects:
                    match effects.popleft():
                        case Call() as call:
                            calls.append(call)
                        case Submit() as submit:
                            running.add(asyncio.create_task(self._submit(masked, submit)))
                        case Wait(name):
                            phase = name
                        case Ended() as last:
                            ended = last
                        case never:
                            assert_never(never)
                for way, posted in self._posts(calls):
                    running.add(asyncio.create_task(self._call(masked, way, posted)))
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

    async def tell(self, message: ToMeter) -> frozenset[int]:
        """Send a message to every member; return those that took it without a no."""
        calls = [Call(member, message) for member in range(len(self._hids))]
        took: set[int] = set()

        async def one(way: Way, posted: list[Call]) -> None:
            async for replies in self._answers(way, posted):
                for call, reply in replies:
                    answer = self._answer(call, reply)
                    if reply.status in (httpx.codes.OK, httpx.codes.NO_CONTENT) and not isinstance(answer, Declined):
                        took.add(call.member)

        await asyncio.gather(*(one(way, posted) for way, posted in self._posts(calls)))
        return frozenset(took)

    def _decide(self, what: Any, *arguments: Any) -> list[Effect]:
        began = process_time()
        effects: list[Effect] = what(*arguments)
        self.cpu_s += process_time() - began
        return effects

    async def _submit(self, masked: MaskedRound, submit: Submit) -> list[Effect]:
        send = self._chain.record if submit.function in UNPROVEN else self._chain.submit
        outcome: TransactionProof | Reason = await send(submit.function, submit.argument)
        return self._decide(masked.recorded, submit.function, outcome)

    async def _call(self, masked: MaskedRound, way: Way, calls: list[Call]) -> list[Effect]:
        effects: list[Effect] = []
        async for replies in self._answers(way, calls):
            answers = [(call.member, self._answer(call, reply)) for call, reply in replies]
            effects += self._decide(_receive_all, masked, answers)
        return effects

    def _replies(self, data: bytes) -> tuple[Reply, ...]:
        try:
            return REPLIES_CODEC.decode(data)
        except MalformedError:
            self.malformed += 1
            return ()

    def _posts(self, calls: Iterable[Call]) -> Iterator[tuple[Way, list[Call]]]:
        """Put calls together that go to one gateway at once; those to one member stay in order."""
        waiting: dict[Way, list[Call]] = {}
        for call in calls:
            way = self._ways[call.member]
            listed = waiting.setdefault(way, [])
            listed.append(call)
            if len(listed) == CALLS_MAX:
                yield way, waiting.pop(way)
        yield from waiting.items()

    async def _answers(self, way: Way, calls: list[Call]) -> AsyncIterator[list[tuple[Call, Reply]]]:
        """Yield (call, reply) of the calls that are answered, together as they come."""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(_PAUSE_S)
            if way.is_gone:
                return
            silent: list[Call] = []
            answered: list[tuple[Call, Reply]] = []
            for call, reply in await self._post(way, calls):
                if reply is None:
                    silent.append(call)
                else:
                    answered.append((call, reply))
            yield answered
            calls = silent
            if not calls:
                return

    def _answer(self, call: Call, reply: Reply) -> ToHeadEnd | None:
        """Return what a member answered; None when that is nothing, or nothing that can be read."""
        if reply.status != httpx.codes.OK:
            return None
        try:
            answer = TO_HEAD_END_CODEC.decode(reply.data)
        except MalformedError:
            self.malformed += 1
            return None
        self._transcript.note("head-end", self._hids[call.member].hex(), type(answer).__name__, reply.data)
        return answer

    async def _post(self, way: Way, calls: list[Call]) -> list[tuple[Call, Reply | None]]:
        """Return the reply to each call, grouped by message; None where the post failed."""
        grouped: dict[int, list[Call]] = {}
        for call in calls:
            grouped.setdefault(id(call.message), []).append(call)
        replies: list[tuple[Call, Reply | None]] = []
        listed: list[Forwarded] = []
        asked: list[Call] = []
        size = 0
        for group in grouped.values():
            message = TO_METER_CODEC.encode(group[0].message)
            if listed and size + len(message) > POST_BYTES_MAX:
                replies += await self._post_now(way, tuple(listed), asked)
                listed, asked, size = [], [], 0
            listed.append(Forwarded(tuple([self._hids[call.member] for call in group]), message))
            asked += group
            size += len(message)
        return replies + await self._post_now(way, tuple(listed), asked)

    async def _post_now(
        self, way: Way, listed: tuple[Forwarded, ...], asked: list[Call]
    ) -> list[tuple[Call, Reply | None]]:
        replies: tuple[Reply | None, ...] = ()
        async with way.turns:
            with suppress(httpx.HTTPError):
                body = CALLS_CODEC.encode(listed)
                response = await way.http.post("/v1/aggregation", content=body, timeout=ANSWER_S)
                if response.status_code == httpx.codes.OK:
                    replies = self._replies(response.content)
        if len(replies) != len(asked):
            replies = (None,) * len(asked)
        return list(zip(asked, replies, strict=True))


def _receive_all(masked: MaskedRound, answers: Iterable[tuple[int, ToHeadEnd | None]]) -> list[Effect]:
    """Take what several members answered; to read the clock of CPU time for each of them costs as much as some."""
    return [effect for member, answer in answers if answer is not None for effect in masked.receive(member, answer)]
