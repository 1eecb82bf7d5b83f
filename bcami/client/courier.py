"""Carries signed transactions to nodes, in batches, until each one is settled.

A parcel is the stored bytes of one transaction. It is settled when its outcome is proven (receipts.py), or when weak
different nodes signed that they refuse it (refusals.py, retry.py). Until then the same bytes go to a node again and
again: after a failure to the next one, after `unknown` to the same one. The courier never changes, splits or drops a
parcel; who posts is responsible for posting only bytes that are durable, and no more than memory should hold.

Each node has a lane: a queue and a few requests in flight. A lane sends at once when idle and in larger batches the
longer its requests take. A node that failed gets one request at a time until it answers again, and its queue goes to
the others meanwhile.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from bcami.client.nodes import NodeClient, NodeUnavailable
from bcami.client.receipts import ReceiptVerifier
from bcami.client.refusals import signer_of_refusals, signer_of_request_refusal
from bcami.client.retry import AMNESIA_MS, NodePool, Retry, Verdict, common_reason
from bcami.model.api import COMMITTED, REFUSED, SUBMIT_BYTES_MAX, SUBMIT_TRANSACTIONS_MAX, SubmitAnswer, SubmitResult
from bcami.model.reasons import BUSY_REASONS, Reason

_STALL_CHECK_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class CourierLimits:
    """How much goes into a request and how many there are at a time."""

    batch_transactions_max: int = 500
    batch_bytes_max: int = SUBMIT_BYTES_MAX // 2
    requests_max: int = 8
    """In flight at one node."""
    wait_ms: int = 5_000
    """How long a node is asked to wait for the commit before it says `unknown`."""
    stall_ms: int = 2_500
    """A full lane that hears nothing for so long gives its queue to the others."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch_transactions_max <= SUBMIT_TRANSACTIONS_MAX:
            raise ValueError(f"a request carries 1 to {SUBMIT_TRANSACTIONS_MAX} transactions")
        if self.batch_bytes_max > SUBMIT_BYTES_MAX:
            raise ValueError(f"a request carries at most {SUBMIT_BYTES_MAX} bytes")


class Settlement(NamedTuple):
    """How a transaction ended."""

    is_final: bool
    """True: the outcome is proven and in a block. False: abandoned after the refusals of weak nodes."""
    reason: Reason
    """`valid`, why it was rejected, or why nodes refuse it."""
    height: int
    """Block of the outcome; 0 when abandoned."""
    node: int
    """Who answered last."""


class Parcel:
    """Stored bytes of one transaction on their way."""

    __slots__ = ("encoded", "home", "owner", "retry", "settled", "transaction_id")

    def __init__(
        self,
        encoded: bytes,
        transaction_id: bytes,
        home: int,
        settled: "Callable[[Parcel, Settlement], None]",
        owner: Any = None,
    ) -> None:
        self.encoded = encoded
        self.transaction_id = transaction_id
        self.home = home
        """The node that is asked first."""
        self.settled = settled
        """Called once, from the event loop."""
        self.owner = owner
        """Whatever `settled` needs to know it by."""
        self.retry: Retry | None = None
        """Made when the first attempt did not settle it."""


@dataclass(slots=True)
class NodeStatistics:
    """What one node did for us since the start."""

    requests: int = 0
    sent: int = 0
    """Transactions sent, repeats included."""
    committed: int = 0
    """Proven outcomes, rejections included."""
    refused: int = 0
    unsigned: int = 0
    """Of these, refusals without the node's signature, which count for nothing."""
    unknown: int = 0
    unproven: int = 0
    """Outcomes claimed without proof: the node lies or is broken."""
    unavailable: int = 0
    """Requests without a usable answer."""
    busy: int = 0
    """Of these, those that it turned away with a time to come again (429, 503)."""


@dataclass(slots=True)
class _Lane:
    queue: deque[Parcel] = field(default_factory=deque)
    in_flight: int = 0
    heard_ms: int = 0
    is_pump_due: bool = False
    statistics: NodeStatistics = field(default_factory=NodeStatistics)


