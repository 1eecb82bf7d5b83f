"""A small chain made by hand: members with keys, certificates, batches and one whole block."""

from collections.abc import Mapping, Sequence
from hashlib import sha256

from bcami.crypto import merkle
from bcami.crypto.keys import SecretKey
from bcami.crypto.roster import Roster
from bcami.crypto.verification import absent_transactions
from bcami.model.batch import (
    Batch,
    BatchCertificate,
    CertificateVote,
    Refusal,
    batch_digest,
    endorsement_digest,
    leaf_hash,
)
from bcami.model.block import (
    BlockCertificate,
    CheckpointVote,
    Header,
    Outcome,
    checkpoint_digest,
    header_hash,
    result_leaf,
)
from bcami.model.chain import BlockBundle, ChainBlock, StoredBatch
from bcami.model.consensus import Proposal, proposal_digest
from bcami.model.genesis import Genesis, Member, Parameters
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction, transaction_id, transaction_leaf

METER = SecretKey.generate(b"meter" * 8)
Refusals = Mapping[int, Sequence[Refusal]]


def make_keys(nodes: int) -> list[SecretKey]:
    return [SecretKey.generate(b"node" * 8 + bytes((place,))) for place in range(nodes)]


def make_genesis(keys: Sequence[SecretKey]) -> Genesis:
    members = tuple(
        Member(f"dc{place}", key.public_key, sha256(b"tls%d" % place).digest()) for place, key in enumerate(keys)
    )
    return Genesis(
        network="test",
        created_ms=1,
        epoch=3,
        members=members,
        utility_key=METER.public_key,
        mdms_hid=bytes(32),
        mdms_enrolment_key=METER.public_key,
        mdms_enrolment_kem_key=bytes(65),
        chaincode_package=bytes(32),
        execution_version=1,
        parameters=Parameters(),
        faults_allowed=False,
    )


def certify_block(
    keys: Sequence[SecretKey], roster: Roster, height: int, hashed: bytes, voters: Sequence[int]
) -> BlockCertificate:
    signed = checkpoint_digest(roster.chain, roster.epoch, height, hashed)
    votes = tuple(CheckpointVote(voter, keys[voter].sign(signed)) for voter in voters)
    return BlockCertificate(roster.epoch, height, hashed, votes)


def certify_batch(
    keys: Sequence[SecretKey], roster: Roster, batch: Batch, voters: Sequence[int], refusals: Refusals
) -> BatchCertificate:
    leaves = [leaf_hash(tx) for tx in batch.transactions]
    digest = batch_digest(roster.chain, batch.epoch, batch.collector, batch.number, batch.anchor_height, leaves)
    votes = []
    for voter in voters:
        refused = tuple(refusals.get(voter, ()))
        signed = endorsement_digest(
            roster.chain, batch.epoch, batch.collector, batch.number, digest, len(leaves), voter, refused
        )
        votes.append(CertificateVote(voter, refused, keys[voter].sign(signed)))
    return BatchCertificate(batch.epoch, batch.collector, batch.number, digest, len(leaves), tuple(votes))


def make_transaction(roster: Roster, sequence: int, argument: bytes = b"sealed report") -> Transaction:
    unsigned = Transaction(
        "usage", "report", bytes(32), 1, sequence, 1000 + sequence, sha256(argument).digest(), argument, ()
    )
    signature = METER.sign(transaction_id(unsigned, roster.chain, roster.epoch))
    return Transaction(*[getattr(unsigned, name) for name in unsigned.__struct_fields__[:-1]], (signature,))


def make_bundle(keys: Sequence[SecretKey], roster: Roster, previous: bytes, refusals: Refusals) -> BlockBundle:
    """A block of three certificates, of which the first and the last execute; `refusals` are those of the first."""
    strong = list(range(roster.quorum.strong))
    batches = [
        Batch(roster.epoch, collector, number, None, tuple(make_transaction(roster, first + i) for i in range(count)))
        for collector, number, first, count in ((0, 7, 0, 5), (0, 9, 10, 2), (1, 1, 20, 3))
    ]
    certificates = tuple(
        certify_batch(keys, roster, batch, strong, refusals if place == 0 else {})
        for place, batch in enumerate(batches)
    )
    proposal = Proposal(certificates, 5000)
    executed = (0, 2)
    included = [
        tx
        for place in executed
        for index, tx in enumerate(batches[place].transactions)
        if index not in absent_transactions(certificates[place], roster.quorum)
    ]
    ids = [transaction_id(tx, roster.chain, roster.epoch) for tx in included]
    outcomes = tuple(Outcome(tx_id, Reason.REPLAY if index == 1 else Reason.VALID) for index, tx_id in enumerate(ids))
    header = Header(
        chain=roster.chain,
        epoch=roster.epoch,
        height=4,
        previous=previous,
        proposal_digest=proposal_digest(roster.chain, roster.epoch, proposal),
        transaction_count=len(outcomes),
        transactions_root=merkle.root(
            [transaction_leaf(tx_id, tx.signatures) for tx_id, tx in zip(ids, included, strict=True)]
        ),
        results_root=merkle.root([result_leaf(outcome, index) for index, outcome in enumerate(outcomes)]),
        state_root=sha256(b"state").digest(),
        state_bytes=100,
        time_ms=5000,
        members_hash=roster.members_hash,
    )
    certificate = certify_block(keys, roster, header.height, header_hash(header), strong)
    stored = tuple(StoredBatch(batches[place], ()) for place in executed)
    return BlockBundle(ChainBlock(header, proposal, executed, outcomes), stored, certificate)
