"""The KMS paper, claim by claim: key graph, Tables 1 to 9 as corrected, with the real code."""

import hashlib
import hmac
import math
import os
import random

import pytest

from bcami.crypto.keys import SecretKey
from bcami.kms import KeyServer, measure_storage
from bcami.kms.costs import (
    Laboratory,
    height,
    lkh_batch,
    lkh_batch_worst,
    lkh_keys,
    lkh_leave,
    star_batch,
    star_join,
    star_leave,
)
from bcami.kms.graph import key_graph
from bcami.kms.messages import (
    TABLE_1,
    Direction,
    GroupKeys,
    JoinProject,
    MeterDataCall,
    Mode,
    NodeKey,
    Notification,
    Pricing,
    PublishProject,
    RemoteControl,
)
from bcami.kms.paper import PaperProfile, shared_session, unicast_session
from bcami.kms.records import PaperChannel
from bcami.kms.storage import meter_storage, paper_meter_bytes, paper_server_bytes, server_storage
from bcami.kms.tree import KeyTree
from tests.unit.kms.network import SCOPE, Network, make_profile

SIGNER = SecretKey.generate(b"signer".ljust(32))
USER, COUNT, METERING, DATE = (bytes([start]) * 16 for start in (1, 2, 3, 4))


MEMBERS = [10**power for power in range(1, 6) if 10**power <= int(os.environ.get("BCAMI_KMS_MEMBERS", "10000"))]
"""`make soak` goes on to 100,000. All of them fill a tree of degree 4."""


# Section 4: the key graph.


def test_equations_3_to_5_are_the_graph_of_figure_3() -> None:
    graph = key_graph([1, 2, 3], {0: {1: [0], 2: [0], 3: [0]}, 1: {1: [0], 2: [0]}, 2: {2: [0], 3: [0]}})
    assert graph.users == {1, 2, 3}
    assert graph.keys == {"k_0", "k_1", "k_2", "k_3"} | {"gk_1", "gk_2"}
    assert graph.relation == {
        *((1, "k_0"), (1, "k_1"), (1, "gk_1")),
        *((2, "k_0"), (2, "k_2"), (2, "gk_1"), (2, "gk_2")),
        *((3, "k_0"), (3, "k_3"), (3, "gk_2")),
    }
    assert graph.userset("gk_1") == {1, 2}
    assert graph.userset("gk_2") == {2, 3}
    assert graph.userset("k_0") == {1, 2, 3}


@pytest.mark.parametrize("profile", ["paper", "hardened"])
def test_the_mdms_builds_that_graph_out_of_joins(profile: str) -> None:
    network = Network(3, profile, degree=0)
    network.publish(1)
    network.publish(2)
    for index, project in ((0, 1), (1, 1), (1, 2), (2, 2)):
        network.ask(network.meters[index], JoinProject(project))
        network.flow()
    expected = key_graph([1, 2, 3], {0: {1: [0], 2: [0], 3: [0]}, 1: {1: [0], 2: [0]}, 2: {2: [0], 3: [0]}})
    assert network.server.graph == expected
    for number, meter in enumerate(network.meters, 1):  # and it is what the meters hold, not only what is believed
        held = {f"gk_{group}" if group else "k_0" for group in meter.keys.groups} | {f"k_{number}"}
        assert held == expected.keyset(number)


# Tables 2 to 5, written out once more from the paper.


