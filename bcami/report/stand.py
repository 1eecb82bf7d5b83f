"""Real meters with open sessions, and the keys of real nodes, in this process and without a network.

Everything a meter does is done by the meter's own code (`bcami.ami.meter`), with shares from f+1 node keys and an HPKE
context to a real period key; only nobody carries its bytes anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bcami.ami.factory import make_meter, party_of
from bcami.ami.meter import Meter
from bcami.ami.outbox import Write
from bcami.client.issuance import Draft, Prepared, Share, contribution_request, open_share
from bcami.client.periods import MdmsPeriod
from bcami.contract.issuance import NodeContributor
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.faults.simulator.events import START_MS
from bcami.faults.simulator.identities import Identities, entropy, identities
from bcami.model.genesis import Parameters
from bcami.model.ids import HASH_BYTES
from bcami.model.reasons import Reason
from bcami.model.registration import period_key_id
from bcami.model.report import Reading
from bcami.units import HALF_HOUR_S

NETWORK_KEY: Final = entropy("report network key")
FIRST_START_S: Final = 1_356_998_400
"""Readings begin on 2013-01-01, as the London data of the samples."""
WINDOW: Final = 65_536
"""The widest replay window: a meter here has many reports in flight, and no receipts."""
CHECKSUM_BYTES: Final = 4
"""Of each record in a fleet's store (`bcami.ami.outbox`)."""


@dataclass(slots=True)
class OpenMeter:
    """A meter with a session, and what it keeps."""

    meter: Meter
    stored: dict[bytes, int]
    """Bytes of each kind of record that it has stored: key, value and checksum."""
    registration: Prepared
    signing: SecretKey
    """A key like the session's."""


class Stand:
    """n nodes' keys, an MDMS period, and as many meters as are asked for."""

    def __init__(self, nodes: int = 4, seed: int = 0) -> None:
        self.seed = seed
        self.identities: Identities = identities(nodes, Parameters(replay_window=WINDOW), real=True)
        self.period_kem = KemSecretKey.generate(entropy("report period", seed))
        key = self.period_kem.public_key
        self.period = MdmsPeriod(1, key, period_key_id(key), 1)

    def new_meter(self, meter_id: str) -> tuple[Meter, dict[bytes, int]]:
        """Return a meter as it comes from the factory, and what it has stored."""
        record = make_meter(meter_id, entropy("report factory", self.seed, meter_id))
        party = party_of(record, NETWORK_KEY, self.identities.roster)
        meter = Meter.restore(record, party, None, None, None, None)
        return meter, _sizes({}, meter.first_writes(record))

    def shares(self, meter: Meter, draft: Draft) -> list[Share]:
        """Return the opened shares of f+1 nodes."""
        network = self.identities
        request = contribution_request(meter.party, draft)
        found = []
        for replica in range(network.roster.quorum.weak):
            secret = entropy("contribution", replica)
            contributor = NodeContributor(network.roster, replica, network.consensus[replica], secret)
            share = open_share(meter.party, request, contributor.contribute(request, meter.party.kem.public_key))
            assert not isinstance(share, Reason), f"a share of our own was refused: {share}"
            found.append(share)
        return found

    def prepare(self, meter: Meter, shares: Sequence[Share], number: int = 0) -> Prepared:
        """Return the meter's registration for its draft."""
        draft = meter.issuance
        if not isinstance(draft, Draft):
            raise TypeError("the meter has drawn nothing")
        randomness = entropy("report session", self.seed, meter.meter_id, number)
        return meter.prepare(draft, shares, self.period, randomness, START_MS)

    def open_meter(self, meter_id: str) -> OpenMeter:
        """Return a meter with an open session."""
        meter, stored = self.new_meter(meter_id)
        _sizes(stored, meter.begin_session(entropy("report draw", self.seed, meter_id)))
        draft = meter.issuance
        assert isinstance(draft, Draft)
        prepared = self.prepare(meter, self.shares(meter, draft))
        _sizes(stored, [meter.issuance_write(prepared)])
        writes, _ = meter.open_session(prepared)
        _sizes(stored, writes)
        return OpenMeter(meter, stored, prepared, SecretKey.generate(entropy("report key", self.seed, meter_id)))


def reserve(meter: Meter) -> None:
    """Let the meter seal on: numbers are reserved as a store would have reserved them, and nothing is outstanding."""
    meter.outstanding.clear()
    write = meter.reservation()
    if write is not None:
        meter.reserved(write)


def made_up_readings(count: int, first: int = 0) -> list[Reading]:
    """Return consecutive half-hours with made-up energy."""
    return [Reading(FIRST_START_S + HALF_HOUR_S * (first + i), 1_234_567 + 1_000 * i) for i in range(count)]


def record_bytes(write: Write) -> int:
    """Return the bytes that one stored record takes: key, checksum and value."""
    return len(write.key) + CHECKSUM_BYTES + len(write.value or b"")


def _sizes(stored: dict[bytes, int], writes: Sequence[Write]) -> dict[bytes, int]:
    """Note what the writes leave in the store of one meter, by table."""
    for write in writes:
        if write.value is None:
            stored.pop(write.table, None)
        else:
            stored[write.table] = record_bytes(write)
        assert len(write.key) >= HASH_BYTES
    return stored
