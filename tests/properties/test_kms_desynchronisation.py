"""Whatever the network, the restarts and the backups do: afterwards both ends agree again, and nothing was taken twice.

One run is a history of an MDMS with three meters under an adversarial network (weakness "desynchronisation"). At its
end the network behaves; then every meter has keys that the MDMS uses, is in exactly the groups that the MDMS has it in,
and hears what is sent.

Two words about restores. What an application took belongs to its store: when an old backup of the store comes back,
what was taken after the backup is unknown to the application too, and is counted from the backup on. What the other end
knows to be taken stays taken, except when that end is restored itself.
"""

import os
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bcami.kms.messages import (
    ControlAction,
    EventKind,
    JoinProject,
    LeaveProject,
    Notification,
    Pricing,
    RemoteControl,
)
from tests.unit.kms.network import MeterHost, Network

METERS = 3
PROJECTS = (1, 2)
meters = st.integers(0, METERS - 1)
projects = st.sampled_from(PROJECTS)
places = st.integers(0, 2**16)


class Desynchronisation(RuleBasedStateMachine):
    @initialize(degree=st.sampled_from([0, 2, 4]), changes_wait=st.booleans())
    def begin(self, degree: int, changes_wait: bool) -> None:
        self.network = Network(METERS, degree=degree, changes_wait=changes_wait)
        for project in PROJECTS:
            self.network.publish(project)
        self.marker = 0
        self.server_backups = [(self.network.store.snapshot(), list(self.network.accepted))]
        self.meter_backups = [[(meter.store.snapshot(), list(meter.accepted))] for meter in self.network.meters]

    def mark(self) -> int:
        self.marker += 1
        return self.marker

    def meter(self, index: int) -> MeterHost:
        return self.network.meters[index]

    # What people do.

    @rule()
    def broadcast(self) -> None:
        self.network.send(Pricing(self.mark(), 1800, (1,)), group=0)

    @rule(project=projects)
    def multicast(self, project: int) -> None:
        self.network.send(Pricing(self.mark(), 1800, (1,)), group=project)

    @rule(index=meters)
    def unicast(self, index: int) -> None:
        payload = RemoteControl(ControlAction.CONNECT, 0, self.mark(), 2**40)
        self.network.send(payload, hid=self.meter(index).hid)

    @rule(index=meters, project=projects, join=st.booleans())
    def change(self, index: int, project: int, join: bool) -> None:
        self.network.ask(self.meter(index), JoinProject(project) if join else LeaveProject(project))

    @rule(index=meters)
    def notify(self, index: int) -> None:
        self.network.ask(self.meter(index), Notification(EventKind.POWER_LOST, self.mark()))

    @rule()
    def end_period(self) -> None:
        self.network.do(self.network.server.end_period(self.network.now_ms, self.network.entropy()))

    @rule()
    def rotate(self) -> None:
        self.network.open_epoch()

    # What the network does.

    @rule(place=places)
    def deliver_up(self, place: int) -> None:
        if self.network.up:
            self.network.receive(self.network.up.pop(place % len(self.network.up)))

    @rule(place=places)
    def deliver_down(self, place: int) -> None:
        if self.network.down:
            self.network.give(*self.network.down.pop(place % len(self.network.down)))

    @rule(place=places, up=st.booleans())
    def drop(self, place: int, up: bool) -> None:
        queue: list[object] = self.network.up if up else self.network.down  # type: ignore[assignment]
        if queue:
            queue.pop(place % len(queue))

    @rule(place=places, index=meters, up=st.booleans())
    def replay(self, place: int, index: int, up: bool) -> None:
        """Put any message that ever was on the wire before anybody: duplicates, replays, reflections."""
        seen = self.network.seen_up if up else self.network.seen_down
        if seen:
            self.network.give(self.meter(index), seen[place % len(seen)])
            self.network.receive(seen[place % len(seen)])

    @rule()
    def flow(self) -> None:
        self.network.flow()

    @rule(ms=st.sampled_from([100, 3_000, 60_000]))
    def wait(self, ms: int) -> None:
        self.network.wait(ms)

    # What machines do.

    @rule()
    def restart_server(self) -> None:
        self.network.restart_server()

    @rule(index=meters)
    def restart_meter(self, index: int) -> None:
        self.network.restart_meter(self.meter(index))

    @rule()
    def back_up(self) -> None:
        self.server_backups.append((self.network.store.snapshot(), list(self.network.accepted)))
        for backups, meter in zip(self.meter_backups, self.network.meters, strict=True):
            backups.append((meter.store.snapshot(), list(meter.accepted)))

    @rule(place=places)
    def restore_server(self, place: int) -> None:
        backup, accepted = self.server_backups[place % len(self.server_backups)]
        self.network.accepted[:] = accepted
        self.network.restart_server(backup)

    @rule(index=meters, place=places)
    def restore_meter(self, index: int, place: int) -> None:
        backups = self.meter_backups[index]
        backup, accepted = backups[place % len(backups)]
        meter = self.meter(index)
        meter.accepted[:] = accepted
        self.network.restart_meter(meter, backup)

    # What holds.

    @invariant()
    def nothing_is_taken_twice(self) -> None:
        for meter in self.network.meters:
            counts = Counter(event.payload for event in meter.accepted)
            assert max(counts.values(), default=0) <= 1
        notifications = [event for event in self.network.accepted if isinstance(event.payload, Notification)]
        counts = Counter((event.hid, event.payload) for event in notifications)
        assert max(counts.values(), default=0) <= 1

    def teardown(self) -> None:
        network = self.network
        for meter in network.meters:
            network.tell_epoch(meter)
        for _ in range(4):
            network.flow()
            network.wait(400_000)
        network.flow()
        network.do(network.server.end_period(network.now_ms, network.entropy()))
        network.flow()
        for meter in network.meters:
            network.by(meter, meter.keys.check_in(network.now_ms))
        network.flow()
        self.nothing_is_taken_twice()
        for number, meter in enumerate(network.meters, 1):
            assert meter.keys.is_confirmed
            assert not meter.keys.record.outbox
            expected = {
                group.number: group.version for group in network.server.groups if number in group.keying.members
            }
            assert meter.keys.groups == expected
        for group in network.server.groups:
            last = Pricing(self.mark(), 1800, (1,))
            network.send(last, group=group.number)
            network.flow()
            heard = {meter.hid for meter in network.meters if last in [event.payload for event in meter.accepted]}
            assert heard == set(network.server.groups.audience(group.number))
        assert all(not summary.statuses["waiting"] for summary in network.server.summaries(network.now_ms)), (
            "everything that was sent is acknowledged in the end"
        )


