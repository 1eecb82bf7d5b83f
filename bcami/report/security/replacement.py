"""F2, key replacement: making another key stand for a meter or for the MDMS. Rogue key shares belong here too."""

import dataclasses
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from bcami.client.issuance import Prepared, Share, contribution_request, draw, open_share
from bcami.client.periods import verify_period
from bcami.codec import Codec, encode
from bcami.crypto.hpke import KemSecretKey, setup_sender
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.crypto.points import point_sum
from bcami.crypto.signatures import Signer
from bcami.model.api import TransactionProof
from bcami.model.reasons import Reason
from bcami.model.registration import (
    Contribution,
    ContributionAnswer,
    EnrolArgument,
    MdmsRegisterArgument,
    MeterState,
    RegisterArgument,
    contribution_digest,
    request_hash,
    share_info,
)
from bcami.model.transaction import ARGUMENT_BYTES_MAX, Transaction, argument_digest
from bcami.report.security import paper
from bcami.report.security.attack import Account, Attack, PaperRun
from bcami.report.security.grounds import entropy, transaction_of
from bcami.report.security.people import Home, Town, made, town, try_each

REGISTER: Final[Codec[RegisterArgument]] = Codec(RegisterArgument, ARGUMENT_BYTES_MAX)


def session_key_on_chain(where: Town, home: Home) -> bytes | None:
    """Return the key that the chain has for a meter's current session."""
    core = where.grounds.core(2)
    answer = core.runtime.query("registration", "meter", home.hid, core.world.read)
    if isinstance(answer, Reason):
        return None
    state = Codec[MeterState](MeterState, 4096).decode(answer)
    return None if state.session is None else state.session.public_key


def _negated(point: bytes) -> bytes:
    return bytes([point[0] ^ 1]) + point[1:]


def _signed(where: Town, keys: Sequence[Signer], home: Home, number: int, argument: RegisterArgument) -> Transaction:
    grounds = where.grounds
    call = ("registration", "register")
    return made(grounds, keys, call, home.hid, (0, number), encode(argument))


def gateway_adds_up_its_own_key(seed: int) -> Account:
    """A gateway sees all points, and chooses X_0 so that they add up to its own key y·G (protocol 2.2)."""
    account = Account()
    with town(seed) as where:
        home = where.home
        where.wait_for_gap()
        prepared = home.prepare(home.begin(), where.period)
        honest = REGISTER.decode(transaction_of(prepared).argument)
        before = session_key_on_chain(where, home)
        mine = SecretKey.generate(entropy("y", seed))
        rest = point_sum([mine.public_key, *(_negated(item.point) for item in honest.contributions)])
        assert rest is not None
        forged = replace(honest, public_key=mine.public_key, own_point=rest)
        account.does("holds back the meter's register, draws y, puts X_0 = y·G − ΣX_j and Pu = y·G in it")
        total = point_sum([rest, *(item.point for item in honest.contributions)])
        account.check("the points add up to y·G, as the contract asks", total == mine.public_key)
        tries = [
            ("signed by y twice", _signed(where, [mine, mine], home, prepared.session, forged)),
            ("signed by y, with the meter's old signature", _mixed(where, home, prepared, mine, forged)),
        ]
        won = try_each(account, where.grounds, tries)
        account.aim("own the meter's session", won or session_key_on_chain(where, home) == mine.public_key)
        account.check("the key on the chain is still the meter's", session_key_on_chain(where, home) == before)
        honest_reason = where.grounds.reason(3, transaction_of(prepared))
        account.check("the meter's own register, sent to another node, is valid", honest_reason is Reason.VALID)
    return account


def _mixed(where: Town, home: Home, prepared: Prepared, mine: SecretKey, forged: RegisterArgument) -> Transaction:
    tx = _signed(where, [mine, mine], home, prepared.session, forged)
    return replace(tx, signatures=(transaction_of(prepared).signatures[0], tx.signatures[1]))


