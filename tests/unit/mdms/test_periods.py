"""Opening periods without a dealer, surviving crashes on the way, and destroying old keys in time."""

import asyncio
import stat

import pytest
import structlog

from bcami.client.courier import Settlement
from bcami.client.issuance import Draft, Party, Prepared
from bcami.client.nodes import NodeUnavailable
from bcami.codec import Codec
from bcami.crypto.hpke import seal_to, setup_receiver
from bcami.crypto.keyfile import write_secret
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.errors import EnvironmentFault, InputError
from bcami.mdms.follower import Follower
from bcami.mdms.keyring import PERIOD_KIND, IssuanceEnd, PeriodKeyring
from bcami.mdms.opening import ReportOpener
from bcami.mdms.periods import PeriodRegistrar, Surroundings, erasable_periods, erase_old_periods
from bcami.mdms.records import BackupRow, PeriodRow
from bcami.model.reasons import Reason
from bcami.model.registration import (
    Contribution,
    ContributionAnswer,
    MdmsRegisterArgument,
    contribution_digest,
    request_hash,
    share_info,
)
from bcami.model.report import Reading
from bcami.model.transaction import ARGUMENT_BYTES_MAX, TRANSACTION_BYTES_MAX, Transaction
from tests.chain import ChainPeriod, entropy
from tests.unit.mdms.conftest import World

T0 = 1_356_998_400
GRACE_MS = 10_000
_TX = Codec(Transaction, TRANSACTION_BYTES_MAX)
_ARGUMENT = Codec(MdmsRegisterArgument, ARGUMENT_BYTES_MAX)


class Node:
    """Contributes to keys as a node does."""

    def __init__(self, world: World, replica: int) -> None:
        self.world = world
        self.replica = replica
        self.requests: list[bytes] = []
        self.proof = None

    async def contribute(self, request):
        chain, roster = self.world.chain, self.world.chain.roster
        asked = request_hash(request)
        self.requests.append(asked)
        share = SecretKey.generate(entropy(f"share/{self.replica}") + asked)
        statement = contribution_digest(
            roster.chain, 0, request.hid, request.session, asked, self.replica, share.public_key
        )
        info = share_info(roster.chain, request.hid, request.session, asked, self.replica)
        scalar = export_secret(share, SECRET_ACCESS)
        enc, sealed = seal_to(chain.mdms_enrolment_kem.public_key, info, b"", scalar, asked)
        contribution = Contribution(self.replica, share.public_key, chain.keys[self.replica].sign(statement))
        return ContributionAnswer(contribution, enc, sealed)

    async def period(self):
        if self.proof is None:
            raise NodeUnavailable("node", "down")
        return self.proof


class Chain:
    """Settles what it is given, with outcomes prepared by the test."""

    def __init__(self, *settlements: Settlement) -> None:
        self.settlements = list(settlements)
        self.sent: list[Transaction] = []

    async def settle(self, encoded: bytes, _tx_id: bytes) -> Settlement:
        self.sent.append(_TX.decode(encoded))
        if not self.settlements:
            raise Stopped
        return self.settlements.pop(0)


class Stopped(Exception):
    """The process ends here."""


VALID = Settlement(True, Reason.VALID, 5, 0)
REJECTED = Settlement(True, Reason.SESSION_NOT_ABOVE, 5, 0)
ABANDONED = Settlement(False, Reason.NOT_AUTHORIZED, 0, 0)


class Setup:
    def __init__(self, world: World, folder) -> None:
        self.world = world
        self.nodes = [Node(world, replica) for replica in range(4)]
        self.keyring = PeriodKeyring(folder / "periods")
        self.now_ms = 1_800_000_000_000
        self.draws = 0

    def registrar(self, chain: Chain, period_seconds: int = 3600) -> PeriodRegistrar:
        builder = self.world.chain
        party = Party(builder.mdms_hid, builder.mdms_enrolment, builder.mdms_enrolment_kem, builder.roster)
        return PeriodRegistrar(
            party,
            self.keyring,
            self.world.store,
            self.nodes,
            chain.settle,
            Surroundings(lambda: self.now_ms, self.randomness),
            structlog.get_logger(),
            period_seconds=period_seconds,
        )

    def randomness(self) -> bytes:
        self.draws += 1
        return entropy(f"draw {self.draws}")

    def ensure(self, chain: Chain, **options) -> int:
        return asyncio.run(self.registrar(chain, **options).ensure())

    def files(self) -> list[str]:
        return sorted(path.name for path in self.keyring.folder.iterdir())


@pytest.fixture
def setup(world: World, tmp_path) -> Setup:
    return Setup(world, tmp_path)


