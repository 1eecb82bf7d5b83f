"""Drives the head-end's side of a masked round over HTTP (`bcami.aggregation.head_end` decides).

Calls to different members go out at once, calls to one member in order. A call that gets no answer is repeated, byte by
byte the same; when all calls have ended and something is still awaited, the phase is over.
"""

import asyncio
from collections import deque
from time import process_time
from typing import Any, Final, assert_never

import httpx

from bcami.aggregation.head_end import Call, Effect, Ended, MaskedRound, Submit, Wait
from bcami.aggregation.records import TO_HEAD_END_CODEC, TO_METER_CODEC, ToHeadEnd, ToMeter
from bcami.ami.aggregation_chain import AggregationChain
from bcami.ami.transcript import Transcript
from bcami.errors import MalformedError
from bcami.model.aggregation import RosterMember
from bcami.model.api import TransactionProof

ATTEMPTS: Final = 3
ANSWER_S: Final = 10.0
CALLS_MAX: Final = 32
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
        self._hids = [member.hid.hex() for member in members]
        self._chain = chain
        self._transcript = transcript
        self._turns = asyncio.Semaphore(CALLS_MAX)
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
            async with self._orders[member], self._turns:
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
        async with self._orders[call.member], self._turns:
            answer = await self._ask(call.member, call.message)
        return [] if answer is None else self._decide(masked.receive, call.member, answer)

    async def _ask(self, member: int, message: ToMeter) -> ToHeadEnd | None:
        """Return the member's answer; None when it has none or is not reached."""
        body = TO_METER_CODEC.encode(message)
        for _ in range(ATTEMPTS):
            try:
                response = await self._http.post(
                    f"/v1/aggregation/{self._hids[member]}", content=body, timeout=ANSWER_S
                )
            except httpx.HTTPError:
                await asyncio.sleep(_PAUSE_S)
                continue
            if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                await asyncio.sleep(_PAUSE_S)
                continue
            if response.status_code != httpx.codes.OK:
                return None
            try:
                answer = TO_HEAD_END_CODEC.decode(response.content)
            except MalformedError:
                self.malformed += 1
                return None
            self._transcript.note("head-end", self._hids[member], type(answer).__name__, response.content)
            return answer
        return None
