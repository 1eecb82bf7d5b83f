"""F7, impersonation, with stolen keys; and what a HID gives away."""

import hmac
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Final

from bcami.client.issuance import draw, prepare_meter
from bcami.crypto.hid import hid
from bcami.crypto.hpke import setup_sender
from bcami.mdms.records import ReportFault
from bcami.model.block import checkpoint_digest
from bcami.model.consensus import Checkpoint, Commit, Prepare, phase_digest
from bcami.model.reasons import Reason
from bcami.model.registration import usage_aad, usage_info
from bcami.model.report import encode_report
from bcami.report.security import paper
from bcami.report.security.attack import Account, Attack, PaperRun
from bcami.report.security.grounds import Grounds, Puppet, entropy, transaction_of
from bcami.report.security.people import NETWORK_KEY, Town, made, town
from bcami.units import HALF_HOUR_S

DICTIONARY: Final = 20_000
"""Meter ids that are tried: MAC000000 and so on, as in the London data."""
ENROLMENT_IS_IDENTITY: Final = (
    "enrolment keys are the meter's identity; who has them is the meter until the utility revokes its HID"
)
NUMBERS_ONLY: Final = (
    "Pr signs transactions, so its thief can use up sequence numbers of that session; he stores nothing"
)


def session_key_is_used(seed: int) -> Account:
    """The thief of Pr reports in the meter's name; he does not have the sealing context."""
    account = Account()
    with town(seed) as where:
        grounds, home, mdms = where.grounds, where.home, where.mdms
        pr = home.session_key()
        session = home.meter.session
        assert session is not None
        info = usage_info(grounds.roster.chain, home.hid, session.number, where.period.key_id)
        _, context = setup_sender(where.period.kem_key, info, entropy("thief", seed))
        aad = usage_aad(grounds.roster.chain, home.hid, session.number, 5, grounds.now_ms)
        false = encode_report([home.reading(0, 42)], HALF_HOUR_S)
        account.does(
            "steals Pr, seals a false reading to the MDMS's key with an encapsulation of his own, signs with Pr"
        )
        tx = made(grounds, [pr], ("usage", "report"), home.hid, (session.number, 5), context.seal(5, aad, false))
        reason = grounds.reason(0, tx)
        account.no("admission: the thief's report", reason or "no answer")
        account.aim("have a report accepted on the chain", reason is Reason.VALID, NUMBERS_ONLY)
        mine = home.report()
        account.check("the meter's own report is valid", grounds.reason(1, mine) is Reason.VALID)
        grounds.settle()
        unreadable = mdms.follow(2).unreadable
        account.no("MDMS: opening it", unreadable[0].fault if unreadable else None)
        account.aim("have a false reading stored", 42 in mdms.energy(home))
        account.check("the MDMS has the meter's own reading", mdms.energy(home) == [1_000_000])
        account.check(
            "what was refused is recorded", [item.fault for item in unreadable] == [ReportFault.NOT_AUTHENTIC]
        )
    return account


def enrolment_keys_are_stolen(seed: int) -> Account:
    """The thief of the enrolment keys opens a session, until the utility revokes the HID."""
    account = Account()
    with town(seed) as where:
        grounds, home = where.grounds, where.home
        where.wait_for_gap()
        account.does("steals the enrolment keys, and opens a session of his own")
        reason = _open_as_thief(where, 2)
        account.no("contract: register by the thief", reason)
        account.aim("open a session in the meter's name", reason is Reason.VALID, ENROLMENT_IS_IDENTITY)
        account.does("the meter itself reports", str(grounds.reason(1, home.report()) or "no answer"))
        account.check("the utility revokes the HID", grounds.reason(2, where.revoke(home)) is Reason.VALID)
        grounds.settle()
        where.wait_for_gap()
        later = _open_as_thief(where, 3)
        account.no("contribute, after the revocation", later)
        account.aim("open a session after the revocation", later is Reason.VALID)
    return account


def _open_as_thief(where: Town, number: int) -> Reason:
    grounds, party = where.grounds, where.home.party
    draft = draw(party, number, entropy("thief draws", grounds.seed, number))
    found = grounds.shares(party, draft)
    good = [share for share in found if not isinstance(share, Reason)]
    if len(good) < grounds.roster.quorum.weak:
        return next(share for share in found if isinstance(share, Reason))
    prepared = prepare_meter(party, draft, good, where.period, entropy("thief prepares", number), grounds.now_ms)
    return grounds.reason(0, transaction_of(prepared)) or Reason.NOT_READY


def member_is_impersonated(seed: int) -> Account:
    """A member votes in another member's name."""
    account = Account()
    with town(seed) as where:
        grounds = where.grounds
        grounds.settle()
        puppet = Puppet(grounds, 3)
        height = grounds.ledger(0).height + 1
        false = entropy("false proposal", seed)
        account.does("node 4 sends prepare, commit and checkpoint as node 2, signed with its own key")
        before = len(grounds.said_no(0))
        for message in _votes_as(grounds, 1, 3, height, false):
            puppet.say(message)
        grounds.run(500)
        said = grounds.said_no(0)[before:]
        for reason in dict.fromkeys(said):
            account.no("node 1: votes in another's name", reason)
        account.aim("have a vote counted in another member's name", said.count(Reason.BAD_SIGNATURE) < 3)
        account.check("the others go on", grounds.reason(1, where.home.report()) is Reason.VALID)
    return account


