"""Key issuance without a dealer: what a dishonest or silent node can do, and what a crash can (design D7, protocol 2)."""

import copy
import pickle

import msgspec
import pytest

from bcami.client import issuance
from bcami.client.courier import Settlement
from bcami.client.issuance import (
    ISSUANCE_CODEC,
    ContributionPolicy,
    ContributionRound,
    Draft,
    IssuanceRefused,
    Party,
    Prepared,
    Share,
)
from bcami.client.periods import verify_period
from bcami.client.retry import Backoff
from bcami.crypto.hpke import KemSecretKey, seal_to
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.model.reasons import Reason
from bcami.model.registration import (
    ContributionAnswer,
    EnrolArgument,
    RegisterArgument,
    contribution_digest,
    request_hash,
    share_info,
)
from bcami.model.transaction import Transaction
from tests.chain import START_MS, entropy
from tests.unit.client.cluster import Cluster
from tests.virtual import run

QUICK = ContributionPolicy(answer_s=0.05, rounds=2, backoff=Backoff(1, 1))
HID = entropy("hid")


@pytest.fixture
def cluster() -> Cluster:
    built = Cluster()
    built.open_period()
    return built


@pytest.fixture
def party(cluster: Cluster) -> Party:
    from bcami.codec import encode
    from bcami.model.genesis import operator_id
    from bcami.model.transaction import argument_digest, transaction_id

    party = Party(
        HID,
        SecretKey.generate(entropy("enrolment")),
        KemSecretKey.generate(entropy("enrolment kem")),
        cluster.roster,
    )
    argument = encode(EnrolArgument(HID, party.signing.public_key, party.kem.public_key))
    signer = operator_id(cluster.utility.public_key)
    tx = Transaction("registration", "enrol", signer, 0, 1, START_MS, argument_digest(argument), argument, ())
    tx_id = transaction_id(tx, cluster.roster.chain, 0)
    cluster.execute([msgspec.structs.replace(tx, signatures=(cluster.utility.sign(tx_id),))])
    assert cluster.result(tx_id).reason is Reason.VALID
    return party


def draft_of(party: Party, session: int = 1) -> Draft:
    return issuance.draw(party, session, entropy("randomness"))


def shares_of(cluster: Cluster, party: Party, draft: Draft, replicas: tuple[int, ...] = (0, 1)) -> list[Share]:
    request = issuance.contribution_request(party, draft)
    shares = [issuance.open_share(party, request, cluster.contribution(replica, request)) for replica in replicas]
    assert all(isinstance(share, Share) for share in shares)
    return shares  # type: ignore[return-value]


def prepared_of(cluster: Cluster, party: Party, draft: Draft, replicas: tuple[int, ...] = (0, 1)) -> Prepared:
    period = verify_period(cluster.period_proof(), cluster.genesis, cluster.roster)
    assert not isinstance(period, Reason)
    shares = shares_of(cluster, party, draft, replicas)
    return issuance.prepare_meter(party, draft, shares, period, entropy("more randomness"), START_MS)


def collect(cluster: Cluster, party: Party, draft: Draft, first: int = 0) -> list[Share]:
    return run(issuance.collect_shares(party, draft, cluster.clients(), first=first, policy=QUICK))


# What is made.


def test_the_contract_accepts_what_is_prepared(cluster: Cluster, party: Party) -> None:
    prepared = prepared_of(cluster, party, draft_of(party))
    tx = msgspec.msgpack.decode(prepared.transaction, type=Transaction)
    assert cluster.runtime.check(tx, prepared.transaction_id, cluster.read, START_MS) is None
    cluster.execute([tx])
    assert cluster.result(prepared.transaction_id).reason is Reason.VALID
    argument = msgspec.msgpack.decode(tx.argument, type=RegisterArgument)
    assert SecretKey.from_scalar_bytes(prepared.key).public_key == argument.public_key


def test_no_party_alone_knows_the_key(cluster: Cluster, party: Party) -> None:
    draft = draft_of(party)
    prepared = prepared_of(cluster, party, draft)
    shares = [export_secret(share.key, SECRET_ACCESS) for share in shares_of(cluster, party, draft)]
    assert prepared.key not in [draft.own_share, *shares]
    for secret in (prepared.key, draft.own_share, draft.kem_secret, prepared.context, *shares):
        assert secret not in prepared.transaction


