"""F3, message integrity; F4, authentication; F5, signature correctness. Malleated signatures are among the last."""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from bcami.codec import encode
from bcami.crypto import merkle
from bcami.crypto.keys import SecretKey
from bcami.crypto.signatures import verify
from bcami.crypto.verification import verify_receipt
from bcami.model.block import Outcome, Receipt, result_leaf
from bcami.model.chain import BlockBundle
from bcami.model.reasons import Reason
from bcami.model.registration import EnrolArgument
from bcami.model.transaction import Transaction, argument_digest
from bcami.report.security import paper
from bcami.report.security.attack import Account, Attack, PaperRun
from bcami.report.security.grounds import entropy
from bcami.report.security.people import Home, Town, made, town, try_each
from bcami.report.security.voice import collect


def flipped(data: bytes, place: int = 3) -> bytes:
    """Return the bytes with one bit turned."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


# F3.


def report_is_altered(seed: int) -> Account:
    """A gateway alters a report on its way: the ciphertext, the hash, every field of the header."""
    account = Account()
    with town(seed) as where:
        tx = where.home.report()
        other = where.homes[1].report()
        bits = flipped(tx.argument)
        account.does("alters a signed report on its way, one part at a time")
        tries = [
            ("one bit of E(UD)", replace(tx, argument=bits)),
            ("one bit of E(UD), and the hash", replace(tx, argument=bits, argument_hash=argument_digest(bits))),
            ("E(UD) of another meter", replace(tx, argument=other.argument, argument_hash=other.argument_hash)),
            ("timestamp", replace(tx, timestamp_ms=tx.timestamp_ms - 1)),
            ("sequence number", replace(tx, sequence=tx.sequence + 1)),
            ("session", replace(tx, session=tx.session + 1)),
            ("HID", replace(tx, signer=other.signer)),
            ("function", replace(tx, contract="registration", function="revoke")),
        ]
        account.aim("have an altered report accepted", try_each(account, where.grounds, tries))
        _stores(account, where, tx)
    return account


def _stores(account: Account, where: Town, tx: Transaction) -> None:
    """Check that the honest transaction is valid, and that the MDMS has its reading and no other."""
    account.check("the unaltered report is valid", where.grounds.reason(1, tx) is Reason.VALID)
    where.grounds.settle()
    where.mdms.follow(2)
    account.check("the MDMS has its reading", where.mdms.energy(where.home)[:1] == [1_000_000])


def collector_alters(seed: int) -> Account:
    """A node puts altered copies into a batch of its own, past its own admission."""
    account = Account()
    with town(seed) as where:
        grounds = where.grounds
        tx = where.home.report()
        bits = flipped(tx.argument)
        copies = [
            replace(tx, argument=bits),
            replace(tx, argument=bits, argument_hash=argument_digest(bits)),
            replace(tx, signatures=(flipped(tx.signatures[0], 40),)),
        ]
        account.does("node 4 puts three altered copies of a report into its batch, and the report itself")
        _collected(account, where, [*copies, tx])
        grounds.settle([0, 1, 2])
        ids = {grounds.id_of(item) for item in copies} - {grounds.id_of(tx)}
        won = any(grounds.outcomes(tx_id, 0) for tx_id in ids)
        account.aim("have an altered copy executed", won)
        account.check("the report itself is valid", grounds.outcomes(grounds.id_of(tx), 0)[:1] == [Reason.VALID])
        where.mdms.follow(1)
        account.aim("have a false reading stored", where.mdms.energy(where.home) != [1_000_000])
    return account


def _collected(account: Account, where: Town, transactions: Sequence[Transaction]) -> None:
    """Have a member's key bring a batch of these to execution, and write down what endorsers refuse in it."""
    refused = collect(where.grounds, 3, transactions)
    account.check("the batch is certified by endorsers", refused is not None)
    for index in sorted(refused or {}):
        account.no(f"endorser: transaction {index + 1} of the batch", (refused or {})[index])


