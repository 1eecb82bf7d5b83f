"""Certificates that wait to be ordered, one numbered lane for each collector (protocol 4.2).

A certificate executes only when its number is the next one of its lane; any other is a no-op. `Lanes` knows what is
executed, what is ordered (decided, perhaps not executed yet), and what waits.
"""

from collections.abc import Sequence
from typing import Final

from bcami.model.batch import BatchCertificate, certificate_bytes
from bcami.model.consensus import PROPOSAL_CERTIFICATES_MAX, Proposal
from bcami.units import MIB

LANE_AHEAD_MAX: Final = 1024
"""Numbers above the executed one that are kept for each lane; further ones are refused as over the quota."""
PROPOSAL_TRANSACTIONS_MAX: Final = 8_000
"""A proposal that holds more than one certificate holds no more transactions, so that a block stays short."""
VIEW_BYTES_MAX: Final = 7 * MIB
"""What the proposals inside a new-view may take together: below the limit of a vote frame."""


def proposal_bytes_max(replicas: int, window: int) -> int:
    """Return the limit on the certificates of one proposal that holds more than one.

    A new-view carries a proposal once in each of up to n view-changes and once in O, for each height of the window.
    """
    return VIEW_BYTES_MAX // (window * (replicas + 1))


def certificates_bytes(proposal: Proposal) -> int:
    return sum(len(certificate_bytes(item)) for item in proposal.certificates)


def lanes_after(lanes: Sequence[int], proposal: Proposal) -> tuple[int, ...]:
    """Return the lanes after the proposal executed: the very rule of execution (protocol 4.2)."""
    after = list(lanes)
    for item in proposal.certificates:
        if item.collector < len(after) and item.number == after[item.collector] + 1:
            after[item.collector] += 1
    return tuple(after)


class Lanes:
    """What is executed, ordered and waiting in each collector's lane."""

    def __init__(self, executed: tuple[int, ...], bytes_max: int) -> None:
        self.executed = executed
        self.ordered = executed
        self._bytes_max = bytes_max
        self._waiting: list[dict[int, BatchCertificate]] = [{} for _ in executed]

    def add(self, certificate: BatchCertificate) -> bool:
        """Keep a certificate of a known collector unless it is executed; False when its number is too far ahead."""
        collector, number = certificate.collector, certificate.number
        distance = number - self.executed[collector]
        if distance > LANE_AHEAD_MAX:
            return False
        if distance > 0:
            self._waiting[collector].setdefault(number, certificate)
        return True

    def order(self, proposal: Proposal) -> None:
        """Take note that the proposal was decided."""
        self.ordered = lanes_after(self.ordered, proposal)

    def execute(self, executed: tuple[int, ...], decided: Sequence[Proposal]) -> None:
        """Take note of the lanes of the ledger, and of the proposals decided above it."""
        self.executed = tuple(map(max, self.executed, executed))
        self.ordered = self.executed
        for proposal in decided:
            self.order(proposal)
        for waiting, number in zip(self._waiting, self.executed, strict=True):
            for old in [item for item in waiting if item <= number]:
                del waiting[old]

    def owed(self) -> dict[int, int]:
        """Return, by collector, the next-numbered certificate that waits and is not ordered (protocol 4.4)."""
        return {
            collector: number + 1
            for collector, number in enumerate(self.ordered)
            if number + 1 in self._waiting[collector]
        }

    def next(self, collector: int) -> BatchCertificate | None:
        """Return the next-numbered certificate of a lane, when it waits."""
        return self._waiting[collector].get(self.ordered[collector] + 1)

    def gather(self, after: Sequence[int], start: int) -> tuple[BatchCertificate, ...]:
        """Choose certificates for a proposal that follows the lanes `after`.

        Goes round the collectors from `start`, one certificate each, so that none can crowd out another; the
        certificates of one lane keep their number order.
        """
        numbers = list(after)
        chosen: list[BatchCertificate] = []
        transactions = bytes_used = 0
        open_lanes = [(start + place) % len(numbers) for place in range(len(numbers))]
        while open_lanes:
            for collector in tuple(open_lanes):
                item = self._waiting[collector].get(numbers[collector] + 1)
                if item is None:
                    open_lanes.remove(collector)
                    continue
                transactions += item.count
                bytes_used += len(certificate_bytes(item))
                over = transactions > PROPOSAL_TRANSACTIONS_MAX or bytes_used > self._bytes_max
                if len(chosen) == PROPOSAL_CERTIFICATES_MAX or (chosen and over):
                    return tuple(chosen)
                chosen.append(item)
                numbers[collector] += 1
        return tuple(chosen)
