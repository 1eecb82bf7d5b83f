"""Runs one scenario on a live network: the load, the timeline, the watch, and afterwards the whole comparison."""

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from bcami.ami.statistics import FleetStatistics
from bcami.cli.fault_compare import compare, save_sent
from bcami.cli.fault_control import Control
from bcami.cli.fault_watch import Clock, LoadWatch, MachineWatch, NodeWatch, RecordedFleet
from bcami.cli.interrupt import run_command
from bcami.cli.meters import HomeFleet, open_fleet
from bcami.cli.own_network import RunNetwork
from bcami.cli.screen import SCREEN
from bcami.crypto.roster import Roster
from bcami.errors import BcamiError
from bcami.faults.scenario import KILL, PARTITION, PAUSE, PlannedFault, Scenario, draw_nodes
from bcami.faults.verdict import History, Sample, Shown, liars
from bcami.model.report import Reading
from bcami.processes.home import load_operator_token
from bcami.replay.load import FIRST_START_S, Load

SETTLE_S: Final = 60.0
"""Longest time that the cluster gets, after the load and all faults, to commit what was sent."""
LEVEL_S: Final = 30.0
"""Longest time that honest nodes get to be at one height."""
_SHOW_EVERY_S: Final = 1.0


@dataclass(slots=True)
class Event:
    """Something that the run did or saw, for the timeline."""

    at_s: float
    what: str


