"""Clusters under drawn faults: safety after every step, liveness once the faults stop (I1, I2, I5, I9, I11).

A failure names its seed; `BCAMI_PBFT_SEEDS=1234:1235 pytest tests/properties/test_pbft_seeds.py` replays it exactly.
"""

import os
from collections import Counter

import pytest

from bcami.model.events import EquivocationSeen, Refused, ViewEntered
from tests.paper.chaos import Chaos

FIRST, LAST = (int(item) for item in os.environ.get("BCAMI_PBFT_SEEDS", "0:240").split(":"))
CHUNK = 40


def play(seed: int) -> Chaos:
    chaos = Chaos(seed)
    try:
        chaos.run()
    except AssertionError as error:
        pytest.fail(f"seed {seed}, byzantine {sorted(chaos.cluster.byzantine)}: {error}")
    return chaos


@pytest.mark.parametrize("first", range(FIRST, LAST, CHUNK))
def test_safety_always_and_liveness_after_the_faults(first: int) -> None:
    seen: Counter[str] = Counter()
    seeds = range(first, min(first + CHUNK, LAST))
    for seed in seeds:
        cluster = play(seed).cluster
        seen.update({type(item).__name__ for _, item in cluster.observed})
        seen.update({"restart": any(node.life > 1 for node in cluster.nodes), "byzantine": bool(cluster.byzantine)})
        honest = set(range(cluster.n)) - cluster.byzantine
        for conviction in cluster.convictions():
            assert conviction.replica not in honest, f"I12: seed {seed} convicts the honest {conviction.replica}"
    if len(seeds) == CHUNK:  # a draw that never meets a branch proves nothing about it
        expected = {ViewEntered.__name__, EquivocationSeen.__name__, Refused.__name__, "restart", "byzantine"}
        assert not {name for name in expected if not seen[name]}


def test_a_seed_replays_exactly() -> None:
    first, second = play(17).cluster, play(17).cluster
    assert (first.steps, first.now_ms, first.chain) == (second.steps, second.now_ms, second.chain)
    assert first.sent == second.sent
