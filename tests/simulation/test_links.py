"""Links that come and go (fault F5), and everybody at one key (F48)."""

from itertools import permutations
from random import Random

import pytest

from tests.simulation.scene import WAIT_MS, Scene


@pytest.mark.parametrize("seed", range(2))
def test_links_that_stop_one_by_one_and_start_in_another_order(seed: int) -> None:
    scene, draw = Scene(seed=seed), Random(seed)
    cluster = scene.cluster
    stopped: set[tuple[int, int]] = set()
    cluster.drop = lambda sender, to, _: (sender, to) in stopped
    links = list(permutations(range(4), 2))
    pending: list[bytes] = []
    for link in draw.sample(links, len(links)):
        stopped.add(link)
        pending += cluster.submit(draw.randrange(4), scene.reports(1))
        cluster.run(draw.randint(20, 200))
    assert not cluster.run(3_000, lambda: all(tx_id in cluster.results for tx_id in pending)), "nobody hears anybody"
    for link in draw.sample(links, len(links)):
        stopped.remove(link)
        cluster.run(draw.randint(20, 200))
    assert cluster.run(WAIT_MS, lambda: all(tx_id in cluster.results for tx_id in pending))
    assert {cluster.outcome(tx_id) for tx_id in pending} == {"valid"}
    scene.settle()


def test_a_burst_on_one_key_executes_whole() -> None:
    """All of one meter's transactions pass one guard: none conflicts with another, whoever takes it in."""
    scene = Scene()
    cluster, meter = scene.cluster, scene.meters[0]
    before = cluster.heights()[0]
    reports = [meter.report() for _ in range(60)]
    pending = [cluster.submit(i, reports[i::4]) for i in range(4)]
    ids = [tx_id for part in pending for tx_id in part]
    assert cluster.run(WAIT_MS, lambda: all(tx_id in cluster.results for tx_id in ids))
    assert {cluster.outcome(tx_id) for tx_id in ids} == {"valid"}
    scene.settle()
    assert cluster.heights()[0] - before <= 8, "not one block for each"