@dataclass(slots=True)
class Stage:
    """One run while it lasts."""

    place: RunNetwork
    scenario: Scenario
    control: Control
    clock: Clock
    watch: NodeWatch
    random: Random
    meter_ids: list[str]
    """Of this run alone: the network may have seen others."""
    history: History = field(default_factory=History)
    events: list[Event] = field(default_factory=list)
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    def tell(self, what: str) -> None:
        """Put a line on the timeline, and on the screen as it happens."""
        self.events.append(Event(self.clock.now_s, what))
        SCREEN.note(f"  {self.clock.now_s:6.2f} s  {what}")

    def go(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run leaves behind, for its report."""

    scenario: Scenario
    history: History
    events: list[Event]
    watch: NodeWatch


def run_scenario(place: RunNetwork, scenario: Scenario) -> Outcome:
    """Run it, heal everything, compare everything. Whatever happens, no fault stays behind."""
    clock = Clock()
    headers = {"authorization": f"Bearer {load_operator_token(place.home)}"}
    meter_ids = [f"{place.run.name}-{i:06d}" for i in range(scenario.load.meters + scenario.load.join_meters)]
    control = Control(place.home, place.network, attached=place.is_own, meter_ids=meter_ids)
    watch = NodeWatch(place.network, Roster.from_genesis(place.genesis), headers, clock)
    stage = Stage(place, scenario, control, clock, watch, Random(scenario.seed), meter_ids)  # noqa: S311 - replayable
    control.heal()  # also tells early whether this network takes faults at all
    try:
        fleet = run_command(_perform(stage))
        save_sent(place.run / "sent", fleet.given)
        compare(place, stage.history, place.run / "sent")
        return Outcome(scenario, stage.history, stage.events, watch)
    finally:
        control.close()


async def _perform(stage: Stage) -> RecordedFleet:
    plan = stage.scenario.load
    ids = stage.meter_ids[: plan.meters]
    watching = asyncio.create_task(stage.watch.run())
    try:
        async with open_fleet(stage.place.home) as fleet:
            SCREEN.note(f"  {plan.meters} meters get keys and sessions")
            await fleet.enrol(ids)
            readings = RecordedFleet(fleet)
            progress = _Show(stage)
            load_watch = LoadWatch(readings, stage.clock, progress)
            load = Load(readings, ids, FIRST_START_S)
            before = _counts(fleet.statistics)
            stage.clock.begin()
            stage.tell(f"load begins: {plan.rate_per_s:g} reports/s for {plan.for_s:g} s")
            machine = MachineWatch(stage.control.pids)
            sampling = [asyncio.create_task(load_watch.run()), asyncio.create_task(machine.run())]
            try:
                stage.go(_timeline(stage))
                if plan.join_meters:
                    stage.go(_join(stage, fleet, readings))
                await _offer(stage, load, machine)
                await asyncio.gather(*stage.tasks)
                await _recover(stage)
                await _settle(stage, readings)
            finally:
                await _end(*sampling, *stage.tasks)
                with suppress(BcamiError):
                    await asyncio.to_thread(stage.control.heal)
            history = stage.history
            history.samples = load_watch.samples
            history.sent = len(readings.given)
            history.committed = fleet.statistics.readings_committed - before["committed"]
            history.rejected = dict(fleet.statistics.rejected)
            history.stopped = dict(fleet.statistics.stopped)
            await _level(stage)
            return readings
    finally:
        await _end(watching)


def _counts(statistics: FleetStatistics) -> dict[str, int]:
    return {"committed": statistics.readings_committed}


class _Show:
    """Shows the load about once a second."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._shown = Sample(0.0, 0, 0)

    def __call__(self, sample: Sample) -> None:
        if sample.at_s - self._shown.at_s < _SHOW_EVERY_S:
            return
        rate = (sample.committed - self._shown.committed) / (sample.at_s - self._shown.at_s)
        views = sorted({look.view for look in self._stage.watch.latest.values() if look.view is not None})
        waiting = sample.offered - sample.committed
        text = f"{rate:6.0f} commits/s, {waiting} waiting, view {'/'.join(map(str, views)) or '-'}"
        SCREEN.note(f"  {sample.at_s:6.2f} s  {text}", style="dim")
        self._shown = sample


async def _offer(stage: Stage, load: Load, machine: MachineWatch) -> None:
    """Offer the load; what has not been settled when it is over is waited for later, within a bound."""
    plan = stage.scenario.load
    offering = asyncio.create_task(load.steady(plan.rate_per_s, plan.for_s, lambda _done: None))
    await stage.clock.wait_until(plan.for_s)
    stage.history.load_end_s = stage.clock.now_s
    stage.history.others_percent = machine.others_percent()
    stage.tell("load ends")
    stage.tasks.append(asyncio.create_task(_wait_offered(stage, offering)))


async def _wait_offered(stage: Stage, offering: "asyncio.Task[Any]") -> None:
    try:
        async with asyncio.timeout(SETTLE_S):
            await offering
    except TimeoutError:
        stage.tell(f"not everything is settled {SETTLE_S:.0f} s after the load")


# The timeline.


async def _timeline(stage: Stage) -> None:
    for fault in sorted(stage.scenario.fault, key=lambda item: item.at_s):
        await stage.clock.wait_until(fault.at_s)
        names = draw_nodes(fault.on, stage.scenario.names, stage.watch.primary, stage.random)
        where = " | ".join(",".join(group) for group in fault.groups) or ", ".join(names)
        on = names or [name for group in fault.groups for name in group]
        shown = Shown(fault.kind, on, fault.is_byzantine, stage.clock.now_s, where=where)
        stage.history.shown.append(shown)
        stage.go(_show_fault(stage, fault, names, shown))


async def _show_fault(stage: Stage, fault: PlannedFault, names: list[str], shown: Shown) -> None:
    """Begin a fault, wait for its end, heal it."""
    where = shown.where
    end_s = shown.start_s + fault.for_s
    stage.tell(f"{fault.kind} on {where}, for {fault.for_s:g} s")
    shown.end_s = end_s
    try:
        if fault.kind == KILL:
            await _kill(stage, names, shown, end_s)
        elif fault.kind == PAUSE:
            await _pause(stage, names, fault.for_s, end_s)
        else:
            await _lie(stage, fault, names, shown, end_s)
    except BcamiError as error:
        stage.history.trouble.append(f"{fault.kind} on {where}: {error.what}")
        stage.tell(f"{fault.kind} on {where}: {error.what}")


async def _kill(stage: Stage, names: list[str], shown: Shown, end_s: float) -> None:
    await asyncio.gather(*(asyncio.to_thread(stage.control.kill, name) for name in names))
    await stage.clock.wait_until(end_s)
    for name in names:
        stage.watch.expect_step(name)
    stage.tell(f"starting {', '.join(names)} again")
    began = stage.clock.now_s
    await asyncio.to_thread(stage.control.start, names, lambda _: None)
    answered = [stage.watch.answered_s[name] for name in names if name in stage.watch.answered_s]
    shown.end_s = max([end_s, *answered])
    took = f"answering {shown.end_s - began:.1f} s and ready {stage.clock.now_s - began:.1f} s after the start"
    stage.tell(f"{', '.join(names)} {took}")


async def _pause(stage: Stage, names: list[str], for_s: float, end_s: float) -> None:
    for name in names:
        stage.control.pause(name, for_s)
    await stage.clock.wait_until(end_s)
    for name in names:
        stage.watch.expect_step(name)
        await asyncio.to_thread(stage.control.go_on, name)
    stage.tell(f"{', '.join(names)} goes on")


async def _lie(stage: Stage, fault: PlannedFault, names: list[str], shown: Shown, end_s: float) -> None:
    """Have nodes show a behaviour, and count what they did when it is over."""
    orders = [(name, fault.kind, fault.options) for name in names]
    if fault.kind == PARTITION:
        orders = [(name, "cut", {"peers": peers}) for name, peers in _cuts(fault).items()]
    leases: dict[str, int] = {}

    async def order(name: str, kind: str, options: Any) -> None:
        left_s = max(0.05, end_s - stage.clock.now_s)
        seed = stage.scenario.seed
        told = await asyncio.to_thread(stage.control.inject, name, kind, left_s, options, seed)
        leases[name] = told["lease"]

    await asyncio.gather(*(order(*item) for item in orders))
    await stage.clock.wait_until(end_s)
    acted = 0
    for name, lease in leases.items():
        told = await asyncio.to_thread(stage.control.shown, name)
        acted += sum(item["acted"] for item in (*told["faults"], *told["ended"]) if item["lease"] == lease)
    shown.acted = acted
    stage.tell(f"{fault.kind} on {', '.join(leases)} is over, it acted {acted} times")


def _cuts(fault: PlannedFault) -> dict[str, list[str]]:
    """Return, for each node of a partition, those that it is cut off from."""
    return {
        name: [peer for other in fault.groups if other is not group for peer in other]
        for group in fault.groups
        for name in group
    }


async def _join(stage: Stage, fleet: HomeFleet, readings: RecordedFleet) -> None:
    """Let more meters get their keys while the network is under attack, and report once."""
    plan = stage.scenario.load
    await stage.clock.wait_until(plan.join_at_s)
    ids = stage.meter_ids[plan.meters :]
    stage.tell(f"{len(ids)} more meters ask for keys")
    began = stage.clock.now_s
    await fleet.enrol(ids)
    stage.tell(f"all {len(ids)} have keys and sessions after {stage.clock.now_s - began:.1f} s")
    now_ms = _unix_ms()
    for place, meter in enumerate(ids):
        await readings.submit(meter, (Reading(FIRST_START_S, 1_000 * (place + 1)),), now_ms, position=None)


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000


# After the load.


async def _recover(stage: Stage) -> None:
    """End what is left of all faults, and start what is dead; a node that ended by itself is noted first."""
    silent = await asyncio.to_thread(stage.control.heal)
    for name in silent:
        if not stage.control.is_running(name):
            stage.history.dead[name] = "its process ended by itself"
    if stage.history.dead:
        await asyncio.to_thread(stage.control.start, sorted(stage.history.dead), lambda _: None)


async def _settle(stage: Stage, readings: RecordedFleet) -> None:
    try:
        async with asyncio.timeout(SETTLE_S):
            await readings.drain()
        stage.tell("every report is settled")
    except TimeoutError:
        stage.tell("reports are still open")


async def _level(stage: Stage) -> None:
    """Wait until all honest nodes are at one height, and note those that halted."""
    honest = [name for name in stage.scenario.names if name not in liars(stage.history)]
    latest = stage.watch.latest

    if await stage.watch.wait_level(honest, LEVEL_S):
        stage.tell("all honest nodes are at one height")
    else:
        heights = ", ".join(f"{name} {latest[name].height}" for name in honest if name in latest)
        stage.history.trouble.append(f"honest nodes are not at one height after {LEVEL_S:.0f} s: {heights}")
    for name, look in latest.items():
        if look.halted is not None:
            stage.history.dead[name] = look.halted
    for item in stage.watch.evidence.values():
        stage.history.evidence.setdefault(item.against, []).append(item.what)
    stage.history.views, stage.history.views_s = list(stage.watch.views), list(stage.watch.views_s)
    stage.history.in_step_s = dict(stage.watch.in_step_s)


async def _end(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
