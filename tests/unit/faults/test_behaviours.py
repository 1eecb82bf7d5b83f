"""Each behaviour against a cluster in virtual time: it acts, and what it says must hold does hold."""

import re
from random import Random
from typing import Any

import pytest

from bcami.cli.simulate import simulate
from bcami.faults.catalogue import BEHAVIOURS
from bcami.faults.simulator.misbehaviour import draw_behaviours
from tests.unit.faults.attack import Attack

OPTIONS: dict[str, dict[str, Any]] = {
    "censor_signer": {"signer": "00" * 32},
    "censor_collector": {"collector": 2},
    "late_collector": {"collector": 2},
}
ELSEWHERE = {"lying_shares", "bad_state_transfer", "forged_new_view", "censor_signer"}
"""Behaviours that need an occasion of their own, in a test of their own below."""


def test_the_swarm_draws_every_behaviour_and_its_help_names_them() -> None:
    drawn = {item.name for seed in range(300) for item in draw_behaviours(Random(seed), 4, bytes(32))}
    assert drawn == set(BEHAVIOURS)
    assert set(re.findall(r"\w+", simulate.__doc__ or "")) >= drawn


@pytest.fixture
def attack(monkeypatch: pytest.MonkeyPatch) -> Attack:
    return Attack(monkeypatch)


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_service_goes_on_under_each_behaviour_of_the_primary(attack: Attack, name: str) -> None:
    behaviour = attack.inject(0, name, **OPTIONS.get(name, {}))
    attack.load()
    attack.check()
    assert behaviour.acted or name in ELSEWHERE | {"withheld_batch", "equivocating_collector", "invalid_batch"}


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_service_goes_on_under_each_behaviour_of_a_backup(attack: Attack, name: str) -> None:
    attack.inject(3, name, **OPTIONS.get(name, {}))
    attack.load()
    attack.check()
    assert attack.views() <= {1} or BEHAVIOURS[name].family == "links"
