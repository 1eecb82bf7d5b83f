"""Whether the primary is slower than it has to be: the monitor that replaces one which throttles (fault F21).

The view timer sees a primary that stands still, the fairness timers one that leaves a collector out. A primary that
proposes just before they run out, or a little at a time, needs a third look. It rests on nothing that another replica
says, only on what happens here:

wait      from when a certificate is the next of its lane, and at the primary, until its number is ordered
round     from a pre-prepare until its height is decided: what the network and the disks of a quorum take now
pace      of a primary in a view: the shortest wait that it exceeded in no more than a tenth of the time

*Demand.* A wait may be as long as 4 rounds, within an eighth and a half of the view timer; or, however long that is,
one and a half times the best pace of the last f + 1 other primaries, one of which was correct. A correct primary needs
a round trip to it, the rest of the round that is running, and a round.

*Budget.* Time beyond the demand fills a bucket, time within it empties the bucket at a tenth of that speed. When the
bucket is full, at one and a half view timers, this replica suspects the primary, and says so in its status. It leaves
the view when weak replicas, itself among them, suspect the same primary. So a correct replica that does not suspect has
seen, in any t ms of one view, a lane wait too long for at most 1.5 view timers + t / 10 ms.

*No churn.* Faulty replicas alone move nobody, and neither does one correct replica with a bad line. When everything
gets slower for good, each of f + 1 to n primaries is left once; then what the best of them kept up is the measure.
When nobody shares a suspicion for long, the replica takes it that the fault is its own, and demands no more than it
gets. Time does not count while nothing waits, while the primary is excused (window full, this replica late), nor while
this process stands still.

Sources, by name only: Aardvark (NSDI 2009): demand a share of the best throughput of the last n primaries; deviates
from it: demands do not rise by themselves until a correct primary fails them. Prime (TDSC 2011): judge the turnaround
of the leader against measured round trips, and take the f + 1 best to be one of a correct server. RBFT (ICDCS 2013):
replicas vote before they change the instance.
"""

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

MONITOR: Final = "monitor"
"""The timer that lets the monitor look again while something waits."""
ROUNDS_ALLOWED: Final = 4
BEST_ALLOWED_PERCENT: Final = 150
EMPTYING_DIVISOR: Final = 10
"""The bucket empties at a tenth of the speed at which it fills: a tenth of the time may be lost for good."""
BUDGET_PERCENT: Final = 150
"""Of the view timer: what may be lost at once."""
UNSHARED_BUDGETS: Final = 4
"""A suspicion that nobody shares for so many budgets is given up."""
PACE_VIEW_TIMERS: Final = 6
"""The pace of a primary is that of about so much time in which something waited."""
PACE_MIN_VIEW_TIMERS: Final = 1
"""A view in which something waited for less time says nothing."""
STEPS_TO_DOUBLE: Final = 3
LONGEST_DOUBLINGS: Final = 8
"""Waits are told apart in steps of 2^(1/3), from a sixteenth of the view timer to sixteen of them."""
ROUNDS_KEPT: Final = 8


@dataclass(frozen=True, slots=True)
class Owed:
    """The next certificate of a lane, and whether it is known to be at the primary."""

    number: int
    is_sent: bool


@dataclass(slots=True)
class _Wait:
    number: int
    sent_at: int | None = None


