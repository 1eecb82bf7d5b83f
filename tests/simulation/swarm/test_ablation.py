"""A suite that can't fail proves nothing: each safeguard is removed in turn, and some seed must show it."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from bcami.crypto import verification
from bcami.faults.simulator import byzzfuzz, prelude, twins
from bcami.faults.simulator.agreement import Violation
from bcami.faults.simulator.runner import Failure, run_seed
from tests.simulation.swarm import ablations
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
    if not isinstance(mode, str):
        with suppress(Violation):
            mode()
            return False
        return True
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
        if not isinstance(ablation.mode, str):
            break
    pytest.fail(f"{ablation.seeds} seeds found nothing")


@pytest.mark.parametrize("run", [item.mode for item in ABLATIONS if not isinstance(item.mode, str)])
def test_what_is_laid_out_by_hand_holds_with_every_safeguard(run: Callable[[], None]) -> None:
    run()


def test_every_safeguard_is_looked_for() -> None:
    written = {name for name, item in vars(ablations).items() if getattr(item, "__module__", "") == ablations.__name__}
    assert written - {"Ablation"} == {item.remove.__name__ for item in ABLATIONS}
