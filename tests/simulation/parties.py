"""Signs what the utility, the MDMS and meters send, without their stores and retries: for tests of the cluster."""

from bcami.codec import encode
from bcami.crypto.hpke import KemSecretKey, open_from, setup_sender
from bcami.crypto.keys import SecretKey
from bcami.model.genesis import operator_id
from bcami.model.registration import (
    Contribution,
    ContributionAnswer,
    ContributionRequest,
    EnrolArgument,
    MdmsRegisterArgument,
    RegisterArgument,
    RevokeArgument,
    contribution_request_digest,
    period_key_id,
    request_hash,
    share_info,
    usage_aad,
    usage_info,
)
from bcami.model.report import Reading, encode_report
from bcami.model.transaction import Transaction, argument_digest, transaction_id
from tests.simulation.cluster import Cluster, entropy


def signed(
    cluster: Cluster,
    keys: list[SecretKey],
    contract: str,
    function: str,
    signer: bytes,
    session: int,
    sequence: int,
    argument: bytes,
) -> Transaction:
    unsigned = Transaction(
        contract, function, signer, session, sequence, cluster.now_ms, argument_digest(argument), argument, ()
    )
    tx_id = transaction_id(unsigned, cluster.chain, 0)
    return Transaction(
        contract,
        function,
        signer,
        session,
        sequence,
        cluster.now_ms,
        argument_digest(argument),
        argument,
        tuple(key.sign(tx_id) for key in keys),
    )


class Issued:
    """One dealerless key issuance against the cluster's cores."""

    def __init__(self, cluster: Cluster, hid: bytes, session: int, enrolment: SecretKey, kem: KemSecretKey) -> None:
        nonce = entropy("nonce", hid, session)[:32]
        digest = contribution_request_digest(cluster.chain, 0, hid, session, nonce)
        request = ContributionRequest(hid, session, nonce, enrolment.sign(digest))
        own = SecretKey.generate(entropy("own", hid, session))
        shares, contributions = [], []
        self.request_hash = request_hash(request)
        for i, core in enumerate(cluster.cores):
            if core is None or len(shares) == cluster.roster.quorum.weak:
                continue
            answer = core.contribute(request, cluster.now_ms)
            assert isinstance(answer, ContributionAnswer), answer
            info = share_info(cluster.chain, hid, session, self.request_hash, i)
            share = SecretKey.from_scalar_bytes(open_from(answer.encapsulation, kem, info, b"", answer.sealed_share))
            assert share.public_key == answer.contribution.point
            shares.append(share)
            contributions.append(answer.contribution)
        self.own_point = own.public_key
        self.key = own.plus(*shares)
        self.contributions: tuple[Contribution, ...] = tuple(contributions)


class Utility:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.sequence = 0

    def _send(self, function: str, argument: object) -> Transaction:
        self.sequence += 1
        key = self.cluster.identities.utility
        return signed(
            self.cluster,
            [key],
            "registration",
            function,
            operator_id(key.public_key),
            0,
            self.sequence,
            encode(argument),
        )

    def enrol(self, meter: "SimpleMeter") -> Transaction:
        argument = EnrolArgument(meter.hid, meter.enrolment.public_key, meter.kem.public_key)
        return self._send("enrol", argument)

    def revoke(self, meter: "SimpleMeter") -> Transaction:
        return self._send("revoke", RevokeArgument(meter.hid))


class SimpleMdms:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.period = 0
        self.period_kem: KemSecretKey | None = None

    def register(self) -> Transaction:
        cluster, identities = self.cluster, self.cluster.identities
        self.period += 1
        hid = identities.genesis.mdms_hid
        issued = Issued(cluster, hid, self.period, identities.mdms, identities.mdms_kem)
        self.key = issued.key
        self.period_kem = KemSecretKey.generate(entropy("period", self.period))
        argument = MdmsRegisterArgument(
            issued.key.public_key,
            issued.own_point,
            issued.request_hash,
            issued.contributions,
            self.period_kem.public_key,
        )
        keys = [identities.mdms, issued.key]
        return signed(cluster, keys, "mdms", "register", hid, 0, self.period, encode(argument))


class SimpleMeter:
    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.hid = entropy("hid", name)[:32]
        self.enrolment = SecretKey.generate(entropy("enrolment", name))
        self.kem = KemSecretKey.generate(entropy("kem", name))
        self.session = 0
        self.sequence = 0

    def register(self, mdms: SimpleMdms) -> Transaction:
        assert mdms.period_kem is not None
        cluster = self.cluster
        self.session += 1
        self.sequence = 0
        issued = Issued(cluster, self.hid, self.session, self.enrolment, self.kem)
        self.key = issued.key
        key_id = period_key_id(mdms.period_kem.public_key)
        info = usage_info(cluster.chain, self.hid, self.session, key_id)
        enc, self.context = setup_sender(mdms.period_kem.public_key, info, entropy("eph", self.hid, self.session))
        session_kem = KemSecretKey.generate(entropy("session-kem", self.hid, self.session))
        argument = RegisterArgument(
            issued.key.public_key,
            issued.own_point,
            issued.request_hash,
            issued.contributions,
            session_kem.public_key,
            enc,
            mdms.period,
            key_id,
        )
        return signed(
            cluster,
            [self.enrolment, issued.key],
            "registration",
            "register",
            self.hid,
            0,
            self.session,
            encode(argument),
        )

    def report(self, energy: int = 1, sequence: int | None = None) -> Transaction:
        cluster = self.cluster
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        plaintext = encode_report([Reading(1_356_998_400 + 1800 * sequence, energy)], 1800)
        aad = usage_aad(cluster.chain, self.hid, self.session, sequence, cluster.now_ms)
        sealed = self.context.seal(sequence, aad, plaintext)
        return signed(cluster, [self.key], "usage", "report", self.hid, self.session, sequence, sealed)
