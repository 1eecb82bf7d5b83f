"""A fleet over several nodes: nothing lost, nothing doubled, whatever nodes and disks do."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from bcami.ami import fleet as fleet_module
from bcami.ami import registrar
from bcami.ami.fleet import Fleet
from bcami.ami.outbox import FACTORY, ISSUANCES, REPORTS, SESSIONS, WAITING, Outbox, Write
from bcami.ami.pressure import Pressure
from bcami.ami.records import FACTORY_CODEC, SESSION_CODEC
from bcami.client import nodes
from bcami.client.courier import CourierLimits
from bcami.client.issuance import ISSUANCE_CODEC, ContributionPolicy
from bcami.client.retry import Backoff
from bcami.crypto.hid import hid
from bcami.errors import EnvironmentFault, InputError
from bcami.model.genesis import Parameters
from bcami.model.reasons import Reason
from bcami.model.report import Reading
from tests.chain import NETWORK_KEY
from tests.unit.client.cluster import Cluster
from tests.virtual import run

METERS = ["MAC000002", "MAC000003", "MAC000004"]
LIMITS = CourierLimits(wait_ms=200, stall_ms=100)


@pytest.fixture
def cluster() -> Cluster:
    built = Cluster()
    built.open_period()
    return built


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait milliseconds where a fleet waits seconds."""
    monkeypatch.setattr(fleet_module, "_PERIOD_CHECK_S", 0.1)
    monkeypatch.setattr(registrar, "_PERIOD_ANSWER_S", 0.1)
    monkeypatch.setattr(nodes, "_GRACE_S", 0.1)
    monkeypatch.setattr(fleet_module, "_SETTLE_BEFORE_RENEWAL_S", 0.2)
    policy = ContributionPolicy(answer_s=0.1, rounds=2, backoff=Backoff(1, 1))
    original = registrar.issue

    async def issue(*args, **kwargs):
        kwargs["policy"] = policy
        return await original(*args, **kwargs)

    monkeypatch.setattr(registrar, "issue", issue)


async def open_fleet(cluster: Cluster, home: Path) -> Fleet:
    return await Fleet.open(
        home, cluster.genesis, cluster.urls, NETWORK_KEY, transport=cluster.transport, seed=b"seed", limits=LIMITS
    )


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


class Course:
    """Readings given to a fleet, and the check that the MDMS would have each of them."""

    def __init__(self, cluster: Cluster, home: Path) -> None:
        self.cluster = cluster
        self.home = cluster.make_home(home)
        self.given: dict[str, list[Reading]] = {meter_id: [] for meter_id in METERS}

    async def begin(self, fleet: Fleet) -> None:
        await fleet.enrol(METERS)
        await fleet.open_sessions(METERS)

    async def submit(self, fleet: Fleet, count: int, durable: bool = False) -> None:
        for _ in range(count):
            for meter_id, given in self.given.items():
                reading = Reading(len(given) * 1800, 7 * len(given))
                given.append(reading)
                await fleet.submit(meter_id, [reading], 1_700_000_000_000, durable=durable)

    async def whole(self, count: int) -> Fleet:
        """Register, submit, drain; return the closed fleet for its statistics."""
        async with await open_fleet(self.cluster, self.home) as fleet:
            await self.begin(fleet)
            await self.submit(fleet, count)
            await fleet.drain()
        return fleet

    def check(self, *, once: bool = True) -> None:
        stored = self.cluster.stored_readings()
        for meter_id, given in self.given.items():
            found = stored.get(hid(NETWORK_KEY, meter_id), {})
            assert set(found) == set(given), "nothing is lost"
            assert not once or max(found.values()) == 1, "nothing is doubled"

    def store(self) -> dict[bytes, int]:
        with Outbox(self.home / "fleet", self.cluster.roster.chain) as outbox:
            return {table: outbox.count(table) for table in (REPORTS, WAITING, ISSUANCES)}

    def is_clean(self) -> bool:
        return not any(self.store().values())


