"""Seeds, one after the other or in processes of their own."""

import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from bcami.faults.simulator.agreement import Violation
from bcami.faults.simulator.campaign import worker_pool
from bcami.faults.simulator.cluster import SimulatedCluster
from bcami.faults.simulator.plan import draw_plan
from bcami.faults.simulator.signing import in_force
from bcami.faults.simulator.trace import Trace

CHUNK: Final = 8
"""Seeds that a process takes at once."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A seed that found something."""

    seed: int
    invariant: str
    what: str


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One seed, done."""

    seed: int
    nodes: int
    steps: int
    trace_hash: str
    blocks: int
    transactions: int
    views: int
    virtual_ms: int
    seconds: float
    failure: Failure | None


@dataclass(slots=True)
class Summary:
    """Many seeds, added up."""

    seeds: int = 0
    steps: int = 0
    blocks: int = 0
    transactions: int = 0
    virtual_s: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    _hashes: dict[int, str] = field(default_factory=dict)

    def add(self, result: SeedResult) -> None:
        self.seeds += 1
        self.steps += result.steps
        self.blocks += result.blocks
        self.transactions += result.transactions
        self.virtual_s += result.virtual_ms / 1000
        self._hashes[result.seed] = result.trace_hash
        if result.failure is not None:
            self.failures.append(result.failure)
            self.failures.sort(key=lambda item: item.seed)

    @property
    def trace_hash(self) -> str:
        """Return one hash over the traces of all seeds, whatever the order in which they came."""
        return sha256("".join(self._hashes[seed] for seed in sorted(self._hashes)).encode()).hexdigest()


def run_seed(seed: int, nodes: int | None = None, write: Callable[[str], None] | None = None) -> SeedResult:
    """Run one seed to its end; `write` gets the trace, line by line."""
    began = time.process_time()
    plan = draw_plan(seed, nodes)
    trace = Trace(write)
    failure: Failure | None = None
    with in_force(real=plan.real_signatures):
        cluster = SimulatedCluster(plan, trace)
        try:
            cluster.run()
        except Violation as violation:
            failure = Failure(seed, violation.invariant, violation.what)
        except Exception:
            failure = Failure(seed, "simulator", traceback.format_exc())
    if failure is not None:
        trace.note(cluster.events.now_ms, f"VIOLATION {failure.invariant}: {failure.what}")
    return SeedResult(
        seed=seed,
        nodes=plan.nodes,
        steps=trace.steps,
        trace_hash=trace.digest,
        blocks=max(machine.disk.ledger.height for machine in cluster.machines),
        transactions=sum(request.result is not None for request in cluster.clients.requests.values()),
        views=max((machine.core.view for machine in cluster.machines if machine.core is not None), default=0),
        virtual_ms=cluster.events.now_ms,
        seconds=time.process_time() - began,
        failure=failure,
    )


def _run_chunk(seeds: range, nodes: int | None) -> list[SeedResult]:
    return [run_seed(seed, nodes) for seed in seeds]


def run_seeds(seeds: range, nodes: int | None = None, jobs: int = 1) -> Iterator[SeedResult]:
    """Yield the results as they come; with several jobs not in the order of seeds."""
    if jobs <= 1:
        for seed in seeds:
            yield run_seed(seed, nodes)
        return
    chunks = [seeds[first : first + CHUNK] for first in range(0, len(seeds), CHUNK)]
    with worker_pool(jobs) as pool:
        for done in as_completed([pool.submit(_run_chunk, chunk, nodes) for chunk in chunks]):
            yield from done.result()
