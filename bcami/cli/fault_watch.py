"""Watches a network while it is being broken: what the load achieves, and what every node says of itself."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from bcami.ami.statistics import FleetStatistics, Latencies
from bcami.config import Network
from bcami.crypto.evidence import check_evidence
from bcami.crypto.roster import Roster
from bcami.errors import MalformedError
from bcami.faults.verdict import Sample
from bcami.model.evidence import EVIDENCE_CODEC
from bcami.model.report import Reading
from bcami.processes.cpu import cpu_seconds
from bcami.replay.load import LoadFleet

SAMPLE_S: Final = 0.05
LATENCY_EVERY: Final = 10
"""Every tenth sample has latencies: half a second of commits."""
LOOK_S: Final = 0.15
EVIDENCE_S: Final = 1.0
MACHINE_S: Final = 0.5
_TIMEOUT_S: Final = 1.0
IN_STEP_BLOCKS: Final = 2
"""A node that is so close to the highest of the others is in step: blocks take a moment to spread."""


class Look(msgspec.Struct, frozen=True):
    """What one node said of itself."""

    at_s: float
    name: str
    height: int | None = None
    """None: it did not answer."""
    certified: int | None = None
    view: int | None = None
    primary: str | None = None
    halted: str | None = None


class Accusation(msgspec.Struct, frozen=True):
    """Evidence that a node keeps against another, verified against genesis."""

    against: str
    what: str
    view: int
    height: int
    kept_by: str
    """Who showed it first."""
    evidence: str
    """Encoded, in hex."""


class RecordedFleet:
    """A fleet that remembers every reading that it was given: the data set that the MDMS must hold in the end."""

    def __init__(self, fleet: LoadFleet) -> None:
        self._fleet = fleet
        self.given: list[tuple[str, int, int]] = []
        """(meter id, first second of the half-hour, energy)."""

    @property
    def statistics(self) -> FleetStatistics:
        return self._fleet.statistics

    async def submit(
        self, meter_id: str, readings: Sequence[Reading], intended_ms: int, *, position: bytes | None
    ) -> None:
        self.given += [(meter_id, item.start_s, item.energy) for item in readings]
        await self._fleet.submit(meter_id, readings, intended_ms, position=position)

    async def drain(self) -> None:
        await self._fleet.drain()


class Clock:
    """Seconds since the load began; 0 before."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def begin(self) -> None:
        self._began = time.perf_counter()

    @property
    def now_s(self) -> float:
        return round(time.perf_counter() - self._began, 3)

    async def wait_until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self.now_s))


class LoadWatch:
    """Samples the load."""

    def __init__(self, fleet: RecordedFleet, clock: Clock, show: Callable[[Sample], None]) -> None:
        self._fleet = fleet
        self._clock = clock
        self._show = show
        self.samples: list[Sample] = []

    async def run(self) -> None:
        """Sample until cancelled."""
        statistics = self._fleet.statistics
        base, given = statistics.committed, len(self._fleet.given)
        while True:
            p50 = p99 = None
            if len(self.samples) % LATENCY_EVERY == LATENCY_EVERY - 1:
                seen, statistics.latencies = statistics.latencies, Latencies()
                p50, p99 = seen.percentile_ms(50), seen.percentile_ms(99)
            offered = len(self._fleet.given) - given
            self.samples.append(Sample(self._clock.now_s, statistics.committed - base, offered, p50, p99))
            self._show(self.samples[-1])
            await asyncio.sleep(SAMPLE_S)


class MachineWatch:
    """How much of the processors goes to others than this network and the program that runs it."""

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        self._pids = pids
        self._spent: dict[int, float] = {}
        self._first: dict[int, float] = {}
        self._began_s, self._own_s, self._busy_s = time.perf_counter(), time.process_time(), busy_seconds()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            for pid in self._pids():
                with suppress(OSError):
                    self._spent[pid] = cpu_seconds(pid)
                    self._first.setdefault(pid, self._spent[pid])
            await asyncio.sleep(MACHINE_S)

    def others_percent(self) -> float | None:
        """Return the share of all processors since the watch began; None where the system does not tell."""
        now_s = busy_seconds()
        if now_s is None or self._busy_s is None:
            return None
        own_s = time.process_time() - self._own_s + sum(self._spent[pid] - self._first[pid] for pid in self._spent)
        all_s = (time.perf_counter() - self._began_s) * (os.cpu_count() or 1)
        return round(max(0.0, 100 * (now_s - self._busy_s - own_s) / all_s), 1)