def H(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


def HMAC(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()[:16]


def XOR(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def plus(count: bytes, steps: int) -> bytes:
    return ((int.from_bytes(count, "big") + steps) % 2**128).to_bytes(16, "big")


def test_table_2_unicast() -> None:
    additional = H(XOR(HMAC(USER, XOR(METERING, DATE)), COUNT))
    assert unicast_session(USER, COUNT, XOR(METERING, DATE)) == (additional, H(XOR(USER, additional)))


def test_tables_3_and_4_broadcast_and_multicast() -> None:
    assert shared_session(USER, COUNT) == (H(COUNT), H(XOR(USER, H(COUNT))))


def test_counters_step_at_each_session_and_wrap_at_b_bits() -> None:
    profile = PaperProfile(lambda hid: XOR(METERING, DATE))
    channel = profile.unicast(USER, b"\xff" * 16, 1, 1)
    for step in (1, 2):
        channel, _ = profile.protect(channel, Direction.DOWN, bytes(32), b"data")
        assert isinstance(channel, PaperChannel)
        assert channel.count == plus(b"\xff" * 16, step)
        assert channel.session_key == unicast_session(USER, channel.count, XOR(METERING, DATE))[1]


def test_tables_2_to_4_periodic_refresh_is_a_hash() -> None:
    profile = PaperProfile()
    for channel in (
        profile.unicast(USER, COUNT, 1, 1),
        profile.shared(GroupKeys(1, 0, 0, 1, 0, COUNT, (NodeKey(0, USER),)), 1),
    ):
        after = profile.refreshed(channel)
        assert isinstance(after, PaperChannel)
        assert (after.key, after.count) == (H(USER), COUNT)


def test_both_ends_refresh_and_still_agree() -> None:
    network = Network(3, "paper", degree=0)
    network.do(network.server.refresh(network.now_ms))
    for meter in network.meters:
        network.by(meter, meter.keys.refresh())
    network.send(Pricing(0, 1800, (1,)), group=0)
    network.send(RemoteControl("connect", 0, 0, 1), hid=network.meters[0].hid)
    network.flow()
    assert [len(meter.accepted) for meter in network.meters] == [2, 1, 1]


@pytest.mark.parametrize("join", [True, False])
def test_table_5_every_membership_change_draws_key_and_counter_anew(join: bool) -> None:
    """The table's title and its "periodically" are wrong: the rule is each join and each leave."""
    laboratory = Laboratory(SCOPE, make_profile("paper"), SIGNER, 5, degree=0)
    group = laboratory.server.groups.get(1)
    assert group is not None
    before = group.channel
    laboratory.change(
        joins=laboratory.hids[5:] if join else (),
        leaves=() if join else laboratory.hids[:1],
    )
    assert isinstance(before, PaperChannel) and isinstance(group.channel, PaperChannel)
    assert group.channel.key not in (before.key, H(before.key))
    assert group.channel.count not in (before.count, plus(before.count, 1))


# Table 1.


def test_table_1() -> None:
    def rows(direction: Direction) -> dict[str, tuple[int, set[Mode]]]:
        return {
            rule.title: (rule.deadline_ms, set(rule.modes)) for rule in TABLE_1.values() if rule.direction is direction
        }

    assert rows(Direction.UP) == {
        "meter data": (15_000, {Mode.UNICAST}),
        "joining or leaving the DR": (15_000, {Mode.UNICAST}),
        "notifications": (5_000, {Mode.UNICAST}),
    }
    assert rows(Direction.DOWN) == {
        "meter data": (15_000, {Mode.BROADCAST}),
        "pricing": (15_000, {Mode.BROADCAST, Mode.MULTICAST}),
        "remote control": (5_000, {Mode.UNICAST, Mode.BROADCAST, Mode.MULTICAST}),
        "publishing DR": (5_000, {Mode.BROADCAST}),
    }
    assert {MeterDataCall, PublishProject, Notification} < TABLE_1.keys()


# Tables 6 to 8: storage.


@pytest.mark.parametrize(("projects", "kilobytes"), [(5, 0.448), (10, 0.768), (15, 1.088)])
def test_table_8_is_what_a_meter_really_holds(projects: int, kilobytes: float) -> None:
    network = Network(2, "paper", degree=0)
    for project in range(1, projects + 1):
        network.publish(project)
        for meter in network.meters:
            network.ask(meter, JoinProject(project))
            network.flow()
    held = meter_storage(network.meters[0].keys.record)
    assert held.key_bytes == round(kilobytes * 1000) == paper_meter_bytes(projects)
    assert (held.keys, held.counters, held.additional) == (4 + 2 * projects, 2 + projects, 2 + projects)


@pytest.mark.parametrize("projects", [0, 5, 15])
def test_the_benchs_storage_is_the_same(projects: int) -> None:
    assert measure_storage(SCOPE, SIGNER, make_profile("paper"), projects=projects).key_bytes == paper_meter_bytes(
        projects
    )


def test_table_7_is_what_the_mdms_really_holds() -> None:
    network = Network(6, "paper", degree=0)
    for project in (1, 2):
        network.publish(project)
    held = server_storage(network.server)
    assert (held.keys, held.counters, held.additional) == (2 * 6 + 2 * 2 + 2, 6 + 2 + 1, 6 + 2 + 1)
    assert held.key_bytes == paper_server_bytes(6, 2)


def test_storage_of_a_meter_does_not_grow_with_the_number_of_meters() -> None:
    sizes = [meter_storage(Network(count, "paper", degree=0).meters[0].keys.record).key_bytes for count in (2, 12)]
    assert sizes == [paper_meter_bytes(0)] * 2


def test_a_hardened_meter_stays_within_the_papers_bytes() -> None:
    """With the star, at any number of projects; a hierarchy adds h - 1 inner keys to each group."""
    network = Network(2, "hardened", degree=0)
    network.publish(1)
    network.ask(network.meters[0], JoinProject(1))
    network.flow()
    assert meter_storage(network.meters[0].keys.record).key_bytes <= paper_meter_bytes(1)


# What changes of members cost: counted against the formulas.


@pytest.mark.parametrize("profile", ["paper", "hardened"])
@pytest.mark.parametrize("members", MEMBERS)
def test_flat_costs_are_the_formulas(profile: str, members: int) -> None:
    laboratory = Laboratory(SCOPE, make_profile(profile), SIGNER, members - 1, degree=0, spare=4)
    joined = laboratory.change(joins=[laboratory.hids[members - 1]])
    assert (joined.unicasts, joined.multicasts, joined.wrapped_keys) == (star_join(members), 0, 0)
    left = laboratory.change(leaves=[laboratory.hids[0]])
    assert (left.unicasts, left.multicasts, left.wrapped_keys) == (star_leave(members), 0, 0)
    batch = laboratory.change(leaves=laboratory.hids[1:6], joins=laboratory.hids[members : members + 3])
    assert batch.unicasts == star_batch(members - 1, 5, 3)


@pytest.mark.parametrize("profile", ["paper", "hardened"])
@pytest.mark.parametrize("members", MEMBERS)
def test_lkh_costs_are_the_formulas(profile: str, members: int) -> None:
    """10^k members fill a tree of degree 4, so that the formulas are not only bounds."""
    laboratory = Laboratory(SCOPE, make_profile(profile), SIGNER, members, degree=4, spare=1)
    tree = laboratory.server.groups.get(1).keying
    assert isinstance(tree, KeyTree)
    assert tree.key_count == lkh_keys(members, 4)
    assert tree.height == height(members, 4)
    lowest = max(tree.members.values())
    leaver = next(number for number, position in tree.members.items() if position == lowest)
    left = laboratory.change(leaves=[laboratory.hids[leaver - 1]])
    assert (left.unicasts, left.multicasts, left.wrapped_keys) == (0, 1, lkh_leave(members, 4))
    joined = laboratory.change(joins=[laboratory.hids[members]])
    assert (joined.unicasts, joined.multicasts, joined.wrapped_keys) == (1, 1, 0)
    granted = laboratory.server.groups.grant(laboratory.server.groups.get(1), members + 1)
    assert len(granted.path) == height(members, 4)


def test_the_single_leave_of_the_comparison() -> None:
    """N = 10,000: 9,999 messages against 27 keys in one."""
    assert (star_leave(10_000), lkh_leave(10_000, 4)) == (9_999, 27)


@pytest.mark.parametrize(("degree", "members"), [(2, 256), (4, 256), (4, 1024)])
@pytest.mark.parametrize("replaced", [1, 16])
def test_lkh_batches_cost_what_the_formula_expects(degree: int, members: int, replaced: int) -> None:
    """A newcomer's wrapped key is its unicast, so encryptions are compared: the mean over draws, and the worst case."""
    spare = replaced
    laboratory = Laboratory(SCOPE, make_profile("hardened"), SIGNER, members, degree=degree, spare=spare)
    inside, outside = list(laboratory.hids[:members]), list(laboratory.hids[members:])
    draws = random.Random(7)
    counts = []
    for _ in range(40):
        leavers = draws.sample(inside, replaced)
        cost = laboratory.change(leaves=leavers, joins=outside)
        inside = [hid for hid in inside if hid not in set(leavers)] + outside
        outside = leavers
        counts.append(cost.encryptions)
        assert cost.multicasts == 1
        assert cost.unicasts == replaced
    expected = float(lkh_batch(members, degree, replaced))
    if replaced == 1:
        assert set(counts) == {degree * height(members, degree)} == {expected}
    assert sum(counts) / len(counts) == pytest.approx(expected, rel=0.03)
    assert max(counts) <= lkh_batch_worst(members, degree, replaced)


@pytest.mark.parametrize("members", [count for count in MEMBERS if count >= 100])
def test_lkh_batches_of_any_size_cost_each_node_above_a_change_once_for_each_child(members: int) -> None:
    """Exactly, for the members that were drawn; and on average as much as the formula expects."""
    laboratory = Laboratory(SCOPE, make_profile("hardened"), SIGNER, members, degree=4, spare=members // 20)
    tree = laboratory.server.groups.get(1).keying
    inside, spare = list(laboratory.hids[:members]), list(laboratory.hids[members:])
    draws = random.Random(7)
    for replaced in {1, members // 1000 or 1, members // 20}:
        leavers, joiners = draws.sample(inside, replaced), spare[:replaced]
        left = [int.from_bytes(hid, "big") for hid in leavers]
        above = {node for number in left for node in tree.ancestors(tree.members[number])}
        cost = laboratory.change(leaves=leavers, joins=joiners)
        assert (cost.unicasts, cost.multicasts, cost.encryptions) == (replaced, 1, 4 * len(above))
        gone = set(leavers)
        inside = [hid for hid in inside if hid not in gone] + joiners
        spare = spare[replaced:] + leavers
        expected = float(lkh_batch(members, 4, replaced))
        assert abs(cost.encryptions - expected) <= 4 * height(members, 4) * math.sqrt(replaced)


def test_the_batch_formula_gives_the_figures_of_the_notes() -> None:
    with pytest.raises(ValueError, match="not full"):
        lkh_batch(1023, 4, 10)
    found = [round(float(lkh_batch(members, 4, 10)), 1) for members in (1024, 4096, 16384)]
    assert found == [126.6, 166.1, 206.0]


def test_an_unused_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="degree 2"):
        KeyServer(SCOPE, make_profile("hardened"), degree=1)
