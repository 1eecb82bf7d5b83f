"""Builds small chains with real keys, signatures, encryption and certificates, without nodes.

`ChainBuilder` plays the utility, the MDMS's enrolment, all nodes and all meters at once. What it makes verifies from
genesis alone (bcami.crypto.verification); world state and its root are not modelled, outcomes are what the test says.

    chain = ChainBuilder()
    period = chain.open_period()                   # mdms.register, in a block of its own
    meter = chain.enrol("MAC000002")               # registration.enrol
    chain.open_session(meter, period)              # registration.register
    bundle = chain.block([meter.report([Reading(0, 5)])])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import msgspec

from bcami.codec import encode
from bcami.crypto import merkle
from bcami.crypto.hid import hid
from bcami.crypto.hpke import KemSecretKey, SealingContext, setup_sender
from bcami.crypto.keys import SecretKey
from bcami.crypto.roster import Roster
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
from bcami.model.genesis import Genesis, Member, Parameters, operator_id
from bcami.model.reasons import Reason
from bcami.model.registration import (
    AcknowledgeArgument,
    Contribution,
    EnrolArgument,
    MdmsRegisterArgument,
    RegisterArgument,
    RevokeArgument,
    period_key_id,
    usage_aad,
    usage_info,
)
from bcami.model.report import Reading, encode_report
from bcami.model.transaction import Transaction, argument_digest, transaction_id, transaction_leaf
from bcami.units import HALF_HOUR_S

START_MS = 1_700_000_000_000
NETWORK_KEY = sha256(b"network key of the tests").digest()


def entropy(label: str) -> bytes:
    """Return 32 bytes that are always the same for a label."""
    return sha256(b"bcami/test/" + label.encode()).digest()


@dataclass(slots=True, eq=False)
class ChainPeriod:
    """An MDMS period with its private keys."""

    number: int
    signing: SecretKey
    kem: KemSecretKey

    @property
    def key_id(self) -> bytes:
        return period_key_id(self.kem.public_key)


@dataclass(slots=True, eq=False)
class ChainMeter:
    """A meter with its private keys and its open session."""

    chain: "ChainBuilder"
    meter_id: str
    hid: bytes
    enrolment: SecretKey
    session: int = 0
    sequence: int = 0
    signing: SecretKey | None = None
    context: SealingContext | None = None

    def report(
        self,
        readings: Sequence[Reading],
        *,
        interval_s: int = HALF_HOUR_S,
        plaintext: bytes | None = None,
        altered: bool = False,
    ) -> Transaction:
        """Return the next usage transaction: of these readings, or of any plaintext; or with an altered ciphertext."""
        assert self.context is not None
        assert self.signing is not None
        self.sequence += 1
        made_ms = START_MS + self.sequence
        aad = usage_aad(self.chain.roster.chain, self.hid, self.session, self.sequence, made_ms)
        content = encode_report(readings, interval_s) if plaintext is None else plaintext
        sealed = self.context.seal(self.sequence, aad, content)
        if altered:
            sealed = bytes((sealed[0] ^ 1,)) + sealed[1:]
        return self.chain.sign(
            "usage", "report", self.hid, self.session, self.sequence, sealed, (self.signing,), made_ms
        )


class ChainBuilder:
    """Makes blocks that follow one another; `bundles[h - 1]` is the block of height h."""

    def __init__(self, nodes: int = 4, *, label: str = "chain", parameters: Parameters | None = None) -> None:
        self.label = label
        self.keys = [SecretKey.generate(entropy(f"{label}/node/{place}")) for place in range(nodes)]
        self.utility = SecretKey.generate(entropy(f"{label}/utility"))
        self.mdms_enrolment = SecretKey.generate(entropy(f"{label}/mdms"))
        self.mdms_enrolment_kem = KemSecretKey.generate(entropy(f"{label}/mdms kem"))
        self.mdms_hid = hid(NETWORK_KEY, "mdms")
        self.genesis = Genesis(
            network="test",
            created_ms=START_MS,
            epoch=0,
            members=tuple(
                Member(f"node{place + 1}", key.public_key, entropy(f"{label}/tls/{place}"))
                for place, key in enumerate(self.keys)
            ),
            utility_key=self.utility.public_key,
            mdms_hid=self.mdms_hid,
            mdms_enrolment_key=self.mdms_enrolment.public_key,
            mdms_enrolment_kem_key=self.mdms_enrolment_kem.public_key,
            chaincode_package=entropy("package"),
            execution_version=1,
            parameters=parameters or Parameters(),
            faults_allowed=False,
        )
        self.roster = Roster.from_genesis(self.genesis)
        self.bundles: list[BlockBundle] = []
        self.meters: dict[str, ChainMeter] = {}
        self.time_ms = START_MS
        self._utility_sequence = 0
        self._periods = 0
        self._lanes = [0] * nodes

    @property
    def height(self) -> int:
        return len(self.bundles)

    @property
    def head(self) -> bytes:
        """Hash of the last header; of genesis at height 0."""
        return header_hash(self.bundles[-1].block.header) if self.bundles else self.roster.chain

    # Transactions.

    def sign(
        self,
        contract: str,
        function: str,
        signer: bytes,
        session: int,
        sequence: int,
        argument: bytes,
        keys: Sequence[SecretKey],
        timestamp_ms: int | None = None,
    ) -> Transaction:
        unsigned = Transaction(
            contract=contract,
            function=function,
            signer=signer,
            session=session,
            sequence=sequence,
            timestamp_ms=self.time_ms if timestamp_ms is None else timestamp_ms,
            argument_hash=argument_digest(argument),
            argument=argument,
            signatures=(),
        )
        tx_id = transaction_id(unsigned, self.roster.chain, self.roster.epoch)
        return msgspec.structs.replace(unsigned, signatures=tuple(key.sign(tx_id) for key in keys))

    def new_meter(self, meter_id: str) -> ChainMeter:
        meter = ChainMeter(
            self,
            meter_id,
            hid(NETWORK_KEY, meter_id),
            SecretKey.generate(entropy(f"{self.label}/enrolment/{meter_id}")),
        )
        self.meters[meter_id] = meter
        return meter

    def enrol_tx(self, meter: ChainMeter) -> Transaction:
        kem = KemSecretKey.generate(entropy(f"{self.label}/enrolment kem/{meter.meter_id}"))
        return self.utility_tx("enrol", encode(EnrolArgument(meter.hid, meter.enrolment.public_key, kem.public_key)))

    def revoke_tx(self, meter: ChainMeter) -> Transaction:
        return self.utility_tx("revoke", encode(RevokeArgument(meter.hid)))

    def utility_tx(self, function: str, argument: bytes) -> Transaction:
        self._utility_sequence += 1
        signer = operator_id(self.utility.public_key)
        return self.sign("registration", function, signer, 0, self._utility_sequence, argument, (self.utility,))

    def register_tx(self, meter: ChainMeter, period: ChainPeriod) -> Transaction:
        """Open the meter's next session towards a period, and return the transaction that says so."""
        meter.session += 1
        meter.sequence = 0
        name = f"{self.label}/session/{meter.meter_id}/{meter.session}"
        meter.signing = SecretKey.generate(entropy(name))
        info = usage_info(self.roster.chain, meter.hid, meter.session, period.key_id)
        encapsulation, meter.context = setup_sender(period.kem.public_key, info, entropy(f"{name}/ephemeral"))
        argument = RegisterArgument(
            public_key=meter.signing.public_key,
            own_point=meter.signing.public_key,
            request_hash=entropy(f"{name}/request"),
            contributions=(Contribution(0, self.keys[0].public_key, bytes(64)),),
            kem_key=KemSecretKey.generate(entropy(f"{name}/kem")).public_key,
            encapsulation=encapsulation,
            period=period.number,
            period_key_id=period.key_id,
        )
        keys = (meter.enrolment, meter.signing)
        return self.sign("registration", "register", meter.hid, 0, meter.session, encode(argument), keys)

    def new_period(self) -> ChainPeriod:
        self._periods += 1
        name = f"{self.label}/period/{self._periods}"
        return ChainPeriod(
            self._periods, SecretKey.generate(entropy(name)), KemSecretKey.generate(entropy(f"{name}/kem"))
        )

    def period_tx(self, period: ChainPeriod) -> Transaction:
        argument = MdmsRegisterArgument(
            public_key=period.signing.public_key,
            own_point=period.signing.public_key,
            request_hash=entropy(f"{self.label}/period request"),
            contributions=(Contribution(0, self.keys[0].public_key, bytes(64)),),
            kem_key=period.kem.public_key,
        )
        keys = (self.mdms_enrolment, period.signing)
        return self.sign("mdms", "register", self.mdms_hid, 0, period.number, encode(argument), keys)

    def acknowledge_tx(self, period: ChainPeriod, height: int, sequence: int) -> Transaction:
        argument = encode(AcknowledgeArgument(height, bytes(32)))
        return self.sign("mdms", "acknowledge", self.mdms_hid, period.number, sequence, argument, (period.signing,))

    # Whole steps, each in a block of its own.

    def open_period(self) -> ChainPeriod:
        period = self.new_period()
        self.block([self.period_tx(period)])
        return period

    def enrol(self, *meter_ids: str) -> ChainMeter:
        """Enrol meters in one block; return the last."""
        meters = [self.new_meter(meter_id) for meter_id in meter_ids]
        self.block([self.enrol_tx(meter) for meter in meters])
        return meters[-1]

    def open_session(self, *who: "ChainMeter | ChainPeriod") -> None:
        """Open a session of each meter named towards the period named."""
        period = next(item for item in who if isinstance(item, ChainPeriod))
        self.block([self.register_tx(item, period) for item in who if isinstance(item, ChainMeter)])

    # Blocks.

    def block(
        self,
        transactions: Sequence[Transaction],
        outcomes: Mapping[int, Reason] | None = None,
        *,
        absent: Sequence[int] = (),
        step_ms: int = 100,
    ) -> BlockBundle:
        """Append a block of one batch (none when there are no transactions); all valid but what `outcomes` names.

        Transactions in `absent` are refused by every endorser and have no outcome.
        """
        bundle = self.make_block(transactions, outcomes, absent=absent, step_ms=step_ms)
        self.time_ms = bundle.block.header.time_ms
        self.bundles.append(bundle)
        return bundle

    def make_block(
        self,
        transactions: Sequence[Transaction],
        outcomes: Mapping[int, Reason] | None = None,
        *,
        absent: Sequence[int] = (),
        step_ms: int = 100,
    ) -> BlockBundle:
        """Return the block without appending it (its batch number counts as used)."""
        collector = self.height % len(self.keys)
        batches: tuple[StoredBatch, ...] = ()
        certificates: tuple[BatchCertificate, ...] = ()
        if transactions:
            self._lanes[collector] += 1
            batch = Batch(0, collector, self._lanes[collector], None, tuple(transactions))
            batches = (StoredBatch(batch, ()),)
            certificates = (self._certify_batch(batch, absent),)
        proposal = Proposal(certificates, self.time_ms + step_ms)
        present = [tx for index, tx in enumerate(transactions) if index not in absent]
        ids = [transaction_id(tx, self.roster.chain, 0) for tx in present]
        named = outcomes or {}
        listed = tuple(Outcome(tx_id, named.get(index, Reason.VALID)) for index, tx_id in enumerate(ids))
        header = Header(
            chain=self.roster.chain,
            epoch=0,
            height=self.height + 1,
            previous=self.head,
            proposal_digest=proposal_digest(self.roster.chain, 0, proposal),
            transaction_count=len(listed),
            transactions_root=merkle.root(
                [transaction_leaf(tx_id, tx.signatures) for tx_id, tx in zip(ids, present, strict=True)]
            ),
            results_root=merkle.root([result_leaf(outcome, index) for index, outcome in enumerate(listed)]),
            state_root=entropy("state"),
            state_bytes=0,
            time_ms=proposal.time_ms,
            members_hash=self.roster.members_hash,
        )
        block = ChainBlock(header, proposal, tuple(range(len(batches))), listed)
        return BlockBundle(block, batches, self.certify(header))

    def certify(self, header: Header) -> BlockCertificate:
        """Return a strong quorum of checkpoints of a header."""
        hashed = header_hash(header)
        signed = checkpoint_digest(self.roster.chain, 0, header.height, hashed)
        voters = range(self.roster.quorum.strong)
        votes = tuple(CheckpointVote(replica, self.keys[replica].sign(signed)) for replica in voters)
        return BlockCertificate(0, header.height, hashed, votes)

    def _certify_batch(self, batch: Batch, absent: Sequence[int]) -> BatchCertificate:
        chain, count = self.roster.chain, len(batch.transactions)
        leaves = [leaf_hash(tx) for tx in batch.transactions]
        digest = batch_digest(chain, 0, batch.collector, batch.number, 0, leaves)
        refusals = tuple(Refusal(index, Reason.BAD_SIGNATURE) for index in sorted(absent))
        votes = []
        for replica in range(self.roster.quorum.strong):
            signed = endorsement_digest(chain, 0, batch.collector, batch.number, digest, count, replica, refusals)
            votes.append(CertificateVote(replica, refusals, self.keys[replica].sign(signed)))
        return BatchCertificate(0, batch.collector, batch.number, digest, count, tuple(votes))


def prune(bundle: BlockBundle) -> BlockBundle:
    """Return the bundle as a node holds it after its usage payloads are pruned."""
    batches = []
    for stored in bundle.batches:
        leaves = tuple(leaf_hash(tx) for tx in stored.batch.transactions)
        emptied = tuple(
            msgspec.structs.replace(tx, argument=b"") if tx.contract == "usage" else tx
            for tx in stored.batch.transactions
        )
        batches.append(StoredBatch(msgspec.structs.replace(stored.batch, transactions=emptied), leaves))
    return msgspec.structs.replace(bundle, batches=tuple(batches))