def block_is_altered(seed: int) -> Account:
    """A node gives the MDMS altered blocks."""
    account = Account()
    with town(seed) as where:
        grounds, mdms = where.grounds, where.mdms
        tx = where.home.report()
        account.check("an honest report is committed", grounds.reason(0, tx) is Reason.VALID)
        grounds.settle()
        bundles = grounds.bundles(3)
        mdms.take(bundles[:-1])
        last = bundles[-1]
        account.does("is the node from which the MDMS pulls, and alters the last block in seven ways")
        won = False
        for what, altered in _altered(last, bundles[-2]):
            refused = mdms.take([altered]).refused
            won = not account.no(f"MDMS: {what}", None if refused is None else refused.reason) or won
        account.aim("have an altered block taken", won)
        account.check("the honest block is taken", mdms.take([last]).blocks == 1)
        account.aim("change a stored reading", mdms.energy(where.home) != [1_000_000])
    return account


def _altered(bundle: BlockBundle, before: BlockBundle) -> list[tuple[str, BlockBundle]]:
    block, stored = bundle.block, bundle.batches[0]
    header = block.header
    tx = stored.batch.transactions[0]
    other = replace(tx, argument=flipped(tx.argument))
    in_batch = replace(stored, batch=replace(stored.batch, transactions=(other, *stored.batch.transactions[1:])))
    outcome = replace(block.outcomes[0], reason=Reason.REPLAY)
    forged = replace(header, state_root=flipped(header.state_root))
    one_vote = replace(bundle.certificate, votes=bundle.certificate.votes[:1])
    twice = replace(bundle.certificate, votes=(bundle.certificate.votes[0],) * 3)
    return [
        ("another ciphertext", replace(bundle, batches=(in_batch, *bundle.batches[1:]))),
        ("a batch left out", replace(bundle, batches=bundle.batches[1:])),
        ("another outcome", replace(bundle, block=replace(block, outcomes=(outcome, *block.outcomes[1:])))),
        ("another state root", replace(bundle, block=replace(block, header=forged))),
        ("the certificate of the block before", replace(bundle, certificate=before.certificate)),
        ("a certificate with one vote", replace(bundle, certificate=one_vote)),
        ("a certificate with one vote three times", replace(bundle, certificate=twice)),
    ]


def receipt_is_forged(seed: int) -> Account:
    """A gateway tells a meter that its report was rejected, or committed, when it was not."""
    account = Account()
    with town(seed) as where:
        grounds = where.grounds
        tx, lost = where.home.report(), where.home.report()
        account.check("an honest report is committed", grounds.reason(0, tx) is Reason.VALID)
        receipt = grounds.receipt(tx)
        assert receipt is not None
        said = receipt.outcome
        false = {
            "the outcome turned into a rejection": replace(receipt, outcome=replace(said, reason=Reason.REPLAY)),
            "a receipt for a report that was thrown away": replace(
                receipt, outcome=replace(said, transaction_id=grounds.id_of(lost))
            ),
            "another place in the block": replace(receipt, index=receipt.index + 1),
            "a header of its own, under which it fits": replace(
                receipt,
                outcome=replace(said, reason=Reason.REPLAY),
                header=replace(receipt.header, results_root=_root(replace(said, reason=Reason.REPLAY), receipt)),
            ),
        }
        account.does("is the meter's gateway, throws a report away, and answers with receipts of its own making")
        believed = False
        for what, forged in false.items():
            believed = not account.no(f"meter: {what}", verify_receipt(forged, grounds.roster)) or believed
        account.aim("have a meter believe a false outcome", believed)
        account.check("the true receipt is believed", verify_receipt(receipt, grounds.roster) is None)
    return account


def _root(outcome: Outcome, receipt: Receipt) -> bytes:
    """Return the results root under which an outcome has the receipt's path."""
    leaf = result_leaf(outcome, receipt.index)
    root = merkle.root_from_path(leaf, receipt.index, receipt.header.transaction_count, receipt.path)
    return root or bytes(32)


def paper_altered(seed: int) -> Account:
    """Altered content fails the paper's signature check (5.4.2)."""
    account, network = Account(), paper.network(seed)
    tx = network.report(b"usage", 1)
    bits = flipped(tx.sealed)
    account.does("alters a report on its way")
    tries = [
        ("one bit of E(UD)", paper.Transaction(tx.encapsulation, bits, tx.hash, tx.hid, tx.signature, 1)),
        ("and the hash", paper.Transaction(tx.encapsulation, bits, argument_digest(bits), tx.hid, tx.signature, 1)),
    ]
    won = [not account.no(f"contract: {what}", network.contract.submit(altered)) for what, altered in tries]
    account.aim("have an altered report accepted", any(won))
    account.check("the unaltered one is accepted", network.contract.submit(tx) is None)
    return account


