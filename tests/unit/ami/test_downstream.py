"""The meters' end: an epoch is believed by its receipt only, each message is taken once over restarts and lost streams."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import msgspec
import pytest

from bcami.ami import downstream as downstream_module
from bcami.ami.downstream import Downstream
from bcami.ami.fleet import Fleet
from bcami.ami.outbox import APPLICATION, KMS, KMS_INBOX, Outbox, Write
from bcami.client.head_end import HeadEndUnavailable, StreamEvent, Subscribe
from bcami.codec import encode
from bcami.crypto.keys import SecretKey
from bcami.errors import InputError
from bcami.kms import Accepted, HardenedProfile, Identity, KeyServer, Scope, Step, ToGroup, ToMeter
from bcami.kms.messages import EventKind as Kind
from bcami.kms.messages import Notification, Pricing
from bcami.kms.records import RECEIVED, Received
from bcami.kms.subscription import check_subscriber
from bcami.kms.wire import UP_BATCH, UP_BYTES_MAX, UP_MESSAGES_MAX, DownItem
from bcami.model.api import TransactionProof
from bcami.model.genesis import operator_id
from bcami.model.reasons import Reason
from bcami.model.registration import OpenKmsArgument
from bcami.model.transaction import Transaction, argument_digest, transaction_id
from bcami.token_buckets import TokenBuckets
from tests.chain import NETWORK_KEY, START_MS
from tests.unit.ami.test_fleet import LIMITS, METERS, quick
from tests.unit.client.cluster import Cluster
from tests.unit.kms.network import Entropy
from tests.virtual import run

__all__ = ["quick"]
PRICE = Pricing(0, 1800, (2_500_000,))
CHALLENGE = bytes(31) + b"\x01"


class Mdms:
    """A key server and its head-end without HTTP: what it sent stays, and a stream may be cut."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.entropy = Entropy("mdms")
        scope = Scope(cluster.roster.chain, 0, cluster.genesis.mdms_hid)
        self.server = KeyServer(scope, HardenedProfile(scope))
        self.scope = scope
        self.left_out: tuple[tuple[bytes, Reason], ...] = ()
        """Who the first stream is not for."""
        self.proofs: list[TransactionProof] = []
        self.sent: list[DownItem] = []
        self.tells_all = False
        """A stream without a place begins with everything that was ever sent."""
        self.cut = 0
        """The stream ends after so many messages; 0: never."""
        self.streams: list[str] = []
        """Where each stream began."""
        self.changed = asyncio.Event()

    def open_epoch(self) -> None:
        key = SecretKey.generate(self.entropy())
        argument = encode(OpenKmsArgument(key.public_key))
        signer = operator_id(key.public_key)
        tx = Transaction("mdms", "open_kms", signer, 0, 1, START_MS, argument_digest(argument), argument, ())
        tx_id = transaction_id(tx, self.cluster.roster.chain, 0)
        signed = msgspec.structs.replace(tx, signatures=(self.cluster.mdms_enrolment.sign(tx_id), key.sign(tx_id)))
        self.cluster.execute([signed])
        proof = TransactionProof(signed, self.cluster.receipt(tx_id))
        self.do(self.server.open_epoch(proof.receipt.header.height, key, START_MS, self.entropy()))
        self.proofs.append(proof)
        self.do(Step())

    def do(self, step: Step) -> Step:
        for send in step.sends:
            match send:
                case ToMeter(hid, message):
                    self.sent.append(DownItem(hid, 0, encode(message)))
                case ToGroup(group, message):
                    self.sent.append(DownItem(b"", group, encode(message)))
        self.changed.set()
        self.changed = asyncio.Event()
        return step

    async def send(self, messages: Sequence[bytes]) -> dict[Reason, int]:
        for data in messages:
            self.do(self.server.receive(data, START_MS, self.entropy()))
        return {}

    async def listen(self, subscribe: Subscribe, after: str = "") -> AsyncIterator[StreamEvent]:
        self.streams.append(after)
        shown = subscribe(CHALLENGE)
        for meter in shown.meters:
            assert check_subscriber(self.scope, CHALLENGE, meter, self.server.roll.get(meter.hid)) is None
        if self.left_out:
            yield StreamEvent(left_out=self.left_out)
            self.left_out = ()
        told = 0
        place = int(after) if after else 0 if self.tells_all else len(self.sent)
        until = place + self.cut if self.cut else 2**62
        while place < until:
            changed = self.changed
            while told < len(self.proofs):
                told += 1
                yield StreamEvent(proof=self.proofs[told - 1])
            if place == len(self.sent):
                await changed.wait()
                continue
            place += 1
            yield StreamEvent(item=self.sent[place - 1], place=str(place))
        raise HeadEndUnavailable("cut")

    async def close(self) -> None:
        """Nothing is open."""


