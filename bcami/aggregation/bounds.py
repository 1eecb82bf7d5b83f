"""How many neighbours and which threshold: chosen from a bound, not by feel [Bell et al., CCS 2020, section 3.2].

**Claim.** Let at most c = ⌊γn⌋ members collude with the utility, the head-end, the gateways and all nodes, chosen
before the graph is drawn, and let the head-end withhold up to d = ⌊δn⌋ contributions *after* it has seen the graph.
Then, except with probability 2^−σ, all that they learn of the others' readings is the sum over all honest contributors.

Why. What is learned is one sum for each connected piece of the graph of honest contributors, since inside a piece the
pairwise masks hide everything else [Bell et al., lemma 3.1; Bonawitz et al., CCS 2017, lemma 6.1], and a piece's own
self masks stay hidden while fewer than t of a member's neighbours collude. So three things must not happen.

1. *A member has t or more colluding neighbours.* Each of the h cycles gives it two neighbours, drawn at random:
   n·Pr[more than c_max colluding ones] ≤ 2^−(σ+1) fixes c_max.
2. *The honest contributors fall apart.* For a piece S of s members and a removed set R (c colluding, d withheld), one
   random cycle has no step between S and the rest T with probability

       P(s) = Σ_j C(r,j)·C(s−1,j−1)·C(|T|+r−j−1, r−j−1) / [(n−1)!/((r−1)!·s!·|T|!)],     r = c + d:

   cut the cycle at the r removed members; each of the r gaps holds members of S only or of T only, and j hold S. Over
   all S and all choices of what is withheld, Σ_s C(n−c, d)·C(n−c−d, s)·P(s)^h bounds the probability. From some size
   s₀ on this sum is below 2^−(σ+1). Smaller pieces are excluded by a rule that each meter keeps by itself: *it reveals
   nothing unless t of its neighbours contributed.* In a piece of fewer than s₀ members a member has at most
   c_max + s₀ − 2 neighbours left, so t = max(c_max + 1, c_max + s₀ − 1) does it.

3. *Two sums without an honest member that helped to both.* Members compare a sum with those that they helped to
   before (`rules`); a head-end could show one set of contributors to one half of the group, and one that lacks a
   single member to the other half. Each of at least m honest contributors (m is `honest_min`) needs t neighbours that
   reveal. If no honest member reveals in both rounds, each honest neighbour counts once and each colluding one twice:
   2·t·m ≤ D(m) + D(c), D(x) being the sum of the x largest numbers of neighbours. `plan_on` raises t above that, once
   the graph is drawn. It matters for small groups, whose graph is complete.

t is Shamir's threshold too. k = 2h is the smallest degree for which, besides, n·Pr[a member has fewer than t
neighbours left after d random drop-outs] ≤ 2^−η: liveness, not secrecy.

Bell et al. bound drop-outs that do not depend on the graph; here the head-end may choose them, for which it pays with
a larger k. A head-end cannot show different sets to different meters, since contributors are fixed in certified
blocks; so t needs no majority [Bonawitz et al., section 6.2, would need t > 2n/3 without that].

Whoever proposes blocks can try out block hashes. σ = 60 leaves 2^−40 after 2^20 tries for each roster.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import log2
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bcami.model.aggregation import GROUP_MIN, MEMBERS_MAX

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Policy:
    """What a meter insists on; every member of a group has the same one."""

    collusion_percent: int = 10
    """γ: members of a group that may collude, in per cent."""
    dropout_percent: int = 10
    """δ: members that may drop out or be withheld."""
    secrecy_bits: int = 60
    """σ."""
    liveness_bits: int = 20
    """η."""
    group_min: int = GROUP_MIN
    """Least number of contributors; also the least difference of two groups that is not zero."""


DEFAULT_POLICY: Final = Policy()


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of a group of a size."""

    members: int
    degree: int
    """k: neighbours of each member, at most."""
    threshold: int
    """t: shares that give back a self mask, and neighbours that must have contributed."""
    colluding_max: int
    """c: the collusion bound."""
    contributors_min: int
    """n − d, but at least the policy's minimum."""
    honest_min: int
    """Honest contributors when c collude and as few as allowed contribute."""


