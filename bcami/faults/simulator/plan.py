"""What a seed draws: swarm testing. Each seed switches most faults off, so that the rest is met in purity."""

from dataclasses import dataclass
from random import Random
from typing import Final

from bcami.faults.simulator.disk import DiskPlan
from bcami.faults.simulator.events import stream
from bcami.faults.simulator.load import LoadPlan
from bcami.faults.simulator.network import NetworkPlan
from bcami.model.genesis import Parameters
from bcami.model.quorum import Quorum

REAL_SIGNATURES_EVERY: Final = 16
"""One seed of so many signs with ECDSA."""

FAULTS: Final = (
    "isolate",
    "split",
    "bridge",
    "one_way",
    "clog",
    "heal",
    "crash",
    "crash_all",
    "pause",
    "clock",
    "full_disk",
    "lose_ledger",
    "lose_promises",
    "old_backup",
    "misbehave",
)
"""What the saboteur can do; see `saboteur`."""
ALWAYS: Final = frozenset(("heal",))


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, before it begins."""

    seed: int
    nodes: int
    real_signatures: bool
    parameters: Parameters
    safety_ms: int
    fault_every_ms: int
    faults: tuple[str, ...]
    network: NetworkPlan
    disk: DiskPlan
    load: LoadPlan
    byzantine: tuple[int, ...]
    core_size: int
    """Nodes that are healed for the liveness phase; the other honest ones stay down."""

    @property
    def quorum(self) -> Quorum:
        return Quorum(self.nodes)


def draw_plan(seed: int, nodes: int | None = None) -> Plan:
    """Return the plan of a seed; a given size leaves every other draw as it is."""
    draw = stream(seed, "plan")
    drawn = draw.choices((4, 7, 10), (70, 22, 8))[0]
    size = nodes if nodes is not None else drawn
    quorum = Quorum(size)
    view_timer_ms = draw.choice((150, 300, 600))
    parameters = Parameters(
        window=draw.choice((2, 4, 16)),
        view_timer_ms=view_timer_ms,
        view_timer_cap_ms=view_timer_ms * draw.choice((4, 8)),
        fairness_ms=draw.choice((1_000, 2_500)),
    )
    faults = tuple(name for name in FAULTS if draw.random() < 0.3 or name in ALWAYS)
    byzantine = sorted(draw.sample(range(size), draw.randint(0, quorum.f))) if draw.random() < 0.7 else []
    return Plan(
        seed=seed,
        nodes=size,
        real_signatures=seed % REAL_SIGNATURES_EVERY == REAL_SIGNATURES_EVERY - 1,
        parameters=parameters,
        safety_ms=draw.randint(3_000, 9_000),
        fault_every_ms=draw.choice((150, 400, 1_000)),
        faults=faults,
        network=_network(draw),
        disk=_disk(draw),
        load=_load(draw),
        byzantine=tuple(byzantine),
        core_size=draw.randint(quorum.strong, size),
    )


def _rate(draw: Random, likely: float, highest: float) -> float:
    return draw.uniform(0.01, 1) * highest if draw.random() < likely else 0.0


def _network(draw: Random) -> NetworkPlan:
    return NetworkPlan(
        delay_ms=draw.choice(((1, 3), (1, 20), (5, 80), (20, 40))),
        loss=_rate(draw, 0.4, 0.3),
        duplication=_rate(draw, 0.3, 0.3),
        replay=_rate(draw, 0.3, 0.3),
        straggle=_rate(draw, 0.3, 0.2),
        straggle_ms=draw.choice((100, 1_000, 4_000)),
    )


def _disk(draw: Random) -> DiskPlan:
    return DiskPlan(
        write_ms=draw.choice(((0, 2), (1, 8), (5, 60))),
        crash_at_write=_rate(draw, 0.3, 0.02),
        fail=_rate(draw, 0.15, 0.01),
    )


def _load(draw: Random) -> LoadPlan:
    return LoadPlan(
        transactions=draw.choice((8, 20, 40)),
        every_ms=draw.choice(((1, 20), (20, 300), (100, 500))),
        to_several=_rate(draw, 0.5, 0.4),
        repeated=_rate(draw, 0.5, 0.3),
        wrong=_rate(draw, 0.5, 0.3),
        enrolments=draw.choice((0.0, 0.2)),
        sessions=_rate(draw, 0.3, 0.1),
    )