def outsider_registers(seed: int) -> Account:
    """Somebody who knows the HID registers a key of his own under it: the paper's registration."""
    account = Account()
    with town(seed) as where:
        home = where.home
        before = session_key_on_chain(where, home)
        mine = SecretKey.generate(entropy("outsider", seed))
        account.does("reads the HID of a customer from the chain, and asks all nodes for key shares in its name")
        where.wait_for_gap()
        thief = Home(where.grounds, "thief")
        party = dataclasses.replace(thief.party, hid=home.hid)
        request = contribution_request(party, draw(party, 2, entropy("thief", seed)))
        answers = [where.grounds.core(node).contribute(request, where.grounds.now_ms) for node in where.grounds.up]
        for answer in answers[:1]:
            account.no("contribute", answer if isinstance(answer, Reason) else None)
        account.aim("get a share of a key for that HID", any(isinstance(item, ContributionAnswer) for item in answers))
        honest = REGISTER.decode(where.registrations[0].argument)
        forged = replace(honest, public_key=mine.public_key, own_point=mine.public_key)
        number = 2
        tx = _signed(where, [mine, mine], home, number, forged)
        won = try_each(account, where.grounds, [("register with the contributions of session 1", tx)])
        account.aim("replace the meter's key", won)
        account.check("the key on the chain is still the meter's", session_key_on_chain(where, home) == before)
    return account


def old_register_again(seed: int) -> Account:
    """An old registration, whose key leaked meanwhile, is sent again."""
    account = Account()
    with town(seed) as where:
        home = where.home
        leaked = home.session_key()
        where.wait_for_gap()
        home.register(where.period)
        before = session_key_on_chain(where, home)
        account.does("steals Pr of session 1 after session 2 was opened, and sends the register of session 1 again")
        old = where.registrations[0]
        for node in where.grounds.up:
            answer = where.grounds.submit(node, old)
            settled = answer is not None and answer.height and answer.height < where.grounds.ledger(0).height
            if node == 0:
                account.no("the same bytes again", "first receipt again" if settled else None)
        account.aim("make session 1 current again", session_key_on_chain(where, home) == leaked.public_key)
        forged = _signed(where, [leaked, leaked], home, 1, REGISTER.decode(old.argument))
        won = try_each(account, where.grounds, [("signed again by the leaked Pr", forged)])
        account.aim("register with the leaked key", won)
        account.check("the key on the chain is that of session 2", session_key_on_chain(where, home) == before)
    return account


def register_is_changed(seed: int) -> Account:
    """A gateway changes what a register carries: the KEM key, the encapsulation, the period, a contribution."""
    account = Account()
    with town(seed) as where:
        home = where.home
        where.wait_for_gap()
        prepared = home.prepare(home.begin(), where.period)
        tx = transaction_of(prepared)
        honest = REGISTER.decode(tx.argument)
        mine = KemSecretKey.generate(entropy("kem", seed))
        encapsulation, _ = setup_sender(mine.public_key, b"", entropy("ephemeral", seed))
        changes = {
            "its own KEM key": replace(honest, kem_key=mine.public_key),
            "its own encapsulation": replace(honest, encapsulation=encapsulation),
            "another period": replace(honest, period=2),
            "fewer contributions": replace(honest, contributions=honest.contributions[:1]),
        }
        account.does("changes a register on its way, with and without the hash that goes with it")
        tries = []
        for what, argument in changes.items():
            changed = encode(argument)
            tries.append((what, replace(tx, argument=changed)))
            tries.append(
                (f"{what}, hash made new", replace(tx, argument=changed, argument_hash=argument_digest(changed)))
            )
        account.aim("have a changed register accepted", try_each(account, where.grounds, tries))
        valid = where.grounds.reason(1, tx) is Reason.VALID
        account.check("the unchanged one is valid", valid)
    return account


