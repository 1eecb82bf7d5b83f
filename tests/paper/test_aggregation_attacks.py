"""Attacks on private aggregation: what falls in ring mode, and does not in masked mode below its bound.

One class for each attack of the threat list (docs/deviations.md, "What the ring does not protect"). The attackers know what
they say they know and nothing else: what they saw, as `seen` has it, and the state of the meters that collude.
"""

import msgspec
import pytest

from bcami.aggregation.bounds import Policy
from bcami.aggregation.dice import Dice
from bcami.aggregation.head_end import Call, MaskedRound
from bcami.aggregation.masks import PairKey, round_context, values_from_bytes
from bcami.aggregation.records import Contribution, Declined, Reveal, RevealCall, RoundCall
from bcami.aggregation.rehearsal import READING_MAX, Faults, Rehearsal
from bcami.aggregation.ring_meter import RingMeter
from bcami.aggregation.ring_records import (
    SUPPLIER,
    Ciphertext,
    Delta,
    FirstKey,
    KeySum,
    TokenGrant,
    TokenNotice,
    modulus,
    ring_number,
    ring_value,
)
from bcami.aggregation.ring_rehearsal import RingFaults, RingRehearsal
from bcami.aggregation.rules import Objection, refuse_ring, remembering_ring
from bcami.aggregation.shamir import combine
from bcami.model.aggregation import RING, SettleArgument, bitmap
from bcami.model.reasons import Reason

FIRST_S = 1_800 * 100_000
M = modulus(12, READING_MAX)


def reading(member: int, first_s: int) -> int:
    return 1_000_003 * (member + 1) + first_s % 7_919


@pytest.fixture
def ring() -> RingRehearsal:
    ring = RingRehearsal(12, b"attack", reading)
    assert ring.form()
    return ring


def ordinary(ring: RingRehearsal) -> bytes:
    """Return a member that is neither the LC nor its neighbour."""
    lc = ring.concentrator
    near = {lc, ring.meters[lc]._successor}
    return next(a for a in ring.addresses if a not in near and ring.meters[a]._successor != lc)


def neighbours(ring: RingRehearsal, target: bytes) -> tuple[bytes, bytes]:
    """Return its predecessor and its successor."""
    before = next(a for a in ring.addresses if ring.meters[a]._successor == target)
    return before, ring.meters[target]._successor


def seen_by(ring: RingRehearsal, party: bytes, kind: type) -> list:
    return [(sender, message) for to, sender, message in ring.seen if to == party and isinstance(message, kind)]


def peel(ring: RingRehearsal, target: bytes, period: int) -> int:
    """Return e_ij + k_i1: both neighbours know the two δ, the supplier knows the ciphertext."""
    _, after = neighbours(ring, target)
    incoming = next(m for s, m in seen_by(ring, target, Delta) if m.period == period)  # its predecessor sent it
    outgoing = next(m for s, m in seen_by(ring, after, Delta) if m.period == period)
    cipher = next(m for s, m in seen_by(ring, SUPPLIER, Ciphertext) if s == target and m.period == period)
    return (ring_value(cipher.value) - ring_value(incoming.value) + ring_value(outgoing.value)) % M