class Street:
    """A fleet whose meters have sessions, and an MDMS that knows them."""

    def __init__(self, home: Path) -> None:
        self.cluster = Cluster()
        self.cluster.open_period()
        self.home = self.cluster.make_home(home)
        self.mdms = Mdms(self.cluster)
        self.taken: list[Accepted] = []

    def take(self, item: Accepted) -> list[Write]:
        self.taken.append(item)
        return []

    async def fleet(self) -> Fleet:
        fleet = await Fleet.open(
            self.home,
            self.cluster.genesis,
            self.cluster.urls,
            NETWORK_KEY,
            transport=self.cluster.transport,
            seed=b"seed",
            limits=LIMITS,
        )
        await fleet.enrol(METERS)
        await fleet.open_sessions(METERS)
        known = [
            Identity(meter.party.hid, meter.session.number, meter.session.key.public_key, meter.session.kem.public_key)
            for meter in fleet.in_session()
            if meter.session is not None
        ]
        self.mdms.server.enrol(known, START_MS, self.mdms.entropy())
        return fleet

    def downstream(self, fleet: Fleet) -> Downstream:
        return Downstream(
            fleet,
            self.cluster.roster,
            fleet.in_session(),
            self.mdms,  # type: ignore[arg-type]
            take=self.take,
            now_ms=lambda: START_MS,
        )

    async def broadcast(self, downstream: Downstream) -> None:
        before = len(self.taken)
        self.mdms.do(self.mdms.server.send(PRICE, START_MS, group=0))
        await downstream.until(lambda: len(self.taken) == before + len(METERS))


@pytest.fixture
def street(tmp_path: Path) -> Street:
    return Street(tmp_path)


def test_keys_come_back_after_a_restart_and_nothing_is_taken_twice(street: Street) -> None:
    async def work() -> None:
        for _ in range(2):
            async with await street.fleet() as fleet, street.downstream(fleet) as downstream:
                if not street.mdms.proofs:
                    street.mdms.open_epoch()
                await downstream.until(lambda: downstream.confirmed == len(METERS))  # noqa: B023
                for item in list(street.mdms.sent):  # whatever was ever sent comes again
                    street.mdms.sent.append(item)
                await street.broadcast(downstream)
        with Outbox(street.home / "fleet", street.cluster.roster.chain) as outbox:
            assert outbox.count(KMS) == len(METERS)

    run(work())
    assert len(street.taken) == 2 * len(METERS)
    assert {item.payload for item in street.taken} == {PRICE}


def test_a_stream_that_is_cut_is_resumed_where_it_ended(street: Street) -> None:
    async def work() -> None:
        street.mdms.open_epoch()
        street.mdms.cut = 1
        async with await street.fleet() as fleet, street.downstream(fleet) as downstream:
            await downstream.until(lambda: downstream.confirmed == len(METERS))
            await street.broadcast(downstream)

    run(work())
    first, *resumed = street.mdms.streams
    assert first == ""
    assert [int(place) for place in resumed] == sorted(int(place) for place in resumed)