@lru_cache(maxsize=64)
def plan_for(members: int, policy: Policy = DEFAULT_POLICY) -> Plan:
    """Return the parameters for a group of that size. Raises ValueError below the minimum or when none exist."""
    if not policy.group_min <= members <= MEMBERS_MAX:
        raise ValueError(f"a group has {policy.group_min} to {MEMBERS_MAX} members, not {members}")
    colluding = members * policy.collusion_percent // 100
    dropping = max(1, members * policy.dropout_percent // 100)
    contributors_min = max(policy.group_min, members - dropping)
    honest_min = max(1, contributors_min - colluding)

    def plan(degree: int, threshold: int) -> Plan:
        return Plan(members, degree, threshold, colluding, contributors_min, honest_min)

    pieces, apart = _separations(members, colluding, dropping)
    for cycles in range(2, (members - 1) // 2):
        colluding_near = _colluding_neighbours(members, colluding, cycles, policy.secrecy_bits + 1)
        piece = _unsplit_size(pieces + cycles * apart, policy.secrecy_bits + 1)
        if piece is None:
            continue
        threshold = max(colluding_near + 1, colluding_near + piece - 1)
        if _short_of_neighbours_log2(members, dropping, cycles, threshold) <= -policy.liveness_bits:
            return plan(2 * cycles, threshold)
    # Everybody is everybody's neighbour: no piece can be cut out, and at most `colluding` neighbours collude.
    return plan_on(plan(members - 1, colluding + 1), (members - 1,) * members)


def plan_on(plan: Plan, neighbours: Sequence[int]) -> Plan:
    """Return the plan with its threshold raised so that two sums have an honest helper in common (3).

    `neighbours` is how many each member has in the graph that was drawn.
    """
    most = sorted(neighbours, reverse=True)
    once, twice = sum(most[: plan.honest_min]), sum(most[: plan.colluding_max])
    return replace(plan, threshold=max(plan.threshold, (once + twice) // (2 * plan.honest_min) + 1))


def _separations(n: int, colluding: int, dropping: int) -> tuple[_Floats, _Floats]:
    """Return, for each piece size from 1 on, log2 of the choices and log2 P(s)."""
    removed = colluding + dropping
    live = n - removed
    factorial = _log2_factorials(2 * n)
    sizes = np.arange(1, live // 2 + 1)
    choices = _binomial(factorial, live, sizes) + _binomial(factorial, n - colluding, np.array([dropping]))
    apart = np.empty(len(sizes))
    for place, size in enumerate(sizes.tolist()):
        rest = live - size
        gaps = np.arange(1, min(size, removed - 1) + 1)
        if not len(gaps):
            apart[place] = -np.inf
            continue
        terms = (
            _binomial(factorial, removed, gaps)
            + _binomial(factorial, size - 1, gaps - 1)
            + factorial[rest + removed - gaps - 1]
            - factorial[removed - gaps - 1]
            - factorial[rest]
        )
        ways = factorial[n - 1] - factorial[removed - 1] - factorial[size] - factorial[rest]
        apart[place] = _log2_sum(terms) - ways
    return choices, apart


def _unsplit_size(terms: _Floats, bits: int) -> int | None:
    """Return s₀: from this size on, all terms together are at most 2^−bits. None when no size is left."""
    tails = np.logaddexp2.accumulate(terms[::-1])[::-1]
    fine = np.flatnonzero(tails <= -bits)
    return int(fine[0]) + 1 if len(fine) else None


def _colluding_neighbours(n: int, colluding: int, cycles: int, bits: int) -> int:
    """Return c_max: n·Pr[more colluding neighbours than this] ≤ 2^−bits."""
    others = n - 1
    pairs = others * (others - 1) / 2
    honest = others - colluding
    pair = np.array([honest * (honest - 1) / 2, honest * colluding, colluding * (colluding - 1) / 2]) / pairs
    law = np.ones(1)
    for _ in range(cycles):
        law = np.convolve(law, pair)
    tails = np.cumsum(law[::-1])[::-1]  # of small positive terms: no cancellation
    fine = np.flatnonzero(tails * n <= 2.0**-bits)
    return int(fine[0]) - 1 if len(fine) else 2 * cycles


def _short_of_neighbours_log2(n: int, dropping: int, cycles: int, threshold: int) -> float:
    """Return log2 of n·Pr[fewer than `threshold` different neighbours are left], the draws taken as independent."""
    left = n - 1 - dropping
    chances = (left - np.arange(2 * cycles + 1)).clip(0) / (n - 1)
    law = np.zeros(2 * cycles + 1)
    law[0] = 1.0
    for _ in range(2 * cycles):
        moved = law * chances
        law = law - moved
        law[1:] += moved[:-1]
    short = float(law[:threshold].sum())
    return log2(n * short) if short > 0 else -1e9


def _log2_factorials(count: int) -> _Floats:
    values: _Floats = np.concatenate((np.zeros(1), np.cumsum(np.log2(np.arange(1, count + 1)))))
    return values


def _binomial(factorial: _Floats, n: int, k: npt.NDArray[Any]) -> _Floats:
    result: _Floats = factorial[n] - factorial[k] - factorial[n - k]
    return result


def _log2_sum(terms: _Floats) -> float:
    return float(np.logaddexp2.reduce(terms))
