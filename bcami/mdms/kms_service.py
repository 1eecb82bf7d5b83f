"""Runs the MDMS's end of the symmetric keys (bcami.kms has the rules; protocol 8).

    start     restore ─▶ meters of the chain ─▶ open_kms settles ─▶ its proof ─▶ open_epoch at its height
    then      messages of meters and commands of operators, as they come; about every second: meters and revocations
              that the chain has, repetitions, the changes of members that wait (one rekeying for all of a group)
    at times  a new epoch, with all keys drawn anew; the head of the audit log to the chain

Each step's writes are durable before anything of it leaves. When they cannot be made durable, what memory holds is no
more what the store holds: then nothing is done any more and the process ends.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, TypeVar

from bcami.codec import encode
from bcami.crypto.keys import SecretKey
from bcami.errors import MalformedError
from bcami.kms import KeyServer, Refused, Scope, Step, ToGroup, ToMdms, ToMeter
from bcami.kms.deliveries import Summary
from bcami.kms.messages import TABLE_1, UP_CODEC, BootstrapRequest, DeliveryId, MeterData, Notification
from bcami.kms.records import DELIVERIES, DELIVERY, Received
from bcami.kms.wire import DownItem
from bcami.mdms.head_end import HeadEnd
from bcami.mdms.kms_admission import Admission
from bcami.mdms.kms_anchors import AnchorPace, AuditAnchors
from bcami.mdms.kms_chain import KmsChain
from bcami.mdms.kms_metrics import KmsMetrics
from bcami.mdms.kms_store import KmsStore
from bcami.mdms.periods import Surroundings
from bcami.mdms.requests_in_hand import RequestsInHand
from bcami.mdms.store import MdmsStore
from bcami.model.reasons import Reason
from bcami.token_buckets import TokenBuckets

T = TypeVar("T")

DELIVERIES_SHOWN: Final = 20
MISSING_SHOWN: Final = 100
BOOTSTRAPS_PER_SECOND: Final = 200.0
BOOTSTRAPS_BURST: Final = 20_000.0
"""Of one address: a concentrator's meters all ask when an epoch opens."""


@dataclass(frozen=True, slots=True)
class KmsPace:
    """How often the service does what nobody asks for."""

    tick_s: float = 1.0
    epoch_s: float = 86_400.0
    """Age at which an epoch is followed by the next one."""
    anchor: AnchorPace = field(default_factory=AnchorPace)
    retry_s: float = 2.0
    patience_s: float = 10.0
    """How long what operators ask for waits for the first epoch: after a start it is a matter of moments."""


