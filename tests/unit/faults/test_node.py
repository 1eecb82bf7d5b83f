"""Leases: a fault begins, acts, and ends; without one the node is an honest node to the byte."""

from random import Random

import pytest

from bcami.codec import encode
from bcami.errors import InputError
from bcami.faults.catalogue import BEHAVIOURS, make_behaviour
from bcami.faults.node import HELD_MAX, describe
from bcami.faults.votes import mutated
from bcami.model.wire import FetchBlocks
from tests.unit.faults.attack import Attack


@pytest.fixture
def attack(monkeypatch: pytest.MonkeyPatch) -> Attack:
    return Attack(monkeypatch)


def test_a_lease_ends_by_itself(attack: Attack) -> None:
    node = attack.node(3)
    behaviour = attack.inject(3, "mute", for_ms=1_000)
    attack.cluster.run(900)
    acted = behaviour.acted
    assert acted > 0
    assert [lease.behaviour.name for lease in node.leases(attack.cluster.now_ms)] == ["mute"]
    attack.cluster.run(5_000)
    assert node.leases(attack.cluster.now_ms) == []
    assert [lease.behaviour for lease in node.ended_leases()] == [behaviour]
    ended = behaviour.acted
    attack.cluster.run(5_000)
    assert behaviour.acted == ended


def test_stopping_ends_all(attack: Attack) -> None:
    node = attack.node(3)
    attack.inject(3, "mute", for_ms=60_000)
    attack.inject(3, "view_spam", for_ms=60_000)
    assert node.stop_faults() == 2
    assert node.leases(attack.cluster.now_ms) == []
    attack.liars.clear()
    attack.load(for_ms=1_000)
    attack.check()


def test_a_fault_without_a_length_is_not_taken(attack: Attack) -> None:
    with pytest.raises(ValueError, match="every fault ends"):
        attack.node(0).inject(make_behaviour("mute", {}, 1), 0, attack.cluster.now_ms)


def test_a_lease_tells_what_it_is(attack: Attack) -> None:
    node = attack.node(0)
    lease = node.inject(make_behaviour("loss", {"share": 0.5, "peers": [1]}, 1), 2_000, attack.cluster.now_ms)
    told = describe(lease, attack.cluster.now_ms + 500)
    assert told == {
        "lease": 1,
        "behaviour": "loss",
        "options": {"peers": (1,), "share": 0.5},
        "left_s": 1.5,
        "acted": 0,
    }


def test_what_is_held_back_leaves_in_time_and_is_bounded(attack: Attack) -> None:
    node = attack.node(0)
    for _ in range(HELD_MAX):
        assert node.hold_back(1, FetchBlocks(1, 2), attack.cluster.now_ms + 50)
    assert not node.hold_back(1, FetchBlocks(1, 2), attack.cluster.now_ms + 50)
    effects = node.timer("fault/held", attack.cluster.now_ms + 60)
    assert len(effects) == HELD_MAX


def test_the_same_seed_gives_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def trace() -> list[bytes]:
        attack = Attack(monkeypatch, seed=5)
        sent: list[bytes] = []
        inject = attack.cluster.inject

        def record(sender: int, to: int, message: object) -> None:
            sent.append(bytes((sender, to)) + encode(message))
            inject(sender, to, message)

        attack.cluster.inject = record  # type: ignore[method-assign]
        for name in ("mutate", "equivocating_voter", "replayed_votes", "loss"):
            attack.inject(1, name, seed=9)
        attack.load(for_ms=2_000)
        return sent

    assert trace() == trace()


def test_every_change_of_a_message_keeps_its_type(attack: Attack) -> None:
    seen: dict[str, object] = {}
    inject = attack.cluster.inject

    def collect(sender: int, to: int, message: object) -> None:
        seen.setdefault(type(message).__name__, message)
        inject(sender, to, message)

    attack.cluster.inject = collect  # type: ignore[method-assign]
    attack.inject(0, "mute")
    attack.load(for_ms=3_000)
    assert {"PrePrepare", "ViewChange", "NewView", "Batch", "Endorsement"} <= set(seen)
    for message in seen.values():
        for seed in range(50):
            assert type(mutated(message, Random(seed))) is type(message)


def test_an_unknown_behaviour_or_option_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"did you mean 'equivocating_primary'"):
        make_behaviour("equivocating_primry", {}, 1)
    with pytest.raises(InputError, match=r"did you mean 'share'"):
        make_behaviour("loss", {"shares": 0.5}, 1)
    with pytest.raises(InputError, match=r"loss"):
        make_behaviour("loss", {"share": 1.5}, 1)
    with pytest.raises(InputError, match=r"signer"):
        make_behaviour("censor_signer", {}, 1)


def test_every_behaviour_says_what_it_does_and_what_must_hold() -> None:
    for name, kind in BEHAVIOURS.items():
        assert kind.name == name
        assert kind.__doc__
        assert kind.claim
        assert kind.family