def test_opens_a_first_period_and_keeps_it(setup: Setup) -> None:
    chain = Chain(VALID)
    assert setup.ensure(chain) == 1
    argument = _ARGUMENT.decode(chain.sent[0].argument)
    assert setup.keyring.kem(1).public_key == argument.kem_key
    assert setup.keyring.signing(1).public_key == argument.public_key
    assert setup.files() == ["00000001.key"]
    assert stat.S_IMODE((setup.keyring.folder / "00000001.key").stat().st_mode) == 0o600
    assert setup.ensure(Chain()) == 1
    assert PeriodKeyring(setup.keyring.folder).current() == 1


def test_a_period_that_is_old_or_not_the_newest_is_followed_by_another(setup: Setup) -> None:
    assert setup.ensure(Chain(VALID)) == 1
    setup.world.follower().follow(setup.world.chain.bundles)  # the chain's period 1, opened at START_MS
    assert setup.ensure(Chain(VALID), period_seconds=10**9) == 1
    assert setup.ensure(Chain(VALID), period_seconds=1) == 2
    setup.world.open_period()
    third = setup.world.open_period()  # somebody else with the enrolment key, or a lost store
    assert third.number == 3
    setup.world.follower().follow(setup.world.chain.bundles)
    assert setup.ensure(Chain(VALID), period_seconds=10**9) == 4


def test_a_rejected_number_is_left_behind_and_its_key_destroyed(setup: Setup) -> None:
    chain = Chain(REJECTED, REJECTED, VALID)
    assert setup.ensure(chain) == 3
    assert [tx.sequence for tx in chain.sent] == [1, 2, 3]
    assert setup.files() == ["00000003.key"]


def test_an_abandoned_registration_may_still_be_executed(setup: Setup) -> None:
    chain = Chain(ABANDONED, VALID)
    assert setup.ensure(chain) == 2
    assert setup.files() == ["00000001.abandoned", "00000002.key"]
    assert setup.keyring.current() == 2
    assert setup.keyring.kem(1) is not None
    setup.world.chain.open_period()
    setup.world.follower().follow(setup.world.chain.bundles)
    assert [row.number for row in setup.world.store.periods()] == [1, 2]
    opener = ReportOpener(bytes(32), setup.keyring.kem)
    erase_old_periods(setup.world.store, setup.keyring, opener, GRACE_MS)
    assert setup.files() == ["00000001.abandoned", "00000002.key"]  # the chain has executed it after all


def test_an_abandoned_key_is_destroyed_when_a_higher_period_is_stored_instead(setup: Setup) -> None:
    assert setup.ensure(Chain(*[ABANDONED] * 2, VALID)) == 3
    world = setup.world
    world.chain._periods = 4
    world.open_period()
    world.follower().follow(world.chain.bundles)
    erase_old_periods(world.store, setup.keyring, ReportOpener(bytes(32), setup.keyring.kem), GRACE_MS)
    assert setup.files() == ["00000001.abandoned", "00000003.key"]


def test_a_crash_after_the_draft_asks_for_the_same_shares(setup: Setup) -> None:
    nodes = setup.nodes
    setup.nodes = [Broken(), Broken(), Broken(), Broken()]
    with pytest.raises(Stopped):
        setup.ensure(Chain())
    assert setup.files() == ["00000001.issuance"]
    assert isinstance(setup.keyring.issuance(), Draft)
    setup.nodes = nodes
    assert setup.ensure(Chain(VALID)) == 1
    assert setup.draws == 1
    assert len({asked for node in nodes for asked in node.requests}) == 1


class Broken:
    async def contribute(self, _request):
        raise Stopped

    async def period(self):
        return None


def test_a_crash_before_the_receipt_sends_the_same_bytes(setup: Setup) -> None:
    first, second = Chain(), Chain(VALID)
    with pytest.raises(Stopped):
        setup.ensure(first)
    assert setup.files() == ["00000001.issuance", "00000001.key"]
    assert isinstance(setup.keyring.issuance(), Prepared)
    assert setup.keyring.current() is None
    setup.keyring = PeriodKeyring(setup.keyring.folder)
    assert setup.ensure(second) == 1
    assert first.sent == second.sent
    assert setup.files() == ["00000001.key"]


def test_secrets_stay_out_of_sight(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Stopped):
        setup.ensure(Chain(REJECTED, ABANDONED))
    record = setup.keyring.issuance()
    setup.ensure(Chain(VALID))
    shown = capsys.readouterr().out + repr(record) + repr(setup.keyring.kem(3)) + repr(setup.keyring.signing(3))
    assert export_secret(setup.keyring.signing(3), SECRET_ACCESS).hex() not in shown
    assert repr(record.key) not in shown


