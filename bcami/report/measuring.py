"""CPU time of a call: median, quartiles, n.

CPU time of this thread, not wall time: other processes of the machine then disturb only through caches and clock
speed. A sample is as many calls as take about a millisecond, so that the clock's own cost does not count; the garbage
collector is off meanwhile. The median is given with its quartiles: no mean, which one interruption can move.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from bcami.report.document import Measured

_SAMPLE_NS: Final = 1_000_000
_CALLS_MAX: Final = 20_000


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    quick: bool
    seed: int

    @property
    def samples(self) -> int:
        """Samples of a primitive."""
        return 31 if self.quick else 201

    @property
    def few(self) -> int:
        """Samples of something that takes milliseconds."""
        return 7 if self.quick else 31

    @property
    def method(self) -> str:
        return f"CPU time, {self.samples} samples of about 1 ms"


def quartiles(samples: Iterable[float]) -> Measured:
    """Return median and quartiles of samples. Raises ValueError when there are none."""
    values = sorted(samples)
    if not values:
        raise ValueError("nothing was measured")
    if len(values) == 1:
        return Measured(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Measured(median, low, high, len(values))


def exact(value: float) -> Measured:
    """Return a count that is the same each time, as a measured cell."""
    return Measured(value, value, value, 1)


def cpu_us(call: Callable[[], object], samples: int) -> Measured:
    """Return the CPU time of one call, microseconds. The call is made anew each time and must stand repetition."""
    return _collect(lambda: call, samples)


def cpu_us_prepared(prepare: Callable[[], Callable[[], object]], samples: int) -> Measured:
    """Return the CPU time of what `prepare` returns, microseconds; it is called once, after fresh preparation."""
    taken = []
    with _undisturbed():
        for _ in range(samples):
            call = prepare()
            start = time.thread_time_ns()
            call()
            taken.append((time.thread_time_ns() - start) / 1000)
    return quartiles(taken)


def _collect(prepare: Callable[[], Callable[[], object]], samples: int) -> Measured:
    call = prepare()
    calls = _calls_per_sample(call)
    taken = []
    with _undisturbed():
        for _ in range(samples):
            start = time.thread_time_ns()
            for _ in range(calls):
                call()
            taken.append((time.thread_time_ns() - start) / calls / 1000)
    return quartiles(taken)


def _calls_per_sample(call: Callable[[], object]) -> int:
    calls = 1
    while calls < _CALLS_MAX:
        start = time.thread_time_ns()
        for _ in range(calls):
            call()
        taken = time.thread_time_ns() - start
        if taken >= _SAMPLE_NS:
            return max(1, round(calls * _SAMPLE_NS / taken))
        calls = min(_CALLS_MAX, calls * 4)
    return _CALLS_MAX


class _undisturbed:  # noqa: N801  used as a statement
    """Keeps the garbage collector off."""

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_on:
            gc.enable()
