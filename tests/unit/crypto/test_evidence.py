"""Evidence convicts who contradicted itself, nobody else, and is one object however it is put together."""

import msgspec
import pytest

from bcami.codec import encode
from bcami.crypto.evidence import check_evidence, verify_evidence
from bcami.crypto.keys import SecretKey
from bcami.crypto.roster import Roster
from bcami.crypto.verification import verify_batch_certificate
from bcami.model.batch import BatchCertificate, CertificateVote, Endorsement, Refusal
from bcami.model.block import BlockCertificate, CheckpointVote
from bcami.model.consensus import NULL_PROPOSAL, PreparedProof, PrePrepare, Proposal, ViewChange
from bcami.model.events import EquivocationSeen
from bcami.model.evidence import (
    EVIDENCE_BYTES_MAX,
    EVIDENCE_CODEC,
    Evidence,
    SignedContent,
    StatementKind,
    evidence_id,
    place_id,
)
from bcami.model.reasons import Reason
from bcami.pbft.effects import Observe
from bcami.pbft.inputs import Received
from bcami.pbft.records import fresh
from bcami.pbft.replica import Replica
from bcami.pbft.statements import Statements
from tests.unit.contract.world import make_genesis, signing_key
from tests.unit.crypto.statements import contradiction, signed, statement

ROSTER = Roster.from_genesis(make_genesis())
KINDS = list(StatementKind)


def key(replica: int) -> SecretKey:
    return signing_key("node", replica)


def convicted(first: bytes, second: bytes) -> Evidence:
    evidence = verify_evidence(first, second, ROSTER)
    assert isinstance(evidence, Evidence), evidence
    return evidence


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_convicts(self, kind):
        evidence = convicted(*contradiction(ROSTER, key(1), 1, kind))
        assert (evidence.place.kind, evidence.place.replica) == (kind, 1)
        assert check_evidence(evidence, ROSTER.chain, ROSTER.epoch, ROSTER.keys) is None

    def test_order_does_not_matter(self, kind):
        first, second = contradiction(ROSTER, key(1), 1, kind)
        assert convicted(first, second) == convicted(second, first)

    def test_size_is_bounded_and_bytes_are_canonical(self, kind):
        view = 63 if kind is StatementKind.ENDORSEMENT else 2**62
        evidence = convicted(*contradiction(ROSTER, key(1), 1, kind, view, 2**62))
        data = encode(evidence)
        assert len(data) <= 400 < EVIDENCE_BYTES_MAX
        assert EVIDENCE_CODEC.decode(data) == evidence

    def test_said_twice_is_no_contradiction(self, kind):
        first, _ = contradiction(ROSTER, key(1), 1, kind)
        assert verify_evidence(first, first, ROSTER) is Reason.NO_EQUIVOCATION

    def test_another_place_is_no_contradiction(self, kind):
        first = statement(ROSTER, key(1), kind, 1, 2, 9, "one")
        for view, height in ((3, 10), (3, 9), (2, 10)):
            second = statement(ROSTER, key(1), kind, 1, view, height, "other")
            found = verify_evidence(encode(first), encode(second), ROSTER)
            same_place = (kind is StatementKind.CHECKPOINT and height == 9) or (
                kind in (StatementKind.VIEW_CHANGE, StatementKind.NEW_VIEW) and view == 2
            )
            assert isinstance(found, Evidence) if same_place else found is Reason.NO_EQUIVOCATION

    def test_forged_half(self, kind):
        """Whoever holds one true statement cannot make the other."""
        first = statement(ROSTER, key(1), kind, 1, 2, 9, "one")
        forged = statement(ROSTER, key(2), kind, 1, 2, 9, "other")
        assert verify_evidence(encode(first), encode(forged), ROSTER) is Reason.BAD_SIGNATURE

    def test_of_another_replica(self, kind):
        first = statement(ROSTER, key(1), kind, 1, 2, 9, "one")
        second = statement(ROSTER, key(2), kind, 2, 2, 9, "other")
        assert verify_evidence(encode(first), encode(second), ROSTER) is Reason.NO_EQUIVOCATION

    def test_of_no_member_or_another_epoch(self, kind):
        assert verify_evidence(*contradiction(ROSTER, key(1), 4, kind), ROSTER) is Reason.UNKNOWN_REPLICA
        elsewhere = msgspec.structs.replace(make_genesis(), epoch=4)
        other = Roster.from_genesis(elsewhere)
        assert verify_evidence(*contradiction(other, key(1), 1, kind), ROSTER) is Reason.WRONG_EPOCH

    def test_of_another_chain(self, kind):
        other = Roster.from_genesis(msgspec.structs.replace(make_genesis(), network="other"))
        assert verify_evidence(*contradiction(other, key(1), 1, kind), ROSTER) is Reason.BAD_SIGNATURE

    def test_what_is_not_signed_cannot_be_varied(self, kind):
        """Else one pair would stand for many places."""
        evidence = convicted(*contradiction(ROSTER, key(1), 1, kind))
        ids = {place_id(ROSTER.chain, evidence.place)}
        changes = [{"view": evidence.place.view + 1}, {"height": evidence.place.height + 1}]
        for change in changes:
            moved = Evidence(msgspec.structs.replace(evidence.place, **change), evidence.first, evidence.second)
            assert check_evidence(moved, ROSTER.chain, ROSTER.epoch, ROSTER.keys) is not None
            ids.add(place_id(ROSTER.chain, moved.place))
        assert len(ids) == 3
        if kind is not StatementKind.ENDORSEMENT:
            said = msgspec.structs.replace(evidence.first, rest=b"r" * 32)
            varied = Evidence(evidence.place, said, evidence.second)
            assert check_evidence(varied, ROSTER.chain, ROSTER.epoch, ROSTER.keys) is Reason.MALFORMED

    def test_wrong_order_is_malformed(self, kind):
        evidence = convicted(*contradiction(ROSTER, key(1), 1, kind))
        turned = Evidence(evidence.place, evidence.second, evidence.first)
        assert check_evidence(turned, ROSTER.chain, ROSTER.epoch, ROSTER.keys) is Reason.MALFORMED


