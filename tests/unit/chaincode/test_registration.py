"""Enrolment, revocation and sessions: every reason that the contract gives (protocol 1, 2)."""

import msgspec
import pytest

from bcami.codec import encode
from bcami.model.reasons import Reason
from bcami.model.registration import EnrolArgument, Enrolment, MeterState, RevokeArgument, Session
from tests.unit.contract.world import Party, World, kem_key, meter, reporting_meter, signing_key

MALFORMED_POINT = b"\x02" + b"\xff" * 32
MALFORMED_KEM_KEY = b"\x04" + b"\x01" * 64


@pytest.fixture
def world():
    return World()


def both(world, tx):
    """Return what an endorser says and what execution says; neither may rest on the other."""
    return world.check(tx), world.execute(tx).reason


class TestEnrol:
    def test_records_the_keys(self, world):
        party = meter(world)
        assert world.submit(world.enrol(party)) is Reason.VALID
        record = Enrolment(party.enrolment.public_key, party.kem.public_key, revoked=False)
        assert world.state[b"registration/enrolments/" + party.hid].value == encode(record)

    def test_is_once(self, world):
        party = meter(world)
        assert world.submit(world.enrol(party)) is Reason.VALID
        assert both(world, world.enrol(party)) == (Reason.ALREADY_ENROLLED, Reason.ALREADY_ENROLLED)
        assert world.submit(world.revoke(party)) is Reason.VALID
        assert both(world, world.enrol(party)) == (Reason.ALREADY_ENROLLED, Reason.ALREADY_ENROLLED)

    def test_replayed_enrol_does_not_undo_a_revoke(self, world):
        party = meter(world)
        enrol = world.enrol(party)
        assert world.submit(enrol) is Reason.VALID
        assert world.submit(world.revoke(party)) is Reason.VALID
        assert world.execute(enrol).reason is Reason.REPLAY
        state = msgspec.msgpack.decode(world.query("registration", "meter", party.hid), type=MeterState)
        assert state.enrolment.revoked

    def test_only_the_utility(self, world):
        party = meter(world)
        argument = EnrolArgument(party.hid, party.enrolment.public_key, party.kem.public_key)
        stranger = signing_key("stranger")
        signer = world.runtime.network.utility_id
        forged = world.transaction("registration", "enrol", signer, 0, 1, argument, [stranger])
        assert world.check(forged) is Reason.BAD_SIGNATURE
        own = world.transaction("registration", "enrol", bytes(32), 0, 1, argument, [stranger])
        assert world.check(own) is Reason.NOT_AUTHORIZED
        session = world.transaction("registration", "enrol", signer, 1, 1, argument, [signing_key("utility")])
        assert world.check(session) is Reason.UNKNOWN_SESSION

    @pytest.mark.parametrize("field", ["mdms_hid", "utility_id"])
    def test_ids_of_others_are_taken(self, world, field):
        party = Party(world, getattr(world.runtime.network, field), signing_key("x"), kem_key("x"))
        assert world.submit(world.enrol(party)) is Reason.ALREADY_ENROLLED

    @pytest.mark.parametrize("changes", [{"enrolment_key": MALFORMED_POINT}, {"enrolment_kem_key": MALFORMED_KEM_KEY}])
    def test_keys_are_points(self, world, changes):
        fields = {"enrolment_key": signing_key("a").public_key, "enrolment_kem_key": kem_key("a").public_key}
        argument = EnrolArgument(hid=bytes(32), **(fields | changes))
        assert world.submit(world.utility("enrol", argument)) is Reason.BAD_ARGUMENT

    def test_one_key_has_one_use(self, world):
        kem = kem_key("twice").public_key
        compressed = bytes([2 + kem[-1] % 2]) + kem[1:33]
        argument = EnrolArgument(bytes(32), compressed, kem)
        assert world.submit(world.utility("enrol", argument)) is Reason.BAD_ARGUMENT


class TestRevoke:
    def test_ends_registering_and_reporting(self, world):
        party = reporting_meter(world)
        register, report = party.register(2), party.report(1, 1)
        assert (world.check(register), world.check(report)) == (None, None)
        assert world.submit(world.revoke(party)) is Reason.VALID
        for tx in (register, report):
            assert both(world, tx) == (Reason.REVOKED_HID, Reason.REVOKED_HID)

    def test_unknown(self, world):
        assert both(world, world.revoke(meter(world))) == (Reason.UNKNOWN_HID, Reason.UNKNOWN_HID)

    def test_twice(self, world):
        party = reporting_meter(world)
        assert world.submit(world.revoke(party)) is Reason.VALID
        assert both(world, world.revoke(party)) == (Reason.REVOKED_HID, Reason.REVOKED_HID)

    def test_only_the_utility(self, world):
        party = reporting_meter(world)
        argument = RevokeArgument(party.hid)
        own = world.transaction("registration", "revoke", party.hid, 0, 9, argument, [party.enrolment])
        assert world.check(own) is Reason.NOT_AUTHORIZED


