"""Scenarios as text: commands, and after a blank line what the replicas did. `BCAMI_REWRITE=1` writes the outcome anew.

    # What the scenario shows
    cluster window=2          parameters of the genesis; four replicas, every message takes 10 ms
    start 0 1 2               these replicas, or all
    gossip 0/1 2/1            batch certificates collector/number, to all replicas
    run 40                    milliseconds
    crash 0 | restart 0 | isolate 3 | split 0,1 2,3 | heal | clock 3 -90000
    status                    one line for each replica

Votes are written as `prepare v0 h1 <- 1 2 3`: the replicas that broadcast them at one time.
"""

import os
from pathlib import Path

import pytest

from bcami.model.consensus import Checkpoint, ConsensusMessage, NewView, PrePrepare, ViewChange
from bcami.model.events import EquivocationSeen, Refused, ViewChangeStarted, ViewEntered
from bcami.pbft import Broadcast, Certified, Decided, Effect, Halt, NeedBlocks, Observe
from tests.paper.driver import START_MS, Cluster, Node
from tests.paper.keys import batch

FOLDER = Path(__file__).parent
SCENARIOS = sorted(FOLDER.glob("*.txt"))
QUIET = {"stale", "duplicate"}
"""Refusals of late and repeated messages, which every run has."""


def describe(message: ConsensusMessage) -> str:
    match message:
        case PrePrepare():
            batches = " ".join(f"{item.collector}/{item.number}" for item in message.proposal.certificates)
            return f"pre-prepare v{message.view} h{message.height} [{batches}]"
        case Checkpoint():
            return f"checkpoint h{message.height}"
        case ViewChange():
            heights = " ".join(f"h{item.pre_prepare.height}@v{item.pre_prepare.view}" for item in message.prepared)
            stable = 0 if message.stable is None else message.stable.height
            return f"view-change v{message.view} stable {stable} prepared [{heights}]"
        case NewView():
            orders = " ".join(
                f"h{item.height}{'' if item.proposal.certificates else '=null'}" for item in message.pre_prepares
            )
            senders = " ".join(str(item.replica) for item in message.view_changes)
            return f"new-view v{message.view} from [{senders}] orders [{orders}]"
        case _:
            return f"{type(message).__name__.lower()} v{message.view} h{message.height}"


class Recorder(Cluster):
    """Writes down what replicas do, same things at the same time in one line."""

    def __init__(self, **parameters: int) -> None:
        super().__init__(4, 0, execution_ms=5, **parameters)
        self.network.delay_ms = (10, 10)
        self._lines: dict[tuple[int, str], list[int]] = {}

    def _apply(self, node: Node, effect: Effect) -> None:
        if (what := self._what(effect)) is not None:
            self._lines.setdefault((self.now_ms - START_MS, what), []).append(node.index)
        super()._apply(node, effect)

    def _what(self, effect: Effect) -> str | None:
        match effect:
            case Broadcast(message):
                return describe(message)
            case Decided(height, _, view):
                return f"decided h{height} in v{view}"
            case Certified(certificate):
                return f"certified h{certificate.height}"
            case NeedBlocks(target):
                return f"needs blocks up to h{target}"
            case Halt(reason):
                return f"halts: {reason}"
            case Observe(ViewChangeStarted(view=view, cause=cause)):
                return f"leaves for v{view}: {cause}"
            case Observe(ViewEntered(view=view)):
                return f"enters v{view}"
            case Observe(EquivocationSeen(replica=replica, what=kind)):
                return f"convicts {replica} of two {kind}s"
            case Observe(Refused(reason=reason)) if reason.value not in QUIET:
                return f"refuses: {reason.value}"
            case _:
                return None

    def take(self) -> list[str]:
        taken, self._lines = self._lines, {}
        return [f"{at:6} {what} <- {' '.join(map(str, sorted(who)))}" for (at, what), who in taken.items()]

    def status_lines(self) -> list[str]:
        lines = []
        for node in self.nodes:
            if node.replica is None:
                lines.append(f"       {node.index}: down, executed {node.height}")
                continue
            changing = " changing" if node.replica.in_view_change else ""
            timers = " ".join(sorted(node.timers))
            lines.append(
                f"       {node.index}: v{node.replica.view}{changing} low {node.replica.low_watermark} "
                f"executed {node.height} records {len(node.disk)} timers [{timers}]"
            )
        return lines


def play(text: str) -> str:
    written: list[str] = []
    cluster = Recorder()
    for line in text.splitlines():
        if line.startswith(" ") or not line.strip():
            continue  # an earlier outcome
        if not line.startswith("#"):
            written.append("")
        written.append(line)
        word, *rest = line.split()
        match word:
            case "#":
                continue
            case "cluster":
                cluster = Recorder(**{name: int(value) for name, value in (item.split("=") for item in rest)})
            case "start":
                cluster.start(*map(int, rest))
            case "gossip":
                cluster.gossip(*[batch(*map(int, item.split("/"))) for item in rest])
            case "run":
                cluster.run(int(rest[0]))
            case "crash":
                cluster.crash(int(rest[0]))
            case "restart":
                cluster.restart(int(rest[0]))
            case "isolate":
                cluster.network.isolate(int(rest[0]), cluster.n)
            case "split":
                cluster.network.split(*[[int(item) for item in side.split(",")] for side in rest])
            case "heal":
                cluster.network.heal()
            case "clock":
                cluster.skew_ms[int(rest[0])] = int(rest[1])
            case "status":
                written += cluster.status_lines()
            case _:
                pytest.fail(f"no such command: {line}")
        written += cluster.take()
    return "\n".join(written).lstrip() + "\n"


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_trace(path: Path) -> None:
    text = path.read_text()
    outcome = play(text)
    if os.environ.get("BCAMI_REWRITE"):
        path.write_text(outcome)
    assert outcome == text, "the trace differs; look at it, then write it anew with BCAMI_REWRITE=1"


def test_there_are_traces() -> None:
    assert SCENARIOS
