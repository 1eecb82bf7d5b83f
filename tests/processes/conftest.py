"""Networks for the live tests. A replay takes seconds, so it is done once and its home is copied."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.cluster import Cluster


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Cluster]:
    """A network that was made and never started."""
    cluster = Cluster(tmp_path / "home")
    cluster.init()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def finished_replay(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A stopped network that holds the whole sample. Do not change it: copy it."""
    cluster = Cluster(tmp_path_factory.mktemp("replayed") / "home")
    cluster.init()
    try:
        cluster.run("up", "--detach")
        told = cluster.json("replay", "sample", "--readings-per-report", "8")
        assert told["transactions_rejected"] == {}
        cluster.run("reconcile", "sample")
    finally:
        cluster.stop()
    return cluster


@pytest.fixture
def replayed(finished_replay: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """A copy of it, stopped."""
    cluster = finished_replay.copy(tmp_path / "home")
    yield cluster
    cluster.stop()
