"""ByzzFuzz: drawn faults hold, and the faults do what they are called."""

import os

from bcami.faults.simulator import byzzfuzz
from bcami.faults.simulator.byzzfuzz import CHANGES, KINDS, Fuzzer, ProcessFault, Voice
from bcami.faults.simulator.campaign import Found, run_campaign
from bcami.faults.simulator.rounds import Rounds
from bcami.faults.simulator.signing import in_force
from bcami.model.consensus import ConsensusMessage, Prepare
from bcami.pbft.statements import Statements

SCHEDULES = int(os.environ.get("BCAMI_SIMULATED_SCHEDULES", "60"))


def test_drawn_faults_hold() -> None:
    total = Found()
    for found in run_campaign(byzzfuzz.play_seed, range(SCHEDULES), 1):
        total.add(found)
    assert not total.broken, f"replay: bcami simulate --byzzfuzz --seeds {total.broken[0].schedule}:…"
    assert total.schedules == SCHEDULES
    assert total.convicted > SCHEDULES // 20


def test_the_same_seed_gives_the_same_run() -> None:
    assert byzzfuzz.play_seed(3) == byzzfuzz.play_seed(3)


def _first_prepares(change: str, by: int) -> list[ConsensusMessage]:
    """Return what arrives of node 1's prepares for three heights, changed in the third."""
    with in_force(real=False):
        group = Rounds(4, 4)
        one = group.instances[1]
        fuzzer = Fuzzer({1: Voice(Statements(one.roster, 1, one.signer), one.signer)})
        statements = Statements(one.roster, 1, one.signer)
        arrived: list[ConsensusMessage] = []
        for height in (1, 2, 3):
            if height == 3:
                fuzzer.faults = [ProcessFault(1, Prepare, change, by, frozenset({2}))]
            message = statements.prepare(1, height, bytes([height]) * 32)
            arrived += fuzzer.alter(one, group.instances[2], message)
            assert fuzzer.alter(one, group.instances[3], message) == (message,)
        assert all(statements.is_signed(item) for item in arrived) == (change != "signature")
    return arrived


def test_a_change_is_what_it_is_called() -> None:
    plain = _first_prepares("view", 1)[:2]
    assert [item.view for item in _first_prepares("view", -1)] == [1, 1, 0]
    assert [item.height for item in _first_prepares("height", 1)] == [1, 2, 4]
    assert _first_prepares("digest", 1)[2].digest == plain[1].digest
    assert _first_prepares("signature", 1)[2].signature == plain[1].signature
    assert len(_first_prepares("nothing", 1)) == 2


def test_every_change_of_every_kind_is_drawn_and_changes_something() -> None:
    seen: set[tuple[str, str]] = set()
    changed = byzzfuzz._changed

    def watch(message: ConsensusMessage, fault: ProcessFault, *rest: object) -> ConsensusMessage:
        result = changed(message, fault, *rest)
        if result is not message:
            seen.add((type(message).__name__, fault.change))
        return result

    byzzfuzz._changed = watch
    try:
        for seed in range(60):
            byzzfuzz.play_seed(seed)
    finally:
        byzzfuzz._changed = changed
    assert {kind for kind, _ in seen} == {kind.__name__ for kind in KINDS}
    assert {change for _, change in seen} == set(CHANGES) - {"nothing"}
