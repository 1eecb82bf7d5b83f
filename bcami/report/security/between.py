"""F6, the man in the middle; and concentrators that withhold. A node stands between meters and everybody else."""

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from bcami.client.issuance import Share, contribution_request, open_share
from bcami.client.receipts import ReceiptVerifier
from bcami.codec import encode
from bcami.contract.issuance import NodeContributor
from bcami.crypto.hpke import KemSecretKey, OpenError, open_from, setup_sender
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.model.api import COMMITTED, CertifiedHeader, SubmitResult
from bcami.model.batch import Batch
from bcami.model.reasons import Reason
from bcami.model.registration import ContributionAnswer, request_hash, share_info
from bcami.model.wire import PeerMessage
from bcami.report.security import paper
from bcami.report.security.attack import Account, Attack, PaperRun
from bcami.report.security.byzantine import QUICK_VIEWS, one_liar
from bcami.report.security.grounds import contribution_secret, entropy, pass_on, transaction_of
from bcami.report.security.people import Town, town


def registration_is_overheard(seed: int) -> Account:
    """A gateway, which is a contributor as well, sees all of a registration and wants Pr."""
    account = Account()
    with town(seed) as where:
        grounds, home = where.grounds, where.home
        where.wait_for_gap()
        draft = home.begin()
        request = contribution_request(home.party, draft)
        answers = [grounds.core(node).contribute(request, grounds.now_ms) for node in (0, 1)]
        good = [answer for answer in answers if isinstance(answer, ContributionAnswer)]
        account.check("two nodes contribute", len(good) == 2)
        account.does("is node 1: relays the request, sees every answer, the register and its receipt, and knows x_1")
        gateways_kem = KemSecretKey.generate(entropy("gateway kem", seed))
        asked = request_hash(request)
        info = share_info(grounds.roster.chain, home.hid, draft.session, asked, 1)
        opened = b""
        try:
            opened = open_from(good[1].encapsulation, gateways_kem, info, b"", good[1].sealed_share)
        except OpenError:
            account.no("HPKE: the other node's sealed share, with a key of the gateway", "does not open")
        account.aim("read another node's share", bool(opened))
        account.aim("find that share in what was sent, unsealed", _is_in_clear(good[1]))
        swapped = _swapped(where, good[1], asked, draft.session)
        for what, answer in swapped.items():
            taken = open_share(home.party, request, answer)
            account.no(f"meter: {what}", taken if isinstance(taken, Reason) else None)
            account.aim(f"have the meter take {what}", isinstance(taken, Share))
        prepared = home.prepare(draft, where.period)
        account.check("the meter registers", grounds.reason(0, transaction_of(prepared)) is Reason.VALID)
        home.open(prepared)
        mine = NodeContributor(grounds.roster, 0, grounds.identities.consensus[0], contribution_secret(0))
        own = open_share(home.party, request, mine.contribute(request, home.party.kem.public_key))
        pr = home.session_key().public_key
        has_pr = isinstance(own, Share) and own.key.public_key == pr
        account.aim("have Pr from its own share and all that it saw", has_pr)
    return account


def _is_in_clear(answer: ContributionAnswer) -> bool:
    """Tell whether some 32 bytes of an answer are the share itself, the private part of its point."""
    data = encode(answer)
    for start in range(len(data) - 31):
        try:
            key = SecretKey.from_scalar_bytes(data[start : start + 32])
        except ValueError:
            continue
        if key.public_key == answer.contribution.point:
            return True
    return False


def _swapped(where: Town, answer: ContributionAnswer, asked: bytes, session: int) -> dict[str, ContributionAnswer]:
    """Return answers of node 2 as a gateway may change them."""
    grounds, home = where.grounds, where.home
    mine = SecretKey.generate(entropy("gateway share", grounds.seed))
    info = share_info(grounds.roster.chain, home.hid, session, asked, 1)
    encapsulation, context = setup_sender(home.party.kem.public_key, info, entropy("gateway ephemeral"))
    sealed = context.seal(0, b"", export_secret(mine, SECRET_ACCESS))
    point = replace(answer.contribution, point=mine.public_key)
    return {
        "a share of the gateway, sealed to the meter": replace(
            answer, encapsulation=encapsulation, sealed_share=sealed
        ),
        "that share and its point": replace(
            answer, encapsulation=encapsulation, sealed_share=sealed, contribution=point
        ),
        "node 2's share as node 3's": replace(answer, contribution=replace(answer.contribution, replica=2)),
    }


def paper_registration(seed: int) -> Account:
    """DC_j relays the request and the key pair (4.2.2)."""
    account, network = Account(), paper.network(seed)
    account.does("is the concentrator of 4.2.2: relays (HID, reg_req), and relays (Pr, Pu) back")
    relayed = dict(network.contract.dealt)[network.hid]
    theirs = network.meters[network.hid]
    account.check("the meter got its key pair", theirs.public_key in network.contract.keys.values())
    account.aim("have Pr of the meter", relayed.public_key == theirs.public_key)
    return account


# Concentrators that withhold.


def gateway_swallows(seed: int) -> Account:
    """A gateway takes a report, says nothing or says that it is committed, and throws it away."""
    account = Account()
    with town(seed) as where:
        grounds, tx = where.grounds, where.home.report()
        grounds.settle()
        tx_id = grounds.id_of(tx)
        receipt = grounds.receipt(where.registrations[0])
        assert receipt is not None
        verifier = ReceiptVerifier(grounds.roster)
        verifier.learn(CertifiedHeader(receipt.header, receipt.certificate))
        lie = SubmitResult(tx_id, COMMITTED, Reason.VALID, receipt.header.height, receipt.index, receipt.path)
        account.does("takes a meter's report, throws it away, and answers that it is committed, with an old receipt")
        believed = verifier.outcome(lie, tx_id)
        account.no("meter: the answer", None if believed else "not proven")
        account.aim("have the meter forget the report", believed is not None)
        account.does("the meter keeps the report, loses patience, and sends the same bytes to another node")
        account.check("the report is committed there", grounds.reason(1, tx) is Reason.VALID)
        grounds.settle()
        where.mdms.follow(2)
        account.aim("have the reading lost", where.mdms.energy(where.home) != [1_000_000])
    return account


