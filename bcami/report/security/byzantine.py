"""F9, Byzantine tolerance; F10, the 51 % attack; leaked node keys."""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from bcami.client.receipts import ReceiptVerifier
from bcami.codec import encode
from bcami.crypto.evidence import verify_evidence
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.crypto.verification import verify_block_certificate, verify_receipt
from bcami.faults.catalogue import BEHAVIOURS
from bcami.model.api import CertifiedHeader
from bcami.model.block import BlockCertificate, CheckpointVote, checkpoint_digest, header_hash
from bcami.model.consensus import Checkpoint
from bcami.model.events import EquivocationSeen
from bcami.model.evidence import Evidence
from bcami.model.genesis import Parameters, operator_id
from bcami.model.reasons import Reason
from bcami.model.wire import PeerMessage
from bcami.report.security import paper
from bcami.report.security.attack import Account, Attack, PaperRun, Run
from bcami.report.security.grounds import Grounds, entropy
from bcami.report.security.people import made, town
from bcami.report.security.voice import block_certificate

REPORTS: Final = 6
GAP_MS: Final = 700
"""Between two reports: some liars speak up a few times a second."""
PATIENCE_MS: Final = 120_000
QUICK_VIEWS: Final = Parameters(view_timer_ms=300, view_timer_cap_ms=2_400, fairness_ms=1_500)
ABOVE_F: Final = (
    "more than f members collude; for that nothing is claimed, here or by any protocol with quorums of 2f + 1"
)
"""What holds only in part, and why."""

Shown = dict[str, dict[str, object]]
"""Behaviours that are shown together, by name in the catalogue, with their options."""


def one_liar(behaviours: Sequence[Shown], liar: int = 0) -> Run:
    """Return the attack of one member that shows behaviours in turn, each time in a network of its own."""

    def run(seed: int) -> Account:
        account = Account()
        for shown in behaviours:
            _lie(account, seed, liar, shown)
        return account

    return run