def mdms_key_is_replaced(seed: int) -> Account:
    """A concentrator hands out its own key as the MDMS's (protocol 2.5)."""
    account = Account()
    with town(seed) as where:
        grounds = where.grounds
        receipt = grounds.receipt(where.period_tx)
        assert receipt is not None
        mine = KemSecretKey.generate(entropy("own period", seed))
        signing = SecretKey.generate(entropy("own signing", seed))
        codec = Codec[MdmsRegisterArgument](MdmsRegisterArgument, ARGUMENT_BYTES_MAX)
        changed = encode(replace(codec.decode(where.period_tx.argument), kem_key=mine.public_key))
        genesis, roster = grounds.identities.genesis, grounds.roster
        own = made(grounds, [signing, signing], ("mdms", "register"), genesis.mdms_hid, (0, 2), changed)
        member = grounds.identities.consensus[0]
        by_node = made(grounds, [member, member], ("mdms", "register"), genesis.mdms_hid, (0, 2), changed)
        tries = {
            "own key in the real transaction": replace(where.period_tx, argument=changed),
            "own key, hash made new": replace(
                where.period_tx, argument=changed, argument_hash=argument_digest(changed)
            ),
            "signed by a key of its own": own,
            "signed by the node's consensus key": by_node,
            "a meter's register as the period": where.registrations[0],
        }
        account.does("answers a meter that asks for the MDMS's period with its own KEM key, in five disguises")
        believed = False
        for what, tx in tries.items():
            answer = verify_period(TransactionProof(tx, receipt), genesis, roster)
            account.no(f"meter: {what}", answer if isinstance(answer, Reason) else None)
            believed = believed or not isinstance(answer, Reason)
        false_outcome = replace(receipt, outcome=replace(receipt.outcome, transaction_id=grounds.id_of(own)))
        real = tries["own key in the real transaction"]
        other = verify_period(TransactionProof(own, false_outcome), genesis, roster)
        account.no(
            "meter: own transaction under the real receipt's block", other if isinstance(other, Reason) else None
        )
        account.check("the disguise differs from the real one", real != where.period_tx)
        account.aim("have a meter seal to the concentrator's key", believed or not isinstance(other, Reason))
        chain = [grounds.reason(node, tx) for node, tx in ((1, own), (2, by_node))]
        for reason in chain:
            account.no("endorsing: own period", reason or "no answer")
        account.aim("open a period on the chain", Reason.VALID in chain)
        believed_real = verify_period(TransactionProof(where.period_tx, receipt), genesis, roster)
        account.check("the real period is believed", not isinstance(believed_real, Reason))
    return account


def enrolment_is_replaced(seed: int) -> Account:
    """Somebody, at last the utility itself, enrols a known HID with other keys."""
    account = Account()
    with town(seed) as where:
        grounds, home = where.grounds, where.home
        thief = Home(grounds, "thief")
        argument = EnrolArgument(home.hid, thief.party.signing.public_key, thief.party.kem.public_key)
        network = grounds.identities
        call = ("registration", "enrol")
        member = network.consensus[1]
        keyed: dict[str, Sequence[Signer]] = {
            "by a stranger": [thief.party.signing],
            "by a node": [member],
            "by the utility": [network.utility],
        }
        account.does("enrols a customer's HID once more, with keys of its own")
        tries = [
            (
                what,
                made(grounds, keys, call, network.utility_id, (0, 90 + place), encode(argument)),
            )
            for place, (what, keys) in enumerate(keyed.items())
        ]
        fresh = replace(argument, hid=entropy("new customer"))
        stranger = made(grounds, [thief.party.signing], call, thief.hid, (0, 1), encode(fresh))
        won = try_each(account, where.grounds, tries)
        account.aim("replace enrolment keys, even with the utility's help", won)
        account.aim(
            "enrol a customer as a stranger", try_each(account, where.grounds, [("a new HID, by a stranger", stranger)])
        )
        good = made(grounds, [network.utility], call, network.utility_id, (0, 99), encode(fresh))
        account.check("the utility can enrol a new customer", grounds.reason(0, good) is Reason.VALID)
    return account


def rogue_share(seed: int) -> Account:
    """A contributor chooses its point after the others', or lies about its share."""
    account = Account()
    with town(seed, byzantine=(1,)) as where:
        grounds, home = where.grounds, where.home
        where.wait_for_gap()
        draft = home.begin()
        request = contribution_request(home.party, draft)
        first = grounds.core(0).contribute(request, grounds.now_ms)
        assert isinstance(first, ContributionAnswer)
        target = SecretKey.generate(entropy("target", seed))
        rogue = point_sum([target.public_key, _negated(first.contribution.point)])
        assert rogue is not None
        account.does("node 2 hears the point of node 1 and answers X_2 = y·G − X_1, signed, with some share sealed")
        answer = _rogue_answer(where, home, request_hash(request), rogue, draft.session)
        opened = open_share(home.party, request, answer)
        account.no("meter: opening the rogue share", opened if isinstance(opened, Reason) else None)
        account.aim("have the rogue point in the meter's key", isinstance(opened, Share))
        for way in ("share", "sealing", "signature", "refusal"):
            grounds.misbehave(1, "lying_shares", way=way)
            found = grounds.shares(home.party, draft, [1, 0, 2, 3])
            bad = [item for item in found if isinstance(item, Reason)]
            account.no(f"meter: {way} is wrong", bad[0] if bad else None)
            account.check(
                f"f+1 other nodes make up for it ({way})", sum(isinstance(item, Share) for item in found) == 2
            )
            grounds.behave(1)
        prepared = home.prepare(draft, where.period, grounds.shares(home.party, draft, [2, 3]))
        account.check(
            "the meter opens its session all the same", grounds.reason(0, transaction_of(prepared)) is Reason.VALID
        )
    return account