def collector_keeps_its_batch(seed: int) -> Account:
    """A collector never shows its batch to anybody, and then, when the meter went elsewhere, to everybody."""
    account = Account()
    with town(seed) as where:
        grounds, tx = where.grounds, where.home.report()
        held: list[tuple[int, PeerMessage]] = []

        def tap(sender: int, to: int, message: PeerMessage) -> Iterable[PeerMessage]:
            if sender == 3 and isinstance(message, Batch):
                held.append((to, message))
                return ()
            return (message,)

        grounds.tap = tap
        account.does("is node 4: takes a report into a batch, and keeps the batch to itself")
        first = grounds.reason(3, tx, 5_000)
        account.does("the meter waits for 5 s at node 4", str(first or "no answer"))
        account.check("the batch was held back", bool(held))
        account.check("the report is committed at node 2", grounds.reason(1, tx) is Reason.VALID)
        account.does("now shows the old batch to everybody")
        grounds.tap = pass_on
        for to, message in held[:3]:
            grounds.deliver(3, to, message)
        grounds.run(20_000)
        grounds.settle()
        account.aim("have the report executed twice", len(grounds.outcomes(grounds.id_of(tx), 0)) != 1)
        where.mdms.follow(2)
        account.aim("have the reading lost or doubled", where.mdms.energy(where.home) != [1_000_000])
    return account


def primary_censors(seed: int) -> Account:
    """The primary leaves out one meter, and then one collector."""
    account = Account()
    for name in ("censor_signer", "censor_collector"):
        with town(seed, byzantine=(0,), parameters=QUICK_VIEWS) as where:
            grounds, home = where.grounds, where.home
            options: dict[str, object] = {"signer": home.hid.hex()} if name == "censor_signer" else {"collector": 1}
            behaviour = grounds.misbehave(0, name, **options)
            account.does(f"is the primary, and leaves out {'a meter' if name == 'censor_signer' else 'node 2'}")
            at_censor = grounds.reason(0, home.report(), 3_000) if name == "censor_signer" else None
            if name == "censor_signer":
                account.does("the meter reports at the censor itself", str(at_censor or "no answer"))
            began = grounds.now_ms
            answer = grounds.reason(1, home.report(), 120_000)
            view = max(grounds.core(node).view for node in (1, 2, 3))
            account.does("the meter reports at node 2", f"{answer} after {grounds.now_ms - began} ms, in view {view}")
            if view:
                account.no("honest nodes", "view change")
            account.check(f"it misbehaved: {name}", behaviour.acted > 0)
            account.aim(f"keep the meter out ({name})", answer is not Reason.VALID)
    return account


def blocks_are_hidden(seed: int) -> Account:
    """A node hides its newest blocks from the MDMS, or leaves one out."""
    account = Account()
    with town(seed) as where:
        grounds, mdms = where.grounds, where.mdms
        for _ in range(3):
            account.check("a report is committed", grounds.reason(0, where.home.report()) is Reason.VALID)
        grounds.settle()
        bundles = grounds.bundles(3)
        account.does("is the node from which the MDMS pulls, and leaves out the block before the last")
        taken = mdms.take([*bundles[:-2], bundles[-1]])
        account.no("MDMS: the block after the gap", None if taken.refused is None else taken.refused.reason)
        account.aim("have the MDMS pass over a block", mdms.store.cursor.height == len(bundles))
        account.does("gives nothing more at all; the MDMS pulls from another node")
        mdms.follow(1)
        account.aim("have the readings lost", len(mdms.energy(where.home)) != 3)
    return account


def paper_withholds(seed: int) -> Account:
    """4.2.3: SM sends to DC_j, which passes it on; the meter hears nothing back."""
    account, network = Account(), paper.network(seed)
    network.report(b"usage", 1)
    account.does("is the concentrator, and throws a report away: no answer to the meter is part of 4.2.3")
    account.check("another report is accepted", network.contract.submit(network.report(b"other", 2)) is None)
    account.aim("have a reading lost, unnoticed by meter and MDMS", len(network.contract.accepted) == 1)
    return account


ATTACKS: Final = (
    Attack(
        "F6.1",
        "A gateway in the middle of a registration",
        "a node that relays all of a registration, and contributes to it",
        registration_is_overheard,
        PaperRun("4.2.2", paper_registration),
        also=("SHARE",),
    ),
    Attack(
        "WITHHOLD.1",
        "A gateway swallows a report",
        "the meter's gateway, and old receipts",
        gateway_swallows,
        PaperRun("4.2.3", paper_withholds),
        also=("F6",),
    ),
    Attack("WITHHOLD.2", "A collector keeps its batch back", "a node with its key", collector_keeps_its_batch),
    Attack("WITHHOLD.3", "The primary censors", "the primary, with its key", primary_censors, also=("F9",)),
    Attack("WITHHOLD.4", "A node hides blocks from the MDMS", "the node from which the MDMS pulls", blocks_are_hidden),
    Attack(
        "WITHHOLD.5",
        "A collector shows its batch to as few as it can",
        "a node with its key",
        one_liar([{"withheld_batch": {}}], 3),
        also=("F9",),
    ),
)