def _lie(account: Account, seed: int, liar: int, shown: Shown) -> None:
    honest = [node for node in range(4) if node != liar]
    name = " and ".join(shown)
    with town(seed, byzantine=(liar,), parameters=QUICK_VIEWS) as where:
        grounds, mdms = where.grounds, where.mdms
        begun = len(grounds.observations)
        acting = []
        for word, options in shown.items():
            acting.append(grounds.misbehave(liar, word, **options))
            account.does(f"{word}: {(BEHAVIOURS[word].__doc__ or '').splitlines()[0]}")
        valid = []
        for place in range(REPORTS):
            grounds.run(GAP_MS)
            tx = where.homes[place % 2].report()
            if place % 2:
                grounds.reason(liar, tx, 200)  # its gateway; the meter loses patience and goes to another
            valid.append(grounds.reason(honest[place % 3], tx, PATIENCE_MS) is Reason.VALID)
        seen = grounds.observations[begun:]
        for reason in list(dict.fromkeys(_refusals(grounds, honest)))[:4]:
            account.no(f"honest nodes, {name}", reason)
        if any(isinstance(item, EquivocationSeen) and node != liar for node, item in seen):
            account.no(f"honest nodes, {name}", Reason.EQUIVOCATION)
        for behaviour in acting:
            account.check(f"it misbehaved: {behaviour.name}", behaviour.acted > 0)
        settled = grounds.settle(honest)
        mdms.follow(honest[-1])
        stored = [mdms.energy(home) for home in where.homes]
        sent = [[home.reading(number).energy for number in range(REPORTS // 2)] for home in where.homes]
        account.aim(f"{name}: make honest nodes disagree", not grounds.agree(honest))
        account.aim(f"{name}: stop honest requests", not all(valid) or not settled)
        account.aim(f"{name}: change what the MDMS stores", stored != sent)


def _refusals(grounds: Grounds, nodes: Sequence[int]) -> list[Reason]:
    return [reason for node in nodes for reason in grounds.said_no(node) if reason is not Reason.STALE]


def half_is_silent(seed: int) -> Account:
    """Two of four members are down: more than f. Nothing moves, nothing breaks, and it goes on when one comes back."""
    account = Account()
    with town(seed) as where:
        grounds = where.grounds
        grounds.settle()
        account.does("ends two of four nodes")
        for node in (2, 3):
            grounds.machines[node].crash()
        tx = where.home.report()
        answer = grounds.reason(0, tx, 30_000)
        account.does("sees what node 1 says of a report after 30 s", str(answer or "no answer"))
        account.aim("stop the network", answer is None, ABOVE_F)
        account.aim("have one of the rest give an outcome alone", bool(grounds.outcomes(grounds.id_of(tx), 0)))
        grounds.machines[2].start()
        grounds.introduce()
        done = grounds.run(PATIENCE_MS, lambda: bool(grounds.outcomes(grounds.id_of(tx), 0)))
        account.check("it goes on when a third node is there", done)
        account.aim("make honest nodes disagree", not grounds.agree([0, 1, 2]))
    return account


def vote_log_is_lost(seed: int) -> Account:
    """A node comes back without its vote log: its key could contradict what it said."""
    account = Account()
    with town(seed) as where:
        grounds = where.grounds
        grounds.settle()
        account.does("ends node 4, deletes its vote log, and starts it again, so that it votes anew")
        machine = grounds.machines[3]
        machine.crash()
        machine.disk.lose_promises()
        said: list[PeerMessage] = []

        def tap(sender: int, _to: int, message: PeerMessage) -> Sequence[PeerMessage]:
            if sender == 3 and getattr(message, "signature", None) is not None:
                said.append(message)
            return (message,)

        grounds.tap = tap
        machine.start()
        grounds.introduce()
        valid = [grounds.reason(node, where.home.report()) is Reason.VALID for node in (0, 1, 2)]
        account.no("node 4: a report for it to collect", grounds.reason(3, where.home.report()) or "no answer")
        account.check("the others go on", all(valid))
        grounds.settle([0, 1, 2])
        account.aim("have the forgetful node sign anything", bool(said))
        account.aim("make honest nodes disagree", not grounds.agree([0, 1, 2, 3]))
    return account


# F10.


def invented_members(seed: int) -> Account:
    """A hundred invented members, with any computing power, certify a block of their own."""
    account = Account()
    with town(seed) as where:
        grounds = where.grounds
        receipt = grounds.receipt(where.period_tx)
        assert receipt is not None
        header = replace(receipt.header, state_root=entropy("own state", seed))
        own, roster = header_hash(header), grounds.roster
        signed = checkpoint_digest(roster.chain, roster.epoch, header.height, own)
        keys = [SecretKey.generate(entropy("invented", seed, place)) for place in range(100)]
        everyone = tuple(CheckpointVote(place, key.sign(signed)) for place, key in enumerate(keys))
        account.does("draws 100 keys, and certifies a block of its own with their signatures")
        won = False
        for what, votes in (("100 votes", everyone[:64]), ("3 votes under members' numbers", everyone[:3])):
            certificate = BlockCertificate(roster.epoch, header.height, own, votes)
            won = not account.no(f"verifier: {what}", verify_block_certificate(certificate, roster)) or won
        account.aim("certify a block with invented members", won)
        account.check("the members' certificate holds", verify_receipt(receipt, roster) is None)
    return account


def too_few_members(seed: int) -> Account:
    """F members, and then half of them, certify a block of their own."""
    account = Account()
    with town(seed) as where:
        grounds = where.grounds
        receipt = grounds.receipt(where.period_tx)
        assert receipt is not None
        header = replace(receipt.header, state_root=entropy("own state", seed))
        height, own, roster = header.height, header_hash(header), grounds.roster
        account.does("has the keys of one member, then of two of four, and certifies a block of its own")
        one, two = block_certificate(grounds, height, own, [3]), block_certificate(grounds, height, own, [2, 3])
        twice = replace(two, votes=(*two.votes, two.votes[-1]))
        names = {"one vote": one, "two votes": two, "two votes, one of them twice": twice}
        won = [
            not account.no(f"verifier: {what}", verify_block_certificate(item, roster)) for what, item in names.items()
        ]
        account.aim("certify a block with half of the members", any(won))
        all_of_them = block_certificate(grounds, height, own, [1, 2, 3])
        certified = verify_block_certificate(all_of_them, roster) is None
        account.does("has the keys of three of four members")
        account.aim("certify any block with 2f + 1 of the members' keys", certified, ABOVE_F)
    return account


def twins(colluding: int, apart: int) -> Run:
    """Return the attack in which some of 7 members run twice and split the honest rest in two [Twins]."""

    def run(seed: int) -> Account:
        account = Account()
        liars, honest = list(range(colluding)), list(range(colluding, 7))
        left, right = honest[:apart], honest[apart:]
        account.does(
            f"has the keys of {colluding} of 7 members ({100 * colluding / 7:.0f} %), runs each of them twice, and "
            f"shows one copy to {len(left)} honest members and the other to {len(right)}"
        )
        worlds = [_world(seed, liars, side, number) for number, side in enumerate((left, right))]
        certified = [world is not None for world in worlds]
        account.does("gives each side another first transaction", f"certified: {sum(certified)} of 2")
        if not all(certified):
            account.no("ordering", "no quorum on one side")
        forked = worlds[0] is not None and worlds[1] is not None and worlds[0].header != worlds[1].header
        beyond = colluding > 2
        account.aim("certify two blocks of one height", forked, ABOVE_F if beyond else "")
        if forked and worlds[0] is not None and worlds[1] is not None:
            _convict(account, seed, liars, worlds[0], worlds[1])
        else:
            account.check("one side goes on", any(certified))
        return account

    return run


def _world(seed: int, liars: Sequence[int], side: Sequence[int], number: int) -> CertifiedHeader | None:
    """Run the colluding members with one side of the honest ones; return the certified block 1, if there is one."""
    up = {*liars, *side}
    grounds = Grounds(7, seed + number, down=[node for node in range(7) if node not in up], parameters=QUICK_VIEWS)
    key, kem = SecretKey.generate(entropy("customer", number)), KemSecretKey.generate(entropy("customer", number))
    tx = grounds.utility.enrol(entropy("hid", number), key.public_key, kem.public_key, grounds.now_ms)
    grounds.reason(side[0], tx, 30_000)
    ledger = grounds.ledger(side[0])
    grounds.run(30_000, lambda: ledger.certificate(1) is not None)
    header, certificate = ledger.header(1), ledger.certificate(1)
    return None if header is None or certificate is None else CertifiedHeader(header, certificate)


def _convict(account: Account, seed: int, liars: Sequence[int], one: CertifiedHeader, two: CertifiedHeader) -> None:
    """Show both certificates to a verifier: who signed both stands convicted."""
    roster = Grounds(7, seed, down=range(7), parameters=QUICK_VIEWS).roster
    verifier = ReceiptVerifier(roster)
    account.no("a meter that sees the first block", verifier.learn(one))
    account.no("a meter that then sees the second one", verifier.learn(two))
    first = {vote.replica: vote for vote in one.certificate.votes}
    second = {vote.replica: vote for vote in two.certificate.votes}
    convicted = [
        replica
        for replica in first
        if replica in second
        and isinstance(
            verify_evidence(
                encode(_said(one, replica, first[replica])), encode(_said(two, replica, second[replica])), roster
            ),
            Evidence,
        )
    ]
    account.does(
        "the two certificates are put together", f"evidence convicts members {[item + 1 for item in convicted]}"
    )
    account.aim("stay unknown", not convicted or set(convicted) - set(liars) != set())


def _said(block: CertifiedHeader, replica: int, vote: CheckpointVote) -> Checkpoint:
    certificate = block.certificate
    return Checkpoint(certificate.epoch, certificate.height, certificate.header_hash, replica, vote.signature)


# Leaked node keys.


def node_key_leaks(seed: int) -> Account:
    """The thief of a member's keys speaks beside the honest node."""
    account = Account()
    with town(seed) as where:
        grounds, roster = where.grounds, where.grounds.roster
        grounds.settle()
        key = grounds.identities.consensus[3]
        account.does(
            "steals both keys of node 4, which goes on, and signs checkpoints of blocks of its own in its name"
        )
        begun = len(grounds.observations)
        valid = []
        for place in range(3):
            height = grounds.ledger(0).height + 1
            false = entropy("false block", seed, place)
            lie = Checkpoint(0, height, false, 3, key.sign(checkpoint_digest(roster.chain, 0, height, false)))
            for to in (0, 1, 2):
                grounds.deliver(3, to, lie)
            valid.append(grounds.reason(place, where.home.report()) is Reason.VALID)
        grounds.settle()
        seen = [item for _, item in grounds.observations[begun:] if isinstance(item, EquivocationSeen)]
        if seen:
            account.no("ordering", Reason.EQUIVOCATION)
        account.aim("make honest nodes disagree", not grounds.agree([0, 1, 2]))
        account.aim("stop honest requests", not all(valid))
        account.check("honest nodes hold both statements", bool(seen))
        if seen:
            account.aim("contradict the node unseen", not _on_chain(account, grounds, seen[0]))
        height = grounds.ledger(0).height
        alone = block_certificate(grounds, height, entropy("false"), [3])
        refused = account.no("verifier: a certificate of that key alone", verify_block_certificate(alone, roster))
        account.aim("certify a block with one key", not refused)
    return account


def _on_chain(account: Account, grounds: Grounds, seen: EquivocationSeen) -> bool:
    """Report the contradiction with node 1's key; tell whether the chain holds it."""
    evidence = verify_evidence(seen.first, seen.second, grounds.roster)
    if isinstance(evidence, Reason):
        account.no("evidence", evidence)
        return False
    member = grounds.identities.consensus[0]
    call, signer = ("governance", "report_evidence"), operator_id(member.public_key)
    reason = grounds.reason(1, made(grounds, [member], call, signer, (0, 1), encode(evidence)))
    account.does("node 1 brings the two statements to the chain", str(reason))
    return reason is Reason.VALID


# The paper's ordering phase.


def paper_two_blocks(_seed: int) -> Account:
    """One bad leader collects 2f + 1 responses for each of two candidate blocks of one place."""
    account, ordering = Account(), paper.Ordering(4)
    account.does("is the leader; shows block A to one node and block B to the two others, at once")
    at_once = ordering.propose(0, b"block A", [1], [1])
    account.no(
        "nodes, comparing audit results: block A",
        None if at_once >= ordering.needed else f"{at_once} of {ordering.needed} responses",
    )
    account.does(
        "another place: shows block A to all, and tells one node that it is final; then shows block B to the rest"
    )
    ordering = paper.Ordering(4)
    for block, shown, told in ((b"block A", [1, 2, 3], [1]), (b"block B", [2, 3], [2, 3])):
        responses = ordering.propose(0, block, shown, told)
        account.does(
            f"obtains {responses} responses for {block.decode()}, its own among them; {ordering.needed} are needed"
        )
    account.check("an honest leader's block is final", _is_honest_final())
    account.aim("have nodes append different blocks", ordering.chains[1] != ordering.chains[2])
    return account


def _is_honest_final() -> bool:
    ordering = paper.Ordering(4)
    ordering.propose(0, b"block", [1, 2, 3], [0, 1, 2, 3])
    return all(chain == [b"block"] for chain in ordering.chains)


def paper_silent_leader(_seed: int) -> Account:
    """The leader says nothing; the text has no other one."""
    account, ordering = Account(), paper.Ordering(4)
    account.does("is the leader, and proposes nothing; another node proposes in its place")
    responses = ordering.propose(1, b"block", [2, 3], [1, 2, 3])
    account.does(f"the other node obtains {responses} responses: 4.2.3 gives the candidate to the leader alone")
    account.check("an honest leader's block is final", _is_honest_final())
    account.aim("stop the network with one node", not any(ordering.chains))
    return account


def paper_half(_seed: int) -> Account:
    """Two of four members answer whatever the leader wants: with one honest node they are 2f + 1."""
    account, ordering = Account(), paper.Ordering(4)
    account.does(
        "has two of four nodes, the leader among them (50 %); shows block A to one of the others, B to the last"
    )
    for block, node in ((b"block A", 2), (b"block B", 3)):
        responses = ordering.propose(0, block, [node], [node], colluding=2)
        account.does(f"obtains {responses} responses for {block.decode()}; {ordering.needed} are needed")
    account.check("an honest leader's block is final", _is_honest_final())
    account.aim("have nodes append different blocks", ordering.chains[2] != ordering.chains[3])
    return account


def _attack(number: int, title: str, shown: Sequence[Shown], liar: int = 0, papers: PaperRun | None = None) -> Attack:
    keys = "the primary of view 0, with its key" if liar == 0 else "a backup, with its key"
    return Attack(f"F9.{number}", title, keys, one_liar(shown, liar), papers)


ATTACKS: Final = (
    _attack(
        1,
        "The primary lies",
        [{"equivocating_primary": {}}, {"swapped_proposal": {}}, {"false_time": {"ahead_ms": 86_400_000}}],
        papers=PaperRun("4.2.3, 5.4.4", paper_two_blocks),
    ),
    _attack(
        2,
        "The primary is silent, or slow",
        [{"mute": {}}, {"slow_primary": {"share": 1.1}}, {"sequence_gap": {}}],
        papers=PaperRun("4.2.3, 5.4.4", paper_silent_leader),
    ),
    _attack(3, "The primary proposes forged certificates", [{"forged_certificate": {}}]),
    _attack(
        4,
        "A member votes falsely",
        [{"equivocating_voter": {}}, {"checkpoint_liar": {}}, {"mutate": {"share": 0.5, "signed": True}}],
        3,
    ),
    _attack(
        5,
        "The primary forges view changes",
        [{"forged_prepared": {}}, {"forged_stable": {}}, {"forged_new_view": {}}, {"view_spam": {}}],
    ),
    _attack(
        6,
        "A collector forges batches and endorsements",
        [
            {"invalid_batch": {}},
            {"equivocating_collector": {}},
            {"bogus_endorsements": {"refused": 1.0, "garbled": 0.0}},
        ],
        3,
    ),
    Attack("F9.7", "Half of the members are silent", "two of four nodes", half_is_silent),
    Attack("F9.8", "A node forgets what it said", "the disk of one node", vote_log_is_lost, also=("NODE-KEY",)),
    Attack(
        "F10.1",
        "Invented members and computing power",
        "as many keys and as much computing power as wanted, and no member",
        invented_members,
    ),
    Attack("F10.2", "Members certify by themselves", "the keys of 1, 2 and 3 of 4 members", too_few_members),
    Attack("F10.3", "f members run twice", "the keys of 2 of 7 members", twins(2, 3), also=("F9",)),
    Attack(
        "F10.4",
        "A majority of the members runs twice",
        "the keys of 4 of 7 members",
        twins(4, 1),
        PaperRun("4.2.3, 5.4.4", paper_half),
    ),
    Attack("NODE-KEY.1", "A node's keys leak", "both keys of a node that goes on", node_key_leaks, also=("F9",)),
)
