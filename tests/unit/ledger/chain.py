"""A small real chain for tests: signed certificates, right roots, right LtHash. Needs no contract and no PBFT."""

import random
from dataclasses import dataclass, field

from bcami.crypto import merkle
from bcami.crypto.keys import SecretKey
from bcami.crypto.lthash import LtHash, state_element
from bcami.ledger.store import LedgerCommit
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
from bcami.model.chain import ChainBlock, StoredBatch
from bcami.model.consensus import Proposal, proposal_digest
from bcami.model.genesis import Genesis, Member, Parameters, chain_id, members_hash
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction, argument_digest, transaction_id, transaction_leaf

KEYS = [SecretKey.generate(bytes([place + 1]) * 32) for place in range(4)]
METER = SecretKey.generate(b"m" * 32)
GENESIS = Genesis(
    network="test",
    created_ms=1_000,
    epoch=0,
    members=tuple(Member(f"node{place}", key.public_key, bytes([place]) * 32) for place, key in enumerate(KEYS)),
    utility_key=METER.public_key,
    mdms_hid=b"d" * 32,
    mdms_enrolment_key=METER.public_key,
    mdms_enrolment_kem_key=b"\x04" + b"k" * 64,
    chaincode_package=b"p" * 32,
    execution_version=1,
    parameters=Parameters(),
    faults_allowed=False,
)
CHAIN = chain_id(GENESIS)


def signer(number: int) -> bytes:
    return number.to_bytes(4, "big") + b"\x5a" * 28


def usage(
    signer_id: bytes, sequence: int, argument: bytes = b"sealed", *, sign: bool = False, contract: str = "usage"
) -> Transaction:
    unsigned = Transaction(
        contract, "report", signer_id, 1, sequence, 5, argument_digest(argument), argument, (bytes(64),)
    )
    if not sign:
        return unsigned
    signature = METER.sign(transaction_id(unsigned, CHAIN, 0))
    return Transaction(contract, "report", signer_id, 1, sequence, 5, argument_digest(argument), argument, (signature,))


@dataclass
class ChainMaker:
    """Makes consecutive commits with everything in them right."""

    signed: bool = True
    height: int = 0
    head: bytes = CHAIN
    state: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    lthash: LtHash = field(default_factory=LtHash)
    number: int = 0

    def certificate_of(self, batch: Batch, refused: tuple[int, ...] = ()) -> BatchCertificate:
        leaves = [leaf_hash(tx) for tx in batch.transactions]
        digest = batch_digest(CHAIN, 0, batch.collector, batch.number, batch.anchor_height, leaves)
        refusals = tuple(Refusal(index, Reason.BAD_SIGNATURE) for index in refused)
        votes = []
        for replica in range(3):
            statement = endorsement_digest(
                CHAIN, 0, batch.collector, batch.number, digest, len(leaves), replica, refusals
            )
            signature = KEYS[replica].sign(statement) if self.signed else bytes(64)
            votes.append(CertificateVote(replica, refusals, signature))
        return BatchCertificate(0, batch.collector, batch.number, digest, len(leaves), tuple(votes))

    def commit(self, transactions, writes=None, refused=(), reasons=None, batches=1):
        """Return the next commit: the transactions spread over batches, `writes` as its net changes."""
        writes = {} if writes is None else writes
        made, certificates = [], []
        for part in range(batches if transactions else 0):
            self.number += 1
            batch = Batch(0, 1, self.number, None, tuple(transactions[part::batches]))
            made.append(StoredBatch(batch, ()))
            certificates.append(self.certificate_of(batch, refused))
        executed = [tx for stored in made for index, tx in enumerate(stored.batch.transactions) if index not in refused]
        ids = [transaction_id(tx, CHAIN, 0) for tx in executed]
        reasons = reasons or [Reason.VALID] * len(ids)
        outcomes = tuple(Outcome(item, reason) for item, reason in zip(ids, reasons))
        self.height += 1
        self._apply(writes)
        proposal = Proposal(tuple(certificates), 10_000 + self.height)
        header = Header(
            chain=CHAIN,
            epoch=0,
            height=self.height,
            previous=self.head,
            proposal_digest=proposal_digest(CHAIN, 0, proposal),
            transaction_count=len(ids),
            transactions_root=merkle.root([transaction_leaf(i, tx.signatures) for i, tx in zip(ids, executed)]),
            results_root=merkle.root([result_leaf(outcome, index) for index, outcome in enumerate(outcomes)]),
            state_root=self.lthash.root(),
            state_bytes=sum(len(key) + len(value) for key, (value, _) in self.state.items()),
            time_ms=10_000 + self.height,
            members_hash=members_hash(GENESIS.members),
        )
        self.head = header_hash(header)
        block = ChainBlock(header, proposal, tuple(range(len(made))), outcomes)
        return LedgerCommit(block, tuple(made), tuple(sorted(writes.items())), self.lthash.to_bytes())

    def _apply(self, writes):
        added, removed = [], []
        for key, value in writes.items():
            if key in self.state:
                removed.append(state_element(key, *self.state.pop(key)))
            if value is not None:
                self.state[key] = (value, self.height)
                added.append(state_element(key, value, self.height))
        self.lthash.update(added, removed)


def certify(commit: LedgerCommit) -> BlockCertificate:
    header = commit.block.header
    digest = header_hash(header)
    statement = checkpoint_digest(CHAIN, 0, header.height, digest)
    votes = tuple(CheckpointVote(replica, KEYS[replica].sign(statement)) for replica in (0, 1, 3))
    return BlockCertificate(0, header.height, digest, votes)


def guard(signer_id: bytes) -> bytes:
    return b"guard/" + signer_id + b"/s"


def random_chain(blocks: int, *, seed: int = 1, transactions: int = 6, meters: int = 4) -> list[LedgerCommit]:
    """Return commits with usage, other contracts' transactions, guards, keys with history and deletions."""
    source = random.Random(seed)
    maker = ChainMaker()
    sequence = 0
    commits = []
    for height in range(1, blocks + 1):
        txs, writes = [], {}
        for _ in range(transactions):
            sequence += 1
            who = signer(source.randrange(meters))
            contract = source.choice(["usage", "usage", "registration"])
            txs.append(usage(who, sequence, source.randbytes(40), contract=contract, sign=True))
            writes[guard(who)] = source.randbytes(24)
        writes[b"registration/session/" + bytes([height % 5])] = source.randbytes(30) if height % 7 else None
        commits.append(maker.commit(txs, writes, batches=2, refused=(1,) if height % 4 == 0 else ()))
    return commits