def paper_release(seed: int) -> Account:
    """4.2.4: block data are transferred to the MDMS along with the HID; it verifies the HID and decrypts."""
    account, network = Account(), paper.network(seed)
    tx = network.report(b"usage", 1)
    account.check("an honest report is accepted", network.contract.submit(tx) is None)
    account.does(
        "is the node that releases, and puts a report of its own, sealed to Pu of the MDMS, in the block's place"
    )
    mine = SecretKey.generate(entropy("paper release", seed))
    false = paper.report(mine, network.hid, network.mdms_key, b"false usage", 1)
    known = false.hid in network.contract.keys
    account.no("MDMS: HID", None if known else "unknown HID")
    account.aim("have a false reading stored", known and paper.read(false, network.mdms) == b"false usage")
    return account


# F4.


def who_may_not_report(seed: int) -> Account:
    """Strangers, other meters, revoked meters and closed sessions report."""
    account = Account()
    with town(seed, homes=3) as where:
        grounds, home = where.grounds, where.home
        stranger = SecretKey.generate(entropy("stranger", seed))
        old = home.report()
        where.wait_for_gap()
        home.register(where.period)
        tx = home.report()
        gone = where.homes[2]
        late = gone.report()
        account.check("the utility revokes a meter", grounds.reason(0, where.revoke(gone)) is Reason.VALID)
        grounds.settle()
        call = ("usage", "report")
        by = where.homes[1].session_key()
        account.does("reports in a customer's name, in five ways")
        tries = [
            ("no signature", replace(tx, signatures=())),
            ("a stranger's signature", made(grounds, [stranger], call, home.hid, (2, 9), tx.argument)),
            ("another meter's key", made(grounds, [by], call, home.hid, (2, 9), tx.argument)),
            ("a HID that nobody enrolled", made(grounds, [stranger], call, entropy("nobody"), (1, 1), tx.argument)),
            ("a session that was never opened", made(grounds, [by], call, home.hid, (7, 1), tx.argument)),
            ("the closed session's report, not sent before", old),
            ("a revoked meter's report", late),
        ]
        account.aim("have one of them accepted", try_each(account, grounds, tries))
        account.check("the meter itself is accepted", grounds.reason(1, tx) is Reason.VALID)
    return account


def operators_are_impersonated(seed: int) -> Account:
    """Somebody acts as the MDMS or as the utility."""
    from bcami.model.registration import AcknowledgeArgument, RevokeArgument

    account = Account()
    with town(seed) as where:
        grounds, network = where.grounds, where.grounds.identities
        stranger = SecretKey.generate(entropy("stranger", seed))
        node, meter = network.consensus[2], where.home.session_key()
        mdms, utility = network.genesis.mdms_hid, network.utility_id
        acknowledge = encode(AcknowledgeArgument(1, bytes(32)))
        revoke = encode(RevokeArgument(where.home.hid))
        account.does("acknowledges as the MDMS, so that nodes prune; revokes a customer as the utility")
        tries = [
            (
                "acknowledgement by a stranger",
                made(grounds, [stranger], ("mdms", "acknowledge"), mdms, (1, 1), acknowledge),
            ),
            ("acknowledgement by a node", made(grounds, [node], ("mdms", "acknowledge"), mdms, (1, 1), acknowledge)),
            (
                "under the meter's HID",
                made(grounds, [meter], ("mdms", "acknowledge"), where.home.hid, (1, 99), acknowledge),
            ),
            (
                "revocation by a stranger",
                made(grounds, [stranger], ("registration", "revoke"), utility, (0, 90), revoke),
            ),
            ("revocation by a node", made(grounds, [node], ("registration", "revoke"), utility, (0, 90), revoke)),
            (
                "revocation by the meter's neighbour",
                made(grounds, [meter], ("registration", "revoke"), where.homes[1].hid, (0, 90), revoke),
            ),
        ]
        account.aim("act as an operator", try_each(account, grounds, tries))
        account.check("the meter still reports", grounds.reason(0, where.home.report()) is Reason.VALID)
    return account


