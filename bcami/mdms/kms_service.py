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
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec

from bcami.client.nodes import NodeClient
from bcami.client.periods import verify_kms_epoch
from bcami.client.proofs import prove
from bcami.client.reads import weak_read
from bcami.codec import encode
from bcami.crypto.keys import SecretKey
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.errors import InconclusiveError, MalformedError
from bcami.kms import KeyServer, Refused, Step, ToGroup, ToMdms, ToMeter
from bcami.kms.audit import AUDIT_ENTRY, AuditEntry, check_log
from bcami.kms.deliveries import Summary
from bcami.kms.messages import TABLE_1, UP_CODEC, BootstrapRequest, DeliveryId
from bcami.kms.records import AUDIT, DELIVERIES, DELIVERY
from bcami.kms.wire import DownItem
from bcami.mdms.head_end import HeadEnd
from bcami.mdms.kms_metrics import KmsMetrics
from bcami.mdms.kms_store import KmsStore
from bcami.mdms.periods import Settle, Surroundings
from bcami.mdms.store import MdmsStore
from bcami.model.api import QueryAnswer
from bcami.model.genesis import operator_id
from bcami.model.reasons import Reason
from bcami.model.registration import AnchorArgument, KmsState, OpenKmsArgument
from bcami.model.transaction import Transaction, argument_digest, transaction_id
from bcami.token_buckets import TokenBuckets

T = TypeVar("T")

DELIVERIES_SHOWN: Final = 20
BOOTSTRAPS_PER_SECOND: Final = 200.0
BOOTSTRAPS_BURST: Final = 20_000.0
"""Of one address: a concentrator's meters all ask when an epoch opens."""


@dataclass(frozen=True, slots=True)
class KmsPace:
    """How often the service does what nobody asks for."""

    tick_s: float = 1.0
    epoch_s: float = 86_400.0
    """Age at which an epoch is followed by the next one."""
    anchor_s: float = 300.0
    """At least so long between two anchors of the audit log."""
    retry_s: float = 2.0