def test_reports_are_enrolled_sealed_committed_and_forgotten(cluster: Cluster, tmp_path: Path) -> None:
    course = Course(cluster, tmp_path)
    fleet = run(course.whole(100))
    course.check()
    assert course.is_clean()
    counted = fleet.statistics
    assert (counted.taken, counted.sent, counted.committed) == (300, 300, 300)
    assert (counted.readings_taken, counted.readings_sent, counted.readings_committed) == (300, 300, 300)
    assert counted.latencies.count == 300
    assert not counted.rejected
    assert not counted.refused
    assert not counted.stopped
    assert counted.sessions_opened == 3
    assert sum(node.committed for node in counted.nodes.values()) >= 300


def test_a_fleet_that_is_opened_again_keeps_its_meters_and_sessions(cluster: Cluster, tmp_path: Path) -> None:
    course = Course(cluster, tmp_path)
    run(course.whole(3))

    async def again() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            await course.begin(fleet)
            await course.submit(fleet, 3)
            await fleet.drain()
            assert fleet.statistics.sessions_opened == 0

    run(again())
    course.check()


def test_several_readings_make_one_report(cluster: Cluster, tmp_path: Path) -> None:
    course = Course(cluster, tmp_path)
    day = [Reading(slot * 1800, slot) for slot in range(48)]

    async def work() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            await course.begin(fleet)
            await fleet.submit(METERS[0], day, 0)
            await fleet.drain()
            assert fleet.statistics.readings_committed == 48

    run(work())
    course.given = {METERS[0]: day}
    course.check()


# Nodes.


def down(cluster: Cluster) -> None:
    cluster.faults[0].is_down = True


def silent(cluster: Cluster) -> None:
    cluster.faults[0].is_silent = True


def busy(cluster: Cluster) -> None:
    cluster.faults[0].http_status = 429
    cluster.faults[0].retry_after_s = 3


def losing_answers(cluster: Cluster) -> None:
    for faults in cluster.faults:
        faults.drops_answers = 1


def lying(cluster: Cluster) -> None:
    cluster.faults[0].claims = Reason.VALID


def refusing(cluster: Cluster) -> None:
    cluster.faults[0].refuses = Reason.BAD_SIGNATURE


@pytest.mark.parametrize(
    "fault", [down, silent, busy, losing_answers, lying, refusing], ids=lambda fault: fault.__name__
)
@pytest.mark.parametrize("when", ["from the start", "after registration"])
def test_one_bad_node_loses_and_doubles_nothing(
    cluster: Cluster, tmp_path: Path, fault: Callable[[Cluster], None], when: str
) -> None:
    course = Course(cluster, tmp_path)

    async def work() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            if when == "from the start":
                fault(cluster)
            await course.begin(fleet)
            await course.submit(fleet, 10)
            fault(cluster)
            await course.submit(fleet, 10)
            await fleet.drain()

    run(work())
    course.check()
    assert course.is_clean()


def test_weak_refusals_move_the_readings_to_a_new_number(cluster: Cluster, tmp_path: Path) -> None:
    course = Course(cluster, tmp_path)

    async def work() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            await course.begin(fleet)
            for faults in cluster.faults:
                faults.refuses = Reason.BAD_SIGNATURE
            await course.submit(fleet, 1)
            await until(lambda: bool(fleet.statistics.refused))
            for faults in cluster.faults:
                faults.refuses = None
            await fleet.drain()
            assert set(fleet.statistics.refused) == {"bad_signature"}
            assert fleet.statistics.resealed == sum(fleet.statistics.refused.values())

    run(work())
    course.check()
    assert course.is_clean()


def test_a_report_that_is_refused_again_and_again_is_kept(cluster: Cluster, tmp_path: Path) -> None:
    course = Course(cluster, tmp_path)

    async def work() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            await course.begin(fleet)
            for faults in cluster.faults:
                faults.refuses = Reason.BAD_SIGNATURE
            await course.submit(fleet, 1)
            await fleet.drain()
            assert fleet.statistics.stopped == {"bad_signature": 3}

    run(work())
    assert course.store()[REPORTS] == 3
    for faults in cluster.faults:
        faults.refuses = None

    async def again() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            await fleet.drain()

    run(again())
    course.check()
    assert course.is_clean()


# Sessions.