Desynchronisation.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, suppress_health_check=list(HealthCheck)
)
test_both_ends_agree_again = Desynchronisation.TestCase

WEIGHTS = {
    "broadcast": 2,
    "multicast": 2,
    "unicast": 2,
    "change": 6,
    "notify": 3,
    "end_period": 1,
    "rotate": 0.4,
    "deliver_up": 30,
    "deliver_down": 30,
    "drop": 6,
    "replay": 8,
    "wait": 6,
    "restart_server": 0.5,
    "restart_meter": 0.5,
    "back_up": 1,
    "restore_server": 0.4,
    "restore_meter": 0.6,
}
"""How often things happen in a swarm: hypothesis finds small histories, this finds long ones."""


@pytest.mark.parametrize("seed", range(int(os.environ.get("BCAMI_KMS_HISTORIES", "24"))))
def test_both_ends_agree_again_after_a_long_history(seed: int) -> None:
    run_history(seed)


def run_history(seed: int, steps: int = 300) -> None:
    draws = random.Random(seed)
    machine = Desynchronisation()
    machine.begin(draws.choice([0, 2, 4]), draws.random() < 0.5)
    arguments = {
        "multicast": lambda: (draws.choice(PROJECTS),),
        "unicast": lambda: (draws.randrange(METERS),),
        "change": lambda: (draws.randrange(METERS), draws.choice(PROJECTS), draws.random() < 0.6),
        "notify": lambda: (draws.randrange(METERS),),
        "deliver_up": lambda: (draws.choice([0, 0, draws.randrange(2**16)]),),
        "deliver_down": lambda: (draws.choice([0, 0, draws.randrange(2**16)]),),
        "drop": lambda: (draws.randrange(2**16), draws.random() < 0.5),
        "replay": lambda: (draws.randrange(2**16), draws.randrange(METERS), draws.random() < 0.5),
        "wait": lambda: (draws.choice([100, 3_000, 60_000]),),
        "restart_meter": lambda: (draws.randrange(METERS),),
        "restore_server": lambda: (draws.randrange(2**16),),
        "restore_meter": lambda: (draws.randrange(METERS), draws.randrange(2**16)),
    }
    for name in draws.choices(list(WEIGHTS), list(WEIGHTS.values()), k=steps):
        getattr(machine, name)(*arguments.get(name, tuple)())
        machine.nothing_is_taken_twice()
    machine.teardown()
