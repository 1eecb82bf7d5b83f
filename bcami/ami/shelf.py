"""The meters of a fleet: made, stored, and taken up again from their records when they are needed."""

from collections.abc import Iterator

from bcami.ami.factory import make_meter, party_of
from bcami.ami.meter import Meter
from bcami.ami.outbox import FACTORY, ISSUANCES, PROGRESS, RESERVED, SESSIONS, Outbox, Write
from bcami.ami.records import FACTORY_CODEC, FactoryRecord
from bcami.crypto.hid import hid as hid_of
from bcami.crypto.roster import Roster
from bcami.errors import EnvironmentFault, InputError


class MeterShelf:
    """Meters by id, in memory once they were asked for."""

    def __init__(self, outbox: Outbox, roster: Roster, network_key: bytes) -> None:
        self._outbox = outbox
        self._roster = roster
        self._network_key = network_key
        self._meters: dict[str, Meter] = {}

    def __iter__(self) -> Iterator[Meter]:
        """Yield the meters in memory."""
        return iter(list(self._meters.values()))

    def meter(self, meter_id: str) -> Meter:
        """Return a meter of this fleet. Raises InputError when there is none of that id."""
        meter = self._meters.get(meter_id) or self.find(meter_id)
        if meter is None:
            raise InputError(
                f"the fleet has no meter {meter_id!r}",
                likely="it was never enrolled from here",
                do="enrol it first; `replay` does so",
            )
        return meter

    def find(self, meter_id: str) -> Meter | None:
        return self._meters.get(meter_id) or self.find_hid(hid_of(self._network_key, meter_id))

    def find_hid(self, hid: bytes) -> Meter | None:
        """Return a meter, from memory or from its records; None when this fleet has none under that HID."""
        stored = self._outbox.get(FACTORY, hid)
        if stored is None:
            return None
        factory = FACTORY_CODEC.decode(stored)
        known = self._meters.get(factory.meter_id)
        if known is not None:
            return known
        meter = Meter.restore(
            factory,
            party_of(factory, self._network_key, self._roster),
            self._outbox.get(PROGRESS, hid),
            self._unless_doubtful(ISSUANCES, hid),
            self._unless_doubtful(SESSIONS, hid),
            self._unless_doubtful(RESERVED, hid),
        )
        if meter.party.hid != hid:
            raise InputError(
                "the HID network key is not the one that this fleet was made with",
                likely="the utility's network key was replaced",
                do="restore HOME/utility/network.key",
            )
        self._meters[factory.meter_id] = meter
        return meter

    def make(self, meter_id: str, randomness: bytes) -> tuple[Meter, list[Write]]:
        """Return a new meter and what is to be stored of it."""
        factory: FactoryRecord = make_meter(meter_id, randomness)
        party = party_of(factory, self._network_key, self._roster)
        meter = self._meters[meter_id] = Meter.restore(factory, party, None, None, None, None)
        return meter, meter.first_writes(factory)

    def _unless_doubtful(self, table: bytes, hid: bytes) -> bytes | None:
        """Return a record, or None when it is damaged: the meter then opens a new session (protocol 3.1)."""
        try:
            return self._outbox.get(table, hid)
        except EnvironmentFault:
            return None