def test_damaged_and_open_key_files_are_told(setup: Setup) -> None:
    setup.ensure(Chain(VALID))
    path = setup.keyring.folder / "00000001.key"
    path.chmod(0o644)
    with pytest.raises(EnvironmentFault, match="others may read"):
        PeriodKeyring(setup.keyring.folder).kem(1)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged"):
        PeriodKeyring(setup.keyring.folder).kem(1)


def test_erased_files_are_overwritten_and_gone(setup: Setup) -> None:
    setup.ensure(Chain(VALID))
    keyring = setup.keyring
    held = keyring.kem(1)
    keyring.erase(1)
    keyring.erase(1)
    assert (setup.files(), keyring.kem(1), keyring.signing(1)) == ([], None, None)
    with pytest.raises(ValueError):
        setup_receiver(setup.world.chain.mdms_enrolment_kem.public_key, held, b"")
    keyring.finish_issuance(1, IssuanceEnd.REJECTED)


def row(number: int, superseded_ms: int, *, erased: bool = False) -> PeriodRow:
    return PeriodRow(number, bytes(32), bytes(65), bytes(33), 0, superseded_ms, 1, erased)


@pytest.mark.parametrize(
    ("stored_ms", "expected"), [(0, []), (1_000 + GRACE_MS, []), (1_001 + GRACE_MS, [1]), (10**9, [1, 2])]
)
def test_a_period_is_erasable_once_no_block_above_can_use_it(stored_ms: int, expected: list[int]) -> None:
    rows = [row(1, 1_000), row(2, 5_000), row(3, 0), row(4, 1, erased=True)]
    assert erasable_periods(rows, stored_ms, GRACE_MS) == expected


class KeptWorld:
    """A world whose period keys are in a keyring."""

    def __init__(self, world: World, keyring: PeriodKeyring) -> None:
        self.world, self.keyring = world, keyring
        for period in world.periods.values():
            self.keep(period)
        self.opener = ReportOpener(world.chain.roster.chain, keyring.kem)

    def keep(self, period: ChainPeriod) -> None:
        secret = export_secret(period.signing, SECRET_ACCESS) + export_secret(period.kem, SECRET_ACCESS)
        write_secret(self.keyring.folder / f"{period.number:08d}.key", PERIOD_KIND, secret)

    def follow(self):
        return Follower(self.world.chain.roster, self.world.store, self.opener).follow(self.world.chain.bundles)

    def erase(self, **options) -> list[int]:
        return erase_old_periods(self.world.store, self.keyring, self.opener, GRACE_MS, **options)


def test_old_keys_go_when_the_last_acceptable_block_is_stored(setup: Setup) -> None:
    world = setup.world
    both = KeptWorld(world, setup.keyring)
    world.chain.block([world.meter.report([Reading(T0, 1)])])
    second = world.open_period()
    both.keep(second)
    world.chain.block([world.meter.report([Reading(T0 + 1800, 2)])], step_ms=GRACE_MS)  # the last moment
    assert both.follow().stored.new == 2
    assert both.erase() == []
    late = world.meter.report([Reading(T0 + 3600, 3)])
    world.chain.block([], step_ms=1)
    both.follow()
    assert both.erase() == [1]
    assert setup.files() == ["00000002.key"]
    assert world.store.period(1).erased
    assert world.store.session(world.meter.hid, 1) is None
    world.chain.block([late])  # no honest cluster accepts it; nothing could open it
    assert both.follow().unreadable[0].fault == "unknown_session"
    world.reopen()
    assert world.store.session(world.meter.hid, 1) is None
    assert both.erase() == []


def test_a_crash_between_mark_and_erase_is_made_good(setup: Setup) -> None:
    world = setup.world
    both = KeptWorld(world, setup.keyring)
    world.open_period()
    world.chain.block([], step_ms=GRACE_MS + 1)
    both.follow()
    world.store.mark_erased(1)
    assert "00000001.key" in setup.files()
    assert both.erase() == []
    assert setup.files() == []


def test_keys_wait_for_a_backup_if_told_so(setup: Setup) -> None:
    world = setup.world
    both = KeptWorld(world, setup.keyring)
    world.open_period()
    world.chain.block([], step_ms=GRACE_MS + 1)
    both.follow()
    assert both.erase(after_backup=True) == []
    cursor = world.store.cursor
    world.store.record_backup(BackupRow(cursor.height - 1, cursor.time_ms - GRACE_MS, 1, "old"))
    assert both.erase(after_backup=True) == []
    world.store.record_backup(BackupRow(cursor.height, cursor.time_ms, 2, "new"))
    assert both.erase(after_backup=True) == [1]
