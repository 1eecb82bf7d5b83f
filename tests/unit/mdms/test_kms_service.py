"""The MDMS's end of the symmetric keys as a service: the real store and contracts, a chain and meters in memory."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import structlog

from bcami.client.courier import Courier
from bcami.client.periods import verify_kms_epoch
from bcami.client.receipts import ReceiptVerifier
from bcami.codec import encode
from bcami.crypto.keys import SecretKey
from bcami.errors import EnvironmentFault, InconclusiveError
from bcami.kms import Accepted, HardenedProfile, Identity, KeyServer, MeterKeys, Refused, Scope, Step, ToMdms, Write
from bcami.kms.audit import gaps
from bcami.kms.messages import DeliveryId, Pricing
from bcami.kms.records import AUDIT
from bcami.kms.subscription import Subscription, subscriber
from bcami.mdms import kms_admission
from bcami.mdms.head_end import Epoch, HeadEnd, Message
from bcami.mdms.kms_admission import Admitted
from bcami.mdms.kms_anchors import AnchorPace, AuditAnchors
from bcami.mdms.kms_chain import KmsChain
from bcami.mdms.kms_metrics import KmsMetrics
from bcami.mdms.kms_service import BOOTSTRAPS_BURST, KmsPace, KmsService
from bcami.mdms.kms_store import KmsStore
from bcami.mdms.metrics import MdmsMetrics
from bcami.mdms.periods import Surroundings
from bcami.model.api import PROOF_CODEC
from bcami.model.reasons import Reason
from bcami.model.registration import KmsState
from bcami.model.transaction import Transaction
from tests import virtual
from tests.unit.client.cluster import Cluster
from tests.unit.kms.network import Entropy, MeterHost, make_profile

PRICE = Pricing(0, 1800, (2_500_000,))


@dataclass
class Roll:
    """What the store of the chain tells."""

    identities: list[Identity] = field(default_factory=list)
    revoked: list[bytes] = field(default_factory=list)
    height: int = 1

    @property
    def cursor(self) -> SimpleNamespace:
        return SimpleNamespace(height=self.height)

    def identities_above(self, height: int) -> list[Identity]:
        return self.identities

    def revoked_above(self, height: int) -> list[bytes]:
        return self.revoked


class Desk:
    """A service with one meter, on a chain that outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = Cluster()
        self.entropy = Entropy("desk")
        self.scope = Scope(self.cluster.roster.chain, 0, self.cluster.genesis.mdms_hid)
        self.host = MeterHost("m1", lambda: make_profile("hardened"), self.entropy)
        self.meter = MeterKeys(self.scope, HardenedProfile(self.scope), self.host.hid, 1, self.host.key, self.host.kem)
        self.roll = Roll([self.host.identity])
        self.accepted: list[Accepted] = []
        self.refused: list[Reason] = []
        self.epochs: list[int] = []

    def run(self, *works: Callable[["Desk", KmsService], Awaitable[None]]) -> None:
        """Do each work with a service of its own: the MDMS is started anew in between."""
        for work in works:
            virtual.run(self._run(work))

    async def _run(self, work: Callable[["Desk", KmsService], Awaitable[None]]) -> None:
        nodes = self.cluster.clients()
        courier = Courier(nodes, ReceiptVerifier(self.cluster.roster), weak=2, seed=bytes(16))
        server = KeyServer(self.scope, HardenedProfile(self.scope), changes_wait=True)
        metrics = MdmsMetrics()
        stop = asyncio.Event()
        surroundings = Surroundings(lambda: self.now_ms, self.entropy)
        self.known = len(self.epochs)
        with KmsStore(self.folder / "kms", bytes(32), self.cluster.roster.chain) as store:
            server.restore(store.rows)
            self.service = KmsService(
                server,
                store,
                self.roll,  # type: ignore[arg-type]
                HeadEnd("run"),
                KmsChain(nodes, courier.settle, self.cluster.roster, self.cluster.mdms_enrolment, surroundings),
                self.scope,
                surroundings,
                KmsMetrics(metrics.registry),
                structlog.get_logger(),
                pace=KmsPace(tick_s=0.01, retry_s=0.01, anchor=self.anchor_pace),
            )
            self.registry = metrics.registry
            own = self.service.head_end.admit({self.host.hid})
            assert own is not None
            self.stream = self.service.head_end.listen(own, None)
            running = self.running = asyncio.create_task(self.service.run(stop))
            try:
                await work(self, self.service)
                stop.set()
                await running
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await self.stream.aclose()
                await courier.close()

    now_ms = 1_700_000_000_000
    anchor_pace = AnchorPace(first_s=60.0)

    async def hear(self, condition: Callable[[], bool]) -> None:
        """Let the meter hear its stream, and answer, until the condition holds."""
        while not condition():
            heard = await anext(self.stream)
            match heard:
                case Epoch(proof):
                    epoch = verify_kms_epoch(PROOF_CODEC.decode(proof), self.cluster.genesis, self.cluster.roster)
                    assert not isinstance(epoch, Reason)
                    self.epochs.append(epoch.height)
                    await self.do(self.meter.epoch_opened(epoch.height, epoch.kms_key, self.now_ms, self.entropy()))
                case Message(_, item):
                    await self.do(self.meter.receive(item.message, self.now_ms))

    async def do(self, step: Step) -> None:
        self.accepted += [event for event in step.events if isinstance(event, Accepted)]
        up = [encode(send.message) for send in step.sends if isinstance(send, ToMdms)]
        refused = await self.service.receive(up, "127.0.0.1")
        self.refused += refused.elements()

    def count(self, reason: Reason) -> float:
        return self.registry.get_sample_value("bcami_kms_refused_total", {"reason": reason.value}) or 0.0


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def keys(desk: Desk, service: KmsService) -> None:
    await desk.hear(lambda: len(desk.epochs) > desk.known and desk.meter.is_confirmed)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody tells of."""
    async with asyncio.timeout(600):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def broadcast(desk: Desk, service: KmsService) -> None:
    await keys(desk, service)
    before = len(desk.accepted)
    sent = await service.send(lambda: service.server.send(PRICE, desk.now_ms, group=0))
    assert not isinstance(sent, Reason)
    await desk.hear(lambda: len(desk.accepted) > before)
    told = await service.delivery(sent)
    assert told is not None
    assert (told["delivered"], told["waiting"], told["group"]) == (1, 0, 0)


def test_each_start_opens_an_epoch_on_the_chain_and_goes_on_with_what_the_store_holds(desk: Desk) -> None:
    desk.run(broadcast, broadcast)
    assert len(desk.epochs) == 2
    assert desk.epochs[1] > desk.epochs[0]
    assert [item.payload for item in desk.accepted] == [PRICE, PRICE]
    assert len([tx for tx in desk.cluster.transactions.values() if tx.function == "open_kms"]) == 2
    assert desk.service.server.counts.meters == 1


def test_a_rotation_gives_everybody_new_keys(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        service.rotate()
        await desk.hear(lambda: len(desk.epochs) == 2 and desk.meter.is_confirmed)

    desk.run(work)


@pytest.mark.parametrize("down", [True, False], ids=["away", "there"])
def test_what_is_sent_right_after_a_start_waits_for_the_epoch(desk: Desk, down: bool) -> None:
    """`bcami up` returns when the MDMS answers, which is a moment before."""
    for faults in desk.cluster.faults:
        faults.is_down = down

    async def work(desk: Desk, service: KmsService) -> None:
        sending = asyncio.create_task(service.send(lambda: service.server.send(PRICE, desk.now_ms, group=0)))
        await asyncio.sleep(5)
        assert sending.done() is not down
        for faults in desk.cluster.faults:
            faults.is_down = False
        assert isinstance(await sending, DeliveryId)

    desk.run(work)


def test_before_the_epoch_is_on_the_chain_nothing_is_answered(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        assert await service.send(lambda: service.server.send(PRICE, desk.now_ms, group=0)) is Reason.NOT_READY
        assert desk.count(Reason.NOT_READY) == 1
        assert (await service.status())["epoch"] == 0
        for faults in desk.cluster.faults:
            faults.is_down = False
        await keys(desk, service)

    for faults in desk.cluster.faults:
        faults.is_down = True
    desk.run(work)


def test_a_meter_that_the_chain_revokes_is_removed(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        desk.roll.identities, desk.roll.revoked, desk.roll.height = [], [desk.host.hid], 2
        await service._follow()
        await desk.do(desk.meter.check_in(desk.now_ms))
        assert desk.refused == [Reason.REVOKED_HID]
        assert desk.count(Reason.REVOKED_HID) == 1

    desk.run(work)


def wanted(
    desk: Desk, challenge: bytes, *, session: int = 1, key: SecretKey | None = None, hid: bytes | None = None
) -> Subscription:
    """Return what the meter shows for a stream, or somebody else in its name."""
    shown = subscriber(desk.scope, hid or desk.host.hid, session, challenge, key or desk.host.key)
    return Subscription(challenge, (shown,))


def test_a_stream_is_for_the_meter_that_proves_itself_once(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        admission, head_end = service.admission, service.head_end
        before = head_end.listeners
        good = wanted(desk, admission.challenge())
        admitted = await admission.admit(good)
        assert isinstance(admitted, Admitted)
        assert (admitted.left_out, head_end.there) == ((), {desk.host.hid})
        assert (await service.keys())["there_confirmed"] == 1
        assert await admission.admit(good) is Reason.STALE_CHALLENGE, "a recorded subscription is worth nothing"
        assert await admission.admit(wanted(desk, bytes(32))) is Reason.STALE_CHALLENGE
        head_end.leave(admitted.listener)
        assert head_end.listeners == before

    desk.run(work)


def test_a_stranger_gets_no_stream_of_a_meter_and_is_counted(desk: Desk) -> None:
    stranger = SecretKey.generate(bytes(31) + b"\x07")

    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        admission = service.admission
        for change, reason in (
            ({"key": stranger}, Reason.BAD_SIGNATURE),
            ({"hid": bytes(32)}, Reason.UNKNOWN_HID),
            ({"session": 2}, Reason.UNKNOWN_SESSION),
            ({"session": 0}, Reason.SESSION_CLOSED),
        ):
            assert await admission.admit(wanted(desk, admission.challenge(), **change)) is reason  # type: ignore[arg-type]
            assert desk.count(reason) == 1
        other = admission.challenge()
        own = wanted(desk, admission.challenge())
        moved = Subscription(other, own.meters)
        assert await admission.admit(moved) is Reason.BAD_SIGNATURE, "a signature is for one challenge"
        challenge = admission.challenge()
        both = (*wanted(desk, challenge).meters, *wanted(desk, challenge, hid=bytes(32)).meters)
        admitted = await admission.admit(Subscription(challenge, both))
        assert isinstance(admitted, Admitted)
        assert admitted.left_out == ((bytes(32), Reason.UNKNOWN_HID),)
        assert service.head_end.listeners == 2

    desk.run(work)


def test_a_revoked_meter_hears_nothing_more_on_a_stream_that_is_open(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        admitted = await service.admission.admit(wanted(desk, service.admission.challenge()))
        assert isinstance(admitted, Admitted)
        desk.roll.identities, desk.roll.revoked, desk.roll.height = [], [desk.host.hid], 2
        await service._follow()
        assert service.head_end.there == set()
        assert await service.admission.admit(wanted(desk, service.admission.challenge())) is Reason.REVOKED_HID

    desk.run(work)


def test_strangers_who_ask_for_challenges_push_nobodys_out_and_each_ends(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kms_admission, "CHALLENGE_S", 0.5)

    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        admission = service.admission
        mine, late = admission.challenge(), admission.challenge()
        assert len({admission.challenge() for _ in range(5_000)}) == 5_000
        assert not admission._used
        assert isinstance(await admission.admit(wanted(desk, mine)), Admitted)
        forged = late[:15] + bytes([late[15] ^ 1]) + late[16:]
        assert await admission.admit(wanted(desk, forged)) is Reason.STALE_CHALLENGE
        await asyncio.sleep(0.6)
        assert await admission.admit(wanted(desk, late)) is Reason.STALE_CHALLENGE
        assert await admission.admit(wanted(desk, mine)) is Reason.STALE_CHALLENGE
        assert isinstance(await admission.admit(wanted(desk, admission.challenge())), Admitted)
        assert len(admission._used) == 1, "what is too old is forgotten"
        assert desk.count(Reason.STALE_CHALLENGE) == 3

    desk.run(work)


def test_a_challenge_is_used_up_by_a_meters_proof_and_by_nothing_else(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        admission = service.admission
        challenge = admission.challenge()
        stranger = Subscription(challenge, (subscriber(desk.scope, bytes(32), 1, challenge, desk.host.key),))
        assert await admission.admit(stranger) is Reason.UNKNOWN_HID
        twice = await asyncio.gather(*(admission.admit(wanted(desk, challenge)) for _ in range(2)))
        assert sum(isinstance(answer, Admitted) for answer in twice) == 1
        assert Reason.STALE_CHALLENGE in twice
        monkeypatch.setattr(kms_admission, "USED_MAX", 1)
        assert await admission.admit(wanted(desk, admission.challenge())) is Reason.STALE_CHALLENGE

    desk.run(work)


def test_what_is_no_message_is_counted_and_refused(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        assert await service.receive([b"", b"\xc1", bytes(1000)], "a") == {Reason.MALFORMED: 3}
        assert desk.count(Reason.MALFORMED) == 3

    desk.run(work)


def test_who_asks_for_keys_too_often_waits_and_others_do_not(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        step = desk.meter.start(desk.now_ms, desk.entropy())
        (asked,) = [encode(send.message) for send in step.sends if isinstance(send, ToMdms)]
        for _ in range(int(BOOTSTRAPS_BURST)):
            service._bootstraps.take("flood", asyncio.get_running_loop().time())
        refused = await service.receive([asked] * 50, "flood")
        assert refused[Reason.RATE_LIMITED] > 0
        assert desk.count(Reason.RATE_LIMITED) == refused[Reason.RATE_LIMITED]
        assert await service.receive([asked], "another") == {}

    desk.run(work)


def test_a_store_that_cannot_be_written_ends_the_service_and_nothing_leaves(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)

        def refuse(writes: list[Write]) -> None:
            raise EnvironmentFault("the disk is full")

        service.store.apply = refuse  # type: ignore[method-assign, assignment]
        put: list[object] = []
        service.head_end.put = put.append  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(EnvironmentFault):
                await service.send(lambda: service.server.send(PRICE, desk.now_ms, group=0))
        assert put == []
        with pytest.raises(EnvironmentFault):
            await asyncio.shield(desk.running)

    with pytest.raises(EnvironmentFault):
        desk.run(work)


def test_the_audit_log_is_anchored_and_an_old_copy_is_noticed_and_never_anchored(desk: Desk, tmp_path: Path) -> None:
    async def anchor(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        assert await service.audit.anchor(service._signer) is None, "it was not compared yet"
        await service.audit.compare()
        assert service.audit.fault is None
        assert await service.audit.anchor(service._signer) is Reason.VALID
        assert await service.audit.anchor(service._signer) is None
        state, entries, fault = await service.audit.audit()
        assert (state.length, state.head) == (service.server.counts.audit_length, service.server.counts.audit_head)
        assert (len(entries), fault) == (state.length, None)

    async def old(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        await service.audit.compare()
        for _ in range(9):
            await broadcast(desk, service)
        assert len(service.store.rows(AUDIT)) > 8
        assert await service.audit.anchor(service._signer) is None
        assert (await service.status())["audit_fault"] is not None
        assert await service.resume_audit() is Reason.VALID
        assert await service.resume_audit() is Reason.BAD_ARGUMENT, "once is enough"
        assert await service.audit.anchor(service._signer) is Reason.VALID
        _, entries, fault = await service.audit.audit()
        assert fault is None
        assert [entry.sequence for entry in gaps(entries)] == [len(entries)]

    desk.run(anchor, anchor)
    desk.folder = tmp_path / "emptied"
    desk.run(old)


def test_the_first_anchor_comes_soon_and_also_when_the_chain_could_not_be_read_at_first(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = KmsChain.anchored, []

    async def unreadable_at_first(chain: KmsChain, at_least: int = 0) -> KmsState:
        asked.append(1)
        if len(asked) == 1:
            raise InconclusiveError("no answers")
        return await real(chain, at_least)

    anchored = asyncio.Event()
    really = AuditAnchors.anchor

    async def anchor(anchors: AuditAnchors, signer: SecretKey | None) -> Reason | None:
        reason = await really(anchors, signer)
        if reason is Reason.VALID:
            anchored.set()
        return reason

    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        await anchored.wait()
        assert len(asked) > 1
        assert (await service.status())["audit_compared"]

    monkeypatch.setattr(KmsChain, "anchored", unreadable_at_first)
    monkeypatch.setattr(AuditAnchors, "anchor", anchor)
    desk.anchor_pace = AnchorPace(first_s=0.01, retry_s=0.01)
    desk.run(work)
    assert [tx.function for tx in desk.cluster.transactions.values()].count("anchor") >= 1


def test_an_epoch_that_comes_into_a_block_after_the_later_one_is_followed_by_one_more(desk: Desk) -> None:
    """A run ends before its epoch is in a block; the next run's epoch comes first, then the late one."""
    desk.anchor_pace = AnchorPace(first_s=0.01, next_s=0.01, retry_s=0.01)

    async def ends_while_it_opens(desk: Desk, service: KmsService) -> None:
        await until(lambda: bool(desk.cluster.served[0].transactions))
        desk.running.cancel()

    async def until_anchored(service: KmsService) -> None:
        await until(lambda: service.audit.anchored == service.server.counts.audit_length)

    async def goes_on(desk: Desk, service: KmsService) -> None:
        await broadcast(desk, service)
        await until_anchored(service)
        desk.cluster.execute([late])
        assert (await service._chain.anchored()).signer == late.signer
        await broadcast(desk, service)
        await desk.hear(lambda: len(desk.epochs) == 2 and desk.meter.is_confirmed)
        await broadcast(desk, service)
        await until_anchored(service)
        last, _, fault = await service.audit.audit()
        assert (last.length, fault) == (service.server.counts.audit_length, None)
        assert service._signer is not None
        assert last.kms_key == service._signer.public_key
        await asyncio.sleep(1)

    for faults in desk.cluster.faults:
        faults.unknowns = 10**6
    with pytest.raises(asyncio.CancelledError):
        desk.run(ends_while_it_opens)
    late = msgspec.msgpack.decode(desk.cluster.served[0].transactions[0], type=Transaction)
    assert late.function == "open_kms"
    assert not desk.cluster.transactions
    for faults in desk.cluster.faults:
        faults.unknowns = 0
    desk.run(goes_on)
    assert len(desk.accepted) == 3
    opened = [tx.signer == late.signer for tx in desk.cluster.transactions.values() if tx.function == "open_kms"]
    assert opened == [False, True, False], "and one is enough"


