"""Attacks on the issuance of keys without a dealer (design D7, protocol 2)."""

from hashlib import sha256

import msgspec
import pytest

from bcami.codec import encode
from bcami.contract.issuance import NodeContributor
from bcami.crypto.hpke import OpenError
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.crypto.points import point_sum
from bcami.model.reasons import Reason
from bcami.model.registration import Contribution, ContributionAnswer, contribution_digest, request_hash
from tests.unit.contract.world import World, kem_key, meter, reporting_meter, signing_key

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@pytest.fixture
def world():
    return World()


@pytest.fixture
def party(world):
    party = meter(world)
    assert world.submit(world.open_period()) is Reason.VALID
    assert world.submit(world.enrol(party)) is Reason.VALID
    return party


def signed_by_node(world, party, session, asked, replica, point):
    digest = contribution_digest(world.roster.chain, world.roster.epoch, party.hid, session, asked, replica, point)
    return Contribution(replica, point, signing_key("node", replica).sign(digest))


def minus(key: SecretKey) -> SecretKey:
    scalar = int.from_bytes(export_secret(key, SECRET_ACCESS), "big")
    return SecretKey.from_scalar_bytes((ORDER - scalar).to_bytes(32, "big"))


class TestContribute:
    def test_share_is_the_one_behind_its_point(self, world, party):
        request = party.request(1)
        answer = world.contribute(0, request)
        assert isinstance(answer, ContributionAnswer)
        assert party.open_share(request, answer).public_key == answer.contribution.point
        assert answer.contribution == signed_by_node(
            world, party, 1, request_hash(request), 0, answer.contribution.point
        )

    def test_replayed_request_gets_the_same_answer(self, world, party):
        request = party.request(1)
        first = world.contribute(0, request)
        assert encode(world.contribute(0, request)) == encode(first)
        restarted = World()
        restarted.state = world.state
        assert encode(restarted.contribute(0, request)) == encode(first)

    def test_every_other_request_gets_another_share(self, world, party):
        requests = [party.request(1), party.request(2), party.request(1, nonce=b"n" * 32)]
        answers = [world.contribute(replica, request) for request in requests for replica in (0, 1)]
        assert len({answer.contribution.point for answer in answers}) == 6
        assert len({answer.encapsulation for answer in answers}) == 6

    def test_changes_no_state(self, world, party):
        before = dict(world.state)
        world.contribute(0, party.request(1))
        assert world.state == before

    def test_unknown_hid(self, world, party):
        assert world.contribute(0, meter(world, "other").request(1)) is Reason.UNKNOWN_HID

    def test_stolen_hid_without_the_enrolment_key(self, world, party):
        assert world.contribute(0, party.request(1, key=signing_key("thief"))) is Reason.BAD_SIGNATURE

    def test_revoked(self, world, party):
        assert world.submit(world.revoke(party)) is Reason.VALID
        assert world.contribute(0, party.request(1)) is Reason.REVOKED_HID

    def test_number_not_above_the_current(self, world, party):
        assert world.submit(party.register(3)) is Reason.VALID
        for session in (0, 1, 3):
            assert world.contribute(0, party.request(session)) is Reason.SESSION_NOT_ABOVE
        assert isinstance(world.contribute(0, party.request(4)), ContributionAnswer)

    @pytest.mark.parametrize("field", ["session", "nonce", "hid"])
    def test_altered_request(self, world, party, field):
        reporting_meter(world, "second")
        other = {"session": 9, "nonce": b"x" * 32, "hid": meter(world, "second").hid}
        changed = msgspec.structs.replace(party.request(5), **{field: other[field]})
        assert world.contribute(0, changed) is Reason.BAD_SIGNATURE

    def test_malformed_request(self, world, party):
        changed = msgspec.structs.replace(party.request(1), nonce=b"short")
        assert world.contribute(0, changed) is Reason.BAD_ARGUMENT

    def test_share_is_sealed_to_the_enrolment_kem_key(self, world, party):
        request = party.request(1)
        answer = world.contribute(0, request)
        party.kem = kem_key("thief")
        with pytest.raises(OpenError):
            party.open_share(request, answer)

    def test_answer_of_another_request_does_not_open(self, world, party):
        answer = world.contribute(0, party.request(1))
        with pytest.raises(OpenError):
            party.open_share(party.request(2), answer)

    def test_secret_is_not_shown(self, world):
        secret = sha256(b"secret").digest()
        contributor = NodeContributor(world.roster, 0, signing_key("node", 0), secret)
        assert secret.hex() not in repr(contributor)
        assert repr(secret)[2:10] not in repr(contributor)

    def test_short_secret(self, world):
        with pytest.raises(ValueError, match="at least 32 bytes"):
            NodeContributor(world.roster, 0, signing_key("node", 0), bytes(31))

    def test_mdms_gets_shares_for_its_next_period_only(self, world, party):
        assert isinstance(world.contribute(1, world.mdms.request(2)), ContributionAnswer)
        assert world.contribute(1, world.mdms.request(1)) is Reason.SESSION_NOT_ABOVE


