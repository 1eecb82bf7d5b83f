"""F1, perfect forward secrecy, and leaked keys of the MDMS.

What this system claims is less than the paper's word: usage secrecy ends with the MDMS's period key and the meter's
context of the open session, not with Pr (protocol 2.5). Attacks on what is claimed must fail; those on perfect forward
secrecy proper succeed, and say where it ends.
"""

from typing import Final

from bcami.ami.outbox import ISSUANCES, SESSIONS
from bcami.ami.records import SESSION_CODEC
from bcami.client.issuance import ISSUANCE_CODEC, Prepared
from bcami.codec import Codec
from bcami.crypto.hpke import KemSecretKey, OpenError, SealingContext, setup_receiver
from bcami.crypto.keys import SECRET_ACCESS, export_secret
from bcami.mdms.opening import ReportOpener
from bcami.mdms.records import PeriodRow, ReportFault, SessionRow
from bcami.model.genesis import Parameters
from bcami.model.reasons import Reason
from bcami.model.registration import RegisterArgument, usage_aad, usage_info
from bcami.model.transaction import ARGUMENT_BYTES_MAX, Transaction
from bcami.report.security import paper
from bcami.report.security.attack import Account, Attack, PaperRun
from bcami.report.security.grounds import transaction_of
from bcami.report.security.people import Home, Office, Town, short, town

SHORT_GRACE: Final = Parameters(period_grace_ms=60_000)
NEEDS_PERIOD: Final = "secrecy of a report lasts as long as the MDMS's period key is alive; then that key is erased"
NEEDS_CONTEXT: Final = "a meter keeps the sealing context of its open session; it is destroyed when the next one opens"


def _try(town_: Town, tx: Transaction, home: Home, key: KemSecretKey, period: int) -> bytes | None:
    """Return a report opened with a stolen KEM key and what stands on the chain; None when it does not open."""
    grounds = town_.grounds
    session = town_.mdms.store.session(tx.signer, tx.session)
    row = town_.mdms.store.period(period)
    if session is None or row is None:
        return None
    info = usage_info(grounds.roster.chain, home.hid, tx.session, row.key_id)
    try:
        context = setup_receiver(session.encapsulation, key, info)
        aad = usage_aad(grounds.roster.chain, tx.signer, tx.session, tx.sequence, tx.timestamp_ms)
        return context.open(tx.sequence, aad, tx.argument)
    except OpenError:
        return None


def _committed(account: Account, where: Town, home: Home) -> tuple[Transaction, bytes]:
    sealed, tx = home.seal()
    account.check("an honest report is committed", where.grounds.reason(1, tx) is Reason.VALID)
    where.grounds.settle()
    return tx, sealed.report


def session_key_leaks(seed: int) -> Account:
    """Pr of the open session leaks."""
    account = Account()
    with town(seed) as where:
        home = where.home
        tx, plaintext = _committed(account, where, home)
        where.mdms.follow(2)
        stolen = home.session_key()
        account.does(
            "records a sealed report on the chain, and steals Pr of the session that sealed it", short(tx.argument)
        )
        as_kem = KemSecretKey.from_scalar_bytes(export_secret(stolen, SECRET_ACCESS))
        opened = _try(where, tx, home, as_kem, where.period.number)
        account.no("HPKE, with Pr as the private key", None if opened else "does not open")
        account.aim("read the report with Pr", opened == plaintext)
        live = where.mdms.keyring.kem(where.period.number)
        account.check("the period key does open it", live is not None and _try(where, tx, home, live, 1) == plaintext)
    return account


def meter_is_seized(seed: int) -> Account:
    """All of a meter's memory and store are seized in its second session."""
    account = Account()
    with town(seed) as where:
        home, grounds = where.home, where.grounds
        old, old_plain = _committed(account, where, home)
        first = home.meter.session
        assert first is not None
        key_of_first = first.key
        where.wait_for_gap()
        home.register(where.period)
        new, new_plain = _committed(account, where, home)
        account.does("records a report of session 1 and one of session 2, then seizes the meter: all keys, all records")
        contexts = _contexts(home)
        account.check("the disk gives a sealing context away", bool(contexts))
        account.no("the key of session 1", "destroyed" if not any(export_secret(key_of_first, SECRET_ACCESS)) else None)
        account.aim("read the report of session 1", _opens(contexts, old, home, old_plain))
        account.aim("read the report of session 2", _opens(contexts, new, home, new_plain), NEEDS_CONTEXT)
        account.check("both reports are on the chain", grounds.settle())
    return account