def _votes_as(
    grounds: Grounds, claimed: int, signer: int, height: int, digest: bytes
) -> Iterable[Prepare | Commit | Checkpoint]:
    chain, epoch, key = grounds.roster.chain, grounds.roster.epoch, grounds.identities.consensus[signer]
    prepared = key.sign(phase_digest(b"prepare", chain, epoch, 0, height, digest))
    yield Prepare(epoch, 0, height, digest, claimed, prepared)
    committed = key.sign(phase_digest(b"commit", chain, epoch, 0, height, digest))
    yield Commit(epoch, 0, height, digest, claimed, committed)
    yield Checkpoint(epoch, height, digest, claimed, key.sign(checkpoint_digest(chain, epoch, height, digest)))


# HIDs.


def _guesses(public: dict[str, bytes]) -> Iterable[tuple[str, Callable[[str], bytes]]]:
    """Return ways to make a HID of a meter id without the network key, each with its name."""
    yield "SHA-256 of the id", lambda meter: sha256(meter.encode()).digest()
    for name, key in public.items():
        yield f"HMAC under {name}", lambda meter, key=key: hmac.digest(key, meter.encode(), "sha256")  # type: ignore[misc]
        yield f"the HID formula under {name}", lambda meter, key=key: hid(key, meter)  # type: ignore[misc]


def dictionary_by_node(seed: int) -> Account:
    """A node tries all meter ids against the HIDs on its chain."""
    account = Account()
    with town(seed) as where:
        grounds = where.grounds
        real = {home.hid for home in where.homes}
        account.check("the ids of the customers are in the dictionary", hid(NETWORK_KEY, "MAC000002") in real)
        public = {
            "zeros": bytes(32),
            "the chain id": grounds.roster.chain,
            "the utility's public key": grounds.identities.genesis.utility_key,
            "the node's own key": grounds.roster.keys[0],
        }
        named = 0
        for what, make in _guesses(public):
            found = real & {make(f"MAC{number:06d}") for number in range(DICTIONARY // 10)}
            named += len(found)
            account.does(f"tries {DICTIONARY // 10} meter ids: {what}", f"{len(found)} of {len(real)} customers named")
        account.no("HMAC-SHA-256 under the network key", None if named else "no id fits")
        account.aim("name a customer", named > 0)
    return account


def dictionary_with_key(seed: int) -> Account:
    """Somebody at the utility or the MDMS, who has the network key, tries all meter ids."""
    account = Account()
    with town(seed) as where:
        real = {home.hid for home in where.homes}
        found = real & {hid(NETWORK_KEY, f"MAC{number:06d}") for number in range(DICTIONARY)}
        account.does(f"tries {DICTIONARY} meter ids with the stolen network key", f"{len(found)} of {len(real)} named")
        limit = "the utility and the MDMS have to know whose readings these are; so does who steals their network key"
        account.aim("name all customers", found == real, limit)
    return account


def sessions_are_linked(seed: int) -> Account:
    """A node links what one meter does, without knowing its name."""
    account = Account()
    with town(seed) as where:
        home, grounds = where.home, where.grounds
        first = home.report()
        account.check("a report of session 1 is committed", grounds.reason(0, first) is Reason.VALID)
        where.wait_for_gap()
        home.register(where.period)
        second = home.report()
        account.check("a report of session 2 is committed", grounds.reason(0, second) is Reason.VALID)
        account.does("compares the signers of two reports of different sessions")
        limit = "a HID is a pseudonym that stays: nodes see how often and when somebody reports, not who and not what"
        account.aim("tell that both are of one meter", first.signer == second.signer, limit)
        lengths = len(home.seal(1)[1].argument) == len(home.seal(9_000_000)[1].argument)
        account.aim("tell from the lengths who uses more", not lengths)
    return account


def paper_dictionary(seed: int) -> Account:
    """The paper's HID is a plain hash, called irreversible (5.4.2)."""
    account, network = Account(), paper.network(seed)
    real = set(network.meters)
    found = real & {paper.hashed_identity(f"MAC{number:06d}") for number in range(DICTIONARY)}
    account.does(f"hashes {DICTIONARY} meter ids", f"{len(found)} of {len(real)} customers named")
    account.aim("name all customers", found == real)
    return account


def paper_impersonation(seed: int) -> Account:
    """Whoever relays a registration has the key pair, and is the meter."""
    account, network = Account(), paper.network(seed)
    hid_, pr = next(item for item in network.contract.dealt if item[0] == network.hid)
    account.does("is the concentrator that relayed the registration, and kept the key pair")
    false = paper.report(pr, hid_, network.mdms_key, b"false usage", 1)
    account.no("contract: a report that the concentrator made", network.contract.submit(false))
    account.aim("have a false reading stored", paper.read(false, network.mdms) == b"false usage")
    return account


ATTACKS: Final = (
    Attack(
        "F7.1",
        "The thief of a session key reports",
        "Pr of a meter's open session; all public data",
        session_key_is_used,
        PaperRun("4.2.2, 4.2.3", paper_impersonation),
        also=("F3",),
    ),
    Attack(
        "F7.2", "The thief of enrolment keys registers", "both enrolment keys of a meter", enrolment_keys_are_stolen
    ),
    Attack(
        "F7.3",
        "A member votes in another's name",
        "a node with its consensus key",
        member_is_impersonated,
        also=("F9", "NODE-KEY"),
    ),
    Attack(
        "DICTIONARY.1",
        "A node tries all meter ids",
        "every HID on the chain; the list of all meter ids; every public value",
        dictionary_by_node,
        PaperRun("4.2.1, 5.4.2", paper_dictionary),
    ),
    Attack("DICTIONARY.2", "The network key is stolen", "the utility's network key", dictionary_with_key),
    Attack("DICTIONARY.3", "A node links sessions", "every block", sessions_are_linked, also=("HID",)),
)