def test_a_closed_session_is_replaced_and_its_reports_sealed_again(cluster: Cluster, tmp_path: Path) -> None:
    """Another store of the same meter opened a session behind our back: ours is closed (protocol 2.6, 3.1)."""
    course = Course(cluster, tmp_path)
    run(course.whole(5))
    copy = tmp_path / "copy"
    course.home.joinpath("fleet").rename(tmp_path / "fleet.old")
    cluster_home = course.home
    import shutil

    shutil.copytree(tmp_path / "fleet.old", cluster_home / "fleet")
    with Outbox(cluster_home / "fleet", cluster.roster.chain) as outbox:
        outbox.apply([Write(SESSIONS, hid(NETWORK_KEY, meter_id), None) for meter_id in METERS])

    async def elsewhere() -> None:
        async with await open_fleet(cluster, cluster_home) as fleet:
            await fleet.open_sessions(METERS)
            await course.submit(fleet, 2)
            await fleet.drain()

    run(elsewhere())
    shutil.rmtree(cluster_home / "fleet")
    shutil.copytree(tmp_path / "fleet.old", cluster_home / "fleet")
    assert not copy.exists()

    async def ours() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            await course.submit(fleet, 5)
            await fleet.drain()
            assert fleet.statistics.sessions_opened == 3
            closed = fleet.statistics.rejected["session_closed"] + fleet.statistics.refused["session_closed"]
            assert closed > 0
            assert fleet.statistics.committed == 15

    run(ours())
    course.check()
    assert course.is_clean()


def test_a_new_period_means_a_new_session(cluster: Cluster, tmp_path: Path) -> None:
    course = Course(cluster, tmp_path)

    async def work() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            await course.begin(fleet)
            await course.submit(fleet, 5)
            await fleet.drain()
            cluster.open_period(2)
            while fleet.statistics.sessions_opened < 6:
                await course.submit(fleet, 1)
                await asyncio.sleep(0.02)
            await course.submit(fleet, 5)
            await fleet.drain()

    run(work())
    course.check(once=False)
    with Outbox(course.home / "fleet", cluster.roster.chain) as outbox:
        assert {SESSION_CODEC.decode(value).period for _, value in outbox.items(SESSIONS)} == {2}