def paper_strangers(seed: int) -> Account:
    """The paper's contract declines a HID that is not stored (Algorithm 1, line 9)."""
    account, network = Account(), paper.network(seed)
    account.does("asks for a key pair for a HID that is not stored, and reports under a key of its own")
    key = network.contract.register(paper.hashed_identity("MAC999999"))
    account.no("contract: registration", "declined" if key is None else None)
    mine = SecretKey.generate(entropy("paper stranger", seed))
    tx = paper.report(mine, network.hid, network.mdms_key, b"false", 1)
    refused = account.no("contract: a customer's HID, a stranger's signature", network.contract.submit(tx))
    account.aim("have a stranger's report accepted", key is not None or not refused)
    account.check("an honest report is accepted", network.contract.submit(network.report(b"usage")) is None)
    return account


# F5.


def malleated_signature(seed: int) -> Account:
    """(r, s) is turned into (r, n − s), which plain ECDSA accepts too."""
    account = Account()
    with town(seed) as where:
        grounds, home = where.grounds, where.home
        tx = home.report()
        key, digest = home.session_key().public_key, grounds.id_of(tx)
        twin = replace(tx, signatures=(paper.malleated(tx.signatures[0]),))
        account.check("the twin is a valid signature for plain ECDSA", paper.is_signed(key, twin.signatures[0], digest))
        account.does("sends the report with the twin of its signature, before and after the meter's own copy")
        account.aim("have the twin accepted", try_each(account, grounds, [("the twin first", twin)]))
        account.check("the meter's own copy is valid", grounds.reason(1, tx) is Reason.VALID)
        answer = grounds.submit(2, twin)
        first = grounds.first[digest]
        same = answer is not None and (answer.height, answer.index) == (first.height, first.index)
        account.no("the twin afterwards: same id", "first receipt again" if same else None)
        grounds.settle()
        account.aim("have the report counted twice", len(grounds.outcomes(digest, 0)) != 1)
    return account


def malleated_in_batch(seed: int) -> Account:
    """A collector puts the malleated twin into its batch, so that the honest id is used up by a bad copy."""
    account = Account()
    with town(seed) as where:
        grounds = where.grounds
        tx = where.home.report()
        twin = replace(tx, signatures=(paper.malleated(tx.signatures[0]),))
        account.check("both have one id", grounds.id_of(tx) == grounds.id_of(twin))
        account.does("node 4 withholds a report and collects its malleated twin")
        _collected(account, where, [twin])
        grounds.settle([0, 1, 2])
        account.aim("have the twin executed, or the id used up", bool(grounds.outcomes(grounds.id_of(tx), 0)))
        account.check("the report is valid at another node", grounds.reason(1, tx) is Reason.VALID)
    return account


def odd_signatures(seed: int) -> Account:
    """Signatures that sloppy code accepts: zero, r or s at or above n, DER, too long, of other keys and purposes."""
    account = Account()
    with town(seed) as where:
        grounds, home = where.grounds, where.home
        tx = home.report()
        good = tx.signatures[0]
        r, s = good[:32], good[32:]
        order = paper.ORDER.to_bytes(32, "big")
        share = grounds.identities.consensus[0].sign(grounds.id_of(tx))
        purpose = home.session_key().sign(argument_digest(tx.argument))
        odd = {
            "r = 0": bytes(32) + s,
            "s = 0": r + bytes(32),
            "both 0": bytes(64),
            "r = n": order + s,
            "s = n": r + order,
            "all ones": b"\xff" * 64,
            "r and s swapped": s + r,
            "a member's signature": share,
            "Pr over the report's hash only, as in the paper's Table 2": purpose,
        }
        account.does("replaces the signature of a report")
        tries = [(what, replace(tx, signatures=(signature,))) for what, signature in odd.items()]
        tries.append(("the signature twice", replace(tx, signatures=(good, good))))
        account.aim("have an odd signature accepted", try_each(account, grounds, tries))
        digest, public = grounds.id_of(tx), home.session_key().public_key
        long = [good + b"\0", good[:63], b"\x30\x44" + good, b""]
        account.aim("pass another length or DER", any(verify(public, item, digest) for item in long))
        account.check("the report itself is valid", grounds.reason(0, tx) is Reason.VALID)
    return account