class Pace:
    """How much time was spent at which length of the longest wait; older time counts less and less."""

    def __init__(self, view_timer_ms: int) -> None:
        lowest = max(1.0, view_timer_ms / 16)
        steps = STEPS_TO_DOUBLE * LONGEST_DOUBLINGS + 1
        self._limits = [round(lowest * 2 ** (step / STEPS_TO_DOUBLE)) for step in range(steps)]
        self._spent = [0] * (steps + 1)
        self._total = 0
        self._total_min = PACE_MIN_VIEW_TIMERS * view_timer_ms
        self._total_max = PACE_VIEW_TIMERS * view_timer_ms

    def spend(self, passed_ms: int, wait_ms: int) -> None:
        """Take note that the longest wait was this long for so much time."""
        self._spent[bisect_left(self._limits, wait_ms)] += passed_ms
        self._total += passed_ms
        if self._total > self._total_max:
            self._spent = [spent // 2 for spent in self._spent]
            self._total = sum(self._spent)

    def kept_ms(self) -> int | None:
        """Return the shortest wait that was exceeded in at most a tenth of the time; None when too little is known."""
        if self._total < self._total_min:
            return None
        beyond = 0
        for step in range(len(self._limits), 0, -1):
            beyond += self._spent[step]
            if EMPTYING_DIVISOR * beyond > self._total:
                return self._limits[min(step, len(self._limits) - 1)]
        return self._limits[0]


@dataclass(slots=True)
class _Reign:
    """What was seen of one primary in one view."""

    primary: int
    pace: Pace
    waiting: dict[int, _Wait] = field(default_factory=dict)
    proposed: dict[int, int] = field(default_factory=dict)
    """When the pre-prepare of an undecided height came."""
    overdue: int = 0
    """Contents of the bucket, in tenths of a millisecond."""
    suspected_for: int = 0
    conceded: int = 0
    """Pace that this replica puts up with, because nobody else complained."""


class Monitor:
    """Judges the primary of the view that this replica is active in. Times are ms of its own clock, which stands still
    while the primary is excused and takes no more than two ticks for one step.
    """

    def __init__(self, view_timer_ms: int, weak: int) -> None:
        self.tick_ms = max(1, view_timer_ms // 8)
        self._floor_ms = max(1, view_timer_ms // 8)
        self._ceiling_ms = max(1, view_timer_ms // 2)
        self._budget = EMPTYING_DIVISOR * max(1, BUDGET_PERCENT * view_timer_ms // 100)
        self._weak = weak
        self._history: OrderedDict[int, int] = OrderedDict()
        """Pace of each primary in its newest reign; the newest reign last."""
        self._rounds: deque[int] = deque(maxlen=ROUNDS_KEPT)
        self._view_timer_ms = view_timer_ms
        self._reign = _Reign(0, Pace(view_timer_ms))
        self._clock = 0
        self._seen_ms: int | None = None
        self._excused = False

    # What it finds.

    @property
    def is_suspicious(self) -> bool:
        """Tell whether the primary has used up its budget."""
        return self._reign.overdue >= self._budget

    @property
    def is_watching(self) -> bool:
        """Tell whether something waits, so that it has to look again."""
        return bool(self._reign.waiting)

    @property
    def longest_wait_ms(self) -> int:
        """How long the primary has had the certificate that waits longest."""
        sent = [item.sent_at for item in self._reign.waiting.values() if item.sent_at is not None]
        return self._clock - min(sent) if sent else 0

    def demand_ms(self) -> int:
        """Return the longest wait that is in order now."""
        rounds_ms = ROUNDS_ALLOWED * _typical(self._rounds)
        allowed_ms = max(self._floor_ms, min(rounds_ms, self._ceiling_ms))
        return max(allowed_ms, BEST_ALLOWED_PERCENT * max(self._best(), self._reign.conceded) // 100)

    def _best(self) -> int:
        """Return the best pace of the last f + 1 other primaries; 0 as long as fewer are known.

        Fewer could all have been faulty, and would set the measure for the next.
        """
        others = [pace for primary, pace in self._history.items() if primary != self._reign.primary]
        return min(others[-self._weak :]) if len(others) >= self._weak else 0

    # What it sees.

    def enter(self, primary: int) -> None:
        """Begin with the primary of a new view."""
        self._reign = _Reign(primary, Pace(self._view_timer_ms))

    def leave(self) -> None:
        """The view is over: its primary's pace is remembered for those that follow."""
        primary, pace_ms = self._reign.primary, self._reign.pace.kept_ms()
        if pace_ms is not None:
            self._history[primary] = pace_ms
            self._history.move_to_end(primary)
            while len(self._history) > self._weak + 1:
                self._history.popitem(last=False)
        self.enter(primary)

    def observe(
        self, now_ms: int, owed: Mapping[int, Owed], proposed: Collection[int], decided: int, excused: bool
    ) -> None:
        """Take note of where things stand after a step.

        `owed` is what waits, by collector; `proposed` the heights with a pre-prepare of the active view.
        """
        self._pass_time(now_ms)
        self._follow_waits(owed)
        self._follow_rounds(proposed, decided)
        self._excused = excused

    def _pass_time(self, now_ms: int) -> None:
        """Count the time since the step before by what that one left behind."""
        passed = 0 if self._seen_ms is None else min(max(0, now_ms - self._seen_ms), 2 * self.tick_ms)
        self._seen_ms = now_ms
        if self._excused:
            return
        self._clock += passed
        reign, wait_ms = self._reign, self.longest_wait_ms
        if reign.waiting:
            reign.pace.spend(passed, wait_ms)
        beyond = min(passed, max(0, wait_ms - self.demand_ms())) if wait_ms > self._floor_ms else 0
        overdue = reign.overdue + EMPTYING_DIVISOR * beyond - (passed - beyond)
        reign.overdue = max(0, min(overdue, self._budget + self._budget // 4))
        reign.suspected_for = reign.suspected_for + passed if self.is_suspicious else 0
        if EMPTYING_DIVISOR * reign.suspected_for > UNSHARED_BUDGETS * self._budget:
            reign.conceded = reign.pace.kept_ms() or 0
            reign.overdue = reign.suspected_for = 0

    def _follow_waits(self, owed: Mapping[int, Owed]) -> None:
        waiting = self._reign.waiting
        for collector, known in list(waiting.items()):
            if collector not in owed or owed[collector].number != known.number:
                del waiting[collector]
        for collector, item in owed.items():
            wait = waiting.setdefault(collector, _Wait(item.number))
            if item.is_sent and wait.sent_at is None:
                wait.sent_at = self._clock

    def _follow_rounds(self, proposed: Collection[int], decided: int) -> None:
        known = self._reign.proposed
        for height in proposed:
            if height > decided:
                known.setdefault(height, self._clock)
        for height in [item for item in known if item <= decided]:
            self._rounds.append(self._clock - known.pop(height))


def _typical(times_ms: Iterable[int]) -> int:
    """Return the median, the lower one of two; of nothing, 0."""
    ordered = sorted(times_ms)
    return ordered[(len(ordered) - 1) // 2] if ordered else 0
