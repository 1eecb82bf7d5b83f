"""A suite that can't fail proves nothing: each safeguard is removed in turn, and some seed must show it."""

from collections.abc import Iterator

import pytest

from bcami.crypto import verification
from bcami.faults.simulator import byzzfuzz, prelude, twins
from bcami.faults.simulator.runner import Failure, run_seed
from tests.simulation.swarm.ablations import ABLATIONS, Ablation, Mode

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _nothing_learnt_without_a_safeguard() -> Iterator[None]:
    """What was verified, or made, without a safeguard must not count for the tests that follow."""
    yield
    verification._VERIFIED._known.clear()
    prelude.prelude.cache_clear()


def _is_violation(failure: Failure) -> bool:
    """Tell a broken invariant from a program that broke because something was taken out of it."""
    return failure.invariant != "simulator" and not (failure.invariant == "alive" and "ended:" in failure.what)


def _finds(mode: Mode, seed: int) -> bool:
    if mode == "swarm":
        failure = run_seed(seed).failure
        return failure is not None and _is_violation(failure)
    play = twins.play_seed if mode == "twins" else byzzfuzz.play_seed
    return bool(play(seed).broken)


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda item: item.name)
def test_without_a_safeguard_some_seed_fails(ablation: Ablation, monkeypatch: Patch) -> None:
    ablation.remove(monkeypatch)
    for seed in range(ablation.first, ablation.first + ablation.seeds):
        if _finds(ablation.mode, seed):
            return
    pytest.fail(f"{ablation.seeds} seeds found nothing")
