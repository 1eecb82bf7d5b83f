"""Meters and the MDMS of a network in this process: the product's own code, driven step by step."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bcami.ami.factory import enrolment_of, make_meter, party_of
from bcami.ami.meter import Meter, SealedReport
from bcami.ami.outbox import Write
from bcami.client.issuance import Draft, Party, Prepared, Share, draw, prepare_mdms
from bcami.client.periods import MdmsPeriod
from bcami.codec import encode
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.crypto.signatures import Signer
from bcami.faults.simulator.parties import make_transaction
from bcami.mdms.duckdb_store import DuckDbStore
from bcami.mdms.follower import Followed, Follower
from bcami.mdms.keyring import IssuanceEnd, PeriodKeyring
from bcami.mdms.opening import ReportOpener
from bcami.mdms.periods import erase_old_periods
from bcami.model.chain import BlockBundle
from bcami.model.genesis import Parameters
from bcami.model.reasons import Reason
from bcami.model.registration import RevokeArgument
from bcami.model.report import Reading, encode_report
from bcami.model.transaction import Transaction
from bcami.report.security.attack import Account
from bcami.report.security.grounds import TRANSACTION_CODEC, Grounds, entropy, transaction_of
from bcami.units import HALF_HOUR_S

NETWORK_KEY: Final = entropy("security network key")
FIRST_START_S: Final = 1_356_998_400
"""2013-01-01."""


class Home:
    """A house with a meter."""

    def __init__(self, grounds: Grounds, meter_id: str) -> None:
        self.grounds = grounds
        record = make_meter(meter_id, entropy("factory", grounds.seed, meter_id))
        self.party: Party = party_of(record, NETWORK_KEY, grounds.roster)
        self.meter = Meter.restore(record, self.party, None, None, None, None)
        self.stored: dict[tuple[bytes, bytes], bytes] = {}
        """What the meter has on its disk, by table and key."""
        self.keep(self.meter.first_writes(record))
        self._count = 0

    @property
    def hid(self) -> bytes:
        return self.party.hid

    def keep(self, writes: Iterable[Write]) -> None:
        """Carry out writes on the meter's disk."""
        for table, key, value in writes:
            if value is None:
                self.stored.pop((table, key), None)
            else:
                self.stored[table, key] = value

    def enrolment(self) -> Transaction:
        item = enrolment_of(self.party)
        grounds = self.grounds
        return grounds.utility.enrol(item.hid, item.enrolment_key, item.enrolment_kem_key, grounds.now_ms)

    def begin(self) -> Draft:
        """Draw a draft for the next session."""
        number = self.meter.progress.session_high
        self.keep(self.meter.begin_session(entropy("draw", self.grounds.seed, self.hid, number)))
        draft = self.meter.issuance
        assert isinstance(draft, Draft)
        return draft

    def prepare(self, draft: Draft, period: MdmsPeriod, shares: list[Share | Reason] | None = None) -> Prepared:
        """Return the registration for a draft."""
        found = self.grounds.shares(self.party, draft) if shares is None else shares
        good = [share for share in found if isinstance(share, Share)]
        randomness = entropy("prepare", self.grounds.seed, self.hid, draft.session)
        prepared = self.meter.prepare(draft, good, period, randomness, self.grounds.now_ms)
        self.keep([self.meter.issuance_write(prepared)])
        return prepared

    def register(self, period: MdmsPeriod, node: int = 0) -> Transaction:
        """Open the next session; return its registration. Raises RuntimeError when it is not `valid`."""
        prepared = self.prepare(self.begin(), period)
        tx = transaction_of(prepared)
        reason = self.grounds.reason(node, tx)
        if reason is not Reason.VALID:
            raise RuntimeError(f"an honest registration came to {reason}")
        self.open(prepared)
        return tx

    def open(self, prepared: Prepared) -> None:
        """Take up a session whose registration is valid."""
        writes, _ = self.meter.open_session(prepared)
        self.keep(writes)

    def seal(self, energy: int | None = None) -> tuple[SealedReport, Transaction]:
        """Seal the next half-hour."""
        reading = self.reading(self._count, energy)
        self._count += 1
        self.meter.outstanding.clear()
        write = self.meter.reservation()
        if write is not None:
            self.keep([write])
            self.meter.reserved(write)
        now_ms = self.grounds.now_ms
        sealed = self.meter.seal(encode_report([reading], HALF_HOUR_S), now_ms, now_ms)
        return sealed, TRANSACTION_CODEC.decode(sealed.encoded)

    def report(self) -> Transaction:
        return self.seal()[1]

    def reading(self, number: int, energy: int | None = None) -> Reading:
        used = 1_000_000 + 1_000 * number if energy is None else energy
        return Reading(FIRST_START_S + HALF_HOUR_S * number, used)

    def session_key(self) -> SecretKey:
        """Return Pr as a thief would hold it: a copy that outlives the meter's."""
        session = self.meter.session
        assert session is not None
        return SecretKey.from_scalar_bytes(export_secret(session.key, SECRET_ACCESS))