class TestRegister:
    """What the contract makes of contributions that are not what they should be."""

    def register(self, world, party, key=None, **changes):
        issued = party.issue(1)
        argument = msgspec.structs.replace(party.register_argument(1, issued), **changes)
        if key is not None:
            party.keys[1] = key
        return party.sign_register(1, argument)

    def test_too_few(self, world, party):
        issued = party.issue(1, replicas=(2,))
        tx = party.sign_register(1, party.register_argument(1, issued))
        assert world.submit(tx) is Reason.BAD_CONTRIBUTION

    def test_more_than_needed(self, world, party):
        issued = party.issue(1, replicas=(0, 1, 2, 3))
        assert world.submit(party.sign_register(1, party.register_argument(1, issued))) is Reason.VALID

    def test_one_member_twice(self, world, party):
        first = party.issue(1).contributions[0]
        assert world.submit(self.register(world, party, contributions=(first, first))) is Reason.BAD_CONTRIBUTION

    def test_not_sorted(self, world, party):
        contributions = party.issue(1).contributions[::-1]
        assert world.submit(self.register(world, party, contributions=contributions)) is Reason.BAD_CONTRIBUTION

    def test_not_a_member(self, world, party):
        request = party.request(1)
        extra = signed_by_node(world, party, 1, request_hash(request), 4, signing_key("x").public_key)
        contributions = (*party.issue(1).contributions, extra)
        assert world.submit(self.register(world, party, contributions=contributions)) is Reason.BAD_CONTRIBUTION

    def test_signature_of_another_member(self, world, party):
        first, second = party.issue(1).contributions
        swapped = (msgspec.structs.replace(first, signature=second.signature), second)
        assert world.submit(self.register(world, party, contributions=swapped)) is Reason.BAD_CONTRIBUTION

    def test_contributions_to_another_session(self, world, party):
        issued = party.issue(2)
        party.keys[1] = issued.key
        tx = party.sign_register(1, party.register_argument(1, issued))
        assert world.submit(tx) is Reason.BAD_CONTRIBUTION

    def test_contributions_to_another_request(self, world, party):
        assert world.submit(self.register(world, party, request_hash=bytes(32))) is Reason.BAD_CONTRIBUTION

    def test_contributions_to_another_meter(self, world, party):
        other = reporting_meter(world, "other")
        issued = other.issue(2)
        party.keys[2] = issued.key
        tx = party.sign_register(2, party.register_argument(2, issued))
        assert world.submit(tx) is Reason.BAD_CONTRIBUTION

    def test_sum_is_wrong(self, world, party):
        rogue = signing_key("rogue")
        tx = self.register(world, party, key=rogue, public_key=rogue.public_key)
        assert world.check(tx) is None  # both signatures are good
        assert world.execute(tx).reason is Reason.KEY_MISMATCH

    def test_own_point_is_none(self, world, party):
        assert world.submit(self.register(world, party, own_point=b"\x05" * 33)) is Reason.KEY_MISMATCH

    def test_lying_share(self, world, party):
        """A node seals a share other than the one behind its point: the meter sees it, and without it has no key."""
        request = party.request(1)
        answer = world.contribute(0, request)
        lie = signed_by_node(world, party, 1, request_hash(request), 0, signing_key("lie").public_key)
        lying = msgspec.structs.replace(answer, contribution=lie)
        share = party.open_share(request, lying)
        assert share.public_key != lying.contribution.point
        honest = party.issue(1, replicas=(2,))
        public = point_sum([honest.own.public_key, lie.point, honest.contributions[0].point])
        argument = party.register_argument(1, honest)
        careless = msgspec.structs.replace(argument, public_key=public, contributions=(lie, *honest.contributions))
        tx = party.sign_register(1, careless, [party.enrolment, honest.key.plus(share)])
        assert world.check(tx) is Reason.BAD_SIGNATURE

    def test_rogue_key_of_a_member(self, world, party):
        """A member answers with y·G − ΣX of the others, so that it would know Pr; it has no share to seal to the meter."""
        honest = party.issue(1, replicas=(2,))
        rogue = signing_key("rogue")
        others = honest.key  # x_0 + x_2
        point = point_sum([rogue.public_key, minus(others).public_key])
        contribution = signed_by_node(world, party, 1, honest.request_hash, 0, point)
        argument = msgspec.structs.replace(
            party.register_argument(1, honest),
            public_key=rogue.public_key,
            contributions=(contribution, *honest.contributions),
        )
        # The contract cannot see it; the enrolment signature is what the rogue lacks.
        tx = party.sign_register(1, argument, [rogue, rogue])
        assert world.check(tx) is Reason.BAD_SIGNATURE

    def test_gateway_that_hijacks_a_session(self, world, party):
        """Protocol 2.2: who sees the X_j picks y, sets X_0 = y·G − ΣX_j, signs with y; only the enrolment key stops it."""
        issued = party.issue(1)
        chosen = signing_key("gateway")
        points = [minus_point(contribution.point) for contribution in issued.contributions]
        own_point = point_sum([chosen.public_key, *points])
        argument = msgspec.structs.replace(
            party.register_argument(1, issued), public_key=chosen.public_key, own_point=own_point
        )
        hijack = party.sign_register(1, argument, [chosen, chosen])
        assert world.check(hijack) is Reason.BAD_SIGNATURE
        # It is the enrolment signature alone that is missing: with it the sums would hold.
        assert world.submit(party.sign_register(1, argument, [party.enrolment, chosen])) is Reason.VALID

    def test_gateway_that_swaps_a_field_of_a_signed_register(self, world, party):
        tx = party.register(1)
        argument = party.register_argument(1, party.issue(1))
        for field in ("encapsulation", "kem_key"):
            swapped = encode(msgspec.structs.replace(argument, **{field: kem_key("gateway").public_key}))
            changed = msgspec.structs.replace(tx, argument=swapped, argument_hash=sha256(swapped).digest())
            assert world.check(changed) is Reason.BAD_SIGNATURE

    def test_proof_of_possession(self, world, party):
        """The enrolment signature alone does not register somebody else's key."""
        tx = self.register(world, party, key=signing_key("not Pr"))
        assert world.check(tx) is Reason.BAD_SIGNATURE

    def test_stolen_hid(self, world, party):
        issued = party.issue(1)
        tx = party.sign_register(1, party.register_argument(1, issued), [signing_key("thief"), issued.key])
        assert world.check(tx) is Reason.BAD_SIGNATURE

    def test_same_bytes_again_after_a_crash(self, world, party):
        tx = party.register(1)
        assert world.submit(tx) is Reason.VALID
        assert world.submit(tx) is Reason.SESSION_NOT_ABOVE  # the node answers a known id with its receipt
        assert world.execute(tx).reason is Reason.REPLAY


def minus_point(point: bytes) -> bytes:
    return bytes([point[0] ^ 1]) + point[1:]
