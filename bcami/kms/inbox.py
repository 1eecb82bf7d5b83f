"""What meters told the MDMS and operators read: the newest of each kind, and of no meter more than its share."""

from collections.abc import Iterable, Iterator
from typing import Final

from bcami.kms.messages import MeterData, Notification
from bcami.kms.records import INBOX, RECEIVED, Received, Step, Write
from bcami.model.signing import u64

INBOX_MAX: Final = 1_000
"""Of each kind: meter data push out no notifications, nor these meter data."""
INBOX_OF_METER_MAX: Final = 50
"""Of each kind: beyond, a meter's own oldest leaves."""
KINDS: Final = (Notification, MeterData)


class Inbox:
    """See the module."""

    def __init__(self) -> None:
        self._received: dict[int, Received] = {}
        """By running number, oldest first."""

    def __iter__(self) -> Iterator[Received]:
        return iter(self._received.values())

    def restore(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        self._received = {int.from_bytes(key, "big"): RECEIVED.decode(value) for key, value in rows}

    def put(self, step: Step, received: Received) -> None:
        """Keep what a meter told, in the same write as its answer, if it is of a kind that is kept."""
        kind = type(received.payload)
        if kind not in KINDS:
            return
        number = 1 + next(reversed(self._received), 0)
        alike = [place for place, other in self._received.items() if type(other.payload) is kind]
        own = [place for place in alike if self._received[place].hid == received.hid]
        self._received[number] = received
        step.put(INBOX, u64(number), RECEIVED, received)
        if len(own) >= INBOX_OF_METER_MAX or len(alike) >= INBOX_MAX:
            oldest = (own if len(own) >= INBOX_OF_METER_MAX else alike)[0]
            del self._received[oldest]
            step.writes.append(Write(INBOX, u64(oldest), None))