class Office:
    """The MDMS: its keys on disk, its store, and what it makes of blocks."""

    def __init__(self, grounds: Grounds, folder: Path) -> None:
        self.grounds = grounds
        network = grounds.identities
        assert isinstance(network.mdms, SecretKey)
        self.party = Party(network.genesis.mdms_hid, network.mdms, network.mdms_kem, grounds.roster)
        self.keyring = PeriodKeyring(folder / "periods")
        self.store = DuckDbStore(folder / "store.duckdb", grounds.roster.chain, network.genesis.created_ms, threads=1)
        self.opener = ReportOpener(grounds.roster.chain, self.keyring.kem)
        self._follower = Follower(grounds.roster, self.store, self.opener)
        self.numbers = 0

    def open_period(self, node: int = 0) -> tuple[MdmsPeriod, Transaction]:
        """Open the next period on the chain."""
        grounds = self.grounds
        self.numbers += 1
        draft = draw(self.party, self.numbers, entropy("period", grounds.seed, self.numbers))
        self.keyring.save_issuance(draft)
        good = [share for share in grounds.shares(self.party, draft) if isinstance(share, Share)]
        prepared = prepare_mdms(self.party, draft, good, grounds.now_ms)
        self.keyring.save_issuance(prepared)
        tx = transaction_of(prepared)
        reason = grounds.reason(node, tx)
        if reason is not Reason.VALID:
            raise RuntimeError(f"an honest period came to {reason}")
        self.keyring.finish_issuance(self.numbers, IssuanceEnd.REGISTERED)
        period = grounds.prove(tx)
        if isinstance(period, Reason):
            raise RuntimeError(f"an honest period is not believed: {period}")  # noqa: TRY004  no wrong type, a refusal
        return period, tx

    def follow(self, node: int = 0) -> Followed:
        """Pull everything that a node has certified."""
        return self._follower.follow(self.grounds.bundles(node))

    def take(self, bundles: Sequence[BlockBundle]) -> Followed:
        """Take blocks that somebody offers."""
        return self._follower.follow(bundles)

    def energy(self, home: Home) -> list[int]:
        """Return the stored energies of a meter, by time."""
        number = self.store.meter_number(home.hid)
        rows = (
            self.store.reader()
            .execute("select energy from readings where meter = ? order by start_s", [number])
            .fetchall()
        )
        return [int(row[0]) for row in rows]

    def erase(self) -> list[int]:
        """Destroy the keys of periods that are over, as the MDMS does; return their numbers."""
        grace_ms = self.grounds.roster.genesis.parameters.period_grace_ms
        return erase_old_periods(self.store, self.keyring, self.opener, grace_ms)


@contextmanager
def office(grounds: Grounds) -> Iterator[Office]:
    """Open an MDMS for the network, in a folder that is removed afterwards."""
    with TemporaryDirectory(prefix="bcami-security-") as folder:
        opened = Office(grounds, Path(folder))
        try:
            yield opened
        finally:
            opened.store.close()


class Town:
    """A network with an open MDMS period and registered meters: where most attacks begin."""

    def __init__(self, grounds: Grounds, mdms: Office, homes: int) -> None:
        self.grounds = grounds
        self.mdms = mdms
        self.homes = [Home(grounds, f"MAC{number:06d}") for number in range(2, 2 + homes)]
        self.enrolments = [home.enrolment() for home in self.homes]
        for enrolment in self.enrolments:
            if grounds.reason(0, enrolment) is not Reason.VALID:
                raise RuntimeError("an honest enrolment failed")
        self.period, self.period_tx = mdms.open_period()
        self.registrations = [home.register(self.period) for home in self.homes]

    @property
    def home(self) -> Home:
        return self.homes[0]

    def revoke(self, home: Home) -> Transaction:
        """Return the utility's revocation."""
        grounds = self.grounds
        grounds.utility.sequence += 1
        network = grounds.identities
        number = (0, grounds.utility.sequence)
        argument = encode(RevokeArgument(home.hid))
        call = ("registration", "revoke")
        return make_transaction(network, [network.utility], call, network.utility_id, number, grounds.now_ms, argument)

    def wait_for_gap(self) -> None:
        """Let the time between two sessions pass."""
        self.grounds.run(self.grounds.roster.genesis.parameters.session_gap_ms + 1)


@contextmanager
def town(
    seed: int = 0,
    *,
    nodes: int = 4,
    homes: int = 2,
    parameters: Parameters | None = None,
    byzantine: tuple[int, ...] = (),
) -> Iterator[Town]:
    """Open a town, and close it afterwards."""
    grounds = Grounds(nodes, seed, parameters=parameters, byzantine=byzantine)
    with office(grounds) as mdms:
        yield Town(grounds, mdms, homes)


def made(
    grounds: Grounds,
    keys: Sequence[Signer],
    call: tuple[str, str],
    signer: bytes,
    number: tuple[int, int],
    argument: bytes,
) -> Transaction:
    """Return a transaction that these keys sign now; `number` is (session, sequence)."""
    return make_transaction(grounds.identities, keys, call, signer, number, grounds.now_ms, argument)


def try_each(account: Account, grounds: Grounds, tries: Sequence[tuple[str, Transaction]]) -> bool:
    """Submit each try to every node that is up; tell whether one became valid."""
    won = False
    for what, tx in tries:
        reasons = [grounds.reason(node, tx) or "no answer" for node in grounds.up]
        for reason in dict.fromkeys(reasons):
            account.no(f"admission: {what}", reason)
        won = won or Reason.VALID in reasons
    return won


def short(data: bytes) -> str:
    """Return the beginning of a value, for transcripts."""
    return data.hex()[:12] + "…"


def digest(data: bytes) -> bytes:
    return sha256(data).digest()