def test_an_old_backup_that_is_restored_is_noticed_and_both_ends_agree_again(desk: Desk, tmp_path: Path) -> None:
    async def back_up(desk: Desk, service: KmsService) -> None:
        await broadcast(desk, service)
        service.store.copy_to(tmp_path / "copy")

    async def go_on(desk: Desk, service: KmsService) -> None:
        await broadcast(desk, service)
        await service.audit.compare()
        assert await service.audit.anchor(service._signer) is Reason.VALID

    async def restored(desk: Desk, service: KmsService) -> None:
        await broadcast(desk, service)
        await service.audit.compare()
        assert service.audit.fault is not None
        assert desk.epochs == sorted(set(desk.epochs)), "epochs only rise, whatever came back"

    desk.run(back_up, go_on)
    (tmp_path / "back").mkdir()
    (tmp_path / "copy").rename(tmp_path / "back" / "kms")
    desk.folder = tmp_path / "back"
    desk.run(restored)
    assert [item.payload for item in desk.accepted] == [PRICE] * 3
    assert len({item.id for item in desk.accepted}) == 3


def test_refusals_carry_their_reason() -> None:
    step = Step()
    step.refuse(Reason.WRONG_KEY, bytes(32))
    metrics = MdmsMetrics()
    KmsMetrics(metrics.registry).happened(step.events, 0)
    assert metrics.registry.get_sample_value("bcami_kms_refused_total", {"reason": "wrong_key"}) == 1
    assert isinstance(step.events[0], Refused)


