"""Who waits for which outcome. A submission is a ticket with one result for each transaction, in order."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from bcami.model.api import COMMITTED, REFUSED, UNKNOWN, CertifiedHeader, SubmitResult
from bcami.model.reasons import Reason


@dataclass(slots=True)
class Ticket:
    """One submission on its way."""

    results: list[SubmitResult | None]
    remaining: int
    blocks: dict[int, CertifiedHeader] = field(default_factory=dict)


def refused(tx_id: bytes, reason: Reason, retry_after_ms: int = 0) -> SubmitResult:
    return SubmitResult(tx_id, REFUSED, reason, 0, 0, (), retry_after_ms)


def unknown(tx_id: bytes) -> SubmitResult:
    return SubmitResult(tx_id, UNKNOWN, None, 0, 0, ())


def committed(tx_id: bytes, reason: Reason, height: int, index: int, path: Iterable[bytes]) -> SubmitResult:
    return SubmitResult(tx_id, COMMITTED, reason, height, index, tuple(path))


class Tickets:
    """Open submissions, the transactions in this node's own lane, and the places that wait for an outcome.

    What is kept for a ticket goes when it is closed, whether its outcomes came or not.
    """

    def __init__(self) -> None:
        self._tickets: dict[int, Ticket] = {}
        self._pending: set[bytes] = set()
        self._waiting: dict[bytes, list[tuple[int, int]]] = {}
        self._next = 1

    def open(self, count: int) -> int:
        """Return the number of a new ticket of `count` results."""
        number = self._next
        self._next += 1
        self._tickets[number] = Ticket([None] * count, count)
        return number

    @property
    def pending(self) -> int:
        """Transactions that this node took in and whose outcome is not known yet."""
        return len(self._pending)

    @property
    def open_tickets(self) -> int:
        return len(self._tickets)

    @property
    def awaited(self) -> int:
        """Transactions for which somebody waits."""
        return len(self._waiting)

    def awaited_ids(self) -> list[bytes]:
        """Return the transactions that somebody waits for, or that this node took in."""
        return sorted(self._pending | self._waiting.keys())

    def is_pending(self, tx_id: bytes) -> bool:
        return tx_id in self._pending

    def is_awaited(self, tx_id: bytes) -> bool:
        return tx_id in self._pending or tx_id in self._waiting

    def expect(self, tx_id: bytes) -> None:
        """Mark a transaction as taken into the own lane, whether or not somebody waits."""
        self._pending.add(tx_id)

    def wait(self, tx_id: bytes, ticket: int, place: int) -> None:
        self._waiting.setdefault(tx_id, []).append((ticket, place))

    def settle(self, ticket: int, place: int, result: SubmitResult, block: CertifiedHeader | None = None) -> bool:
        """Fill one place; True when the ticket is complete with it."""
        entry = self._tickets.get(ticket)
        if entry is None or entry.results[place] is not None:
            return False
        entry.results[place] = result
        entry.remaining -= 1
        if block is not None:
            entry.blocks[block.header.height] = block
        return entry.remaining == 0

    def resolve(self, tx_id: bytes, result: SubmitResult, block: CertifiedHeader | None = None) -> list[int]:
        """Give a transaction's outcome to all who wait; returns the tickets that are complete with it."""
        self._pending.discard(tx_id)
        waiting = self._waiting.pop(tx_id, [])
        return [ticket for ticket, place in waiting if self.settle(ticket, place, result, block)]

    def is_complete(self, ticket: int) -> bool:
        entry = self._tickets.get(ticket)
        return entry is None or entry.remaining == 0

    def close(self, ticket: int, ids: Iterable[bytes]) -> tuple[list[SubmitResult], list[CertifiedHeader]]:
        """Return what is known and forget the ticket; what has no result yet is said to be unknown."""
        entry = self._tickets.pop(ticket)
        results = []
        for tx_id, result in zip(ids, entry.results, strict=True):
            if result is None:
                self._leave(tx_id, ticket)
            results.append(unknown(tx_id) if result is None else result)
        return results, list(entry.blocks.values())

    def _leave(self, tx_id: bytes, ticket: int) -> None:
        others = [place for place in self._waiting.get(tx_id, ()) if place[0] != ticket]
        if others:
            self._waiting[tx_id] = others
        else:
            self._waiting.pop(tx_id, None)
