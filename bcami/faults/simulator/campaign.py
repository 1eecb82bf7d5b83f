"""Many schedules of one mode, one after the other or in processes, and what came of them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from typing import Final, TypeVar

CHUNK: Final = 64
"""Items that a process takes at once."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Broken:
    """A schedule that broke an invariant."""

    invariant: str
    what: str
    schedule: str
    """A seed, or the schedule itself."""


@dataclass(slots=True)
class Found:
    """What a number of schedules came to."""

    schedules: int = 0
    played: int = 0
    """Rounds that replicas played."""
    steps: int = 0
    views: int = 0
    """Highest views that were reached, added up."""
    convicted: int = 0
    """Schedules in which an honest node got evidence against a faulty one."""
    broken: list[Broken] = field(default_factory=list)

    def add(self, other: "Found") -> None:
        self.schedules += other.schedules
        self.played += other.played
        self.steps += other.steps
        self.views += other.views
        self.convicted += other.convicted
        self.broken += other.broken


@contextmanager
def worker_pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes. When the block ends early, by an interrupt or a signal too, they end at once."""
    others = set(active_children())
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(active_children()) - others:
            child.terminate()
        raise
    else:
        pool.shutdown()


def _run_chunk(play: Callable[[Item], Found], items: Sequence[Item]) -> Found:
    total = Found()
    for item in items:
        total.add(play(item))
    return total


def run_campaign(play: Callable[[Item], Found], items: Sequence[Item], jobs: int) -> Iterator[Found]:
    """Play every item; yield what was found chunk by chunk, with several jobs in no particular order."""
    chunks = [items[first : first + CHUNK] for first in range(0, len(items), CHUNK)]
    if jobs <= 1:
        for chunk in chunks:
            yield _run_chunk(play, chunk)
        return
    with worker_pool(jobs) as pool:
        for done in as_completed([pool.submit(_run_chunk, play, chunk) for chunk in chunks]):
            yield done.result()
