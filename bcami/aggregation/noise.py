"""Discrete Laplace noise of a group, exactly sampled from integers, one share at each meter.

Pr[X = x] ∝ exp(−|x|·ε·step/sensitivity): ε-differential privacy for one reading of a sum [Ghosh, Roughgarden,
Sundararajan, STOC 2009; Canonne, Kamath, Steinke (CKS), NeurIPS 2020, section 5]. No meter draws X itself. X is the
difference of two geometric variables, and a geometric variable is a sum of m negative binomial ones of shape 1/m, so m
honest meters that each add the difference of two such variables add X together [Goryczka, Xiong, TDSC 2017; Ács,
Castelluccia, IH 2011, have the same for the continuous law]. m is what is left of the contributors when all that may
collude are gone, so that whoever knows the colluders' shares still faces all of X; more honest meters add more noise.

Exact: Bernoulli(exp(−a/b)) and the geometric law by [CKS, algorithms 1 and 2]; the shape 1/m by rejection from the
geometric law: x is kept with probability Π_{i=1..x} (i − 1 + 1/m)/i, a product of rational chances. No floating point
number is used, so the attack on floating-point Laplace noise [Mironov, CCS 2012] has nothing to work on.
"""

from typing import Final

from bcami.aggregation.dice import Dice
from bcami.model.aggregation import Noise

_MILLION: Final = 1_000_000
SCALE_MAX: Final = 10_000
"""Largest scale of the noise, in steps: the time that a meter's share takes grows with it, to some 0.1 s here."""


def bernoulli_exp(dice: Dice, numerator: int, denominator: int) -> bool:
    """Return True with probability exp(−numerator/denominator), for any non-negative fraction [CKS, algorithm 1]."""
    while numerator > denominator:
        if not _bernoulli_exp_below_one(dice, 1, 1):
            return False
        numerator -= denominator
    return _bernoulli_exp_below_one(dice, numerator, denominator)


def _bernoulli_exp_below_one(dice: Dice, numerator: int, denominator: int) -> bool:
    k = 1
    while dice.chance(numerator, denominator * k):
        k += 1
    return k % 2 == 1


def geometric(dice: Dice, numerator: int, denominator: int) -> int:
    """Return x ≥ 0 with probability (1 − p)·p^x, p = exp(−numerator/denominator) [CKS, algorithm 2]."""
    while True:
        low = dice.below(denominator)
        if _bernoulli_exp_below_one(dice, low, denominator):
            break
    high = 0
    while _bernoulli_exp_below_one(dice, 1, 1):
        high += 1
    return (low + denominator * high) // numerator


def negative_binomial_share(dice: Dice, shares: int, numerator: int, denominator: int) -> int:
    """Return a variable of which `shares` independent ones add up to a geometric one."""
    while True:
        value = geometric(dice, numerator, denominator)
        # Γ(x + 1/m)/(x!·Γ(1/m)) = Π (i − 1 + 1/m)/i = Π ((i − 1)·m + 1)/(i·m)
        if all(dice.chance((i - 1) * shares + 1, i * shares) for i in range(1, value + 1)):
            return value


def is_drawable(noise: Noise) -> bool:
    """Tell whether a meter can draw its share of the noise, and soon."""
    steps_max = SCALE_MAX * noise.epsilon_millionths * noise.step
    return not noise.epsilon_millionths or 0 < noise.sensitivity * _MILLION <= steps_max


def noise_share(dice: Dice, noise: Noise, honest_min: int) -> int:
    """Return one meter's share of the noise on one sum, energy units; 0 when the round has none."""
    if not noise.epsilon_millionths:
        return 0
    numerator = noise.epsilon_millionths * noise.step
    denominator = noise.sensitivity * _MILLION
    plus = negative_binomial_share(dice, honest_min, numerator, denominator)
    return noise.step * (plus - negative_binomial_share(dice, honest_min, numerator, denominator))


def rounded(reading: int, noise: Noise) -> int:
    """Return what is summed of a reading: itself, or, with noise, cut to the sensitivity and rounded to the step.

    Noise comes in steps, so a reading's remainder would shine through. Never above the sensitivity, for which the noise
    is made, also where that is no whole number of steps.
    """
    if not noise.epsilon_millionths:
        return reading
    steps = (min(max(reading, 0), noise.sensitivity) + noise.step // 2) // noise.step
    return min(steps, noise.sensitivity // noise.step) * noise.step