class TestRegister:
    @pytest.fixture
    def party(self, world):
        party = meter(world)
        assert world.submit(world.open_period()) is Reason.VALID
        assert world.submit(world.enrol(party)) is Reason.VALID
        return party

    def test_opens_the_session(self, world, party):
        argument = party.register_argument(4, party.issue(4))
        assert world.submit(party.sign_register(4, argument)) is Reason.VALID
        state = msgspec.msgpack.decode(world.query("registration", "meter", party.hid), type=MeterState)
        assert state.session == Session(
            4, party.keys[4].public_key, argument.kem_key, argument.encapsulation, 1, world.time_ms
        )

    def test_session_records_never_change(self, world, party):
        assert world.submit(party.register(1)) is Reason.VALID
        key = b"registration/sessions/" + party.hid + (1).to_bytes(8, "big")
        before = world.state[key]
        world.time_ms += 10_000
        assert world.submit(party.register(2)) is Reason.VALID
        assert world.submit(party.report(2, 1)) is Reason.VALID
        assert world.state[key] == before

    def test_unknown_hid(self, world, party):
        other = meter(world, "other")
        other.keys[1] = signing_key("pr")
        argument = party.register_argument(1, party.issue(1))
        assert both(world, other.sign_register(1, argument)) == (Reason.UNKNOWN_HID, Reason.UNKNOWN_HID)

    @pytest.mark.parametrize("number", [0, 3, 4])
    def test_number_is_above_the_current(self, world, party, number):
        assert world.submit(party.register(4)) is Reason.VALID
        world.time_ms += 10_000
        argument = party.register_argument(5, party.issue(5))
        tx = party.sign_register(number, argument, [party.enrolment, party.keys[5]])
        assert world.check(tx) is Reason.SESSION_NOT_ABOVE
        # A number already consumed is a replay; one that was left out is refused by the contract.
        assert world.execute(tx).reason in (Reason.SESSION_NOT_ABOVE, Reason.REPLAY)

    def test_session_zero_is_none(self, world, party):
        argument = party.register_argument(1, party.issue(1))
        assert world.check(party.sign_register(0, argument, [party.enrolment, party.keys[1]])) is (
            Reason.SESSION_NOT_ABOVE
        )

    def test_signed_outside_session_zero(self, world, party):
        argument = party.register_argument(1, party.issue(1))
        keys = [party.enrolment, party.keys[1]]
        tx = world.transaction("registration", "register", party.hid, 1, 1, argument, keys)
        assert world.check(tx) is Reason.UNKNOWN_SESSION

    def test_gap_between_sessions(self, world, party):
        assert world.submit(party.register(1)) is Reason.VALID
        world.time_ms += world.genesis.parameters.session_gap_ms - 1
        assert world.submit(party.register(2)) is Reason.SESSION_TOO_SOON
        world.time_ms += 1
        assert world.submit(party.register(2)) is Reason.REPLAY  # consumed: a new number is needed (protocol 2.3)
        assert world.submit(party.register(3)) is Reason.VALID

    def test_unknown_period(self, world, party):
        assert world.submit(party.register(1, period=2)) is Reason.UNKNOWN_PERIOD

    def test_forged_mdms_key(self, world, party):
        argument = party.register_argument(1, party.issue(1))
        forged = msgspec.structs.replace(argument, period_key_id=bytes(32))
        assert world.submit(party.sign_register(1, forged)) is Reason.KEY_MISMATCH

    def test_period_after_its_grace(self, world, party):
        world.time_ms += 5_000
        assert world.submit(world.open_period(2)) is Reason.VALID
        grace_ms = world.genesis.parameters.period_grace_ms
        world.time_ms += grace_ms - 1
        assert world.submit(party.register(1)) is Reason.VALID
        world.time_ms += 1_001
        assert world.submit(party.register(2)) is Reason.PERIOD_EXPIRED
        assert world.submit(party.register(3, period=2)) is Reason.VALID

    @pytest.mark.parametrize("field", ["kem_key", "encapsulation"])
    def test_kem_keys_are_points(self, world, party, field):
        argument = party.register_argument(1, party.issue(1))
        bad = msgspec.structs.replace(argument, **{field: MALFORMED_KEM_KEY})
        assert world.submit(party.sign_register(1, bad)) is Reason.BAD_ARGUMENT

    def test_session_key_only_signs(self, world, party):
        """Protocol 1.3: a KEM key with the session key's own point is refused."""
        from bcami.crypto.hpke import KemSecretKey
        from bcami.crypto.keys import SECRET_ACCESS, export_secret

        issued = party.issue(1)
        same = KemSecretKey.from_scalar_bytes(export_secret(issued.key, SECRET_ACCESS)).public_key
        bad = msgspec.structs.replace(party.register_argument(1, issued), kem_key=same)
        assert world.submit(party.sign_register(1, bad)) is Reason.BAD_ARGUMENT

    def test_public_key_that_is_no_point(self, world, party):
        argument = party.register_argument(1, party.issue(1))
        bad = msgspec.structs.replace(argument, public_key=MALFORMED_POINT)
        tx = party.sign_register(1, bad)
        assert both(world, tx) == (Reason.BAD_SIGNATURE, Reason.KEY_MISMATCH)


class TestMeterQuery:
    def test_unknown(self, world):
        assert world.query("registration", "meter", bytes(32)) is Reason.UNKNOWN_HID

    def test_malformed(self, world):
        assert world.query("registration", "meter", b"short") is Reason.BAD_ARGUMENT

    def test_before_the_first_session(self, world):
        party = meter(world)
        assert world.submit(world.enrol(party)) is Reason.VALID
        state = msgspec.msgpack.decode(world.query("registration", "meter", party.hid), type=MeterState)
        assert state.session is None
