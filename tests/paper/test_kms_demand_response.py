"""The life of a demand-response project, step by step as in Figures 9 and 10, in each profile under each strategy."""

import pytest

from bcami.kms.messages import (
    DOWN_CODEC,
    UP_CODEC,
    ControlAction,
    Envelope,
    JoinProject,
    LeaveProject,
    MeterData,
    MeterDataCall,
    Mode,
    Pricing,
    PublishProject,
    Rekey,
    RemoteControl,
)
from bcami.model.reasons import Reason
from tests.unit.kms.network import MeterHost, Network

PRICE = Pricing(0, 1800, (1_500_000, 900_000))
LIMIT = RemoteControl(ControlAction.LIMIT, 2_000, 0, 1)

every_way = pytest.mark.parametrize(
    ("profile", "degree"), [(profile, degree) for profile in ("paper", "hardened") for degree in (0, 2, 4)]
)


def payloads(meter: MeterHost) -> list[object]:
    return [event.payload for event in meter.accepted]


@every_way
def test_messages_reach_whom_they_are_for_and_nobody_else(profile: str, degree: int) -> None:
    network = Network(7, profile, degree)
    network.publish(1)
    for meter in network.meters[:5]:
        network.ask(meter, JoinProject(1))
        network.flow()
    for payload, target in ((PRICE, {"group": 0}), (LIMIT, {"group": 1}), (LIMIT, {"hid": network.meters[6].hid})):
        network.send(payload, **target)
        network.flow()  # one after the other: sessions of the paper's scheme do not survive that messages cross
    publication = PublishProject(1, "project 1", ())
    for meter in network.meters[:5]:
        assert payloads(meter) == [publication, PRICE, LIMIT]
    assert payloads(network.meters[5]) == [publication, PRICE]
    assert payloads(network.meters[6]) == [publication, PRICE, LIMIT]
    network.ask(network.meters[0], LeaveProject(1))
    network.flow()
    network.send(PRICE, group=1)
    network.flow()
    assert [payloads(meter).count(PRICE) for meter in network.meters] == [1, 2, 2, 2, 2, 1, 1]
    assert len(network.delivered) == sum(len(meter.accepted) for meter in network.meters)
    assert all(event.in_time for event in network.delivered)


@every_way
def test_meter_data_goes_up_when_it_is_called_for(profile: str, degree: int) -> None:
    network = Network(2, profile, degree)
    network.send(MeterDataCall(0, 1800), group=0)
    network.flow()
    identity = network.ask(network.meters[0], MeterData(b"report"))
    network.flow()
    assert network.meters[0].keys.answers[identity] is Reason.VALID
    assert [event.payload for event in network.accepted] == [MeterData(b"report")]


@pytest.mark.parametrize("profile", ["paper", "hardened"])
@pytest.mark.parametrize("degree", [0, 4])
def test_the_seven_and_three_steps_of_joining(profile: str, degree: int) -> None:
    network = Network(3, profile, degree, changes_wait=True)
    network.publish(1)
    member, newcomer, _ = network.meters
    network.ask(member, JoinProject(1))
    network.flow()
    network.do(network.server.end_period(network.now_ms, network.entropy()))
    network.flow()
    version = member.keys.groups[1]

    identity = network.ask(newcomer, JoinProject(1))  # steps 1 and 2: a unicast, encrypted and signed
    (request,) = network.up
    sent = UP_CODEC.decode(request)
    assert isinstance(sent, Envelope) and sent.mode is Mode.UNICAST
    assert b"join" not in request
    network.receive(network.up.pop())  # steps 3 to 5: opened, examined, decided
    (answer,) = network.down  # step 6: the response
    assert answer[0] is newcomer
    network.flow()
    assert newcomer.keys.answers[identity] is Reason.VALID  # step 7: response+
    assert set(newcomer.keys.groups) == {0}, "the key changes when the period ends"

    network.do(network.server.end_period(network.now_ms, network.entropy()))  # step 8
    told = {meter.name: DOWN_CODEC.decode(data) for meter, data in network.down if meter is not newcomer}
    assert set(told) == {member.name}
    assert isinstance(told[member.name], Envelope if degree == 0 else Rekey)  # step 9: to each, or once for all
    network.flow()
    assert member.keys.groups[1] == newcomer.keys.groups[1] == version + 1  # step 10: in use
    network.send(PRICE, group=1)
    network.flow()
    assert payloads(member)[-1] == payloads(newcomer)[-1] == PRICE


def test_who_wants_an_incompatible_project_leaves_the_other_one_first() -> None:
    network = Network(2)
    network.publish(1)
    network.publish(2, excludes=(1,))
    meter = network.meters[0]
    answers = []
    for payload in (JoinProject(1), JoinProject(2), LeaveProject(1), JoinProject(2)):
        identity = network.ask(meter, payload)
        network.flow()
        answers.append(meter.keys.answers[identity])
    assert answers == [Reason.VALID, Reason.INCOMPATIBLE_PROJECT, Reason.VALID, Reason.VALID]
    assert set(meter.keys.groups) == {0, 2}


def test_a_change_of_mind_within_a_period_costs_nothing() -> None:
    network = Network(3, changes_wait=True)
    network.publish(1)
    for payload in (JoinProject(1), LeaveProject(1)):
        network.ask(network.meters[0], payload)
        network.flow()
    step = network.do(network.server.end_period(network.now_ms, network.entropy()))
    assert not step.sends


def test_a_period_is_one_rekeying_for_all_its_changes() -> None:
    network = Network(9, changes_wait=True)
    network.publish(1)
    for meter in network.meters[:6]:
        network.ask(meter, JoinProject(1))
    network.flow()
    network.do(network.server.end_period(network.now_ms, network.entropy()))
    network.flow()
    for meter in network.meters[:2]:
        network.ask(meter, LeaveProject(1))
    for meter in network.meters[6:]:
        network.ask(meter, JoinProject(1))
    network.flow()
    first = len(network.seen_down)
    network.do(network.server.end_period(network.now_ms, network.entropy()))
    rekeys = {data for data in network.seen_down[first:] if isinstance(DOWN_CODEC.decode(data), Rekey)}
    assert len(rekeys) == 1
    network.flow()
    versions = {meter.keys.groups.get(1) for meter in network.meters[2:]}
    assert versions == {network.server.groups.get(1).version}
    assert all(1 not in meter.keys.groups for meter in network.meters[:2])


@pytest.mark.parametrize("degree", [0, 4])
def test_removal_rekeys_everything_that_the_meter_was_in(degree: int) -> None:
    network = Network(5, degree=degree)
    for project in (1, 2):
        network.publish(project)
    removed, *others = network.meters
    for meter in network.meters:
        network.ask(meter, JoinProject(1))
        network.flow()
    before = {group.number: group.version for group in network.server.groups}
    network.remove(removed)
    network.flow()
    after = {group.number: group.version for group in network.server.groups}
    assert {number for number in after if after[number] != before[number]} == {0, 1}
    assert network.server.graph.users == {2, 3, 4, 5}
    assert network.server.graph.userset("k_0") == network.server.graph.userset("gk_1") == {2, 3, 4, 5}
    network.send(PRICE, group=0)
    network.flow()
    assert all(PRICE in payloads(meter) for meter in others)
    assert PRICE not in payloads(removed)
