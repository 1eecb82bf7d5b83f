"""F8, replay: the same bytes again, elsewhere, later, in a batch, in another network."""

from typing import Final

from msgspec.structs import replace

from bcami.client.receipts import verify_certified_header
from bcami.crypto.verification import verify_block_certificate, verify_bundle, verify_receipt
from bcami.faults.simulator.parties import make_transaction
from bcami.model.api import CertifiedHeader
from bcami.model.genesis import Parameters
from bcami.model.reasons import Reason
from bcami.report.security import paper
from bcami.report.security.attack import Account, Attack, PaperRun
from bcami.report.security.people import Home, made, town, try_each
from bcami.report.security.voice import collect

HOUR_MS: Final = 3_600_000
FRESH_MS: Final = 300_000
OTHER: Final = Parameters(contract_steps_max=999)
"""Another network: one figure of its genesis differs, all keys are the same."""


def same_bytes_again(seed: int) -> Account:
    """A committed report is sent to all nodes again, before and after all of them restart."""
    account = Account()
    with town(seed) as where:
        grounds, tx = where.grounds, where.home.report()
        tx_id = grounds.id_of(tx)
        account.check("the report is committed", grounds.reason(0, tx) is Reason.VALID)
        first = grounds.first[tx_id]
        account.does("records a report, and sends it to every node again; then once more after all nodes restarted")
        same = []
        for restarted in (False, True):
            if restarted:
                grounds.settle()
                grounds.restart()
            for node in grounds.up:
                answer = grounds.submit(node, tx)
                same.append(answer is not None and (answer.height, answer.index) == (first.height, first.index))
        account.no("every node, before and after", "first receipt again" if all(same) else None)
        account.check("every answer is the first receipt", all(same))
        grounds.settle()
        account.aim("have a second outcome", len(grounds.outcomes(tx_id, 2)) != 1)
        where.mdms.follow(1)
        account.aim("have the reading counted twice", where.mdms.energy(where.home) != [1_000_000])
    return account


def collector_repeats(seed: int) -> Account:
    """A collector puts an executed report into a batch again, past its own admission."""
    account = Account()
    with town(seed) as where:
        grounds, tx = where.grounds, where.home.report()
        fresh = where.home.report()
        tx_id = grounds.id_of(tx)
        account.check("the report is committed", grounds.reason(0, tx) is Reason.VALID)
        grounds.settle()
        account.does("node 4 batches the executed report twice, with a fresh one between")
        refused = collect(grounds, 3, [tx, fresh, tx])
        account.check("the batch is certified", refused is not None)
        for index, reason in sorted((refused or {}).items()):
            account.no(f"endorser: transaction {index + 1} of the batch", reason)
        grounds.settle([0, 1, 2])
        where.mdms.follow(1)
        account.aim("have a second outcome", len(grounds.outcomes(tx_id, 0)) != 1)
        account.aim("have a reading counted twice", len(where.mdms.energy(where.home)) != 2)
        account.check("the fresh one is valid", grounds.outcomes(grounds.id_of(fresh), 0) == [Reason.VALID])
    return account


def number_again(seed: int) -> Account:
    """The thief of Pr signs other contents under a number that was used, or outside of the window, or of tomorrow."""
    account = Account()
    with town(seed, parameters=Parameters(replay_window=64)) as where:
        grounds, home = where.grounds, where.home
        reports = [home.report() for _ in range(70)]
        account.check("report 70 is committed", grounds.reason(0, reports[69]) is Reason.VALID)
        pr, call = home.session_key(), ("usage", "report")
        argument = reports[10].argument
        network = grounds.identities
        ahead_ms = grounds.now_ms + HOUR_MS
        tomorrow = make_transaction(network, [pr], call, home.hid, (1, 71), ahead_ms, argument)
        account.does("has Pr, and signs other contents under used, forgotten and future numbers and times")
        tries = [
            ("number 70 again, other contents", made(grounds, [pr], call, home.hid, (1, 70), argument)),
            ("number 1: it left the window of 64", reports[0]),
            ("a time one hour ahead, to be sent then", tomorrow),
        ]
        account.aim("have a used number, or one of the future, accepted", try_each(account, grounds, tries))
        old = made(grounds, [pr], call, home.hid, (1, 50), argument)
        late = replace(old)
        grounds.run(FRESH_MS)
        account.check("an honest report that is five minutes late is valid", grounds.reason(1, late) is Reason.VALID)
    return account


def administration_again(seed: int) -> Account:
    """A recorded enrolment is sent again after the HID was revoked, and a recorded revocation after all."""
    account = Account()
    with town(seed) as where:
        grounds, home = where.grounds, where.home
        revocation = where.revoke(home)
        account.check("the utility revokes the HID", grounds.reason(0, revocation) is Reason.VALID)
        grounds.settle()
        account.does("sends the enrolment again that stands on the chain, to undo the revocation; and the revocation")
        enrolment = where.enrolments[0]
        for what, tx in (("enrolment", enrolment), ("revocation", revocation)):
            answers = [grounds.submit(node, tx) for node in grounds.up]
            first = grounds.first[grounds.id_of(tx)].height
            old = all(answer is not None and answer.height == first for answer in answers)
            account.no(f"the {what} again", "first receipt again" if old else None)
        refused = collect(grounds, 3, [enrolment])
        for reason in (refused or {}).values():
            account.no("endorser: the enrolment in a batch", reason)
        grounds.settle([0, 1, 2])
        account.no("the meter's report", grounds.reason(1, home.report()) or "no answer")
        account.aim("undo a revocation", grounds.reason(2, home.report()) is Reason.VALID)
        other = where.homes[1]
        account.check("another meter reports", grounds.reason(2, other.report()) is Reason.VALID)
    return account


