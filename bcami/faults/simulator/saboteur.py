"""Faults as they happen in a run: what is drawn, to whom, and within which limits.

The limit: at any time at most f nodes are Byzantine, have lost promises, or have lost a ledger that they have not got
back yet; what goes beyond that, no protocol survives. Crashes, pauses, partitions and clocks know no limit: they
cost progress only.
"""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final

from bcami.faults.simulator.plan import Plan

if TYPE_CHECKING:
    from bcami.faults.simulator.cluster import SimulatedCluster

RESTART_CHANCE: Final = 0.4
"""For each node that is down, each time that the saboteur acts."""


class Saboteur:
    """Acts every so often until it is told to stop."""

    def __init__(self, cluster: "SimulatedCluster", plan: Plan, draw: Random) -> None:
        self._cluster = cluster
        self._plan = plan
        self._draw = draw
        self._is_active = True
        self._dead: set[int] = set()
        self._rebuilding: dict[int, int] = {}
        """Height that a node which lost its ledger must reach again."""
        self._acts: Final[dict[str, Callable[[], str]]] = {
            "isolate": self._isolate,
            "split": self._split,
            "bridge": self._bridge,
            "one_way": self._one_way,
            "clog": self._clog,
            "heal": self._heal,
            "crash": self._crash,
            "crash_all": self._crash_all,
            "pause": self._pause,
            "clock": self._clock,
            "full_disk": self._full_disk,
            "lose_ledger": self._lose_ledger,
            "lose_promises": self._lose_promises,
            "old_backup": self._old_backup,
            "misbehave": self._misbehave,
        }

    @property
    def dead(self) -> frozenset[int]:
        """Nodes whose key must never vote again; they go on as readers."""
        return frozenset(self._dead)

    def begin(self) -> None:
        self._cluster.events.after(self._next_ms(), self._act)

    def stop(self) -> None:
        self._is_active = False

    # The rhythm.

    def _next_ms(self) -> int:
        return self._draw.randint(1, 2 * self._plan.fault_every_ms)

    def _act(self) -> None:
        if not self._is_active:
            return
        cluster, draw = self._cluster, self._draw
        for machine in cluster.machines:
            if "old_backup" in self._plan.faults and draw.random() < 0.2:
                machine.disk.back_up()
            if machine.life is None and draw.random() < RESTART_CHANCE:
                cluster.restart(machine.index)
        what = self._acts[draw.choice(self._plan.faults)]()
        if what:
            cluster.note(what)
        cluster.events.after(self._next_ms(), self._act)

    def _some_node(self) -> int:
        return self._draw.randrange(self._plan.nodes)

    # Links.

    def _isolate(self) -> str:
        node = self._some_node()
        self._cluster.network.isolate(node)
        return f"isolate {node}"

    def _split(self) -> str:
        order = self._draw.sample(range(self._plan.nodes), self._plan.nodes)
        left = sorted(order[: self._draw.randint(1, self._plan.nodes - 1)])
        self._cluster.network.split(left)
        return f"split {left} | rest"

    def _bridge(self) -> str:
        order = self._draw.sample(range(self._plan.nodes), self._plan.nodes)
        self._cluster.network.bridge(order)
        return f"bridge {order}"

    def _one_way(self) -> str:
        sender, to = self._draw.sample(range(self._plan.nodes), 2)
        self._cluster.network.cut(sender, to)
        return f"cut {sender} -> {to}"

    def _clog(self) -> str:
        sender, to = self._draw.sample(range(self._plan.nodes), 2)
        wait_ms = self._draw.randint(100, 5_000)
        self._cluster.network.clog(sender, to, self._cluster.events.now_ms + wait_ms)
        return f"clog {sender} -> {to} for {wait_ms} ms"

    def _heal(self) -> str:
        self._cluster.network.heal()
        return "heal the links"

    # Processes.

    def _crash(self) -> str:
        node = self._some_node()
        self._cluster.crash(node)
        return f"crash {node}"

    def _crash_all(self) -> str:
        for node in range(self._plan.nodes):
            self._cluster.crash(node)
        return "the whole site loses power"

    def _pause(self) -> str:
        node = self._some_node()
        wait_ms = self._draw.randint(50, 6_000)
        life = self._cluster.machines[node].life
        if life is None or life.is_paused:
            return ""
        life.pause()
        self._cluster.events.after(wait_ms, life.resume)
        return f"pause {node} for {wait_ms} ms"

    def _clock(self) -> str:
        node = self._some_node()
        skew_ms = self._draw.choice((0, 0, -3_000, 3_000, -60_000, 60_000, 86_400_000, -86_400_000))
        self._cluster.machines[node].skew_ms = skew_ms
        return f"clock of {node} is off by {skew_ms} ms"

    # Disks.

    def _spare(self, node: int) -> bool:
        """Tell whether one node more may lose what it must not lose."""
        cluster = self._cluster
        for other, height in list(self._rebuilding.items()):
            if cluster.machines[other].disk.ledger.height >= height:
                del self._rebuilding[other]
        faulty = {*cluster.excused, *self._dead, *self._rebuilding, node}
        return node not in self._dead and len(faulty) <= self._plan.quorum.f

    def _full_disk(self) -> str:
        node = self._some_node()
        disk = self._cluster.machines[node].disk
        disk.is_full = not disk.is_full
        return f"disk of {node} is {'full' if disk.is_full else 'free again'}"

    def _lose_ledger(self) -> str:
        node = self._some_node()
        if not self._spare(node):
            return ""
        self._cluster.crash(node)
        self._rebuilding[node] = max(machine.disk.ledger.height for machine in self._cluster.machines)
        self._cluster.machines[node].disk.rebuild()
        return f"ledger of {node} is damaged: rebuilt from peers"

    def _lose_promises(self) -> str:
        node = self._some_node()
        if not self._spare(node):
            return ""
        self._cluster.crash(node)
        self._cluster.machines[node].disk.lose_promises()
        self._cluster.oracles.silenced.add(node)
        self._dead.add(node)
        return f"promises of {node} are lost: its key is dead"

    def _old_backup(self) -> str:
        node = self._some_node()
        if not self._spare(node):
            return ""
        self._cluster.crash(node)
        self._cluster.excuse(node)
        self._cluster.machines[node].disk.restore_backup(self._draw)
        return f"promises of {node} come from an old backup: Byzantine from here on"

    # Byzantine nodes.

    def _misbehave(self) -> str:
        if not self._plan.byzantine:
            return ""
        return self._cluster.misbehave(self._draw.choice(self._plan.byzantine))
