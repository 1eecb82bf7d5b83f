"""What a round costs against the size of the group, measured on rounds in memory with real keys and real messages.

CPU time, so that a busy machine does not matter; no HTTP and no chain in it. For the ring, the period and the forming
of the ring are told apart. The masked mode's first round agrees on keys with every neighbour; later rounds of the same
roster do not.
"""

from collections.abc import Callable, Sequence
from time import process_time
from typing import Final

import msgspec

from bcami.aggregation.rehearsal import Faults, Rehearsal, RoundOutcome
from bcami.aggregation.ring_records import SUPPLIER
from bcami.aggregation.ring_rehearsal import RingRehearsal
from bcami.errors import ExpectationError
from bcami.model.reasons import Reason
from bcami.units import HALF_HOUR_S

GROUP_SIZES: Final = (10, 30, 100, 300, 1000, 3000, 5000)
_DAYS_APART_S: Final = 3 * 86_400
"""Between the rounds measured, so that their groups are not compared."""


class RoundCost(msgspec.Struct, frozen=True):
    """One round, averages over all members."""

    messages_sent: float
    bytes_sent: float
    bytes_received: float
    meter_ms: float
    """CPU time of one meter."""
    head_end_ms: float
    """CPU time of the head-end or supplier, for the whole round."""
    chain_bytes: int
    """Arguments that the round puts on the chain."""
    total_s: float
    """CPU time of all members and the head-end together."""

    def on_cores_s(self, cores: int) -> float:
        """Return the time on so many cores: the head-end's steps one after another, the meters' side by side."""
        head_end_s = self.head_end_ms / 1000
        return head_end_s + (self.total_s - head_end_s) / cores


class GroupCost(msgspec.Struct, frozen=True):
    """A size of group in both modes."""

    members: int
    degree: int
    threshold: int
    colluding_max: int
    masked_first: RoundCost
    """With the key agreements of a new roster."""
    masked: RoundCost
    """Nobody drops out."""
    masked_dropouts: RoundCost | None
    """With 5 % gone; None where the group is too small for it."""
    ring_setup: RoundCost
    """Forming the ring, once for each change of its members."""
    ring: RoundCost

    def modes(self) -> list[tuple[str, RoundCost]]:
        """Return what was measured, with names for a table."""
        modes = [("masked, first round of a roster", self.masked_first), ("masked", self.masked)]
        if self.masked_dropouts is not None:
            modes.append(("masked, 5 % drop out", self.masked_dropouts))
        return [*modes, ("ring", self.ring), ("ring, forming it", self.ring_setup)]


def group_cost(members: int, dropout_percent: int = 5) -> GroupCost:
    """Measure one size. Raises ExpectationError when a sum is wrong."""
    masked = Rehearsal(members, b"costs", clock=process_time)
    first = _masked_round(masked, 1, Faults())
    plain = _masked_round(masked, 2, Faults())
    gone = members * dropout_percent // 100
    dropped = None
    if gone and members - gone >= masked.group.plan.contributors_min:
        step = members // gone
        dropped = _masked_round(masked, 3, Faults(silent=frozenset(range(0, gone * step, step))))
    setup, ring = _ring(members)
    plan = masked.group.plan
    return GroupCost(members, plan.degree, plan.threshold, plan.colluding_max, first, plain, dropped, setup, ring)


def group_costs(
    sizes: Sequence[int] = GROUP_SIZES, on_progress: Callable[[int], None] = lambda _: None
) -> list[GroupCost]:
    """Measure several sizes; `on_progress` hears of each before it begins."""
    costs = []
    for members in sizes:
        on_progress(members)
        costs.append(group_cost(members))
    return costs


def _reading(member: int, first_s: int) -> int:
    return 1_000 * member + first_s % 86_400


def _masked_round(rehearsal: Rehearsal, number: int, faults: Faults) -> RoundCost:
    first_s = number * _DAYS_APART_S
    rehearsal.seconds = dict.fromkeys(rehearsal.seconds, 0.0)
    outcome = rehearsal.run(rehearsal.start(number, first_s), _reading, faults)
    if outcome.sums != (sum(_reading(member, first_s) for member in outcome.contributors),):
        raise ExpectationError(f"a masked round of {len(rehearsal.members)} ended with {outcome.reason}")
    return _masked_cost(outcome, rehearsal)


def _masked_cost(outcome: RoundOutcome, rehearsal: Rehearsal) -> RoundCost:
    present = [traffic for traffic in outcome.traffic if traffic.sent]
    count = len(present)
    meters, head_end = rehearsal.seconds["meters"], rehearsal.seconds["head_end"]
    return RoundCost(
        sum(item.sent for item in present) / count,
        sum(item.sent_bytes for item in present) / count,
        sum(item.received_bytes for item in present) / count,
        meters * 1000 / count,
        head_end * 1000,
        outcome.recorded_bytes,
        meters + head_end,
    )


def _ring(members: int) -> tuple[RoundCost, RoundCost]:
    ring = RingRehearsal(members, b"costs", _reading, clock=process_time, is_staggered=True)
    if not ring.form():
        raise ExpectationError(f"no ring of {members} came about")
    setup = _ring_cost(ring, members)
    first_s = HALF_HOUR_S
    result = ring.sum(first_s)
    if result.reason is not Reason.VALID or result.total != sum(_reading(member, first_s) for member in range(members)):
        raise ExpectationError(f"a ring of {members} ended with {result.reason}")
    return setup, _ring_cost(ring, members)


def _ring_cost(ring: RingRehearsal, members: int) -> RoundCost:
    """Return what happened since the last call."""
    traffic = [item for address, item in ring.traffic.items() if address != SUPPLIER]
    meters, supplier = ring.seconds["meters"], ring.seconds["supplier"]
    cost = RoundCost(
        sum(item.sent for item in traffic) / members,
        sum(item.sent_bytes for item in traffic) / members,
        sum(item.received_bytes for item in traffic) / members,
        meters * 1000 / members,
        supplier * 1000,
        0,
        meters + supplier,
    )
    ring.reset_counts()
    return cost