class TestBothNeighboursAndTheSupplier:
    def test_ring_every_difference_is_exposed(self, ring):
        target = ordinary(ring)
        results = [ring.sum(FIRST_S + 1800 * number) for number in range(2)]
        assert [result.reason for result in results] == [Reason.VALID] * 2
        member = ring.addresses.index(target)
        found = (peel(ring, target, 2) - peel(ring, target, 1)) % M
        assert found == (reading(member, FIRST_S + 1800) - reading(member, FIRST_S)) % M

    def test_ring_a_lying_successor_needs_no_other_neighbour(self, ring):
        """No meter knows who comes before it: its successor gives it a δ, and gets its δ back, for any interval."""
        target = ordinary(ring)
        _, after = neighbours(ring, target)
        seen = []
        for period, first_s in ((101, FIRST_S), (102, FIRST_S + 1800)):
            ring.deliver(target, after, Delta(ring.meters[target]._generation, period, first_s, ring_number(0)))
            assert ring.settle(
                until=lambda p=period: any(m.period == p for _, m in seen_by(ring, SUPPLIER, Ciphertext))
            )
            assert ring.settle(until=lambda p=period: any(m.period == p for _, m in seen_by(ring, after, Delta)))
            cipher = next(m for _, m in seen_by(ring, SUPPLIER, Ciphertext) if m.period == period)
            outgoing = next(m for _, m in seen_by(ring, after, Delta) if m.period == period)
            seen.append((ring_value(cipher.value) + ring_value(outgoing.value)) % M)
        place = ring.addresses.index(target)
        assert (seen[1] - seen[0]) % M == (reading(place, FIRST_S + 1800) - reading(place, FIRST_S)) % M

    def test_masked_so_many_neighbours_as_the_bound_allows_learn_nothing(self):
        """t − 1 colluding neighbours peel their own masks off: what is left is still covered, and they know no self mask."""
        street = Rehearsal(40, b"attack")
        outcome = street.run(street.start(1, FIRST_S), reading)
        target, context = 0, round_context(street.reader.chain, street.reader.epoch, 1, street.group.digest)
        colluding = street.group.graph[target][: street.group.plan.threshold - 1]
        item = contribution_of(outcome, target)
        left, shares = peeled(street, item, target, colluding, context)
        assert left != reading(target, FIRST_S)
        guesses = {
            combine(dict(list(shares.items())[: len(shares)])),
            combine(shares | {99: 0}),
            combine(shares | {99: 1}),
        }
        assert len(guesses) == 3, "one share short, every secret fits"
        # The same with every neighbour: above the bound the reading falls, so the test can fail.
        everybody = street.group.graph[target]
        left, shares = peeled(street, item, target, everybody, context)
        seed = combine(dict(list(shares.items())[: street.group.plan.threshold])).to_bytes(16, "big")
        assert (left - stream(seed)) % 2**64 == reading(target, FIRST_S)


def contribution_of(outcome, member: int) -> Contribution:
    from bcami.aggregation.records import TO_HEAD_END_CODEC

    messages = [TO_HEAD_END_CODEC.decode(data) for sender, data in outcome.seen if sender == member]
    return next(message for message in messages if isinstance(message, Contribution))


def stream(seed: bytes) -> int:
    from bcami.aggregation.masks import MaskSum

    total = MaskSum(1)
    total.add(seed, is_added=True)
    return int(total.total()[0][0])


def peeled(street: Rehearsal, item: Contribution, target: int, colluding, context: bytes) -> tuple[int, dict[int, int]]:
    """Return the masked value without the masks that these members share with the target, and its shares they hold."""
    left, shares = int(values_from_bytes(item.masked)[0]), {}
    for member in colluding:
        pair = PairKey(street.keys[member].kem, street.members[target].kem_key, street.reader.chain)
        keys = pair.round_keys(context)
        mask = stream(keys.mask_seed)
        left = (left - mask if target < member else left + mask) % 2**64
        sealed = item.shares[street.group.graph[target].index(member)]
        share = keys.open_share(sealed, is_up=target < member)
        shares[street.group.ranks[target][member]] = int.from_bytes(share, "big")
    return left, shares