def _contexts(home: Home) -> list[bytes]:
    """Return every sealing context in a meter's memory and on its disk."""
    session = home.meter.session
    found = [] if session is None else [session.context.to_secret_bytes(SECRET_ACCESS)]
    for (table, _), value in home.stored.items():
        if table == SESSIONS:
            found.append(SESSION_CODEC.decode(value).context)
        elif table == ISSUANCES:
            record = ISSUANCE_CODEC.decode(value)
            found += [record.context] if isinstance(record, Prepared) else []
    return found


def _opens(contexts: list[bytes], tx: Transaction, home: Home, plaintext: bytes) -> bool:
    """Tell whether a seized sealing context gives a report away: the same key and nonce seal to the same bytes."""
    chain = home.grounds.roster.chain
    aad = usage_aad(chain, tx.signer, tx.session, tx.sequence, tx.timestamp_ms)
    return any(
        SealingContext.from_secret_bytes(stored).seal(tx.sequence, aad, plaintext) == tx.argument for stored in contexts
    )


def period_key_leaks(seed: int) -> Account:
    """The MDMS's period key leaks while it lives."""
    account = Account()
    with town(seed) as where:
        home, mdms, grounds = where.home, where.mdms, where.grounds
        first, first_plain = _committed(account, where, home)
        where.wait_for_gap()
        home.register(where.period)
        second, second_plain = _committed(account, where, home)
        mdms.follow(2)
        stolen = KemSecretKey.from_scalar_bytes(_secret(mdms, where.period.number))
        account.does("steals the private key of period 1 from the MDMS's disk, and takes all blocks from a node")
        both = (
            _try(where, first, home, stolen, 1) == first_plain and _try(where, second, home, stolen, 1) == second_plain
        )
        account.aim("read all reports of period 1, of whichever session of the meter", both, NEEDS_PERIOD)
        where.wait_for_gap()
        period, _ = mdms.open_period()
        home.register(period)
        third, third_plain = _committed(account, where, home)
        mdms.follow(2)
        opened = _try(where, third, home, stolen, 2)
        account.no("HPKE, with the key of period 1", None if opened else "does not open")
        account.aim("read a report of period 2 with the key of period 1", opened == third_plain)
        account.check("nodes agree", grounds.settle())
    return account


def period_key_after_erasure(seed: int) -> Account:
    """Everything that the MDMS has is seized after a period was erased."""
    account = Account()
    with town(seed, parameters=SHORT_GRACE) as where:
        home, mdms, grounds = where.home, where.mdms, where.grounds
        tx, plaintext = _committed(account, where, home)
        where.wait_for_gap()
        period, _ = mdms.open_period()
        home.register(period)
        mdms.follow(2)
        account.check("the report is stored before its key is erased", 1_000_000 in mdms.energy(home))
        grounds.run(grounds.roster.genesis.parameters.period_grace_ms + 1_000)
        later, later_plain = _committed(account, where, home)
        mdms.follow(2)
        account.does("waits for the grace after period 1 to be over", f"the MDMS erases periods {mdms.erase()}")
        account.does("seizes the MDMS: every key file, its memory, its store; takes all blocks from a node")
        keys = {number: mdms.keyring.kem(number) for number in (1, 2)}
        account.no("key of period 1", "erased" if keys[1] is None else None)
        row, session = _as_on_chain(where, tx, 1)
        again = ReportOpener(grounds.roster.chain, keys.get).open(tx, session, row)
        account.no("opening the report of period 1", again if isinstance(again, ReportFault) else None)
        account.aim("read a report of the erased period", again == plaintext)
        files = sorted(path.name for path in mdms.keyring.folder.iterdir())
        account.aim("find the key file of the erased period", any(name.startswith("00000001") for name in files))
        live = keys[2]
        account.check("the live period opens", live is not None and _try(where, later, home, live, 2) == later_plain)
        kept = mdms.energy(home)
        limit = (
            "the readings themselves are what the MDMS stores; its store is protected as a store, not by this protocol"
        )
        account.aim("read the stored readings in the seized store", 1_000_000 in kept, limit)
    return account


