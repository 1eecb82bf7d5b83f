"""Forward and backward secrecy of groups, against an adversary who forgets nothing (goals K1 and K2)."""

import random
from collections.abc import Callable

import pytest

from bcami.kms import keying, tree
from bcami.kms.messages import JoinProject, LeaveProject, Pricing
from tests.unit.kms.adversary import Adversary
from tests.unit.kms.network import MeterHost, Network

PROJECT = 1
METERS = 9
STEPS = 20


def history(seed: int, degree: int, batch: int, owned: set[int]) -> tuple[int, int]:
    """Let members come and go; return how many group messages colluders could read, and how many they should.

    What they should read is what was sent while one of them was a member.
    """
    draws = random.Random(seed)
    network = Network(METERS, degree=degree, changes_wait=True)
    network.publish(PROJECT)
    adversary = Adversary(degree or 4)
    colluders = [network.meters[index] for index in owned]
    secrets: list[tuple[bytes, bool]] = []

    def look() -> None:
        for meter in colluders:
            adversary.own(meter.keys.record)

    def is_member(meter: MeterHost) -> bool:
        return PROJECT in meter.keys.groups

    for turn in range(STEPS):
        for meter in draws.sample(network.meters, batch):
            network.ask(meter, LeaveProject(PROJECT) if is_member(meter) else JoinProject(PROJECT))
            network.flow()
        look()
        network.do(network.server.end_period(network.now_ms, network.entropy()))
        network.flow()
        look()
        assert {meter.hid for meter in network.meters if is_member(meter)} == set(
            network.server.groups.audience(PROJECT)
        )
        first = len(network.seen_down)
        network.send(Pricing(turn, 1800, (turn,)), group=PROJECT)
        (message,) = [data for data in network.seen_down[first : first + 1] if adversary.is_multicast(data)]
        secrets.append((message, any(map(is_member, colluders))))
        network.flow()
        look()
    adversary.hear(network.seen_down)
    adversary.work()
    for message, allowed in secrets:
        assert (adversary.reads(message) is not None) == allowed
    return sum(allowed for _, allowed in secrets), len(secrets)


@pytest.mark.parametrize("degree", [0, 2, 4])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("batch", [1, 3])
def test_leavers_and_newcomers_read_exactly_what_was_sent_while_they_were_members(
    degree: int, seed: int, batch: int
) -> None:
    read, sent = history(seed, degree, batch, owned={seed, seed + 3})
    assert 0 < read < sent


@pytest.mark.parametrize("degree", [0, 4])
def test_a_removed_meter_reads_no_later_broadcast(degree: int) -> None:
    network = Network(7, degree=degree)
    adversary = Adversary(degree or 4)
    for meter in network.meters[:2]:
        adversary.own(meter.keys.record)
        network.remove(meter)
        network.flow()
    first = len(network.seen_down)
    network.send(Pricing(0, 1800, (1,)), group=0)
    network.flow()
    adversary.hear(network.seen_down)
    adversary.work()
    assert [len(meter.accepted) for meter in network.meters] == [0, 0, 1, 1, 1, 1, 1]
    assert adversary.reads(network.seen_down[first]) is None


def test_keys_stolen_before_an_epoch_open_nothing_of_it() -> None:
    """Healing, as far as it goes: the thief has all symmetric keys, not the meter's KEM key."""
    network = Network(3)
    adversary = Adversary(4)
    for meter in network.meters:
        adversary.own(meter.keys.record)
    network.open_epoch()
    network.flow()
    first = len(network.seen_down)
    network.send(Pricing(0, 1800, (1,)), group=0)
    adversary.hear(network.seen_down)
    adversary.work()
    assert adversary.reads(network.seen_down[first]) is None


# The adversary has teeth: with a safeguard taken out it reads what it must not.


def keep_keys(place: keying.Place, key: bytes, node: int, version: int) -> bytes:
    return key


def no_new_keys(self: tree.KeyTree, *arguments: object) -> list[object]:
    return []


def without_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(place: keying.Place, key: bytes, node: int, version: int) -> bytes:
        return key

    monkeypatch.setattr(tree, "stepped_key", keep)
    monkeypatch.setattr("bcami.kms.member.stepped_key", keep)


def without_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree.KeyTree, "_renew", lambda *arguments: [])


def without_renewal_of_inner_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    renew = tree.KeyTree._renew
    monkeypatch.setattr(tree.KeyTree, "_renew", lambda self, version, touched, *rest: renew(self, version, {0}, *rest))


@pytest.mark.parametrize("sabotage", [without_steps, without_renewal, without_renewal_of_inner_nodes])
def test_without_the_safeguard_secrets_leak(
    sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    leaks = 0
    for seed in range(4):
        try:
            history(seed, 2, 1, owned={0, 3})
        except AssertionError:
            leaks += 1
    assert leaks