class TestTheConcentrator:
    def test_ring_with_neighbours_and_supplier_every_reading_is_exposed(self, ring):
        target, lc = ordinary(ring), ring.concentrator
        assert ring.sum(FIRST_S).reason is Reason.VALID
        key = next(m for s, m in seen_by(ring, lc, FirstKey) if s == target)
        member = ring.addresses.index(target)
        assert (peel(ring, target, 1) - ring_value(key.key)) % M == reading(member, FIRST_S)

    def test_ring_without_deltas_lc_and_supplier_suffice(self, ring):
        """Round 1 of the base scheme has no δ yet: c = e + k_1, and the LC holds k_1."""
        target, lc = ordinary(ring), ring.concentrator
        key = ring_value(next(m for s, m in seen_by(ring, lc, FirstKey) if s == target).key)
        meter: RingMeter = ring.meters[target]
        meter._own_delta = 0
        sent = meter._encrypted(1, FIRST_S, 0)
        member = ring.addresses.index(target)
        assert (ring_value(sent.message.value) - key) % M == reading(member, FIRST_S)

    def test_ring_a_lying_lc_learns_a_chosen_subset(self, ring):
        """K and tokens of two members, one of them a Sybil's: nothing authenticates n or K."""
        target, lc = ordinary(ring), ring.concentrator
        meter = ring.meters[lc].concentrator
        sybil = b"\x07" * 16
        supplier = ring.supplier
        supplier._group_min = 2  # a supplier that colludes, or asks for nothing: the paper has no minimum
        ring.deliver(SUPPLIER, lc, TokenNotice(sybil))
        keys = (meter.keys[target] + 5) % M
        ring.deliver(SUPPLIER, lc, KeySum(99, ring_number(keys), (meter.tokens[target], sybil)))
        assert supplier.ring_size == 2
        assert not supplier.refused[Reason.KEY_SUM_MISMATCH]

    def test_ring_a_wrong_k_is_noticed_by_its_range(self, ring):
        lc = ring.concentrator
        tokens = tuple(ring.meters[lc].concentrator.tokens.values())
        ring.deliver(SUPPLIER, lc, KeySum(99, ring_number(12345), tokens))
        assert ring.sum(FIRST_S).reason is Reason.KEY_SUM_MISMATCH

    def test_masked_a_roster_is_what_the_chain_registered(self):
        """No head-end invents members: the roster's digest is the contract's, of enrolled meters with sessions."""
        street, other = Rehearsal(40, b"attack"), Rehearsal(40, b"sybils")
        members = tuple(sorted((*street.members[:2], *other.members[2:]), key=lambda member: member.hid))
        notice = msgspec.structs.replace(street.notice, members=members)
        answer = street.step(0, notice, lambda _: None).message
        assert answer == Declined(0, Reason.ROSTER_MISMATCH)


class TestGroupsOfOneOrTwo:
    def test_ring_meters_take_part_in_a_ring_of_two(self):
        ring = RingRehearsal(2, b"two", reading, group_min=1)
        result = ring.sum(FIRST_S)
        assert result.total - reading(0, FIRST_S) == reading(1, FIRST_S), "each knows the other's from the sum"

    def test_ring_an_honest_supplier_refuses(self):
        ring = RingRehearsal(5, b"five", reading)
        assert not ring.settle(until=lambda: ring.supplier.is_ready, limit_ms=400_000)
        assert ring.supplier.refused[Reason.GROUP_TOO_SMALL]

    def test_masked_meters_refuse(self):
        with pytest.raises(ValueError, match="8 to 10000"):
            Rehearsal(7, b"seven")
        relaxed = Rehearsal(4, b"four", Policy(group_min=2))
        strict = Rehearsal(40, b"four")
        keys = relaxed.keys[0]
        from bcami.aggregation.meter import MaskedMeter

        meter = MaskedMeter(keys, relaxed.reader)
        assert meter.receive(relaxed.notice, lambda _: None, bytes(32)).message == Declined(0, Reason.GROUP_TOO_SMALL)
        assert strict.group.plan.contributors_min >= 8