def _rogue_answer(where: Town, home: Home, asked: bytes, point: bytes, session: int) -> ContributionAnswer:
    grounds = where.grounds
    signer = grounds.identities.consensus[1]
    info = share_info(grounds.roster.chain, home.hid, session, asked, 1)
    encapsulation, context = setup_sender(home.party.kem.public_key, info, entropy("rogue"))
    some = SecretKey.generate(entropy("some share"))
    sealed = context.seal(0, b"", export_secret(some, SECRET_ACCESS))
    statement = contribution_digest(grounds.roster.chain, 0, home.hid, session, asked, 1, point)
    contribution = Contribution(1, point, signer.sign(statement))
    return ContributionAnswer(contribution, encapsulation, sealed)


def paper_register_again(seed: int) -> Account:
    """Algorithm 1 gives a key pair to whoever shows a stored HID, and its Pu replaces the one before."""
    account, network = Account(), paper.network(seed)
    account.check("an honest report is accepted", network.contract.submit(network.report(b"usage")) is None)
    account.does("shows the meter's HID, which every transaction carries, and asks for a key pair")
    mine = network.contract.register(network.hid)
    forged = None if mine is None else paper.report(mine, network.hid, network.mdms_key, b"false usage", 1)
    reason = "no key pair" if forged is None else network.contract.submit(forged)
    account.no("contract: report under the attacker's key", reason)
    account.aim("replace the meter's key", reason is None)
    account.no("contract: the meter's own report", network.contract.submit(network.report(b"usage", 2)))
    return account


def paper_mdms_key(seed: int) -> Account:
    """Public keys of the paper are broadcast; a meter has nothing to check one against."""
    account, network = Account(), paper.network(seed)
    mine = SecretKey.generate(entropy("paper concentrator", seed))
    account.does('gives its meters its own public key as that of the MDMS ("anyone can avail these public keys")')
    tx = paper.report(network.meters[network.hid], network.hid, paper.kem_of(mine).public_key, b"usage", 1)
    account.check("the report is accepted as usual", network.contract.submit(tx) is None)
    account.aim("read the meter's usage", paper.read(tx, mine) == b"usage")
    return account


ATTACKS: Final = (
    Attack(
        "F2.1",
        "A gateway makes the points add up to its own key",
        "everything that the meter sends through it; a key of its own",
        gateway_adds_up_its_own_key,
    ),
    Attack(
        "F2.2",
        "A stranger registers a key under a known HID",
        "the HID; a key of its own; all public data",
        outsider_registers,
        PaperRun("4.2.2, Algorithm 1", paper_register_again),
        also=("HID",),
    ),
    Attack(
        "F2.3",
        "An old registration is sent again",
        "an old register, and the leaked Pr of that session",
        old_register_again,
    ),
    Attack("F2.4", "A register is changed on its way", "the meter's gateway", register_is_changed),
    Attack(
        "F2.5",
        "A concentrator hands out its own key as the MDMS's",
        "a node with its consensus key; all public data",
        mdms_key_is_replaced,
        PaperRun("4.2.2, 4.2.3", paper_mdms_key),
        also=("F6",),
    ),
    Attack(
        "F2.6",
        "Enrolment keys are replaced",
        "a stranger's key, a node's key, at last the utility's own",
        enrolment_is_replaced,
    ),
    Attack(
        "F2.7",
        "A contributor chooses a rogue point or lies about its share",
        "one node that is asked for a share, and hears the other points",
        rogue_share,
        also=("SHARE", "F9"),
    ),
)