class KmsService:
    """See the module. Used within one event loop; steps are worked out in a thread, one at a time."""

    def __init__(
        self,
        server: KeyServer,
        store: KmsStore,
        meters: MdmsStore,
        head_end: HeadEnd,
        nodes: Sequence[NodeClient],
        settle: Settle,
        roster: Roster,
        enrolment: Signer,
        surroundings: Surroundings,
        metrics: KmsMetrics,
        log: Any,
        *,
        policy: Mapping[str, str | int] = MappingProxyType({}),
        pace: KmsPace | None = None,
    ) -> None:
        """`enrolment` is the MDMS's enrolment key; `meters` tells who is on the chain, the status `policy`."""
        self.server = server
        self.store = store
        self.head_end = head_end
        self.metrics = metrics
        self._meters = meters
        self._nodes = nodes
        self._settle = settle
        self._roster = roster
        self._enrolment = enrolment
        self._surroundings = surroundings
        self._log = log
        self._policy = policy
        self._pace = pace or KmsPace()
        self._turn = asyncio.Lock()
        self._failure: Exception | None = None
        self._signer: SecretKey | None = None
        self._followed = 0
        self.requests = 0
        """HTTP requests with messages that are in hand."""
        self._anchored = 0
        self.audit_fault: str | None = None
        """What was wrong with the audit log at the start."""
        self._bootstraps = TokenBuckets(BOOTSTRAPS_PER_SECOND, BOOTSTRAPS_BURST)
        self._rotate = asyncio.Event()

    # What runs.

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises what made the store unusable."""
        loop = asyncio.get_running_loop()
        await self._follow()
        await self._open_epoch()
        await self._check_audit()
        opened = anchored = loop.time()
        while not stop.is_set():
            await self._follow()
            await self.do(lambda: self.server.tick(self.now_ms()))
            await self.do(lambda: self.server.end_period(self.now_ms(), self.entropy()))
            if self._rotate.is_set() or loop.time() - opened >= self._pace.epoch_s:
                self._rotate.clear()
                await self._open_epoch()
                opened = loop.time()
            if loop.time() - anchored >= self._pace.anchor_s:
                await self.anchor()
                anchored = loop.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.tick_s):
                    await stop.wait()

    def rotate(self) -> None:
        """Have a new epoch opened within about a second."""
        self._rotate.set()

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
            try:
                steps = await asyncio.to_thread(self._work, inputs)
            except Exception as error:
                self._failure = error
                raise
            for step in steps:
                self._send(step)
            return steps

    def _work(self, inputs: Iterable[Callable[[], Step]]) -> list[Step]:
        steps = [make() for make in inputs]
        writes = [write for step in steps for write in step.writes]
        if writes:
            self.store.apply(writes)
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
        (step,) = await self.do(work)
        if step.refusals:
            return step.refusals[0]
        return next(
            DELIVERY.decode(write.value).id for write in step.writes if write.table == DELIVERIES and write.value
        )

    async def command(self, work: Callable[[], Step]) -> Reason:
        """Carry out an operator's command; return `valid`, or why it is not carried out."""
        (step,) = await self.do(work)
        return step.refusals[0] if step.refusals else Reason.VALID

    # What can be asked.

    async def look(self, question: Callable[[], T]) -> T:
        """Return the answer to a question about the machine, between two steps."""
        async with self._turn:
            return await asyncio.to_thread(question)

    async def status(self) -> dict[str, Any]:
        return await self.look(self._status)

    async def delivery(self, identity: DeliveryId) -> dict[str, Any] | None:
        summaries = await self.look(lambda: self.server.summaries(self.now_ms()))
        return next((delivery_form(item) for item in summaries if item.id == identity), None)

    def _status(self) -> dict[str, Any]:
        counts = self.server.counts
        newest = self.server.summaries(self.now_ms())[-DELIVERIES_SHOWN:]
        return {
            "epoch": counts.epoch if self._signer is not None else 0,
            **self._policy,
            "meters": counts.meters,
            "meters_confirmed": counts.confirmed,
            "groups": counts.groups,
            "streams": self.head_end.listeners,
            "audit_length": counts.audit_length,
            "audit_head": counts.audit_head.hex(),
            "audit_anchored": self._anchored,
            "audit_fault": self.audit_fault,
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
        self._followed = height

    async def _open_epoch(self) -> None:
        """Open an epoch on the chain and then here; goes on trying until it is there."""
        while True:
            signer = SecretKey.generate(self.entropy())
            argument = encode(OpenKmsArgument(signer.public_key))
            tx = self._sign("open_kms", 1, argument, signer, (self._enrolment, signer))
            settlement = await self._settle(encode(tx), self._id_of(tx))
            if settlement.reason is Reason.VALID:
                break
            self._log.warning("no epoch of symmetric keys", reason=settlement.reason.value)
            await asyncio.sleep(self._pace.retry_s)
        proof = await prove(tx, self._nodes, self._roster)
        epoch = verify_kms_epoch(proof, self._roster.genesis, self._roster)
        assert not isinstance(epoch, Reason), f"a proof that was checked is refused: {epoch}"
        height = epoch.height
        (step,) = await self.do(lambda: self.server.open_epoch(height, signer, self.now_ms(), self.entropy()))
        assert not step.refusals, f"the chain's newest epoch is refused: {step.refusals}"
        self._signer = signer
        self.head_end.open_epoch(encode(proof))
        self._log.info("epoch of symmetric keys opened", height=height, meters=self.server.counts.meters)

    async def anchor(self) -> Reason | None:
        """Put the head of the audit log on the chain; None when it is there already, or the log is not whole."""
        counts, signer = self.server.counts, self._signer
        if signer is None or self.audit_fault is not None or counts.audit_length == self._anchored:
            return None
        argument = encode(AnchorArgument(counts.audit_length, counts.audit_head))
        tx = self._sign("anchor", 1 + counts.audit_length, argument, signer, (signer,))
        settlement = await self._settle(encode(tx), self._id_of(tx))
        if settlement.reason is Reason.VALID:
            self._anchored = counts.audit_length
        else:
            self._log.warning("audit log not anchored", length=counts.audit_length, reason=settlement.reason.value)
        return settlement.reason

    async def _check_audit(self) -> None:
        """Compare the log with the last anchor: one that was cut or replaced is never anchored over the true one."""
        try:
            last = await self.anchored()
        except InconclusiveError as error:
            self.audit_fault = f"not compared with the chain: {error.what}"
        else:
            _, self.audit_fault = await self.look(lambda: self.checked_log(last))
            self._anchored = last.length
        if self.audit_fault is not None:
            self._log.error("the audit log of the symmetric keys is not what the chain has", what=self.audit_fault)

    def checked_log(self, last: KmsState) -> tuple[list[AuditEntry], str | None]:
        """Return the whole log, and what is wrong with it as seen from an anchor."""
        entries = [AUDIT_ENTRY.decode(value) for _, value in self.store.rows(AUDIT)]
        return entries, check_log(entries, last.head, last.length)

    async def anchored(self) -> KmsState:
        """Return the epoch and the anchor that the chain has, by weak equal answers. Raises InconclusiveError."""

        def ask(node: NodeClient) -> "asyncio.Future[QueryAnswer]":
            return asyncio.ensure_future(node.query("mdms", "symmetric_keys", b""))

        agreed = await weak_read(self._nodes, ask, weak=self._roster.quorum.weak)
        if agreed.value is None:
            raise InconclusiveError("the chain has no epoch of symmetric keys", do="bcami kms status")
        return msgspec.msgpack.decode(agreed.value, type=KmsState)

    def _sign(
        self, function: str, sequence: int, argument: bytes, signer: Signer, keys: Sequence[Signer]
    ) -> Transaction:
        unsigned = Transaction(
            contract="mdms",
            function=function,
            signer=operator_id(signer.public_key),
            session=0,
            sequence=sequence,
            timestamp_ms=self.now_ms(),
            argument_hash=argument_digest(argument),
            argument=argument,
            signatures=(),
        )
        tx_id = self._id_of(unsigned)
        return msgspec.structs.replace(unsigned, signatures=tuple(key.sign(tx_id) for key in keys))

    def _id_of(self, tx: Transaction) -> bytes:
        return transaction_id(tx, self._roster.chain, self._roster.epoch)


def _asks_for_keys(data: bytes) -> bool:
    try:
        return isinstance(UP_CODEC.decode(data), BootstrapRequest)
    except MalformedError:
        return False  # the step machine refuses and counts it


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
