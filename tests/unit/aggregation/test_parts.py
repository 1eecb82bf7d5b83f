"""Shamir, masks, graph, bounds and noise, each against something independent of it."""

import hmac
import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest

from bcami.aggregation.bounds import Policy, plan_for
from bcami.aggregation.dice import Dice
from bcami.aggregation.graph import draw_graph, draw_plan
from bcami.aggregation.masks import MaskSum, PairKey, signed, values_of
from bcami.aggregation.noise import bernoulli_exp, geometric, is_drawable, noise_share, rounded
from bcami.aggregation.shamir import PLACES_MAX, PRIME, SECRET_BITS, combine, split
from bcami.crypto import hkdf, native
from bcami.crypto.commitments import ORDER, commit, generator, opens
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.points import point_sum
from bcami.model.aggregation import NO_NOISE, Noise, bitmap, members_of


def kem(name: bytes) -> KemSecretKey:
    return KemSecretKey.generate(name * 32)


def numbered(shares: list[bytes]) -> dict[int, int]:
    return {place: int.from_bytes(share, "big") for place, share in enumerate(shares, 1)}


class TestShamir:
    def test_any_threshold_of_shares_gives_the_secret(self):
        dice = Dice(b"shares")
        secret = dice.bits(SECRET_BITS)
        shares = numbered(split(secret, 4, 7, dice))
        for chosen in itertools.combinations(shares, 4):
            assert combine({place: shares[place] for place in chosen}) == secret

    @pytest.mark.parametrize(("threshold", "count"), [(1, 1), (2, 3), (42, 70), (500, PLACES_MAX)])
    def test_shares_are_values_of_one_polynomial(self, threshold, count):
        """The shares come from matrices of doubles: here from Horner's rule over the integers."""
        data = Dice(b"polynomial").bits(128 * (threshold - 1)).to_bytes(16 * (threshold - 1), "little")
        drawn = [int.from_bytes(data[at : at + 16], "little") & PRIME for at in range(0, len(data), 16)]
        for secret in (0, 2**SECRET_BITS - 1):
            shares = numbered(split(secret, threshold, count, Dice(b"polynomial")))
            for place in {1, 2, count // 2 + 1, count - 1, count} & shares.keys():
                value = 0
                for coefficient in [*reversed(drawn), secret]:
                    value = (value * place + coefficient) % PRIME
                assert shares[place] == value

    def test_weights_do_not_depend_on_how_many_places_are_missing(self):
        """Few are missing below the highest place, or most are: two ways to the same weights."""
        shares = numbered(split(77, 3, 500, Dice(b"far")))
        for chosen in ((1, 2, 3), (1, 2, 4), (3, 400, 17), (500, 499, 498)):
            assert combine({place: shares[place] for place in chosen}) == 77

    def test_fewer_fit_every_secret(self):
        """With t − 1 shares each secret has a polynomial that goes through them: nothing is told."""
        shares = numbered(split(7, 3, 3, Dice(b"fewer")))
        for other in (0, 8, 2**SECRET_BITS - 1):
            # The third share that would make `other` the secret exists for any `other`.
            weight = combine({1: 0, 2: 0, 3: 1})
            third = (other - combine({1: shares[1], 2: shares[2], 3: 0})) * pow(weight, -1, PRIME) % PRIME
            assert combine({1: shares[1], 2: shares[2], 3: third}) == other

    def test_nonsense_is_refused(self):
        for secret, threshold, count in ((1 << SECRET_BITS, 2, 3), (-1, 2, 3), (1, 4, 3), (1, 0, 3), (1, 2, 513)):
            with pytest.raises(ValueError):
                split(secret, threshold, count, Dice(b""))


class TestMasks:
    def test_both_ends_agree_and_rounds_and_directions_differ(self):
        one, two = kem(b"1"), kem(b"2")
        here, there = PairKey(one, two.public_key, b"c"), PairKey(two, one.public_key, b"c")
        assert here.round_keys(b"r").mask_seed == there.round_keys(b"r").mask_seed
        assert here.round_keys(b"r").mask_seed != here.round_keys(b"s").mask_seed
        assert here.round_keys(b"r").mask_seed != PairKey(one, two.public_key, b"d").round_keys(b"r").mask_seed
        share = (77).to_bytes(16, "big")
        sealed = here.round_keys(b"r").seal_share(share, is_up=True)
        assert there.round_keys(b"r").open_share(sealed, is_up=True) == share
        assert there.round_keys(b"r").open_share(sealed, is_up=False) is None
        assert there.round_keys(b"s").open_share(sealed, is_up=True) is None
        assert there.round_keys(b"r").open_share(sealed[:-1] + b"x", is_up=True) is None

    def test_round_keys_are_a_block_of_hkdf(self):
        """HKDF-Expand's first block is HMAC(key, info, 1) [RFC 5869], the key being what both extract."""
        one, two = kem(b"1"), kem(b"2")
        low, high = sorted((one.public_key, two.public_key))
        agreed = one.shared_x(native.parse_uncompressed(two.public_key))
        key = hkdf.extract(b"bcami/aggregation/pair/1" + b"c", agreed + low + high)
        block = hmac.digest(key, b"context" + b"\x01", "sha512")
        assert PairKey(one, two.public_key, b"c").round_keys(b"context").mask_seed == block[:16]

    def test_secrets_do_not_show(self):
        pair = PairKey(kem(b"1"), kem(b"2").public_key, b"c")
        assert repr(pair) == "PairKey(secret)"
        assert repr(pair.round_keys(b"r")) == "RoundKeys(secret)"

    def test_masks_cancel(self):
        total = MaskSum(3)
        total.add_values(values_of([1, 2, -3]), 5)
        for seed in (b"a", b"b"):
            total.add(seed, is_added=True)
        masked, _ = total.total()
        assert signed(masked) != (1, 2, -3)
        total.add(b"b", is_added=False)
        total.add(b"a", is_added=False)
        values, blinding = total.total()
        assert (signed(values), blinding) == ((1, 2, -3), 5)


class TestCommitments:
    def test_sums_open_and_nothing_else_does(self):
        parts = [([5, 7], 11), ([1, 0], 13), ([-2, 9], ORDER - 1)]
        total = point_sum([commit(values, blinding) for values, blinding in parts])
        assert opens(total, [4, 16], 23)
        for values, blinding in (([4, 17], 23), ([4, 16], 24), ([16, 4], 23), ([4], 23)):
            assert not opens(total, values, blinding)

    def test_generators_are_what_the_label_says(self):
        assert len({generator(slot) for slot in range(48)}) == 48
        assert generator(0).hex() == GENERATOR_0


GENERATOR_0 = "024d4ac945d31669d9c7f129f9e116b9b15503bde489b7405a1faa642024ce30b2"


class TestGraph:
    @pytest.mark.parametrize(("members", "degree"), [(10, 9), (60, 12), (1000, 70)])
    def test_is_symmetric_connected_and_drawn_from_the_seed(self, members, degree):
        graph = draw_graph(b"seed", members, degree)
        assert all(member in graph[other] and other != member for member in range(members) for other in graph[member])
        assert max(map(len, graph)) <= degree
        assert min(map(len, graph)) >= degree * 0.7
        seen, ahead = {0}, [0]
        while ahead:
            ahead = [other for member in ahead for other in graph[member] if other not in seen and not seen.add(other)]
        assert len(seen) == members
        if degree < members - 1:
            assert graph != draw_graph(b"other", members, degree)


class TestBounds:
    def test_chance_that_a_cycle_keeps_two_sets_apart(self):
        """P(s) against every arrangement of a small circle."""
        from bcami.aggregation.bounds import _separations

        n, colluding, dropping = 8, 1, 2
        _, apart = _separations(n, colluding, dropping)
        for size in (1, 2):
            live = n - colluding - dropping
            kinds = "r" * (colluding + dropping) + "s" * size + "t" * (live - size)
            fine = total = 0
            for order in itertools.permutations(range(1, n)):
                circle = [kinds[0], *(kinds[place] for place in order)]
                pairs = {frozenset((circle[place - 1], circle[place])) for place in range(n)}
                fine += frozenset("st") not in pairs
                total += 1
            assert 2 ** apart[size - 1] == pytest.approx(fine / total)

    def test_real_graphs_keep_to_it(self):
        """With weak parameters the event happens; its frequency stays below the bound."""
        policy = Policy(collusion_percent=20, dropout_percent=20, secrecy_bits=2, liveness_bits=1)
        plan = plan_for(60, policy)
        assert plan.degree < 40
        choice = random.Random(1)
        bad = 0
        for trial in range(200):
            graph = draw_graph(trial.to_bytes(4, "big"), 60, plan.degree)
            colluding = set(choice.sample(range(60), plan.colluding_max))
            bad += any(sum(other in colluding for other in near) >= plan.threshold for near in graph)
        assert bad / 200 <= 2**-3

    def test_plans_are_what_the_document_says(self):
        plans = {n: plan_for(n) for n in (8, 10, 100, 1000, 5000)}
        assert {n: (plan.degree, plan.threshold) for n, plan in plans.items()} == {
            8: (7, 4),
            10: (9, 6),
            100: (99, 56),
            1000: (70, 42),
            5000: (88, 57),
        }
        assert plans[1000].colluding_max == 100
        assert plans[1000].contributors_min == 900
        for n in (7, 10_001):
            with pytest.raises(ValueError):
                plan_for(n)

    @pytest.mark.parametrize("members", [8, 11, 40, 120, 150, 300, 1000])
    def test_no_two_sums_without_a_common_honest_member(self, members):
        """Whoever contributes has t neighbours that reveal, in each of two rounds: more than there are."""
        plan, graph = draw_plan(b"seed", members, Policy())
        degrees = sorted(map(len, graph), reverse=True)
        once, twice = degrees[: plan.honest_min], degrees[: plan.colluding_max]
        assert 2 * plan.threshold * plan.honest_min > sum(once) + sum(twice)
        assert plan.threshold < min(degrees) * 0.9, "and drop-outs leave enough"

    def test_more_collusion_needs_more_neighbours(self):
        degrees = [plan_for(1000, Policy(collusion_percent=percent)).degree for percent in (5, 10, 20, 33)]
        assert degrees == sorted(set(degrees))


class TestNoise:
    def test_bernoulli_exp(self):
        dice = Dice(b"exp")
        for numerator, denominator in ((1, 3), (5, 2), (0, 1)):
            hits = sum(bernoulli_exp(dice, numerator, denominator) for _ in range(8000))
            assert hits / 8000 == pytest.approx(math.exp(-numerator / denominator), abs=0.02)

    def test_geometric_law(self):
        dice = Dice(b"geometric")
        drawn = Counter(geometric(dice, 2, 5) for _ in range(20_000))
        p = math.exp(-2 / 5)
        for value in range(6):
            assert drawn[value] / 20_000 == pytest.approx((1 - p) * p**value, abs=0.012)

    def test_shares_add_up_to_discrete_laplace(self):
        """The law of the sum of 20 meters' shares, value by value."""
        dice, noise = Dice(b"laplace"), Noise(1_000_000, 20, 10)
        count = 1500
        sums = Counter(sum(noise_share(dice, noise, 20) for _ in range(20)) for _ in range(count))
        p = math.exp(-10 / 20)
        for steps in range(-3, 4):
            expected = (1 - p) / (1 + p) * p ** abs(steps)
            assert sums[10 * steps] / count == pytest.approx(expected, abs=0.045), steps
        assert all(value % 10 == 0 for value in sums)

    def test_a_reading_is_cut_and_rounded_only_with_noise(self):
        noise = Noise(500_000, 100, 10)
        assert [rounded(reading, noise) for reading in (0, 14, 15, 99, 1000, -4)] == [0, 10, 20, 100, 100, 0]
        assert rounded(1234, NO_NOISE) == 1234

    @pytest.mark.parametrize("sensitivity", [4, 6, 10, 16, 19, 25])
    def test_no_reading_counts_for_more_than_the_noise_is_made_for(self, sensitivity):
        noise = Noise(500_000, sensitivity, 10)
        assert max(rounded(reading, noise) for reading in range(40)) <= sensitivity

    def test_what_is_never_drawn(self):
        """With a sensitivity of 0, or ε in millionths for tens of kWh, a meter would draw until the end of its days."""
        for noise in (NO_NOISE, Noise(5_000, 5 * 10**7, 10**6), Noise(1, 10_000, 10**6)):
            assert is_drawable(noise)
            noise_share(Dice(b"slow"), noise, 5)
        for noise in (Noise(1, 0, 1), Noise(4_999, 5 * 10**7, 10**6), Noise(1, 2**62, 1)):
            assert not is_drawable(noise)

    def test_a_round_without_noise_has_no_share_of_it(self):
        assert noise_share(Dice(b""), NO_NOISE, 5) == 0


class TestDice:
    def test_is_uniform_and_repeats(self):
        drawn = Counter(Dice(b"x" + bytes([seed])).below(3) for seed in range(256))
        assert all(60 < drawn[value] < 112 for value in range(3))
        one, two = Dice(b"same"), Dice(b"same")
        assert [one.bits(7) for _ in range(600)] == [two.bits(7) for _ in range(600)]
        assert np.mean([one.bits(1) for _ in range(4000)]) == pytest.approx(0.5, abs=0.03)


def test_bitmaps():
    for members in ({0}, {7, 8}, set(), set(range(21))):
        assert members_of(bitmap(members, 21)) == members