def test_what_is_under_way_at_a_renewal_is_sealed_again_and_its_old_form_ignored(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The register block is a barrier (protocol 2.6): the old bytes still travel, and what comes of them is no news."""
    course = Course(cluster, tmp_path)

    async def work() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            await course.begin(fleet)
            for faults in cluster.faults:
                faults.holds_usage = True
            await course.submit(fleet, 4)
            cluster.open_period(2)
            await until(lambda: fleet.statistics.sessions_opened == 6)
            for faults in cluster.faults:
                faults.holds_usage = False
            await fleet.drain()
            await until(lambda: sum(node.refused for node in fleet.statistics.nodes.values()) >= 12)
            await fleet.drain()
            counted = fleet.statistics
            assert (counted.committed, counted.resealed, fleet.pending) == (12, 12, 0)
            assert (counted.sessions_opened, dict(counted.refused), dict(counted.rejected)) == (6, {}, {})

    run(work())
    course.check()
    assert course.is_clean()


def test_a_forged_period_is_not_used(cluster: Cluster, tmp_path: Path) -> None:
    """Every node hands out a key that the MDMS never registered: no meter opens a session to it (protocol 2.5)."""
    other = Cluster(label="forger")
    forged = other.open_period()
    course = Course(cluster, tmp_path)
    for faults in cluster.faults:
        faults.period_proof = forged

    async def work() -> None:
        registrar_wait = registrar._PERIOD_WAIT_S
        registrar._PERIOD_WAIT_S = 0.5
        try:
            async with await open_fleet(cluster, course.home) as fleet:
                await fleet.enrol(METERS)
                with pytest.raises(EnvironmentFault, match="no node proves a period"):
                    await fleet.open_sessions(METERS)
        finally:
            registrar._PERIOD_WAIT_S = registrar_wait

    run(work())
    cluster.faults[3].period_proof = None
    run(course.whole(2))
    course.check()


def test_a_lost_session_record_means_a_new_session(cluster: Cluster, tmp_path: Path) -> None:
    course = Course(cluster, tmp_path)
    run(course.whole(2))
    with Outbox(course.home / "fleet", cluster.roster.chain) as outbox:
        outbox.apply([Write(SESSIONS, hid(NETWORK_KEY, METERS[0]), None)])
    run(course.whole(2))
    course.check()


def test_a_revoked_meter_stops_alone_and_keeps_its_reports(cluster: Cluster, tmp_path: Path) -> None:
    from bcami.client.utility import Utility

    course = Course(cluster, tmp_path)

    async def work() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            await course.begin(fleet)
            utility = Utility.open(course.home, cluster.roster)
            await utility.revoke(hid(NETWORK_KEY, METERS[0]), fleet._courier, 0)
            await course.submit(fleet, 3)
            await fleet.drain()
            assert fleet.statistics.stopped == {"revoked_hid": 3}
            assert fleet.statistics.committed == 6

    run(work())
    store = course.store()
    assert store[REPORTS] + store[WAITING] == 3
    course.given.pop(METERS[0])
    course.check()


def test_an_unknown_meter_is_said(cluster: Cluster, tmp_path: Path) -> None:
    course = Course(cluster, tmp_path)

    async def work() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            with pytest.raises(InputError, match="no meter 'MAC9'"):
                await fleet.submit("MAC9", [Reading(0, 0)], 0)

    run(work())


# The window, backpressure.


def test_a_narrow_window_and_many_reports(tmp_path: Path) -> None:
    cluster = Cluster(parameters=Parameters(replay_window=64, session_gap_ms=0))
    cluster.open_period()
    cluster.delay_s = 0.01
    course = Course(cluster, tmp_path)
    fleet = run(course.whole(500))
    assert not fleet.statistics.rejected
    course.check()
    assert course.is_clean()


def test_submit_waits_while_too_much_is_pending(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "Pressure", lambda: Pressure(pending_max=10))
    course = Course(cluster, tmp_path)

    async def work() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            await course.begin(fleet)
            for faults in cluster.faults:
                faults.is_down = True
            submitting = asyncio.ensure_future(course.submit(fleet, 10))
            await asyncio.sleep(0.2)
            assert fleet.pending == 10
            assert not submitting.done()
            for faults in cluster.faults:
                faults.is_down = False
            await submitting
            await fleet.drain()

    run(work())
    course.check()


# Crashes.


class Crash(Exception):
    pass


def crash_at(monkeypatch: pytest.MonkeyPatch, count: int, *, after: bool) -> list[int]:
    """Have the outbox fail at its `count`-th write, before or after it is durable; returns the count of writes."""
    original = Outbox.apply
    seen = [0]

    def apply(self: Outbox, writes) -> None:
        seen[0] += 1
        if seen[0] == count and not after:
            raise Crash
        original(self, writes)
        if seen[0] == count:
            raise Crash

    monkeypatch.setattr(Outbox, "apply", apply)
    return seen


@pytest.mark.parametrize("after", [False, True], ids=["before it is durable", "after it is durable"])
def test_a_crash_at_every_write_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Registration, sealing and forgetting, one meter, cut at each durable write; then the store is opened again."""
    for count in range(2, 40):
        cluster = Cluster()
        cluster.open_period()
        course = Course(cluster, tmp_path / f"{count} {after}")
        with monkeypatch.context() as patched:
            seen = crash_at(patched, count, after=after)
            given: list[Reading] = []

            async def first() -> None:
                fleet = await open_fleet(cluster, course.home)
                try:
                    await fleet.enrol(METERS[:1])
                    await fleet.open_sessions(METERS[:1])
                    for slot in range(3):
                        reading = Reading(slot * 1800, slot)
                        await fleet.submit(METERS[0], [reading], 0, durable=True)
                        given.append(reading)
                    await fleet.drain()
                finally:
                    await fleet.close()

            crashed = False
            try:
                run(first())
            except Crash:
                crashed = True

        async def second() -> None:
            async with await open_fleet(cluster, course.home) as fleet:
                await fleet.enrol(METERS[:1])
                await fleet.open_sessions(METERS[:1])
                for slot in range(len(given), 4):
                    if not fleet.holds(METERS[0], slot * 1800):
                        await fleet.submit(METERS[0], [Reading(slot * 1800, slot)], 0)
                await fleet.drain()

        run(second())
        course.given = {METERS[0]: [Reading(slot * 1800, slot) for slot in range(4)]}
        course.check(once=not after)
        assert course.is_clean()
        registers = [tx for tx in cluster.transactions.values() if tx.function == "register" and tx.contract != "mdms"]
        assert len(registers) == 1, "one registration, resumed"
        sent = [encoded for served in cluster.served for encoded in served.transactions]
        numbers = {(tx.session, tx.sequence) for tx in cluster.transactions.values() if tx.contract == "usage"}
        assert len([1 for tx in cluster.transactions.values() if tx.contract == "usage"]) == len(numbers)
        assert sent
        if not crashed:
            assert seen[0] < count
            return
    pytest.fail("the course has fewer writes than that")


def test_what_a_dead_fleet_left_goes_out_with_the_same_bytes(cluster: Cluster, tmp_path: Path) -> None:
    course = Course(cluster, tmp_path)

    async def first() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            await course.begin(fleet)
            for faults in cluster.faults:
                faults.drops_answers = 1000
            await course.submit(fleet, 20, durable=False)
            await until(lambda: all(served.transactions for served in cluster.served))

    run(first())
    before = {encoded for served in cluster.served for encoded in served.transactions}
    with Outbox(course.home / "fleet", cluster.roster.chain) as outbox:
        stored = outbox.count(REPORTS)
        assert stored > 0
    for faults in cluster.faults:
        faults.drops_answers = 0

    async def second() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            assert fleet.pending == stored
            await fleet.drain()

    run(second())
    after = {encoded for served in cluster.served for encoded in served.transactions}
    assert {tx for tx in after - before} == set() or all(b"usage" in tx for tx in after - before)
    assert course.is_clean()
    executed = sum(sum(counter.values()) for counter in cluster.stored_readings().values())
    assert executed == len(set(cluster.places)) - 3 - 3 - 1  # without enrolments, registrations, the period


def test_a_full_disk_is_told_to_whoever_submits(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = Course(cluster, tmp_path)

    async def work() -> None:
        fleet = await open_fleet(cluster, course.home)
        await course.begin(fleet)

        def full(*_: object) -> None:
            raise EnvironmentFault("disk full")

        monkeypatch.setattr(Outbox, "apply", full)
        with pytest.raises(EnvironmentFault, match="disk full"):
            await fleet.submit(METERS[0], [Reading(0, 0)], 0, durable=True)
        with pytest.raises(EnvironmentFault, match="disk full"):
            await fleet.submit(METERS[0], [Reading(0, 0)], 0)
        with pytest.raises(EnvironmentFault, match="disk full"):
            await fleet.drain()
        await fleet.close()

    run(work())


def test_the_position_is_what_is_durable(cluster: Cluster, tmp_path: Path) -> None:
    course = Course(cluster, tmp_path)

    async def work() -> None:
        async with await open_fleet(cluster, course.home) as fleet:
            await course.begin(fleet)
            assert fleet.position is None
            await fleet.submit(METERS[0], [Reading(0, 0)], 0, position=b"one")
            await fleet.submit(METERS[1], [Reading(0, 0)], 0, position=b"two")
            await fleet.drain()
            assert fleet.position == b"two"
        async with await open_fleet(cluster, course.home) as fleet:
            assert fleet.position == b"two"

    run(work())


# Secrets.


def test_no_private_key_leaves_the_store(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not in what nodes get, on the chain, in logs, on screen or in errors."""
    caplog.set_level(logging.DEBUG)
    course = Course(cluster, tmp_path)
    secrets: list[bytes] = []
    original = ISSUANCE_CODEC.encode

    def listen(record) -> bytes:
        for name in ("own_share", "kem_secret", "key", "context"):
            secrets.append(getattr(record, name, b""))
        return original(record)

    ISSUANCE_CODEC.encode = listen  # type: ignore[method-assign]
    try:
        run(course.whole(3))
    finally:
        del ISSUANCE_CODEC.encode
    with Outbox(course.home / "fleet", cluster.roster.chain) as outbox:
        for _, value in outbox.items(FACTORY):
            record = FACTORY_CODEC.decode(value)
            secrets += [record.signing_secret, record.kem_secret]
    found = [secret for secret in secrets if len(secret) >= 32]
    assert len(found) >= 3 * 6
    public = b"".join(encoded for served in cluster.served for encoded in served.transactions)
    public += b"".join(entry.value for entry in cluster.state.values())
    shown = caplog.text + "".join(capfd.readouterr())
    for secret in found:
        assert secret not in public
        assert secret.hex() not in shown
        assert secret.hex() not in public.hex()
