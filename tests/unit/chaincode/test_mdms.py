"""Periods and acknowledgements: every reason that the contract gives (protocol 2.5, 7.1)."""

import msgspec
import pytest

from bcami.model.genesis import operator_id
from bcami.model.ids import NO_HASH
from bcami.model.reasons import Reason
from bcami.model.registration import (
    Acknowledgement,
    AnchorArgument,
    KmsState,
    OpenKmsArgument,
    Period,
    period_key_id,
)
from tests.unit.contract.world import World, kem_key, meter, reporting_meter, signing_key


@pytest.fixture
def world():
    world = World()
    assert world.submit(world.open_period(1)) is Reason.VALID
    return world


def both(world, tx):
    return world.check(tx), world.execute(tx).reason


def period(world, number: int | None) -> Period:
    argument = b"" if number is None else number.to_bytes(8, "big")
    return msgspec.msgpack.decode(world.query("mdms", "period", argument), type=Period)


class TestRegister:
    def test_records_the_period(self, world):
        key = kem_key("period", 1).public_key
        expected = Period(1, world.mdms.keys[1].public_key, key, period_key_id(key), world.time_ms, 0)
        assert period(world, None) == period(world, 1) == expected

    def test_supersedes_the_former(self, world):
        first = period(world, 1)
        world.time_ms += 7
        assert world.submit(world.open_period(5)) is Reason.VALID
        assert period(world, 1) == msgspec.structs.replace(first, superseded_ms=world.time_ms)
        assert period(world, None).number == 5
        superseded = period(world, 1)
        world.time_ms += 7
        assert world.submit(world.open_period(6)) is Reason.VALID
        assert period(world, 1) == superseded

    def test_number_is_above_the_current(self, world):
        assert world.submit(world.open_period(5)) is Reason.VALID
        assert both(world, world.mdms.sign_period(4, world.mdms.issue(6))) == (
            Reason.SESSION_NOT_ABOVE,
            Reason.SESSION_NOT_ABOVE,
        )

    def test_only_the_mdms_of_genesis(self, world):
        party = reporting_meter(world)
        tx = party.sign_period(2, party.issue(2))
        assert world.check(tx) is Reason.NOT_AUTHORIZED

    def test_forged_mdms_key(self, world):
        """Protocol 2.5: whoever does not hold the enrolment key of genesis opens no period."""
        issued = world.mdms.issue(2)
        world.mdms.enrolment = signing_key("forger")
        assert world.check(world.mdms.sign_period(2, issued)) is Reason.BAD_SIGNATURE

    def test_request_by_another_key_gets_no_share(self, world):
        request = world.mdms.request(2, key=signing_key("forger"))
        assert world.contribute(0, request) is Reason.BAD_SIGNATURE

    def test_signed_outside_session_zero(self, world):
        issued = world.mdms.issue(2)
        tx = world.mdms.sign_period(2, issued)
        changed = world.transaction("mdms", "register", tx.signer, 1, 2, tx.argument, [signing_key("mdms"), issued.key])
        assert world.check(changed) is Reason.UNKNOWN_SESSION


class TestAcknowledge:
    def test_height_strictly_rises(self, world):
        assert world.submit(world.acknowledge(1, 1, 10)) is Reason.VALID
        for number, height in ((2, 10), (3, 9)):
            assert both(world, world.acknowledge(1, number, height)) == (
                Reason.HEIGHT_NOT_ABOVE,
                Reason.HEIGHT_NOT_ABOVE,
            )
        assert world.submit(world.acknowledge(1, 4, 11)) is Reason.VALID
        answer = msgspec.msgpack.decode(world.query("mdms", "acknowledged", b""), type=Acknowledgement)
        assert answer.height == 11

    def test_none_yet(self, world):
        answer = msgspec.msgpack.decode(world.query("mdms", "acknowledged", b""), type=Acknowledgement)
        assert answer == Acknowledgement(0, NO_HASH)
        assert world.query("mdms", "acknowledged", b"x") is Reason.BAD_ARGUMENT

    def test_only_the_mdms(self, world):
        party = reporting_meter(world)
        tx = world.acknowledge(1, 1, 10)
        forged = world.transaction("mdms", "acknowledge", party.hid, 1, 1, tx.argument, [party.keys[1]])
        assert world.check(forged) is Reason.NOT_AUTHORIZED
        other = world.transaction("mdms", "acknowledge", tx.signer, 1, 1, tx.argument, [party.keys[1]])
        assert world.check(other) is Reason.BAD_SIGNATURE

    @pytest.mark.parametrize("session", [0, 2])
    def test_unknown_period(self, world, session):
        world.mdms.keys[session] = world.mdms.keys[1]
        assert both(world, world.acknowledge(session, 1, 10))[0] is Reason.UNKNOWN_SESSION

    def test_former_period_is_closed(self, world):
        assert world.submit(world.open_period(2)) is Reason.VALID
        assert both(world, world.acknowledge(1, 1, 10)) == (Reason.SESSION_CLOSED, Reason.SESSION_CLOSED)
        assert world.submit(world.acknowledge(2, 1, 10)) is Reason.VALID

    def test_before_any_period(self):
        world = World()
        world.mdms.keys[1] = signing_key("pr")
        assert world.check(world.acknowledge(1, 1, 10)) is Reason.UNKNOWN_SESSION