def test_secrets_are_hedged_against_a_poor_generator(party: Party, cluster: Cluster) -> None:
    """The same randomness: other keys for another session, and for another enrolment key."""
    first, second = issuance.draw(party, 1, bytes(32)), issuance.draw(party, 2, bytes(32))
    other = Party(HID, SecretKey.generate(entropy("other")), party.kem, party.roster)
    third = issuance.draw(other, 1, bytes(32))
    values = [value for draft in (first, second, third) for value in (draft.own_share, draft.kem_secret, draft.nonce)]
    assert len(set(values)) == len(values)
    assert issuance.draw(party, 1, entropy("x")).own_share != first.own_share
    with pytest.raises(ValueError, match="32 bytes"):
        issuance.draw(party, 1, bytes(31))


def test_the_ephemeral_rests_on_the_opened_shares(cluster: Cluster, party: Party) -> None:
    draft = draft_of(party)
    first, second = prepared_of(cluster, party, draft, (0, 1)), prepared_of(cluster, party, draft, (1, 2))
    assert first.context != second.context


# What nodes can do.


def test_a_share_that_is_not_behind_its_point_is_refused(cluster: Cluster, party: Party) -> None:
    """A lying share: well signed, well sealed, and another scalar than the one of X_j."""
    draft = draft_of(party)
    request = issuance.contribution_request(party, draft)
    honest = cluster.contribution(0, request)
    assert isinstance(honest, ContributionAnswer)
    info = share_info(cluster.roster.chain, HID, 1, request_hash(request), 0)
    for lie, reason in [
        (export_secret(SecretKey.generate(entropy("lie")), SECRET_ACCESS), Reason.KEY_MISMATCH),
        (bytes(32), Reason.BAD_CONTRIBUTION),
        (b"\xff" * 32, Reason.BAD_CONTRIBUTION),
    ]:
        encapsulation, sealed = seal_to(party.kem.public_key, info, b"", lie, entropy("ephemeral"))
        answer = ContributionAnswer(honest.contribution, encapsulation, sealed)
        assert issuance.open_share(party, request, answer) is reason


def test_a_contribution_of_somebody_else_is_refused(cluster: Cluster, party: Party) -> None:
    """A wrong node signature, a rogue point under an honest signature, another's replica id, another request."""
    request = issuance.contribution_request(party, draft_of(party))
    honest = cluster.contribution(0, request)
    assert isinstance(honest, ContributionAnswer)
    contribution = honest.contribution
    rogue = SecretKey.generate(entropy("rogue"))
    statement = contribution_digest(cluster.roster.chain, 0, HID, 1, request_hash(request), 0, contribution.point)
    for change in (
        {"signature": bytes(64)},
        {"signature": rogue.sign(statement)},
        {"point": rogue.public_key},
        {"replica": 1},
        {"replica": 60},
    ):
        forged = msgspec.structs.replace(honest, contribution=msgspec.structs.replace(contribution, **change))
        assert issuance.open_share(party, request, forged) is Reason.BAD_SIGNATURE
    other = issuance.contribution_request(party, draft_of(party, 2))
    assert issuance.open_share(party, other, honest) is Reason.BAD_SIGNATURE


def test_a_share_sealed_to_another_is_refused(cluster: Cluster, party: Party) -> None:
    request = issuance.contribution_request(party, draft_of(party))
    honest = cluster.contribution(0, request)
    assert isinstance(honest, ContributionAnswer)
    altered = msgspec.structs.replace(honest, sealed_share=bytes(48))
    assert issuance.open_share(party, request, altered) is Reason.BAD_CONTRIBUTION


def test_a_liar_is_replaced(cluster: Cluster, party: Party) -> None:
    cluster.faults[0].change_share = lambda answer: msgspec.structs.replace(answer, sealed_share=bytes(48))
    shares = collect(cluster, party, draft_of(party))
    assert {share.contribution.replica for share in shares} == {1, 2}


@pytest.mark.parametrize("fault", ["is_silent", "is_down"])
@pytest.mark.parametrize("first", [0, 3])
def test_f_nodes_that_do_not_answer_are_replaced(cluster: Cluster, party: Party, fault: str, first: int) -> None:
    setattr(cluster.faults[0], fault, True)
    shares = collect(cluster, party, draft_of(party), first=first)
    assert len({share.contribution.replica for share in shares} - {0}) == 2


def test_one_node_under_two_addresses_is_one_contributor(cluster: Cluster, party: Party) -> None:
    clients = [cluster.clients()[0], cluster.clients()[0], cluster.clients()[3]]
    draft = draft_of(party)
    shares = run(issuance.collect_shares(party, draft, clients, first=0, policy=QUICK))
    assert {share.contribution.replica for share in shares} == {0, 3}
    with pytest.raises(IssuanceRefused):
        run(issuance.collect_shares(party, draft, clients[:2], first=0, policy=QUICK))


