"""What the meters of a fleet remember of rings, durably: a ring sum stands against masked sums of the same day."""

from collections.abc import Iterable

from bcami.aggregation.meter import MEMORY
from bcami.aggregation.records import MEMORY_CODEC, MeterMemory
from bcami.aggregation.rules import Objection, overlap, refuse_ring, remembering_ring
from bcami.ami.fleet import Fleet
from bcami.ami.outbox import AGGREGATION, Write
from bcami.model.aggregation import StartArgument
from bcami.model.reasons import Reason


class RingMemories:
    """The memories of a group's meters, by HID."""

    def __init__(self, fleet: Fleet, hids: Iterable[bytes]) -> None:
        self._fleet = fleet
        self._memories = {hid: self._kept(hid) for hid in hids}

    def refuse(self, hid: bytes, start: StartArgument) -> Objection | None:
        """Return why the meter takes no part in a ring round, or None."""
        return refuse_ring(self._memories[hid], start)

    def keeps_back(self, hid: bytes, start: StartArgument) -> Reason | None:
        """Return why the meter gives no reading of these intervals now, or None when it has noted that it may."""
        objection = self.refuse(hid, start)
        if objection is not None:
            return objection.reason
        is_noted = any(past.is_ring and overlap(past, start) for past in self._memories[hid].past)
        return None if is_noted else Reason.UNKNOWN_ROUND

    async def remember(self, hids: Iterable[bytes], start: StartArgument) -> None:
        """Return when each of these meters has noted durably that it may give its reading to this ring round."""
        for hid in hids:
            if self.refuse(hid, start) is None:
                self._memories[hid] = remembering_ring(self._memories[hid], start)
        await self._fleet.keep(
            Write(AGGREGATION, hid + MEMORY, MEMORY_CODEC.encode(memory)) for hid, memory in self._memories.items()
        )

    def _kept(self, hid: bytes) -> MeterMemory:
        stored = self._fleet.kept(AGGREGATION, hid).get(hid + MEMORY)
        return MeterMemory() if stored is None else MEMORY_CODEC.decode(stored)
