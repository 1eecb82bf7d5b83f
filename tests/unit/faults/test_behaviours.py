"""Each behaviour against a cluster in virtual time: it acts, and what it says must hold does hold."""

from typing import Any

import pytest

from bcami.faults.catalogue import BEHAVIOURS
from tests.unit.faults.attack import Attack

OPTIONS: dict[str, dict[str, Any]] = {
    "censor_signer": {"signer": "00" * 32},
    "censor_collector": {"collector": 2},
    "late_collector": {"collector": 2},
}
ELSEWHERE = {"lying_shares", "bad_state_transfer", "forged_new_view", "censor_signer"}
"""Behaviours that need an occasion of their own, in a test of their own below."""


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
