"""Evidence on the chain: who may bring it, what is refused, and that it stays bounded."""

import msgspec
import pytest

from bcami.contract.guard import guard_key
from bcami.crypto.evidence import verify_evidence
from bcami.model.evidence import (
    EVIDENCE_RECORDS_CODEC,
    RECORDS_PER_REPLICA_MAX,
    Evidence,
    EvidenceRecord,
    StatementKind,
    evidence_id,
)
from bcami.model.genesis import operator_id
from bcami.model.reasons import Reason
from tests.unit.contract.world import World, meter, signing_key
from tests.unit.crypto.statements import contradiction


@pytest.fixture
def world():
    return World()


def evidence_against(world, accused: int = 1, **place) -> Evidence:
    pair = contradiction(world.roster, signing_key("node", accused), accused, **place)
    found = verify_evidence(*pair, world.roster)
    assert isinstance(found, Evidence)
    return found


def report(world, evidence, reporter: int = 2, sequence: int = 1, **changes):
    key = changes.pop("key", signing_key("node", reporter))
    signer = changes.pop("signer", operator_id(signing_key("node", reporter).public_key))
    session = changes.pop("session", 0)
    return world.transaction("governance", "report_evidence", signer, session, sequence, evidence, [key], **changes)


def records(world, accused: int) -> tuple[EvidenceRecord, ...]:
    return EVIDENCE_RECORDS_CODEC.decode(world.query("governance", "evidence", accused.to_bytes(8, "big")))


def both(world, tx):
    return world.check(tx), world.execute(tx).reason


@pytest.mark.parametrize("kind", list(StatementKind))
def test_records_what_convicts(world, kind):
    evidence = evidence_against(world, kind=kind)
    world.time_ms += 5
    assert both(world, report(world, evidence)) == (None, Reason.VALID)
    identity = evidence_id(world.roster.chain, evidence)
    assert records(world, 1) == (EvidenceRecord(identity, evidence, 2, world.time_ms),)
    assert records(world, 0) == ()


def test_first_one_wins(world):
    """The same statements, other signatures, other contents for the same place: one record."""
    first = evidence_against(world)
    assert world.submit(report(world, first)) is Reason.VALID
    kept = records(world, 1)
    again = report(world, first, reporter=3)
    assert both(world, again) == (Reason.ALREADY_RECORDED, Reason.ALREADY_RECORDED)
    other = report(world, evidence_against(world, contents=("one", "third")), reporter=0)
    assert both(world, other) == (Reason.ALREADY_RECORDED, Reason.ALREADY_RECORDED)
    assert records(world, 1) == kept


def test_other_places_get_their_own_records(world):
    for sequence, place in enumerate(({}, {"view": 3}, {"height": 10}, {"kind": StatementKind.COMMIT}), 1):
        assert world.submit(report(world, evidence_against(world, **place), sequence=sequence)) is Reason.VALID
    assert len(records(world, 1)) == 4


def test_only_members_report(world):
    evidence = evidence_against(world)
    for party in ("utility", "mdms", "stranger"):
        key = signing_key(party)
        tx = report(world, evidence, key=key, signer=operator_id(key.public_key))
        assert both(world, tx) == (Reason.NOT_AUTHORIZED, Reason.NOT_AUTHORIZED)
    assert world.check(report(world, evidence, key=signing_key("stranger"))) is Reason.BAD_SIGNATURE
    assert world.check(report(world, evidence, key=signing_key("node", 3))) is Reason.BAD_SIGNATURE
    assert world.check(report(world, evidence, session=1)) is Reason.UNKNOWN_SESSION


def test_a_member_may_report_itself(world):
    assert world.submit(report(world, evidence_against(world), reporter=1)) is Reason.VALID


def test_what_does_not_convict_is_rejected(world):
    good = evidence_against(world)
    forged = msgspec.structs.replace(good.second, signature=good.first.signature)
    bad = {
        Reason.BAD_SIGNATURE: Evidence(good.place, good.first, forged),
        Reason.NO_EQUIVOCATION: Evidence(good.place, good.first, good.first),
        Reason.MALFORMED: Evidence(good.place, good.second, good.first),
        Reason.UNKNOWN_REPLICA: Evidence(msgspec.structs.replace(good.place, replica=4), good.first, good.second),
        Reason.WRONG_EPOCH: Evidence(msgspec.structs.replace(good.place, epoch=0), good.first, good.second),
    }
    for sequence, (reason, evidence) in enumerate(bad.items(), 1):
        assert world.execute(report(world, evidence, sequence=sequence)).reason is reason
    assert not any(key.startswith(b"governance/") for key in world.state)
    assert world.submit(report(world, good, sequence=9)) is Reason.VALID


def test_each_report_has_its_number(world):
    first = report(world, evidence_against(world))
    assert world.submit(first) is Reason.VALID
    assert world.check(report(world, evidence_against(world, view=3))) is Reason.REPLAY
    assert world.execute(first).reason is Reason.REPLAY


def test_records_of_one_member_are_bounded(world):
    for height in range(1, RECORDS_PER_REPLICA_MAX + 1):
        assert world.execute(report(world, evidence_against(world, height=height), sequence=height)).reason is (
            Reason.VALID
        )
    more = report(world, evidence_against(world, height=900), sequence=900)
    assert world.execute(more).reason is Reason.OVER_QUOTA
    assert len(records(world, 1)) == RECORDS_PER_REPLICA_MAX
    of_another = report(world, evidence_against(world, accused=0), sequence=901)
    assert world.execute(of_another).reason is Reason.VALID


def test_query_takes_a_replica(world):
    for argument in (b"", b"\x01", bytes(9)):
        assert world.query("governance", "evidence", argument) is Reason.BAD_ARGUMENT
    assert records(world, 63) == ()


def test_the_utility_cannot_enrol_a_member_and_use_up_its_numbers(world):
    party = meter(world)
    party.hid = operator_id(signing_key("node", 2).public_key)
    assert world.submit(world.enrol(party)) is Reason.ALREADY_ENROLLED
    assert guard_key(party.hid, 0) not in world.state