def test_while_the_chain_is_down_the_next_epoch_waits_and_nothing_else_does(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        for faults in desk.cluster.faults:
            faults.is_down = True
        service.rotate()
        await asyncio.sleep(1)
        desk.roll.identities, desk.roll.revoked, desk.roll.height = [], [desk.host.hid], 2
        await asyncio.sleep(1)
        assert service.server.counts.meters == 0
        assert service.server.counts.epoch == desk.epochs[0]
        for faults in desk.cluster.faults:
            faults.is_down = False
        await until(lambda: service.server.counts.epoch > desk.epochs[0])

    desk.run(work)


def test_a_step_that_began_ends_before_the_next_although_who_asked_for_it_is_gone(desk: Desk) -> None:
    async def work(desk: Desk, service: KmsService) -> None:
        await keys(desk, service)
        began, may_end = threading.Event(), threading.Event()
        order: list[str] = []

        def slow() -> Step:
            began.set()
            may_end.wait()
            order.append("first")
            return Step()

        def next_one() -> Step:
            order.append("next")
            return Step()

        first = asyncio.create_task(service.do(slow))
        try:
            await asyncio.to_thread(began.wait)
            first.cancel()
            second = asyncio.create_task(service.do(next_one))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not order
        finally:
            may_end.set()
        await second
        assert order == ["first", "next"]
        assert first.cancelled()

    desk.run(work)
