"""The other half of the seeds, in a file of its own so that two workers share them (`--dist loadfile`)."""

from tests.simulation.swarm.test_seeds import SEEDS, run_all


def test_every_invariant_holds_for_each_odd_seed() -> None:
    run_all(range(1, SEEDS, 2))