def test_kinds_do_not_contradict_each_other():
    """A backup may prepare one proposal and, shown that others prepared another, commit that."""
    prepare = statement(ROSTER, key(1), StatementKind.PREPARE, 1, 2, 9, "one")
    commit = statement(ROSTER, key(1), StatementKind.COMMIT, 1, 2, 9, "other")
    assert verify_evidence(encode(prepare), encode(commit), ROSTER) is Reason.NO_EQUIVOCATION


def test_not_a_statement():
    first, _ = contradiction(ROSTER, key(1), 1)
    for junk in (b"", b"\x00", first[:-1], first + b"\x00", b"\xff" * 100):
        assert verify_evidence(first, junk, ROSTER) is Reason.MALFORMED
        assert verify_evidence(junk, first, ROSTER) is Reason.MALFORMED


def test_id_does_not_depend_on_signatures():
    """A key can make many signatures of one digest; they must not make many evidences."""
    evidence = convicted(*contradiction(ROSTER, key(1), 1))
    other = Evidence(
        evidence.place,
        SignedContent(evidence.first.content, evidence.first.rest, bytes(64)),
        evidence.second,
    )
    assert evidence_id(ROSTER.chain, evidence) == evidence_id(ROSTER.chain, other)
    elsewhere = convicted(*contradiction(ROSTER, key(1), 1, contents=("one", "third")))
    assert evidence_id(ROSTER.chain, evidence) != evidence_id(ROSTER.chain, elsewhere)
    assert place_id(ROSTER.chain, evidence.place) == place_id(ROSTER.chain, elsewhere.place)


