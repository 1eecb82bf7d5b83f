"""A meter with an open session, without nodes: for tests of what the meter decides itself."""

from bcami.ami.factory import make_meter, party_of
from bcami.ami.meter import Meter
from bcami.ami.outbox import Write
from bcami.ami.records import FactoryRecord
from bcami.client import issuance
from bcami.client.issuance import Draft, Prepared, Share
from bcami.client.periods import MdmsPeriod
from bcami.crypto.hpke import KemSecretKey
from bcami.model.genesis import Parameters
from bcami.model.reasons import Reason
from bcami.model.registration import period_key_id
from bcami.model.report import Reading, encode_report
from tests.chain import NETWORK_KEY, START_MS, entropy
from tests.unit.client.cluster import Cluster

PERIOD_KEY = KemSecretKey.generate(entropy("period"))
PERIOD = MdmsPeriod(1, PERIOD_KEY.public_key, period_key_id(PERIOD_KEY.public_key), 1)
REPORT = encode_report([Reading(0, 1)], 1800)


class Store:
    """What a meter wrote, applied at once."""

    def __init__(self) -> None:
        self.records: dict[tuple[bytes, bytes], bytes] = {}

    def apply(self, writes: list[Write]) -> None:
        for table, key, value in writes:
            if value is None:
                self.records.pop((table, key), None)
            else:
                self.records[table, key] = value


def new_meter(window: int = 64, meter_id: str = "MAC000002") -> tuple[Meter, FactoryRecord, Cluster]:
    cluster = Cluster(parameters=Parameters(replay_window=window))
    factory = make_meter(meter_id, entropy("factory"))
    party = party_of(factory, NETWORK_KEY, cluster.roster)
    return Meter.restore(factory, party, None, None, None, None), factory, cluster


def prepare(meter: Meter, cluster: Cluster, label: str = "session") -> Prepared:
    """Have two nodes contribute and combine; the registration contract is not asked."""
    assert isinstance(meter.issuance, Draft)
    draft = meter.issuance
    request = issuance.contribution_request(meter.party, draft)
    shares: list[Share] = []
    for replica in (0, 1):
        from bcami.contract.issuance import NodeContributor

        answer = NodeContributor(cluster.roster, replica, cluster.keys[replica], entropy(f"s{replica}")).contribute(
            request, meter.party.kem.public_key
        )
        share = issuance.open_share(meter.party, request, answer)
        assert not isinstance(share, Reason)
        shares.append(share)
    return meter.prepare(draft, shares, PERIOD, entropy(label), START_MS)


def open_meter(store: Store, window: int = 64) -> tuple[Meter, FactoryRecord, Cluster]:
    meter, factory, cluster = new_meter(window)
    store.apply(meter.first_writes(factory))
    store.apply(meter.begin_session(entropy("draw")))
    prepared = prepare(meter, cluster)
    store.apply([meter.issuance_write(prepared)])
    writes, _ = meter.open_session(prepared)
    store.apply(writes)
    return meter, factory, cluster


def reopen(store: Store, factory: FactoryRecord, cluster: Cluster) -> Meter:
    """Return the meter as a restarted process has it."""
    import msgspec

    from bcami.ami.outbox import ISSUANCES, PROGRESS, REPORTS, RESERVED, SESSIONS
    from bcami.ami.records import REPORT_CODEC
    from bcami.model.transaction import Transaction

    party = party_of(factory, NETWORK_KEY, cluster.roster)
    parts = [store.records.get((table, party.hid)) for table in (PROGRESS, ISSUANCES, SESSIONS, RESERVED)]
    meter = Meter.restore(factory, party, *parts)
    for (table, key), value in sorted(store.records.items()):
        if table == REPORTS:
            record = REPORT_CODEC.decode(value)
            meter.resume_report(
                int.from_bytes(key[-8:], "big"), record, msgspec.msgpack.decode(record.transaction, type=Transaction)
            )
    return meter