def open_kms(world, key=None, *, signer=None, session=0, sequence=1, keys=None):
    key = key or signing_key("kms")
    argument = OpenKmsArgument(key.public_key)
    identity = operator_id(key.public_key) if signer is None else signer
    signers = [world.mdms.enrolment, key] if keys is None else keys
    return world.transaction("mdms", "open_kms", identity, session, sequence, argument, signers)


def anchor(world, length, sequence, key=None, *, session=0):
    key = key or signing_key("kms")
    argument = AnchorArgument(length, bytes([length]) * 32)
    return world.transaction("mdms", "anchor", operator_id(key.public_key), session, sequence, argument, [key])


class TestSymmetricKeys:
    """Protocol 8: an epoch opens by a transaction; the audit log's head is on the chain."""

    def state(self, world) -> KmsState:
        return msgspec.msgpack.decode(world.query("mdms", "symmetric_keys", b""), type=KmsState)

    def test_an_epoch_opens_and_anchors_its_log(self, world):
        assert world.query("mdms", "symmetric_keys", b"") is Reason.NOT_FOUND
        assert world.submit(open_kms(world)) is Reason.VALID
        key = signing_key("kms").public_key
        assert self.state(world) == KmsState(operator_id(key), key, 0, NO_HASH)
        assert world.submit(anchor(world, 3, 2)) is Reason.VALID
        assert self.state(world) == KmsState(operator_id(key), key, 3, bytes([3]) * 32)

    def test_the_log_only_grows_also_over_epochs(self, world):
        second = signing_key("kms", 2)
        outcomes = [world.submit(tx) for tx in (open_kms(world), anchor(world, 3, 2), open_kms(world, second))]
        assert outcomes == [Reason.VALID] * 3
        assert self.state(world).length == 3
        for length in (2, 3):
            tx = anchor(world, length, 2 + length, second)
            assert both(world, tx) == (Reason.HEIGHT_NOT_ABOVE, Reason.HEIGHT_NOT_ABOVE)
        assert world.submit(anchor(world, 4, 9, second)) is Reason.VALID

    def test_the_key_of_a_former_epoch_has_no_say(self, world):
        for tx in (open_kms(world), open_kms(world, signing_key("kms", 2))):
            assert world.submit(tx) is Reason.VALID
        assert both(world, anchor(world, 3, 2)) == (Reason.NOT_AUTHORIZED, Reason.NOT_AUTHORIZED)

    def test_an_epoch_is_never_opened_again(self, world):
        first = open_kms(world)
        assert world.submit(first) is Reason.VALID
        assert world.submit(open_kms(world, signing_key("kms", 2))) is Reason.VALID
        assert both(world, first) == (Reason.REPLAY, Reason.REPLAY)
        assert world.check(open_kms(world, sequence=2)) is Reason.ALREADY_RECORDED

    def test_only_the_mdms_opens_one(self, world):
        forger, key = signing_key("forger"), signing_key("kms")
        assert world.check(open_kms(world, keys=[forger, key])) is Reason.BAD_SIGNATURE
        assert world.check(open_kms(world, keys=[world.mdms.enrolment, forger])) is Reason.BAD_SIGNATURE
        assert world.check(open_kms(world, keys=[world.mdms.enrolment])) is Reason.BAD_SIGNATURE

    def test_the_signer_is_the_epochs_key_and_nobody_else(self, world):
        """Else the MDMS could use up the numbers of a meter or of the utility."""
        for signer in (world.mdms.hid, operator_id(signing_key("utility").public_key), bytes(32)):
            assert world.check(open_kms(world, signer=signer)) is Reason.NOT_AUTHORIZED
        assert world.check(open_kms(world, session=1)) is Reason.UNKNOWN_SESSION

    def test_anchors_of_nobody(self, world):
        assert world.check(anchor(world, 1, 2)) is Reason.NOT_AUTHORIZED
        assert world.submit(open_kms(world)) is Reason.VALID
        assert world.check(anchor(world, 1, 2, signing_key("kms", 2))) is Reason.NOT_AUTHORIZED
        assert world.check(anchor(world, 1, 2, session=1)) is Reason.UNKNOWN_SESSION
        assert world.query("mdms", "symmetric_keys", b"x") is Reason.BAD_ARGUMENT

    def test_a_key_that_is_none(self, world):
        argument = OpenKmsArgument(bytes(33))
        signer = operator_id(bytes(33))
        tx = world.transaction("mdms", "open_kms", signer, 0, 1, argument, [world.mdms.enrolment])
        assert world.check(tx) is Reason.BAD_ARGUMENT


class TestPeriodQuery:
    @pytest.mark.parametrize("argument", [(2).to_bytes(8, "big"), b"\xff" * 8])
    def test_unknown(self, world, argument):
        assert world.query("mdms", "period", argument) is Reason.UNKNOWN_PERIOD

    def test_malformed(self, world):
        assert world.query("mdms", "period", b"123") is Reason.BAD_ARGUMENT

    def test_none_yet(self):
        assert World().query("mdms", "period", b"") is Reason.UNKNOWN_PERIOD


def test_meters_and_the_mdms_do_not_share_guards(world):
    party = meter(world)
    assert world.submit(world.enrol(party)) is Reason.VALID
    assert world.submit(world.acknowledge(1, 1, 10)) is Reason.VALID
    assert world.submit(party.register(1)) is Reason.VALID
    assert world.submit(party.report(1, 1)) is Reason.VALID
