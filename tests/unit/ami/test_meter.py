"""What a meter decides itself: numbers, windows, sessions and secrets (protocol 2, 3)."""

import msgspec
import pytest

from bcami.ami.meter import RESERVED_AHEAD, report_write
from bcami.ami.outbox import RESERVED, SESSIONS, WAITING
from bcami.ami.records import FACTORY_CODEC, SESSION_CODEC
from bcami.client.issuance import ISSUANCE_CODEC, Draft, Prepared
from bcami.crypto.hpke import setup_receiver
from bcami.crypto.signatures import verify
from bcami.model.registration import RegisterArgument, usage_aad, usage_info
from bcami.model.transaction import Transaction, argument_digest
from tests.chain import START_MS, entropy
from tests.unit.ami.meters import PERIOD, PERIOD_KEY, REPORT, Store, new_meter, open_meter, prepare, reopen


def test_the_mdms_opens_what_a_meter_seals() -> None:
    store = Store()
    meter, factory, cluster = new_meter()
    store.apply(meter.begin_session(entropy("draw")))
    prepared = prepare(meter, cluster)
    argument = msgspec.msgpack.decode(
        msgspec.msgpack.decode(prepared.transaction, type=Transaction).argument, type=RegisterArgument
    )
    meter.open_session(prepared)
    sealed = meter.seal(REPORT, 5, START_MS)
    tx = msgspec.msgpack.decode(sealed.encoded, type=Transaction)
    assert tx.argument_hash == argument_digest(tx.argument)
    assert verify(argument.public_key, tx.signatures[0], sealed.transaction_id)
    chain = cluster.roster.chain
    context = setup_receiver(argument.encapsulation, PERIOD_KEY, usage_info(chain, meter.party.hid, 1, PERIOD.key_id))
    aad = usage_aad(chain, meter.party.hid, 1, tx.sequence, tx.timestamp_ms)
    assert context.open(tx.sequence, aad, tx.argument) == REPORT


def test_the_window_rule() -> None:
    """Never in flight: a number ≥ (oldest without a receipt and not abandoned) + W (protocol 3.4)."""
    store = Store()
    meter, _, _ = open_meter(store, window=64)
    sealed = []
    while meter.has_room:
        sealed.append(meter.seal(REPORT, 0, START_MS))
        if (write := meter.reservation()) is not None:
            meter.reserved(write)
    assert len(sealed) == 64
    meter.forget(sealed[5])
    assert not meter.has_room, "the oldest counts, not the number of open ones"
    with pytest.raises(ValueError, match="room in the window"):
        meter.seal(REPORT, 0, START_MS)
    meter.forget(sealed[0])
    assert meter.has_room
    assert meter.seal(REPORT, 0, START_MS).sequence == sealed[0].sequence + 64
    assert not meter.has_room


def test_nothing_is_sealed_under_a_number_that_is_not_durable() -> None:
    meter, _, _ = open_meter(Store(), window=1024)
    for _ in range(RESERVED_AHEAD):
        assert meter.has_room
        meter.seal(REPORT, 0, START_MS)
    assert not meter.has_room
    write = meter.reservation()
    assert write is not None
    assert not meter.has_room, "asked for is not durable"
    meter.reserved(write)
    assert meter.has_room


def test_after_a_restart_a_meter_goes_on_above_all_it_reserved() -> None:
    """Sealed and lost, or stored: no number is sealed twice, so no GCM nonce repeats."""
    store = Store()
    meter, factory, cluster = open_meter(store, window=1024)
    stored = meter.seal(REPORT, 0, START_MS)
    store.apply([report_write(stored)])
    lost = meter.seal(REPORT, 0, START_MS)
    again = reopen(store, factory, cluster)
    assert [item.encoded for item in again.outstanding.values()] == [stored.encoded]
    assert not again.has_room, "all that was reserved is abandoned"
    write = again.reservation()
    assert write is not None
    store.apply([write])
    again.reserved(write)
    assert again.seal(REPORT, 0, START_MS).sequence > max(lost.sequence, RESERVED_AHEAD)


@pytest.mark.parametrize("table", [SESSIONS, RESERVED])
def test_a_missing_or_doubtful_record_means_no_session(table: bytes) -> None:
    store = Store()
    meter, factory, cluster = open_meter(store)
    hid = meter.party.hid
    kept = store.records.pop((table, hid))
    assert reopen(store, factory, cluster).session is None
    store.records[table, hid] = kept
    assert reopen(store, factory, cluster).session is not None


def test_a_number_is_above_every_one_used_and_shown() -> None:
    meter, _, _ = new_meter()
    numbers = []
    for shown in (0, 0, 7, 3):
        meter.begin_session(entropy("draw"), shown)
        assert meter.issuance is not None
        numbers.append(meter.issuance.session)
    assert numbers == [1, 2, 8, 9]


@pytest.mark.parametrize("stage", ["drawn", "prepared"])
def test_a_registration_resumes_with_the_same_bytes(stage: str) -> None:
    store = Store()
    meter, factory, cluster = new_meter()
    store.apply(meter.begin_session(entropy("draw")))
    if stage == "prepared":
        store.apply([meter.issuance_write(prepare(meter, cluster))])
    again = reopen(store, factory, cluster)
    assert again.issuance is not None
    assert meter.issuance is not None
    assert ISSUANCE_CODEC.encode(again.issuance) == ISSUANCE_CODEC.encode(meter.issuance)
    assert isinstance(again.issuance, Draft if stage == "drawn" else Prepared)


def test_the_old_key_is_destroyed_and_its_reports_come_back() -> None:
    store = Store()
    meter, factory, cluster = open_meter(store)
    sealed = meter.seal(REPORT, 0, START_MS)
    old = meter.session
    assert old is not None
    store.apply(meter.begin_session(entropy("again")))
    prepared = prepare(meter, cluster, "again")
    writes, unsettled = meter.open_session(prepared)
    store.apply(writes)
    assert unsettled == [sealed]
    assert not meter.is_live(sealed)
    with pytest.raises(ValueError):
        old.key.sign(bytes(32))
    assert meter.session is not None
    assert (meter.session.number, meter.session.next_sequence) == (2, 1)
    assert all(record.session == 2 for record in (prepared,))
    session = SESSION_CODEC.decode(store.records[SESSIONS, meter.party.hid])
    assert session.number == 2
    assert not any(table == WAITING for table, _ in store.records)


def test_a_meter_shows_no_secret() -> None:
    store = Store()
    meter, factory, cluster = open_meter(store)
    session = SESSION_CODEC.decode(store.records[SESSIONS, meter.party.hid])
    shown = " ".join(repr(item) + str(item) for item in (meter, meter.session, factory, session))
    for secret in (factory.signing_secret, factory.kem_secret, session.key, session.kem_secret, session.context):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    assert FACTORY_CODEC.decode(FACTORY_CODEC.encode(factory)).signing_secret == factory.signing_secret