def test_a_stranger_is_told_why(cluster: Cluster) -> None:
    """An unknown HID; a stolen HID without its enrolment key."""
    keys = (SecretKey.generate(entropy("thief")), KemSecretKey.generate(entropy("thief kem")))
    for hid, reason in [(entropy("nobody"), Reason.UNKNOWN_HID), (cluster.genesis.mdms_hid, Reason.BAD_SIGNATURE)]:
        thief = Party(hid, *keys, cluster.roster)
        with pytest.raises(IssuanceRefused) as refused:
            collect(cluster, thief, draft_of(thief, 9))
        assert refused.value.reason is reason


def test_nobody_asks_more_nodes_than_needed(cluster: Cluster, party: Party) -> None:
    collect(cluster, party, draft_of(party), first=2)
    assert [len(served.contributions) for served in cluster.served] == [0, 0, 1, 1]


def test_the_round_asks_each_node_once() -> None:
    contributions = ContributionRound(nodes=4, weak=2, first=3)
    assert contributions.to_ask() == [3, 0]
    assert contributions.to_ask() == []
    contributions.answered(3, Reason.BAD_SIGNATURE)
    assert contributions.to_ask() == [1]
    contributions.answered(0, None)
    contributions.answered(1, None)
    assert contributions.to_ask() == [2]
    contributions.answered(2, None)
    assert contributions.to_ask() == []
    assert not contributions.is_complete
    assert contributions.reasons == [Reason.BAD_SIGNATURE]


# What a crash can do.


class Crash(Exception):
    pass


@pytest.mark.parametrize("point", ["before prepared is stored", "after it is stored", "after it is settled"])
def test_a_crash_resumes_with_the_same_bytes(cluster: Cluster, party: Party, point: str) -> None:
    """The draft is durable; whatever comes later may be lost. The chain sees one registration."""
    draft = draft_of(party)
    store = [ISSUANCE_CODEC.encode(draft)]
    left: list[bytes] = []
    armed = [True]

    async def save(record: issuance.IssuanceRecord) -> None:
        if armed and point == "before prepared is stored":
            armed.clear()
            raise Crash
        store.append(ISSUANCE_CODEC.encode(record))
        if armed and point == "after it is stored":
            armed.clear()
            raise Crash

    async def prepare(stored: Draft, shares: list[Share]) -> Prepared:
        period = verify_period(cluster.period_proof(), cluster.genesis, cluster.roster)
        assert not isinstance(period, Reason)
        return issuance.prepare_meter(party, stored, shares, period, entropy(f"{len(left)}"), START_MS)

    async def settle(encoded: bytes, transaction_id: bytes) -> Settlement:
        left.append(encoded)
        cluster.execute([msgspec.msgpack.decode(encoded, type=Transaction)])
        if armed and point == "after it is settled":
            armed.clear()
            raise Crash
        return Settlement(True, cluster.result(transaction_id).reason, 1, 0)

    async def attempt() -> tuple[Prepared, Settlement]:
        return await issuance.issue(
            party,
            ISSUANCE_CODEC.decode(store[-1]),
            nodes=cluster.clients(),
            first=0,
            save=save,
            prepare=prepare,
            settle=settle,
            policy=QUICK,
        )

    with pytest.raises(Crash):
        run(attempt())
    prepared, settlement = run(attempt())
    assert settlement.reason is Reason.VALID
    assert set(left) == {prepared.transaction}, "nothing else ever left"
    requests = {msgspec.msgpack.encode(item) for served in cluster.served for item in served.contributions}
    assert len(requests) == 1, "the same request, byte by byte"


# What is shown.


def test_private_keys_are_never_shown(cluster: Cluster, party: Party) -> None:
    draft = draft_of(party)
    prepared = prepared_of(cluster, party, draft)
    shown = " ".join(
        str(item) + repr(item) + f"{item}" for item in (draft, prepared, party, *shares_of(cluster, party, draft))
    )
    for secret in (draft.own_share, draft.kem_secret, prepared.key, prepared.context):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    for record in (draft, prepared):
        assert list(record.__rich_repr__()) == ["secret"]
        with pytest.raises(TypeError):
            pickle.dumps(record)
        with pytest.raises(TypeError):
            copy.copy(record)