def odd_keys(seed: int) -> Account:
    """Public keys that are no points are enrolled; a key is used for two purposes."""
    account = Account()
    with town(seed) as where:
        grounds, network = where.grounds, where.grounds.identities
        thief = Home(grounds, "odd")
        signing, kem = thief.party.signing.public_key, thief.party.kem.public_key
        keys = {
            "x is none of a point": (b"\x02" + b"\xff" * 32, kem),
            "infinity": (bytes(33), kem),
            "KEM key off the curve": (signing, kem[:-1] + bytes([kem[-1] ^ 1])),
            "one key to sign and to seal to": (signing, paper.kem_of(thief.party.signing).public_key),
        }
        account.does("has the utility enrol keys that are none")
        won = False
        for place, (what, (one, other)) in enumerate(keys.items()):
            argument = encode(EnrolArgument(entropy("odd", what), one, other))
            call, number = ("registration", "enrol"), (0, 90 + place)
            tx = made(grounds, [network.utility], call, network.utility_id, number, argument)
            reason = grounds.reason(0, tx)
            won = not account.no(f"contract: {what}", reason or "no answer") or won
        account.aim("have a bad key on the chain", won)
        tx = made(grounds, [network.utility], ("registration", "enrol"), network.utility_id, (0, 99), _enrol(thief))
        account.check("good keys are enrolled", grounds.reason(0, tx) is Reason.VALID)
    return account


def _enrol(home: Home) -> bytes:
    return encode(EnrolArgument(home.hid, home.party.signing.public_key, home.party.kem.public_key))


def paper_malleated(seed: int) -> Account:
    """Plain ECDSA accepts the twin: another transaction, byte by byte, with the same content."""
    account, network = Account(), paper.network(seed)
    tx = network.report(b"usage", 1)
    twin = paper.Transaction(tx.encapsulation, tx.sealed, tx.hash, tx.hid, paper.malleated(tx.signature), 1)
    account.check("an honest report is accepted", network.contract.submit(tx) is None)
    account.does("sends the report once more with (r, n − s); its bytes, and so any hash over them, are new")
    refused = account.no("contract: the twin", network.contract.submit(twin))
    account.aim("have a second signature of the same report accepted", not refused)
    return account


ATTACKS: Final = (
    Attack(
        "F3.1",
        "A report is altered on its way",
        "the meter's gateway",
        report_is_altered,
        PaperRun("4.2.3, 5.4.2", paper_altered),
    ),
    Attack(
        "F3.2", "A collector batches altered copies", "a node with its consensus key", collector_alters, also=("F9",)
    ),
    Attack(
        "F3.3",
        "The MDMS is given altered blocks",
        "the node from which the MDMS pulls",
        block_is_altered,
        PaperRun("4.2.4", paper_release),
        also=("F6", "LEDGER"),
    ),
    Attack("F3.4", "A gateway forges receipts", "the meter's gateway", receipt_is_forged, also=("F6",)),
    Attack(
        "F4.1",
        "Who may not report reports",
        "a key of its own, another meter's session key, reports of closed sessions and revoked meters",
        who_may_not_report,
        PaperRun("4.2.2, Algorithm 1; 4.2.3", paper_strangers),
    ),
    Attack(
        "F4.2",
        "Somebody acts as the MDMS or the utility",
        "a stranger's, a node's and a meter's key",
        operators_are_impersonated,
        also=("F7",),
    ),
    Attack(
        "F5.1",
        "A signature is malleated",
        "a signed report",
        malleated_signature,
        PaperRun("4.2.3, 5.3.1", paper_malleated),
        also=("MALLEATED",),
    ),
    Attack(
        "F5.2",
        "A collector batches the malleated twin of a report",
        "a node with its consensus key; a signed report",
        malleated_in_batch,
        also=("MALLEATED", "F9"),
    ),
    Attack("F5.3", "Odd signatures", "a signed report; keys of other parties", odd_signatures),
    Attack("F5.4", "Keys that are none, and one key for two uses", "the utility's signature", odd_keys),
)