def busy_seconds() -> float | None:
    """Return the processor seconds that this machine has spent on anything; None where the system does not tell."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, *rest = (int(field) for field in fields[:8])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


class NodeWatch:
    """Asks every node for its status, again and again, each on its own: a dead one holds up nobody."""

    def __init__(self, network: Network, roster: Roster, headers: dict[str, str], clock: Clock) -> None:
        self._network = network
        self._roster = roster
        self._headers = headers
        self._clock = clock
        self.looks: list[Look] = []
        self.latest: dict[str, Look] = {}
        self.evidence: dict[str, Accusation] = {}
        """What nodes keep, by its encoded form; only what holds against genesis."""
        self.views: list[int] = []
        self.views_s: list[float] = []
        self._awaited: dict[str, float | None] = {}
        self.answered_s: dict[str, float] = {}
        """By node that was restarted or paused: when it answered again."""
        self.in_step_s: dict[str, float | None] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        options: dict[str, Any] = {"timeout": _TIMEOUT_S, "trust_env": False, "headers": self._headers}
        async with httpx.AsyncClient(**options) as client, asyncio.TaskGroup() as group:
            for node in self._network.nodes:
                group.create_task(_again(LOOK_S, partial(self._look, client, node.name, node.url)))
                group.create_task(_again(EVIDENCE_S, partial(self._collect, client, node.name, node.url)))

    @property
    def primary(self) -> str:
        """Return the primary that most nodes name."""
        named = [look.primary for look in self.latest.values() if look.primary is not None]
        return max(named, key=named.count) if named else self._network.nodes[0].name

    async def wait_level(self, names: Sequence[str], within_s: float) -> bool:
        """Wait until these nodes are certified at one height; False when that did not come in time."""
        for _ in range(round(within_s / LOOK_S)):
            told = [self.latest[name] for name in names if name in self.latest]
            heights = {height for look in told for height in (look.height, look.certified)}
            if len(told) == len(names) and len(heights) == 1 and None not in heights:
                return True
            await asyncio.sleep(LOOK_S)
        return False

    def expect_step(self, name: str) -> None:
        """Measure from this node's next answer until it is level with the others."""
        self._awaited[name] = None
        self.in_step_s.setdefault(name, None)

    async def _look(self, client: httpx.AsyncClient, name: str, url: str) -> None:
        told = await _ask(client, url + "/v1/status")
        at_s = self._clock.now_s
        look = Look(at_s, name)
        if told is not None:
            look = Look(
                at_s, name, told["height"], told["certified_height"], told["view"], told["primary"], told["halted"]
            )
        self.looks.append(look)
        self.latest[name] = look
        self._follow_view()
        self._follow_step(look)

    def _follow_view(self) -> None:
        """Note the view that a strong quorum of nodes has reached."""
        views = sorted((look.view for look in self.latest.values() if look.view is not None), reverse=True)
        n = len(self._network.nodes)
        strong = (n + (n - 1) // 3) // 2 + 1
        if len(views) >= strong and (not self.views or views[strong - 1] > self.views[-1]):
            self.views.append(views[strong - 1])
            self.views_s.append(self._clock.now_s)

    def _follow_step(self, look: Look) -> None:
        if look.name not in self._awaited or look.height is None:
            return
        since_s = self._awaited[look.name]
        if since_s is None:
            since_s = self._awaited[look.name] = self.answered_s[look.name] = look.at_s
        others = [item.height for name, item in self.latest.items() if name != look.name and item.height is not None]
        if others and look.height >= max(others) - IN_STEP_BLOCKS:
            del self._awaited[look.name]
            known = self.in_step_s.get(look.name)
            self.in_step_s[look.name] = max(known or 0.0, round(look.at_s - since_s, 3))

    async def _collect(self, client: httpx.AsyncClient, name: str, url: str) -> None:
        told = await _ask(client, url + "/v1/operator/evidence")
        for item in () if told is None else told["evidence"]:
            shown = str(item.get("evidence", ""))
            if shown not in self.evidence and self._holds(shown):
                self.evidence[shown] = Accusation(item["name"], item["what"], item["view"], item["height"], name, shown)

    def _holds(self, shown: str) -> bool:
        try:
            evidence = EVIDENCE_CODEC.decode(bytes.fromhex(shown))
        except (ValueError, MalformedError):
            return False
        roster = self._roster
        return check_evidence(evidence, roster.chain, roster.epoch, roster.keys) is None


async def _again(every_s: float, action: Callable[[], Awaitable[None]]) -> None:
    while True:
        await action()
        await asyncio.sleep(every_s)


async def _ask(client: httpx.AsyncClient, address: str) -> dict[str, Any] | None:
    try:
        answer = await client.get(address)
        told = answer.json() if answer.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, ValueError):
        return None
    return told if isinstance(told, dict) else None
