"""Shares of a secret number, any `threshold` of which give it back and fewer of which tell nothing [Shamir, CACM 1979].

Over the integers mod the prime 2^127 − 1: the secret is a mask seed of at most 126 bits.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Final

from bcami.aggregation.dice import Dice

PRIME: Final = 2**127 - 1
SECRET_BITS: Final = 126
SHARE_BYTES: Final = 16


def split(secret: int, threshold: int, places: Sequence[int], dice: Dice) -> list[int]:
    """Return the share of each place; places are different and from 1 to 2^127 − 2.

    Raises ValueError for a secret that is too large or a threshold that the places cannot reach.
    """
    if not 0 <= secret < 1 << SECRET_BITS or not 1 <= threshold <= len(places):
        raise ValueError("a secret of at most 126 bits, and at least as many shares as the threshold")
    coefficients = [dice.below(PRIME) for _ in range(threshold - 1)]
    shares = []
    for place in places:
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * place  # places are small: one remainder at the end is cheaper
        shares.append((value + secret) % PRIME)
    return shares


def combine(shares: Mapping[int, int]) -> int:
    """Return the secret from exactly as many shares as the threshold, by place."""
    places = list(shares)
    product = prod(places)
    # Lagrange at 0. Places are small, so whole products are cheaper than remainders; one inverse serves all.
    below = [prod([other - place for other in places if other != place]) % PRIME for place in places]
    running = [1]
    for value in below:
        running.append(running[-1] * value % PRIME)
    inverse = pow(running[-1], -1, PRIME)
    total = 0
    for position in range(len(places) - 1, -1, -1):
        place = places[position]
        weight = product // place * (running[position] * inverse % PRIME)
        inverse = inverse * below[position] % PRIME
        total += shares[place] * weight
    return total % PRIME
