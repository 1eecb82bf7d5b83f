"""What clients submit, checked in slices and taken into this node's lane.

A transaction is answered from what is known, waits for what has executed or is on the way, is refused, or is taken in:
in this order, so that asking again with the same bytes always leads to the first outcome (protocol 3.5).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bcami.endorsement.collector import QUEUE_BYTES_MAX
from bcami.model.api import CertifiedHeader, SubmitResult
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction
from bcami.node.core import effects as out
from bcami.node.core.admission import refused, unknown
from bcami.node.core.answers import Answers
from bcami.node.core.dissemination import SLICE_TRANSACTIONS, Check, Dissemination
from bcami.node.core.serving import TRANSACTION_OVERHEAD_BYTES

RETRY_AFTER_MS: Final = 250


@dataclass(slots=True)
class _Job:
    """A submission whose transactions are being checked."""

    ticket: int
    transactions: Sequence[Transaction]
    ids: Sequence[bytes]
    wait: bool
    size_bytes: int
    next: int = 0


class Submissions:
    """The submissions of one node, in the order in which they came."""

    def __init__(self, answers: Answers, lanes: Dissemination, check: Check, outbox: out.Outbox) -> None:
        self._answers = answers
        self._tickets = answers.tickets
        self._lanes = lanes
        self._check = check
        self._out = outbox
        self._jobs: deque[_Job] = deque()
        self._bytes = 0

    def add(self, transactions: Sequence[Transaction], ids: Sequence[bytes], wait: bool) -> int:
        """Take a submission, or refuse all of it when too many bytes wait; returns its ticket."""
        ticket = self._tickets.open(len(ids))
        if self._bytes + self._lanes.queue_bytes >= QUEUE_BYTES_MAX:
            self._refuse_all(ticket, ids)
            return ticket
        size_bytes = sum(len(tx.argument) + TRANSACTION_OVERHEAD_BYTES for tx in transactions)
        self._jobs.append(_Job(ticket, transactions, ids, wait, size_bytes))
        self._bytes += size_bytes
        return ticket

    @property
    def has_work(self) -> bool:
        return bool(self._jobs)

    @property
    def queued(self) -> int:
        return sum(len(job.ids) - job.next for job in self._jobs)

    def work(self, now_ms: int, elapsed_ms: int, closed: Reason | None) -> None:
        """Check the next slice of the oldest submission; a closed node takes nothing in but answers what it knows."""
        if not self._jobs:
            return
        job = self._jobs[0]
        end = min(job.next + SLICE_TRANSACTIONS, len(job.ids))
        refusals: dict[Reason, int] = {}
        for place in range(job.next, end):
            reason = self._admit(job, place, now_ms, elapsed_ms, closed)
            if reason is not None:
                refusals[reason] = refusals.get(reason, 0) + 1
        for reason, count in refusals.items():
            self._out.refuse("admission", reason, count=count)
        job.next = end
        if end == len(job.ids):
            self._jobs.popleft()
            self._bytes -= job.size_bytes

    def ready(self, tickets: Sequence[int]) -> None:
        for ticket in tickets:
            self._out.add(out.TicketReady(ticket))

    def _admit(self, job: _Job, place: int, now_ms: int, elapsed_ms: int, closed: Reason | None) -> Reason | None:
        tx, tx_id = job.transactions[place], job.ids[place]
        known = self._answers.known(tx_id)
        if known is not None:
            self._settle(job.ticket, place, *known)
            return None
        if not self._tickets.is_pending(tx_id) and not self._answers.is_executed(tx_id):
            reason = closed or self._check(tx, tx_id, now_ms)
            if reason is None:
                size_bytes = len(tx.argument) + TRANSACTION_OVERHEAD_BYTES
                reason = self._lanes.admit(tx, tx_id, size_bytes, elapsed_ms)
            if reason is not None:
                retry_ms = RETRY_AFTER_MS if reason in (Reason.QUEUE_FULL, Reason.NOT_READY) else 0
                self._settle(job.ticket, place, refused(tx_id, reason, retry_ms))
                return reason
            self._tickets.expect(tx_id)
        if job.wait:
            self._tickets.wait(tx_id, job.ticket, place)
        else:
            self._settle(job.ticket, place, unknown(tx_id))
        return None

    def _refuse_all(self, ticket: int, ids: Sequence[bytes]) -> None:
        self._out.refuse("admission", Reason.QUEUE_FULL, count=len(ids))
        for place, tx_id in enumerate(ids):
            self._settle(ticket, place, refused(tx_id, Reason.QUEUE_FULL, RETRY_AFTER_MS))

    def _settle(self, ticket: int, place: int, result: SubmitResult, block: CertifiedHeader | None = None) -> None:
        if self._tickets.settle(ticket, place, result, block):
            self.ready((ticket,))
