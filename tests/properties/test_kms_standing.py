"""Whoever comes late, was away or took many other messages since: each meter has what stands, exactly once.

The windows are made small, so that a short history is as long as many messages. A project is told to all meters; the
newest prices of a group are for whoever is in it when everything is quiet again.
"""

from collections import Counter
from unittest.mock import patch

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bcami.kms.messages import (
    ControlAction,
    JoinProject,
    LeaveProject,
    Pricing,
    PublishProject,
    RemoteControl,
)
from tests.unit.kms.network import Network

METERS = 3
WINDOW = 3
meters = st.integers(0, METERS - 1)
projects = st.integers(1, 2)
events = st.one_of(
    st.tuples(st.just("price"), st.integers(0, 2)),
    st.tuples(st.just("flood"), meters),
    st.tuples(st.just("join"), meters, projects),
    st.tuples(st.just("leave"), meters, projects),
    st.tuples(st.just("away"), meters),
    st.tuples(st.just("back"), meters),
    st.tuples(st.just("restart meter"), meters),
    st.tuples(st.just("restart server"), st.just(0)),
    st.tuples(st.just("enrol"), st.just(0)),
    st.tuples(st.just("publish"), st.integers(3, 5)),
    st.tuples(st.just("wait"), st.sampled_from([100, 3_000, 60_000])),
)


class History:
    def __init__(self, degree: int) -> None:
        self.network = Network(METERS, degree=degree)
        self.away: set[int] = set()
        self.newest: dict[int, Pricing] = {}
        self.projects = {1, 2}
        self.marker = 0
        for project in (1, 2):
            self.network.publish(project)

    def mark(self) -> int:
        self.marker += 1
        return self.marker

    def carry(self, event: tuple[str, int] | tuple[str, int, int]) -> None:
        network, (what, value, *rest) = self.network, event
        match what:
            case "price":
                self.newest[value] = Pricing(network.now_ms // 1000, 2**31, (self.mark(),))
                network.send(self.newest[value], group=value)
            case "flood":
                for _ in range(WINDOW + 1):
                    control = RemoteControl(ControlAction.LIMIT, self.mark(), 0, 1)
                    network.send(control, hid=network.meters[value].hid)
                    self.flow()
            case "join" | "leave":
                payload = JoinProject(rest[0]) if what == "join" else LeaveProject(rest[0])
                network.ask(network.meters[value], payload)
            case "away":
                self.away.add(value)
            case "back" | "restart meter":
                self.away.discard(value)
                meter = network.meters[value]
                network.tell_epoch(meter)
                if what == "back":
                    network.by(meter, meter.keys.check_in(network.now_ms))
                else:
                    network.restart_meter(meter)
            case "restart server":
                network.restart_server()
            case "enrol":
                meter = network.add_meter()
                network.do(network.server.enrol([meter.identity], network.now_ms, network.entropy()))
                network.tell_epoch(meter)
            case "publish" if value not in self.projects:
                self.projects.add(value)
                network.do(network.server.publish(value, f"project {value}", (), network.now_ms, network.entropy()))
            case "wait":
                network.wait(value)
        self.flow()

    def flow(self) -> None:
        """Carry everything; what is for who is away is lost."""
        network = self.network
        deaf = [network.meters[index] for index in self.away]
        while network.up or network.down:
            network.down = [(meter, data) for meter, data in network.down if meter not in deaf]
            if network.up:
                network.receive(network.up.pop(0))
            elif network.down:
                network.give(*network.down.pop(0))

    def quiet(self) -> None:
        """Let everybody come back, and whatever waits be repeated."""
        network = self.network
        self.away.clear()
        for meter in network.meters:
            network.tell_epoch(meter)
        for _ in range(4):
            network.flow()
            network.wait(400_000)
        for meter in network.meters:
            network.by(meter, meter.keys.check_in(network.now_ms))
        network.flow()

    def check(self) -> None:
        network = self.network
        for meter in network.meters:
            taken = Counter(item.payload for item in meter.accepted)
            assert max(taken.values(), default=0) <= 1
            told = {payload.project for payload in taken if isinstance(payload, PublishProject)}
            assert told == self.projects
            prices = {self.newest[group] for group in meter.keys.groups if group in self.newest}
            assert prices <= taken.keys()
        for summary in network.server.summaries(network.now_ms):
            assert not summary.statuses["waiting"]


@given(degree=st.sampled_from([0, 4]), history=st.lists(events, max_size=25))
@example(degree=4, history=[("price", 1), ("flood", 0), ("join", 0, 1)])
@example(degree=4, history=[("away", 0), ("price", 0), ("publish", 3), ("restart meter", 0), ("flood", 0)])
@example(degree=0, history=[("away", 1), ("price", 0), ("back", 1), ("flood", 1), ("restart server", 0)])
@example(
    degree=4,
    history=[
        *(("join", 0, 1), ("price", 1), ("leave", 0, 1), ("flood", 0), ("price", 1), ("flood", 0)),
        *(("restart server", 0), ("restart meter", 0), ("join", 0, 1), ("flood", 0), ("enrol", 0)),
    ],
)
@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
def test_each_meter_has_what_stands_exactly_once(degree: int, history: list[tuple[str, int]]) -> None:
    with patch("bcami.kms.standing.RECENT_MAX", WINDOW):
        run = History(degree)
        for event in history:
            run.carry(event)
        run.quiet()
        run.check()