def votes_again(seed: int) -> Account:
    """A Byzantine member says everything again that it ever heard or said."""
    account = Account()
    with town(seed, byzantine=(3,)) as where:
        grounds = where.grounds
        behaviour = grounds.misbehave(3, "replayed_votes", messages=40)
        account.does("node 4 repeats old votes, batches, certificates and blocks of all members, 400 a second")
        reports = [where.home.report() for _ in range(6)]
        valid = []
        for place, tx in enumerate(reports):
            valid.append(grounds.reason(place % 3, tx) is Reason.VALID)
            grounds.run(400)
        account.does(f"repeated {behaviour.acted} messages" if behaviour.acted else "repeated messages")
        for reason in list(dict.fromkeys(grounds.said_no(0)))[:6]:
            account.no("node 1: old messages", reason)
        account.check("all reports are valid", all(valid))
        grounds.behave(3)
        account.check("all come to one height", grounds.settle())
        twice = any(len(grounds.outcomes(grounds.id_of(tx), 0)) != 1 for tx in reports)
        account.aim("have something executed twice", twice)
        account.aim("make honest nodes disagree", not grounds.agree([0, 1, 2]))
    return account


def other_network(seed: int) -> Account:
    """What was signed in one network is sent to another with the same keys everywhere."""
    account = Account()
    with town(seed) as here, town(seed, parameters=OTHER) as there:
        account.check("the networks differ", here.grounds.roster.chain != there.grounds.roster.chain)
        account.check("their meters have the same HID", here.home.hid == there.home.hid)
        there.wait_for_gap()
        here.wait_for_gap()
        fresh = here.home.register(here.period)
        tx = here.home.report()
        account.check("the report is committed where it belongs", here.grounds.reason(0, tx) is Reason.VALID)
        here.grounds.settle()
        account.does("takes reports, registration, enrolment, revocation, proofs and blocks to the other network")
        stranger = here.homes[1]
        tries = [
            ("a report", replace(tx, session=1)),
            ("a report as it is", tx),
            ("a registration", fresh),
            ("an enrolment", Home(here.grounds, "MAC000009").enrolment()),
            ("a revocation", here.revoke(stranger)),
        ]
        account.aim("have a transaction of one network valid in the other", try_each(account, there.grounds, tries))
        receipt = here.grounds.receipt(tx)
        assert receipt is not None
        roster = there.grounds.roster
        bundle = here.grounds.bundles(0)[0]
        proofs = {
            "receipt": verify_receipt(receipt, roster),
            "certified header": verify_certified_header(CertifiedHeader(receipt.header, receipt.certificate), roster),
            "certificate": verify_block_certificate(receipt.certificate, roster),
            "block": verify_bundle(bundle, roster, roster.chain),
        }
        for what, reason in proofs.items():
            account.no(f"verifier: {what}", reason)
        account.aim("have a proof of one network believed in the other", None in proofs.values())
        taken = there.mdms.take(here.grounds.bundles(0))  # from block 1 on, which is the one that it waits for
        account.no("MDMS: the blocks", None if taken.refused is None else taken.refused.reason)
        account.aim("have the MDMS of the other network take a block", taken.blocks > 0)
        own = there.grounds.reason(1, there.home.report())
        account.check("the other network's own report is valid", own is Reason.VALID)
    return account


def paper_replay(seed: int) -> Account:
    """4.2.3 checks HID and signature; 5.4.3 says that timestamps avoid replays."""
    account, network = Account(), paper.network(seed)
    tx = network.report(b"usage", 1)
    account.check("an honest report is accepted", network.contract.submit(tx, 1) is None)
    account.does("sends the report again, an hour later")
    again = network.contract.submit(tx, HOUR_MS) is None
    account.no("contract: an hour later", None if again else "refused")
    account.aim("have a report accepted twice", again)
    fresh = paper.network(seed, fresh_ms=FRESH_MS)
    account.does(f"kinder reading: τ may be {FRESH_MS // 1000} s old; sends the report again after one minute")
    tx = fresh.report(b"usage", 1)
    fresh.contract.submit(tx, 1)
    soon = fresh.contract.submit(tx, 60_000) is None
    account.no("contract with a check of τ: a minute later", None if soon else "refused")
    account.aim("have a report accepted twice in spite of a check of τ", soon)
    late = fresh.report(b"usage of an outage", 2)
    account.no("contract with a check of τ: an honest report, an hour late", fresh.contract.submit(late, HOUR_MS))
    return account


ATTACKS: Final = (
    Attack(
        "F8.1",
        "A report is sent again",
        "a recorded report",
        same_bytes_again,
        PaperRun("4.2.3, 5.4.3", paper_replay),
    ),
    Attack("F8.2", "A collector batches it again", "a node with its consensus key", collector_repeats, also=("F9",)),
    Attack("F8.3", "Numbers and times are used again", "Pr of the session; all reports", number_again),
    Attack("F8.4", "An enrolment undoes a revocation", "a recorded enrolment", administration_again),
    Attack(
        "F8.5",
        "Everything between nodes is repeated",
        "a node, and all that it ever heard",
        votes_again,
        also=("F9",),
    ),
    Attack(
        "CROSS.1",
        "What was signed in one network is used in another",
        "everything of a network that has the same meters, members and keys",
        other_network,
        also=("F8",),
    ),
)