class TestWhatHonestReplicasSign:
    """Pairs that look like contradictions and are none."""

    def test_one_batch_with_other_refusals(self):
        first = Endorsement(ROSTER.epoch, 0, 5, b"b" * 32, 9, 1, (), bytes(64))
        second = msgspec.structs.replace(first, refusals=(Refusal(2, Reason.REPLAY),))
        pair = [encode(signed(item, ROSTER, key(1))) for item in (first, second)]
        assert verify_evidence(*pair, ROSTER) is Reason.NO_EQUIVOCATION

    def test_one_digest_around_other_proposals(self):
        """A pre-prepare's signature covers the digest; whoever passes it on may put any proposal beside it."""
        first = statement(ROSTER, key(0), StatementKind.PRE_PREPARE, 0, 0, 3, "one")
        assert isinstance(first, PrePrepare)
        second = msgspec.structs.replace(first, proposal=Proposal((), 5))
        assert verify_evidence(encode(first), encode(second), ROSTER) is Reason.NO_EQUIVOCATION

    def test_one_view_change_around_other_proposals(self):
        statements = Statements(ROSTER, 1, key(1))
        order = Statements(ROSTER, 0, key(0)).pre_prepare(0, 1, NULL_PROPOSAL)
        change = statements.view_change(1, None, [PreparedProof(order, ())])
        inside = PreparedProof(msgspec.structs.replace(order, proposal=Proposal((), 5)), ())
        garbled = ViewChange(change.epoch, change.view, None, (inside,), 1, change.signature)
        assert verify_evidence(encode(change), encode(garbled), ROSTER) is Reason.NO_EQUIVOCATION


class TestSameDigestsAsTheProtocol:
    """What convicts is what replicas sign: the compact form covers the very same digest."""

    def test_own_statements(self):
        statements = Statements(ROSTER, 1, key(1))
        header = b"h" * 32
        pairs = [
            [statements.pre_prepare(1, 4, Proposal((), time_ms)) for time_ms in (1, 2)],
            [statements.prepare(1, 4, digest * 32) for digest in (b"a", b"b")],
            [statements.commit(1, 4, digest * 32) for digest in (b"a", b"b")],
            [statements.checkpoint(4, digest * 32) for digest in (b"a", b"b")],
            [
                statements.view_change(2, stable, [])
                for stable in (None, BlockCertificate(ROSTER.epoch, 1, header, (CheckpointVote(0, bytes(64)),)))
            ],
            [statements.new_view(2, (), orders) for orders in ((), (statements.pre_prepare(2, 1, NULL_PROPOSAL),))],
        ]
        for first, second in pairs:
            assert statements.is_signed(first)
            assert convicted(encode(first), encode(second)).place.replica == 1

    def test_endorsements_inside_a_certificate(self):
        refusals = (Refusal(0, Reason.BAD_SIGNATURE),)
        votes = []
        for replica in range(3):
            item = signed(
                Endorsement(ROSTER.epoch, 2, 6, b"d" * 32, 2, replica, refusals, bytes(64)), ROSTER, key(replica)
            )
            votes.append(CertificateVote(replica, refusals, item.signature))
        certificate = BatchCertificate(ROSTER.epoch, 2, 6, b"d" * 32, 2, tuple(votes))
        assert verify_batch_certificate(certificate, ROSTER) is None


def test_what_a_replica_observes_convicts():
    """Every contradiction that ordering sees, of each of its kinds, is evidence for everybody."""
    of = [Statements(ROSTER, replica, key(replica)) for replica in range(4)]
    witness = Replica(ROSTER, 2, key(2), lambda _: None, fresh(4))
    now_ms = 1_000_000
    vote = CertificateVote(0, (), bytes(64))
    orders = [
        of[0].pre_prepare(0, 1, Proposal((BatchCertificate(ROSTER.epoch, 0, number, b"b" * 32, 1, (vote,)),), now_ms))
        for number in (1, 2)
    ]
    changes = [of[replica].view_change(1, None, ()) for replica in (0, 1, 3)]
    said = [
        *orders,
        *(of[1].prepare(0, 1, digest * 32) for digest in (b"a", b"b")),
        *(of[1].commit(0, 1, digest * 32) for digest in (b"a", b"b")),
        *(of[3].checkpoint(1, digest * 32) for digest in (b"a", b"b")),
        changes[2],
        of[3].view_change(1, None, (PreparedProof(orders[0], ()),)),
        of[1].new_view(1, changes, ()),
        of[1].new_view(1, changes[:2], ()),
    ]
    effects = [effect for message in said for effect in witness.step(Received(message), now_ms)]
    seen = [
        effect.observation
        for effect in effects
        if isinstance(effect, Observe) and isinstance(effect.observation, EquivocationSeen)
    ]
    assert [item.what for item in seen] == [kind.value for kind in KINDS if kind is not StatementKind.ENDORSEMENT]
    for item in seen:
        evidence = convicted(item.first, item.second)
        assert (evidence.place.kind, evidence.place.replica) == (item.what, item.replica)