def test_a_stream_that_leaves_meters_out_is_asked_for_again(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        street.mdms.open_epoch()
        async with await street.fleet() as fleet:
            street.mdms.tells_all = True  # nothing repeats what is sent between two streams: time stands still
            street.mdms.left_out = ((fleet.in_session()[0].party.hid, Reason.UNKNOWN_HID),)
            async with street.downstream(fleet) as downstream:
                await downstream.until(lambda: downstream.confirmed == len(METERS))
                while len(street.mdms.streams) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(1)  # of virtual time, which passes only when nothing else is to be done
                await street.broadcast(downstream)
                assert downstream.refused_above[Reason.UNKNOWN_HID] == 1

    monkeypatch.setattr(downstream_module, "RESUBSCRIBE_MS", 10)
    run(work())


def test_an_epoch_without_its_receipt_is_not_believed(street: Street) -> None:
    async def work() -> None:
        street.mdms.open_epoch()
        (good,) = street.mdms.proofs
        forged = msgspec.structs.replace(
            good, transaction=msgspec.structs.replace(good.transaction, signatures=(bytes(64), bytes(64)))
        )
        street.mdms.proofs = [forged]
        async with await street.fleet() as fleet, street.downstream(fleet) as downstream:
            await downstream.until(lambda: bool(downstream.refused))
            assert downstream.refused == {Reason.BAD_SIGNATURE: 1}
            assert downstream.confirmed == 0
            assert street.mdms.sent == []

    run(work())


def test_an_old_epoch_that_is_shown_again_changes_nothing(street: Street) -> None:
    async def work() -> None:
        street.mdms.open_epoch()
        async with await street.fleet() as fleet, street.downstream(fleet) as downstream:
            await downstream.until(lambda: downstream.confirmed == len(METERS))
            street.mdms.open_epoch()
            street.mdms.proofs.append(street.mdms.proofs[0])
            street.mdms.do(Step())
            await downstream.until(lambda: downstream.refused[Reason.EPOCH_NOT_ABOVE] == len(METERS))
            await downstream.until(lambda: downstream.confirmed == len(METERS))
            await street.broadcast(downstream)

    run(work())


def test_a_meter_tells_and_is_answered(street: Street) -> None:
    async def work() -> None:
        street.mdms.open_epoch()
        async with await street.fleet() as fleet, street.downstream(fleet) as downstream:
            meter = fleet.in_session()[0]
            asked = await downstream.request(meter, Notification(Kind.POWER_LOST, 0))
            assert not isinstance(asked, Reason)
            await downstream.until(lambda: downstream.answer(meter, asked) is not None)
            assert downstream.answer(meter, asked) is Reason.VALID

    run(work())


class PowerLoss(Exception):
    """The meter stops here."""


class Crashing:
    """A fleet's store that fails at its n-th write: before it is durable, or right after."""

    def __init__(self, fleet: Fleet, writes: int, *, after: bool) -> None:
        self._fleet = fleet
        self._left = writes
        self._after = after
        self.kept = fleet.kept
        self.accepted_last = False
        """The last write before the crash accepted a message, which nobody was given."""

    async def keep(self, writes: Iterable[Write]) -> None:
        group = list(writes)
        self._left -= 1
        if self._left < 0:
            raise PowerLoss
        if self._left == 0 and not self._after:
            raise PowerLoss
        await self._fleet.keep(group)
        if self._left == 0:
            self.accepted_last = any(write.table == KMS_INBOX and write.value is not None for write in group)
            raise PowerLoss


class Application:
    """Counts each message in the meter's own store, and may stop in the middle of one."""

    def __init__(self, fleet: Fleet, *, stops_at: int = 0) -> None:
        self._fleet = fleet
        self._stops_at = stops_at

    def take(self, item: Accepted) -> list[Write]:
        self._stops_at -= 1
        if self._stops_at == 0:
            raise PowerLoss
        before = self._fleet.kept(APPLICATION, item.hid + item.id).get(item.hid + item.id, b"")
        return [Write(APPLICATION, item.hid + item.id, before + b"1")]


async def crash_and_restart(street: Street, fleet: Fleet, store: object, stops_at: int) -> bool:
    """Broadcast to a meter that crashes on its way, and start it again; True when it did crash."""
    (meter, *_) = fleet.in_session()
    before = len(fleet.kept(APPLICATION, b""))
    has_crashed = False
    for faulty in (True, False):
        shown = store if faulty else fleet
        application = Application(fleet, stops_at=stops_at if faulty else 0)
        downstream = Downstream(
            shown,  # type: ignore[arg-type]
            street.cluster.roster,
            [meter],
            street.mdms,  # type: ignore[arg-type]
            take=application.take,
            now_ms=lambda: START_MS,
        )
        try:
            async with downstream:
                await downstream.until(lambda: downstream.confirmed == 1)  # noqa: B023
                if faulty:
                    street.mdms.do(street.mdms.server.send(PRICE, START_MS, hid=None, group=0))
                await downstream.until(lambda: len(fleet.kept(APPLICATION, b"")) == before + 1)
        except PowerLoss:
            has_crashed = True
            if not street.mdms.server.summaries(START_MS)[before:]:  # it never got so far as to be sent anything
                street.mdms.do(street.mdms.server.send(PRICE, START_MS, hid=None, group=0))
    return has_crashed


def test_whatever_the_step_at_which_a_meter_crashes_its_application_has_each_message_once(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenBuckets, "take", lambda *_: 0.0)  # so many crashes at one time

    async def work() -> None:
        async with await street.fleet() as fleet:
            street.mdms.open_epoch()
            lost_before_hand_over = False
            for after in (False, True):
                write, store = 1, Crashing(fleet, 1, after=after)
                while await crash_and_restart(street, fleet, store, 0):
                    lost_before_hand_over |= store.accepted_last
                    write += 1
                    store = Crashing(fleet, write, after=after)
                assert write > 2
            assert lost_before_hand_over
            assert await crash_and_restart(street, fleet, fleet, 1)
            handed = fleet.kept(APPLICATION, b"")
            assert set(handed.values()) == {b"1"}
            assert len(handed) == len(street.mdms.server.summaries(START_MS))
            assert not fleet.kept(KMS_INBOX, b"")

    run(work())


def test_what_was_accepted_and_not_handed_over_is_handed_over_at_the_next_start(street: Street) -> None:
    async def work() -> None:
        async with await street.fleet() as fleet:
            street.mdms.open_epoch()
            (meter, *_) = fleet.in_session()
            identity = bytes(15) + b"\x01"
            received = Received(meter.party.hid, identity, PRICE, START_MS, START_MS, True)
            await fleet.keep([Write(KMS_INBOX, meter.party.hid + identity, RECEIVED.encode(received))])
            for _ in range(2):
                async with street.downstream(fleet):
                    assert [(item.id, item.payload) for item in street.taken] == [(identity, PRICE)]

    run(work())


def test_keys_that_an_earlier_version_stored_are_refused_in_words(street: Street) -> None:
    async def work() -> None:
        async with await street.fleet() as fleet:
            (meter, *_) = fleet.in_session()
            await fleet.keep([Write(KMS, meter.party.hid, encode((1, b"")))])
            with pytest.raises(InputError, match="stored in another form"):
                street.downstream(fleet)

    run(work())


def test_no_request_upwards_is_larger_than_the_mdms_takes() -> None:
    messages = [bytes(30_000)] * 1_000
    count = downstream_module._first_batch(messages)
    assert 1 < count < len(messages)
    assert UP_BATCH.decode(encode(tuple(messages[:count])))
    assert len(encode(tuple(messages[: count + 1]))) > UP_BYTES_MAX
    assert downstream_module._first_batch([b"short"] * 2_000) == UP_MESSAGES_MAX
    assert downstream_module._first_batch([b"short"]) == 1