class KmsService:
    """See the module. Used within one event loop; steps are worked out in a thread, one at a time."""

    def __init__(
        self,
        server: KeyServer,
        store: KmsStore,
        meters: MdmsStore,
        head_end: HeadEnd,
        chain: KmsChain,
        scope: Scope,
        surroundings: Surroundings,
        metrics: KmsMetrics,
        log: Any,
        *,
        policy: Mapping[str, str | int] = MappingProxyType({}),
        pace: KmsPace | None = None,
    ) -> None:
        """`meters` tells who is on the chain, the status `policy`."""
        self.server = server
        self.store = store
        self.head_end = head_end
        self.metrics = metrics
        self._meters = meters
        self._chain = chain
        self._surroundings = surroundings
        self._log = log
        self._policy = policy
        self._pace = pace or KmsPace()
        self.audit = AuditAnchors(server, store, chain, self.look, log, self._pace.anchor, self._reopen)
        self.admission = Admission(scope, server, head_end, metrics, surroundings.randomness)
        self._turn = asyncio.Lock()
        self._failure: Exception | None = None
        self._signer: SecretKey | None = None
        self._is_open = asyncio.Event()
        self._followed = 0
        self.requests = RequestsInHand()
        self._bootstraps = TokenBuckets(BOOTSTRAPS_PER_SECOND, BOOTSTRAPS_BURST)
        self._rotate = asyncio.Event()
        self._opening: asyncio.Task[None] | None = None

    # What runs.

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises what made the store unusable."""
        await self._follow()
        await self._open_epoch()
        anchoring = asyncio.create_task(self.audit.keep(lambda: self._signer, stop))
        try:
            await self._rounds(stop)
        finally:
            anchoring.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await anchoring

    async def _rounds(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        opened = loop.time()
        try:
            while not stop.is_set():
                await self._follow()
                await self.do(lambda: self.server.tick(self.now_ms(), self.head_end.carries))
                await self.do(lambda: self.server.end_period(self.now_ms(), self.entropy()))
                if self._opening is not None and self._opening.done():
                    await self._opening
                    self._opening, opened = None, loop.time()
                if self._opening is None and (self._rotate.is_set() or loop.time() - opened >= self._pace.epoch_s):
                    self._rotate.clear()
                    self._opening = asyncio.create_task(self._open_epoch())  # the open one serves until then
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pace.tick_s):
                        await stop.wait()
        finally:
            if self._opening is not None:
                self._opening.cancel()
                await asyncio.gather(self._opening, return_exceptions=True)

    def rotate(self) -> None:
        """Have a new epoch opened within about a second."""
        self._rotate.set()

    def _reopen(self) -> None:
        """Have a new epoch opened, unless one is on its way."""
        if self._opening is None:
            self.rotate()

    def now_ms(self) -> int:
        return self._surroundings.now_ms()

    def entropy(self) -> bytes:
        return self._surroundings.randomness()

    # Steps.

    async def do(self, *inputs: Callable[[], Step]) -> list[Step]:
        """Carry out steps in order: all their writes durable, then what they send.

        Raises EnvironmentFault when the store cannot be written; from then on always.
        """
        async with self._turn:
            if self._failure is not None:
                raise self._failure
            working = asyncio.ensure_future(asyncio.to_thread(self._work, inputs))
            try:
                steps = await asyncio.shield(working)
            except asyncio.CancelledError:
                await asyncio.wait([working])  # nothing else may begin while the thread is at work
                raise
            for step in steps:
                self._send(step)
            return steps

    def _work(self, inputs: Iterable[Callable[[], Step]]) -> list[Step]:
        try:
            steps = [make() for make in inputs]
            writes = [write for step in steps for write in step.writes]
            if writes:
                self.store.apply(writes)
        except Exception as error:
            self._failure = error
            raise
        return steps

    def _send(self, step: Step) -> None:
        self.metrics.happened(step.events, step.encryptions)
        for send in step.sends:
            match send:
                case ToMeter(hid, message):
                    self.head_end.put(DownItem(hid, 0, encode(message)))
                case ToGroup(group, message):
                    self.head_end.put(DownItem(b"", group, encode(message)))
                case ToMdms():
                    raise AssertionError("the MDMS does not talk to itself")

    async def receive(self, messages: Sequence[bytes], client: str) -> Counter[Reason]:
        """Take what meters sent; return what was refused. `client` is the address that it came from."""
        refused: Counter[Reason] = Counter()
        inputs: list[Callable[[], Step]] = []
        now_s = asyncio.get_running_loop().time()
        for data in messages:
            if _asks_for_keys(data) and self._bootstraps.take(client, now_s):
                self.metrics.refused(Reason.RATE_LIMITED)
                refused[Reason.RATE_LIMITED] += 1
            else:
                inputs.append(lambda data=data: self.server.receive(data, self.now_ms(), self.entropy()))  # type: ignore[misc]
        for step in await self.do(*inputs):
            refused.update(event.reason for event in step.events if isinstance(event, Refused))
        return refused

    async def send(self, work: Callable[[], Step]) -> DeliveryId | Reason:
        """Send a message; return its id, or why it is not sent."""
        await self._until_open()
        (step,) = await self.do(work)
        if step.refusals:
            return step.refusals[0]
        return next(
            DELIVERY.decode(write.value).id for write in step.writes if write.table == DELIVERIES and write.value
        )

    async def command(self, work: Callable[[], Step]) -> Reason:
        """Carry out an operator's command; return `valid`, or why it is not carried out."""
        await self._until_open()
        (step,) = await self.do(work)
        return step.refusals[0] if step.refusals else Reason.VALID

    async def _until_open(self) -> None:
        """Wait for an epoch, but not for ever: without one the machine refuses what needs it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pace.patience_s):
                await self._is_open.wait()

    # What can be asked.

    async def look(self, question: Callable[[], T]) -> T:
        """Return the answer to a question about the machine, between two steps."""
        async with self._turn:
            return await asyncio.to_thread(question)

    async def status(self) -> dict[str, Any]:
        return await self.look(self._status)

    async def delivery(self, identity: DeliveryId) -> dict[str, Any] | None:
        found = await self.look(lambda: self.server.deliveries.summary(identity, self.now_ms()))
        return None if found is None else delivery_form(found)

    async def delivery_meters(self, identity: DeliveryId, limit: int) -> list[dict[str, Any]]:
        """Return what became of a delivery at each meter, who still waits first."""
        rows = await self.look(lambda: list(islice(self.server.deliveries.meters(identity, self.now_ms()), limit)))
        return [{"hid": hid.hex(), "status": status.value, "latency_ms": latency} for hid, status, latency in rows]

    async def keys(self) -> dict[str, Any]:
        """Return who has keys of the open epoch, and who of those that are there has none."""

        def ask() -> dict[str, Any]:
            counts, roll = self.server.counts, self.server.roll
            found = [record for record in map(roll.get, there) if record is not None and not record.removed]
            missing = [record.hid.hex() for record in found if record.channel is None]
            return {
                "epoch": counts.epoch if self._signer is not None else 0,
                "meters": counts.meters,
                "confirmed": counts.confirmed,
                "there": len(found),
                "there_confirmed": len(found) - len(missing),
                "missing": sorted(missing)[:MISSING_SHOWN],
            }

        there = self.head_end.there
        return await self.look(ask)

    def _status(self) -> dict[str, Any]:
        counts = self.server.counts
        newest = self.server.deliveries.summaries(self.now_ms(), DELIVERIES_SHOWN)
        return {
            "epoch": counts.epoch if self._signer is not None else 0,
            **self._policy,
            "meters": counts.meters,
            "meters_confirmed": counts.confirmed,
            "groups": counts.groups,
            "streams": self.head_end.listeners,
            "audit_length": counts.audit_length,
            "audit_head": counts.audit_head.hex(),
            "audit_anchored": self.audit.anchored,
            "audit_compared": self.audit.is_compared,
            "audit_fault": self.audit.fault,
            "deliveries": [delivery_form(item) for item in newest],
        }

    # The chain.

    async def _follow(self) -> None:
        """Take up meters and sessions that the chain has now, and let go of those that it revoked."""
        height = self._meters.cursor.height
        if height == self._followed:
            return
        since = self._followed
        enrolled = await asyncio.to_thread(self._meters.identities_above, since)
        revoked = await asyncio.to_thread(self._meters.revoked_above, since)
        if enrolled:
            await self.do(lambda: self.server.enrol(enrolled, self.now_ms(), self.entropy()))
        for hid in revoked:
            record = self.server.roll.get(hid)
            if record is not None and not record.removed:
                await self.do(lambda hid=hid: self.server.remove(hid, self.now_ms(), self.entropy()))  # type: ignore[misc]
                self.head_end.shut_out(hid)
        self._followed = height

    async def _open_epoch(self) -> None:
        """Open an epoch on the chain and then here; goes on trying until it is there."""
        while True:
            opened = await self._chain.open_epoch()
            if not isinstance(opened, Reason):
                break
            self._log.warning("no epoch of symmetric keys", reason=opened.value)
            await asyncio.sleep(self._pace.retry_s)
        signer, height = opened.signer, opened.height
        (step,) = await self.do(lambda: self.server.open_epoch(height, signer, self.now_ms(), self.entropy()))
        assert not step.refusals, f"the chain's newest epoch is refused: {step.refusals}"
        self._signer = signer
        self._is_open.set()
        self.head_end.open_epoch(opened.proof)
        self._log.info("epoch of symmetric keys opened", height=height, meters=self.server.counts.meters)

    async def resume_audit(self) -> Reason:
        """Go on with the audit log after an old backup was restored; the gap stays visible in it for ever."""
        last, _, fault = await self.audit.audit()
        if fault is None:
            return Reason.BAD_ARGUMENT
        await self.do(lambda: self.server.resume_audit(last.length, last.head, self.now_ms()))
        await self.audit.compare()
        return Reason.VALID


def _asks_for_keys(data: bytes) -> bool:
    try:
        return isinstance(UP_CODEC.decode(data), BootstrapRequest)
    except MalformedError:
        return False  # the step machine refuses and counts it


def received_form(item: Received) -> dict[str, Any]:
    """Return what a meter sent as operators see it."""
    payload = item.payload
    return {
        "hid": item.hid.hex(),
        "id": item.id.hex(),
        "message": payload.__struct_config__.tag,
        "title": TABLE_1[type(payload)].title,
        "kind": payload.kind if isinstance(payload, Notification) else None,
        "at_s": payload.at_s if isinstance(payload, Notification) else None,
        "report": payload.report.hex() if isinstance(payload, MeterData) else None,
        "sent_ms": item.sent_ms,
        "received_ms": item.received_ms,
        "in_time": item.in_time,
    }


def delivery_form(item: Summary) -> dict[str, Any]:
    """Return a delivery as operators see it."""
    return {
        "epoch": item.id.epoch,
        "number": item.id.number,
        "title": TABLE_1[type(item.payload)].title,
        "group": item.group,
        "sent_ms": item.sent_ms,
        **{status.value: count for status, count in item.statuses.items()},
        "latency_ms_max": item.latency_ms_max,
        "deadline_ms": item.deadline_ms,
    }