class Courier:
    """Carries parcels over several nodes. Made, used and closed within one event loop."""

    def __init__(
        self,
        nodes: Sequence[NodeClient],
        verifier: ReceiptVerifier,
        *,
        weak: int,
        seed: bytes,
        limits: CourierLimits | None = None,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        """`weak` is f+1 of genesis; `seed` draws the jitter of delays; `on_failure` hears of a bug of ours."""
        self._nodes = list(nodes)
        self._verifier = verifier
        self._weak = min(weak, len(self._nodes))
        self._seed = seed
        self._limits = limits or CourierLimits()
        self._pool = NodePool(len(self._nodes), seed)
        self._lanes = [_Lane() for _ in self._nodes]
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._later: list[tuple[int, int, Parcel]] = []
        self._later_count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._on_failure = on_failure
        self._stall_task = self._loop.create_task(self._watch_for_stalls())

    @property
    def statistics(self) -> list[NodeStatistics]:
        """Per node, in the order of the nodes."""
        return [lane.statistics for lane in self._lanes]

    def post(self, parcel: Parcel) -> None:
        """Take a parcel; its `settled` is called when it is settled."""
        now_ms = self._now_ms()
        if parcel.retry is None and not self._pool.is_suspect(parcel.home):
            self._enqueue(parcel.home, parcel)
            return
        retry, pool = parcel.retry, self._pool
        send = pool.choose(parcel.home, now_ms) if retry is None else retry.next(pool, now_ms)
        if send.at_ms <= now_ms:
            self._enqueue(send.node, parcel)
        else:
            self._post_later(send.at_ms, parcel)

    async def settle(self, encoded: bytes, transaction_id: bytes, *, home: int = 0) -> Settlement:
        """Carry one transaction and return how it ended; waits as long as it takes."""
        done: asyncio.Future[Settlement] = self._loop.create_future()

        def settled(_: Parcel, settlement: Settlement) -> None:
            if not done.done():
                done.set_result(settlement)

        self.post(Parcel(encoded, transaction_id, home % len(self._lanes), settled))
        return await done

    async def close(self) -> None:
        """Stop. What is not settled stays with whoever posted it."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = [self._stall_task, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Lanes.

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)

    def _enqueue(self, node: int, parcel: Parcel) -> None:
        lane = self._lanes[node]
        lane.queue.append(parcel)
        if not lane.is_pump_due and not self._is_closed:
            lane.is_pump_due = True
            self._loop.call_soon(self._pump, node)

    def _pump(self, node: int) -> None:
        """Start as many requests as the lane may have in flight."""
        lane = self._lanes[node]
        lane.is_pump_due = False
        if self._is_closed:
            return
        is_suspect = self._pool.is_suspect(node)
        if is_suspect and (lane.in_flight or self._pool.available_at_ms(node) > self._now_ms()):
            self._reroute(node)
            return
        while lane.queue and lane.in_flight < (1 if is_suspect else self._limits.requests_max):
            if lane.in_flight == 0:
                lane.heard_ms = self._now_ms()
            self._start(node, self._take(lane))

    def _start(self, node: int, parcels: list[Parcel]) -> None:
        self._lanes[node].in_flight += 1
        task = self._loop.create_task(self._carry(node, parcels))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and self._on_failure is not None:
            self._on_failure(error)
        elif error is not None:
            raise error

    def _take(self, lane: _Lane) -> list[Parcel]:
        parcels: list[Parcel] = []
        size = 0
        while lane.queue and len(parcels) < self._limits.batch_transactions_max:
            size += len(lane.queue[0].encoded)
            if parcels and size > self._limits.batch_bytes_max:
                break
            parcels.append(lane.queue.popleft())
        return parcels

    def _reroute(self, node: int) -> None:
        """Give the lane's queue to other nodes, or back to it later when it is the only one left."""
        queue, self._lanes[node].queue = self._lanes[node].queue, deque()
        now_ms = self._now_ms()
        for parcel in queue:
            send = self._pool.choose(parcel.home, now_ms, (node,))
            if send.at_ms <= now_ms and send.node != node:
                self._enqueue(send.node, parcel)
            else:
                self._post_later(max(send.at_ms, now_ms + 50), parcel)

    def _post_later(self, at_ms: int, parcel: Parcel) -> None:
        self._later_count += 1
        heapq.heappush(self._later, (at_ms, self._later_count, parcel))
        if not self._is_closed and self._later[0][2] is parcel:
            self._arm_timer()

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._later[0][0] / 1000 + 0.001, self._post_due)

    def _post_due(self) -> None:
        now_ms = self._now_ms()
        due: list[Parcel] = []
        while self._later and self._later[0][0] <= now_ms:
            due.append(heapq.heappop(self._later)[2])
        for parcel in due:
            self.post(parcel)
        if self._later:
            self._arm_timer()

    async def _watch_for_stalls(self) -> None:
        while True:
            await asyncio.sleep(_STALL_CHECK_S)
            for node, lane in enumerate(self._lanes):
                is_silent = self._now_ms() - lane.heard_ms > self._limits.stall_ms
                if lane.queue and lane.in_flight and is_silent and len(self._lanes) > 1:
                    self._reroute(node)

    # Requests and answers.

    async def _carry(self, node: int, parcels: list[Parcel]) -> None:
        lane = self._lanes[node]
        lane.statistics.requests += 1
        lane.statistics.sent += len(parcels)
        try:
            encoded = [parcel.encoded for parcel in parcels]
            answer = await self._nodes[node].submit_encoded(encoded, wait="commit", timeout_ms=self._limits.wait_ms)
        except NodeUnavailable as error:
            lane.in_flight -= 1
            self._no_answer(node, parcels, error)
        except BaseException:
            lane.in_flight -= 1
            raise
        else:
            lane.in_flight -= 1
            lane.heard_ms = self._now_ms()
            self._pool.succeeded(node)
            self._answered(node, parcels, answer)
        self._pump(node)

    def _no_answer(self, node: int, parcels: list[Parcel], error: NodeUnavailable) -> None:
        statistics = self._lanes[node].statistics
        now_ms = self._now_ms()
        if error.refuses is not None:
            # The request as a whole was turned down: find out which of its transactions is the cause.
            if len(parcels) == 1:
                reason, body, signed = error.refuses
                signer = signer_of_request_refusal(body, reason, signed, self._verifier.roster)
                self._refused(node, parcels[0], reason, signer)
                return
            middle = len(parcels) // 2
            for part in (parcels[:middle], parcels[middle:]):
                self._start(node, part)
            return
        statistics.unavailable += 1
        statistics.busy += error.retry_after_ms > 0
        self._pool.failed(node, now_ms, error.retry_after_ms)
        for parcel in parcels:
            self._retry(parcel).unreachable(node)
            self.post(parcel)

    def _answered(self, node: int, parcels: list[Parcel], answer: SubmitAnswer) -> None:
        statistics = self._lanes[node].statistics
        for block in answer.blocks:
            self._verifier.learn(block)
        signer = signer_of_refusals(answer, self._verifier.roster)
        for parcel, result in zip(parcels, answer.results, strict=True):
            if result.status == COMMITTED:
                reason = self._verifier.outcome(result, parcel.transaction_id)
                if reason is not None:
                    statistics.committed += 1
                    parcel.settled(parcel, Settlement(True, reason, result.height, node))
                    continue
            self._not_settled(node, parcel, result, signer)

    def _not_settled(self, node: int, parcel: Parcel, result: SubmitResult, signer: int | None) -> None:
        statistics, retry, now_ms = self._lanes[node].statistics, self._retry(parcel), self._now_ms()
        if result.status == COMMITTED:
            statistics.unproven += 1
            verdict = retry.unproven(node, now_ms)
        elif result.status == REFUSED and result.reason is not None:
            if result.reason is Reason.AMNESIA:
                self._pool.failed(node, now_ms, AMNESIA_MS)
            self._refused(node, parcel, result.reason, signer, result.retry_after_ms)
            return
        else:
            statistics.unknown += 1
            verdict = retry.unknown(node, now_ms)
        self._go_on(parcel, node, verdict)

    def _refused(self, node: int, parcel: Parcel, reason: Reason, signer: int | None, retry_after_ms: int = 0) -> None:
        statistics = self._lanes[node].statistics
        statistics.refused += 1
        statistics.unsigned += signer is None and reason not in BUSY_REASONS
        retry = self._retry(parcel)
        self._go_on(parcel, node, retry.refused(node, reason, self._now_ms(), retry_after_ms, signer=signer))

    def _go_on(self, parcel: Parcel, node: int, verdict: Verdict) -> None:
        if verdict is Verdict.AGAIN:
            self.post(parcel)
            return
        reasons = list(self._retry(parcel).refusals.values())
        parcel.settled(parcel, Settlement(False, common_reason(reasons), 0, node))

    def _retry(self, parcel: Parcel) -> Retry:
        if parcel.retry is None:
            parcel.retry = Retry(parcel.home, self._weak, self._seed + parcel.transaction_id)
        return parcel.retry