def _as_on_chain(where: Town, tx: Transaction, number: int) -> tuple[PeriodRow | None, SessionRow]:
    """Return what everybody knows from the blocks: the attacker needs no store for it."""
    argument = Codec[RegisterArgument](RegisterArgument, ARGUMENT_BYTES_MAX).decode(where.registrations[0].argument)
    session = SessionRow(
        tx.signer, tx.session, argument.encapsulation, number, 0, argument.public_key, argument.kem_key
    )
    return where.mdms.store.period(number), session


def _secret(mdms: Office, number: int) -> bytes:
    key = mdms.keyring.kem(number)
    assert key is not None
    return export_secret(key, SECRET_ACCESS)


def node_remembers(seed: int) -> Account:
    """All f+1 contributors of a key keep everything they ever saw of it."""
    account = Account()
    with town(seed) as where:
        home, grounds = where.home, where.grounds
        where.wait_for_gap()
        draft = home.begin()
        shares = grounds.shares(home.party, draft)
        prepared = home.prepare(draft, where.period, shares)
        account.check("an honest session opens", grounds.reason(0, transaction_of(prepared)) is Reason.VALID)
        home.open(prepared)
        pr = home.session_key()
        known = [share.key for share in shares if not isinstance(share, Reason)]
        account.does(f"controls all {len(known)} nodes that contributed, and keeps their shares x_j")
        guess = known[0].plus(*known[1:])
        account.no("the sum of all contributed shares", None if guess.public_key == pr.public_key else "is not Pr")
        account.aim("have Pr of the meter", guess.public_key == pr.public_key)
    return account


def paper_node_remembers(seed: int) -> Account:
    """A node of the paper keeps what Algorithm 1 computes on it."""
    account, network = Account(), paper.network(seed)
    txs = [network.report(f"usage {number}".encode(), number) for number in range(3)]
    account.check("honest reports are accepted", all(network.contract.submit(tx) is None for tx in txs))
    account.does("runs one node, and keeps x of each run of Algorithm 1, among them that of the MDMS")
    opened = [paper.read(tx, key) for tx in txs for _, key in network.contract.dealt if paper.read(tx, key) is not None]
    account.aim("read every report, past and future", len(opened) == len(txs))
    account.aim("have Pr of every meter", {hid for hid, _ in network.contract.dealt} >= set(network.meters))
    return account


def paper_period_key_leaks(seed: int) -> Account:
    """The paper's MDMS key leaks; nothing says that it is ever erased."""
    account, network = Account(), paper.network(seed)
    tx = network.report(b"usage")
    account.check("an honest report is accepted", network.contract.submit(tx) is None)
    network.contract.register(network.hid)
    account.does("waits until the meter has a new key pair for its next session, then steals Pr of the MDMS")
    account.aim("read the report of the session before", paper.read(tx, network.mdms) == b"usage")
    return account


ATTACKS: Final = (
    Attack("F1.1", "The meter's session key leaks", "Pr of the session; every block", session_key_leaks),
    Attack("F1.2", "A meter is seized", "a meter's whole memory and store, and every block", meter_is_seized),
    Attack(
        "F1.3",
        "The MDMS's period key leaks while it lives",
        "the private key of one period; every block",
        period_key_leaks,
        PaperRun("4.2.2, 4.2.4, 5.4.1", paper_period_key_leaks),
        also=("MDMS-KEY",),
    ),
    Attack(
        "F1.4",
        "The MDMS is seized after a period was erased",
        "every key file, memory and store of the MDMS; every block",
        period_key_after_erasure,
        PaperRun("4.2.2, 4.2.4, 5.4.1", paper_period_key_leaks),
        also=("MDMS-KEY",),
    ),
    Attack(
        "F1.5",
        "Nodes keep what they saw of a key",
        "the shares that f+1 nodes contributed to one key",
        node_remembers,
        PaperRun("4.2.2, Algorithm 1", paper_node_remembers),
        also=("SHARE",),
    ),
)