class TestDifferencing:
    def test_ring_a_member_that_leaves_is_told_by_the_difference(self, ring):
        """Nobody asks how groups differ. (Its use of one interval is the difference of two sums of that interval.)"""
        target = ordinary(ring)
        with_it = ring.sum(FIRST_S)
        ring.down.add(target)
        results = [ring.sum(FIRST_S) for _ in range(3)]
        without = next(result for result in results if result.reason is Reason.VALID)
        assert with_it.total - without.total == reading(ring.addresses.index(target), FIRST_S)

    def test_masked_the_interval_is_spent_and_neighbouring_sums_must_differ_by_many(self):
        street = Rehearsal(40, b"attack")
        assert street.run(street.start(1, FIRST_S), reading).reason is Reason.VALID
        again = street.run(street.start(2, FIRST_S), reading, Faults(silent=frozenset({5})))
        assert (again.reason, again.sums) == (Reason.GROUP_TOO_SMALL, ())
        # The next interval with one member less: the honest head-end leaves out more, and has too few to spare.
        later = street.run(street.start(3, FIRST_S + 1800), reading, Faults(silent=frozenset({5})))
        assert (later.reason, later.sums) == (Reason.GROUP_TOO_ALIKE, ())
        # A head-end that asks nevertheless hears it from every meter.
        call = RoundCall(street.reader.record("start", street.start(4, FIRST_S + 3600)))
        settle = SettleArgument(4, 0, bitmap(set(range(40)) - {5}, 40), True)
        proof = street.reader.record("settle", settle)
        for member in (0, 1, 2):
            street.step(member, call, lambda first_s: 1)
            answer = street.step(member, RevealCall(proof, ()), lambda _: None).message
            assert answer == Declined(4, Reason.GROUP_TOO_ALIKE, earlier=1)

    def test_masked_a_ring_of_the_same_day_stands_against_it_and_it_against_a_ring(self):
        """A ring tells its members no set: the difference of a masked sum and a ring sum could be one of them."""
        street = Rehearsal(40, b"attack")
        assert street.run(street.start(1, FIRST_S), reading).reason is Reason.VALID
        for number, first_s, reason in (
            (2, FIRST_S, Reason.INTERVAL_SPENT),
            (2, FIRST_S + 1800, Reason.GROUP_TOO_ALIKE),
        ):
            ring_round = msgspec.structs.replace(street.start(number, first_s), mode=RING)
            assert refuse_ring(street.meters[7].memory, ring_round) == Objection(reason, earlier=1)
        day_later = msgspec.structs.replace(street.start(2, FIRST_S + 3 * 86_400), mode=RING)
        assert refuse_ring(street.meters[7].memory, day_later) is None
        for meter in street.meters:
            meter.memory = remembering_ring(meter.memory, day_later)
        for first_s, reason in (
            (day_later.first_s, Reason.INTERVAL_SPENT),
            (day_later.first_s + 1800, Reason.GROUP_TOO_ALIKE),
        ):
            call = RoundCall(street.reader.record("start", street.start(3, first_s)))
            assert street.step(7, call, lambda _: 1).message == Declined(3, reason, earlier=2)

    def test_masked_a_new_roster_changes_nothing(self):
        """What a meter was part of counts, not under which roster: a head-end that starts again gains nothing."""
        street, other = Rehearsal(40, b"attack"), Rehearsal(40, b"attack")
        assert street.run(street.start(1, FIRST_S), reading).reason is Reason.VALID
        other.stores = street.stores
        for member in range(40):
            other.restart(member)
        again = other.run(other.start(2, FIRST_S), reading)
        assert (again.reason, again.sums) == (Reason.GROUP_TOO_SMALL, ())
        later = other.start(3, FIRST_S + 1800)
        other.past.append((street.start(1, FIRST_S), frozenset(range(40))))
        assert other.run(later, reading).reason is Reason.VALID, "the same contributors are fine"

    def test_masked_two_halves_of_the_group_do_not_come_to_two_alike_sums(self):
        """The head-end shows one set to some and, half an hour later, the set without one member to the others."""
        street = Rehearsal(40, b"attack")
        plan = street.group.plan
        colluding = set(range(plan.colluding_max))
        honest = [member for member in range(40) if member not in colluding]
        revealed: list[set[int]] = []
        half = honest[: len(honest) // 2]
        for number, left_out, asked in ((1, set(), half), (2, {39}, [m for m in honest if m not in half])):
            call = RoundCall(street.reader.record("start", street.start(number, FIRST_S + 1800 * number)))
            contributors = set(range(40)) - left_out
            settle = SettleArgument(number, 0, bitmap(contributors, 40), True)
            proof = street.reader.record("settle", settle)
            for member in range(40):
                street.step(member, street.notice, lambda _: None)
                street.step(member, call, lambda _: 1)
            answers = {m: street.step(m, RevealCall(proof, ()), lambda _: None).message for m in asked}
            revealed.append({m for m, answer in answers.items() if isinstance(answer, Reveal)} | colluding)
        target = honest[0]
        shares = [len(members - {target}) for members in revealed]
        assert min(shares) < plan.threshold, "one of the two sums stays masked"
        assert min(shares) >= 40 // 2 - 2, "half of the group would have been enough"

    def test_masked_a_large_group_evens_out_a_small_change(self):
        village = Rehearsal(120, b"village")
        assert village.run(village.start(1, FIRST_S), reading).reason is Reason.VALID
        later = village.run(village.start(2, FIRST_S + 1800), reading, Faults(silent=frozenset({5})))
        assert later.reason is Reason.VALID
        assert len(later.contributors) == 112, "seven more were left out"


class TestAlteredContributions:
    def test_ring_adding_to_a_ciphertext_adds_to_the_sum(self, ring):
        """The supplier's own record: nothing ties a ciphertext to its meter."""
        ring._carry_out(SUPPLIER, ring.supplier.request(FIRST_S))
        target = ordinary(ring)
        before = len(ring.supplier.results)
        altered = False
        while len(ring.supplier.results) == before:
            at_ms, number, to, sender, what = ring._events[0]
            if isinstance(what, Ciphertext) and sender == target:
                value = ring_number((ring_value(what.value) + 777) % M)
                ring._events[0] = (at_ms, number, to, sender, msgspec.structs.replace(what, value=value))
                altered = True
            ring._step()
        assert altered
        true = sum(reading(member, FIRST_S) for member in range(12))
        assert ring.supplier.results[-1].total == true + 777

    def test_masked_it_is_refused_by_its_signature(self):
        street = Rehearsal(40, b"attack")
        start = street.start(1, FIRST_S)
        head_end = MaskedRound(street.group, start, street.reader, street.notice)
        calls = [effect for effect in head_end.begin(street.reader.record("start", start)) if isinstance(effect, Call)]
        answers = [street.step(call.member, call.message, lambda _: 5).message for call in calls]
        item = next(answer for answer in answers if answer is not None)
        altered = msgspec.structs.replace(item, masked=bytes([item.masked[0] ^ 1]) + item.masked[1:])
        head_end.receive(item.member, altered)
        assert head_end.refused == {Reason.BAD_SIGNATURE: 1}


class TestTokens:
    def test_ring_the_supplier_sees_who_sends_which_token(self, ring):
        """On a direct connection a token hides nobody; it needs a relay."""
        assert ring.sum(FIRST_S).reason is Reason.VALID
        lc = ring.concentrator
        told = {sender: message.token for sender, message in seen_by(ring, SUPPLIER, Ciphertext)}
        assert told == {address: ring.meters[lc].concentrator.tokens[address] for address in ring.addresses}

    def test_ring_a_wrong_token_a_stale_period_and_a_meter_twice_are_told_apart(self, ring):
        ring._carry_out(SUPPLIER, ring.supplier.request(FIRST_S))
        sender = ring.addresses[0]
        ring.deliver(SUPPLIER, sender, Ciphertext(1, b"\x01" * 16, ring_number(1)))
        ring.deliver(SUPPLIER, sender, Ciphertext(9, b"\x01" * 16, ring_number(1)))
        assert ring.settle(until=lambda: ring.supplier._period.received)
        lc = ring.concentrator
        token = next(t for t in ring.supplier._period.received)
        ring.deliver(SUPPLIER, sender, Ciphertext(1, token, ring_number(1)))
        rest = set(ring.meters[lc].concentrator.tokens.values()) - set(ring.supplier._period.received)
        ring.deliver(SUPPLIER, sender, Ciphertext(1, rest.pop(), ring_number(M)))
        assert ring.supplier.refused == {
            Reason.WRONG_TOKEN: 1,
            Reason.STALE: 1,
            Reason.MEMBER_TWICE: 1,
            Reason.READING_OUT_OF_RANGE: 1,
        }
        generation = ring.meters[lc].concentrator.generation
        before = ring.refusals[Reason.WRONG_TOKEN]
        ring.deliver(lc, ordinary(ring), FirstKey(generation, b"\x01" * 16, ring_number(5)))
        assert ring.refusals[Reason.WRONG_TOKEN] == before + 1


class TestDropOuts:
    def test_ring_one_silent_member_voids_the_period(self, ring):
        target = ordinary(ring)
        ring.down.add(target)
        assert ring.sum(FIRST_S).reason is Reason.RING_BROKEN
        after = ring.sum(FIRST_S + 1800)
        assert (after.reason, after.count) == (Reason.VALID, 11), "it starts again without it"

    def test_ring_a_broken_link_is_found_and_left_out_by_a_new_order(self, ring):
        target = ordinary(ring)
        before, _ = neighbours(ring, target)
        ring.cut.add(frozenset((before, target)))
        assert ring.sum(FIRST_S).reason is Reason.RING_BROKEN
        results = [ring.sum(FIRST_S + 1800 * number) for number in range(1, 8)]
        assert any(result.reason is Reason.VALID and result.count == 12 for result in results)

    def test_ring_a_silent_lc_is_replaced(self, ring):
        ring.down.add(ring.concentrator)
        assert ring.sum(FIRST_S).reason is Reason.TIMED_OUT
        after = ring.sum(FIRST_S + 1800)
        assert (after.reason, after.count) == (Reason.VALID, 11)

    def test_ring_the_lc_hands_over_at_random(self, ring):
        holders = {ring.concentrator}
        for number in range(30):
            ring.sum(FIRST_S + 1800 * number)
            assert ring.form()
            holders |= {a for a, meter in ring.meters.items() if meter.concentrator is not None}
        assert len(holders) > 2

    def test_ring_latency_is_n_hops(self):
        times = []
        for members in (10, 40):
            ring = RingRehearsal(members, b"hops", reading)
            ring.form()
            began = ring.now_ms
            assert ring.sum(FIRST_S).reason is Reason.VALID
            times.append(ring.now_ms - began)
        assert times[1] > 3 * times[0]

    def test_masked_a_withheld_contribution_tells_nothing(self):
        """The gateway keeps a contribution back, calls its meter gone, and gets the pairwise seeds: b stays."""
        street = Rehearsal(40, b"attack")
        target = 7
        outcome = street.run(street.start(1, FIRST_S), reading, Faults(silent=frozenset({target})))
        assert outcome.reason is Reason.VALID
        # The meter itself did answer: the attacker has it in a drawer.
        street.step(target, street.notice, lambda _: None)
        call = RoundCall(street.reader.record("start", street.start(1, FIRST_S)))
        item = street.step(target, call, lambda first_s: reading(target, first_s)).message
        assert isinstance(item, Contribution)
        from bcami.aggregation.records import TO_HEAD_END_CODEC

        left = int(values_from_bytes(item.masked)[0])
        reveals = [TO_HEAD_END_CODEC.decode(data) for _, data in outcome.seen]
        seeds = {
            reveal.member: dict(reveal.secrets)[target]
            for reveal in reveals
            if isinstance(reveal, Reveal) and target in dict(reveal.secrets)
        }
        assert len(seeds) == 39, "every neighbour gave its seed"
        for member, seed in seeds.items():
            left = (left - stream(seed) if target < member else left + stream(seed)) % 2**64
        assert left != reading(target, FIRST_S)
        shares = [reveal for reveal in reveals if isinstance(reveal, Reveal) and reveal.wave > 0]
        assert shares
        assert all(target not in dict(reveal.secrets) for reveal in shares), "nobody gives a share of it"
        # And the meter helps nobody to a sum that it is said not to be in.
        proof = street.reader.record("settle", SettleArgument(1, 0, bitmap(set(range(40)) - {target}, 40), False))
        assert street.step(target, RevealCall(proof, ()), lambda _: None).message == Declined(1, Reason.NOT_A_MEMBER)


@pytest.mark.parametrize("seed", range(8))
def test_ring_under_loss_and_reordering_never_a_wrong_sum(seed):
    ring = RingRehearsal(12, b"storm" + bytes([seed]), reading, RingFaults(loss_percent=1, jitter_ms=80))
    dice = Dice(bytes([seed]))
    valid = 0
    for number in range(12):
        if not ring.form():
            break
        if number == 8:
            ring.down.add(ring.addresses[dice.below(12)])
        result = ring.sum(FIRST_S + 1800 * number)
        if result.reason is Reason.VALID and result.count == 12:
            valid += 1
            assert result.total == sum(reading(member, FIRST_S + 1800 * number) for member in range(12))
    assert valid


def test_ring_grants_a_token_once_and_keeps_a_key(ring):
    """A repeated broadcast gets the same token, and the meter answers with the same key: K stays right."""
    target, lc = ordinary(ring), ring.concentrator
    key, generation = ring.meters[target]._key, ring.meters[lc].concentrator.generation
    token = ring.meters[lc].concentrator.tokens[target]
    ring.deliver(target, lc, TokenGrant(generation, token))
    ring.settle(until=lambda: ring.now_ms > 2_000, limit_ms=5_000)
    assert ring.meters[target]._key == key
    assert ring.sum(FIRST_S).reason is Reason.VALID
