"""The swarm prunes, and late nodes take snapshots: the path is really taken, under faults and with liars among the peers."""

import pytest

from bcami.faults.simulator.cluster import SimulatedCluster
from bcami.faults.simulator.plan import draw_plan
from bcami.faults.simulator.pruning import PRUNES, PruningPlan
from bcami.faults.simulator.signing import in_force
from bcami.faults.simulator.trace import Trace

SEEDS = (3, 20, 21, 37, 45, 51)
"""Some in which snapshots were taken when this was written; most still have to take one."""


def snapshots(seed: int) -> int:
    plan = draw_plan(seed)
    with in_force(real=plan.real_signatures):
        cluster = SimulatedCluster(plan, Trace(None))
        cluster.run()
    return cluster.snapshots


def test_nodes_of_the_swarm_take_snapshots() -> None:
    taken = [snapshots(seed) for seed in SEEDS]
    assert sum(count > 0 for count in taken) >= len(SEEDS) // 2, taken


def test_a_share_of_the_seeds_prunes() -> None:
    pruning = sum(PruningPlan.draw(seed).every_ms > 0 for seed in range(400))
    assert pruning / 400 == pytest.approx(PRUNES, abs=0.1)
