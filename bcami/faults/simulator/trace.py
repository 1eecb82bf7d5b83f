"""What happened, one dense line for each step of a node, and a hash of it all.

Columns, in order:

    ms      virtual milliseconds since the run began
    node    replica id and, after the dot, which life (1 is the first); `!` marks a Byzantine node
    view    its view; `?` while it changes it
    height  executed and durable / certified
    event   what happened: a message as `kind v<view> h<height> <digest> <- <sender>`, `timer <name>`, `durable <h>`,
            `submit <count>`, `work`, `up <peer>`, `down <peer>`, `start`
    =>      what it led to: persists (P), sends and broadcasts by kind, executed blocks (X), certificates saved (C),
            refusals (!reason), views, answers

Lines that begin with `--` are faults and other things that the simulator does.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256

from bcami.faults.simulator.node import Machine
from bcami.model import events
from bcami.model.batch import Batch, BatchCertificate, Endorsement
from bcami.model.chain import BlockBundle
from bcami.model.consensus import Checkpoint, Commit, NewView, Prepare, PrePrepare, ViewChange
from bcami.model.wire import FetchBatch, FetchBlocks, FetchSnapshot, PeerMessage, SnapshotPart, Status
from bcami.node.core import effects as core


def describe(message: PeerMessage) -> str:
    """Return a message in a few characters."""
    match message:
        case PrePrepare() | Prepare() | Commit():
            name = type(message).__name__.lower()
            return f"{name} v{message.view} h{message.height} {message.digest[:2].hex()} r{message.replica}"
        case Checkpoint():
            return f"checkpoint h{message.height} {message.header_hash[:2].hex()} r{message.replica}"
        case ViewChange():
            low = 0 if message.stable is None else message.stable.height
            return f"viewchange v{message.view} s{low} p{len(message.prepared)} r{message.replica}"
        case NewView():
            return f"newview v{message.view} o{len(message.pre_prepares)} r{message.replica}"
        case Batch():
            return f"batch {message.collector}/{message.number} x{len(message.transactions)}"
        case Endorsement():
            return f"endorse {message.collector}/{message.number} {message.batch_digest[:2].hex()} r{message.replica}"
        case BatchCertificate():
            return f"certificate {message.collector}/{message.number} {message.batch_digest[:2].hex()}"
        case Status():
            mark = "?" if message.in_view_change else "~" if message.suspects else ""
            return f"status v{message.view}{mark} {message.executed}/{message.certified}"
        case FetchBatch():
            return f"fetch {message.collector}/{message.number}"
        case FetchBlocks():
            return f"fetch blocks {message.first}-{message.last}"
        case BlockBundle():
            return f"block h{message.block.header.height}"
        case FetchSnapshot():
            return f"fetch snapshot h{message.height} {message.after[:4].hex()}"
        case SnapshotPart():
            return f"snapshot h{message.header.height} x{len(message.rows)}{' end' if message.is_last else ''}"
        case _:  # a kind that is newer than this list
            return type(message).__name__


class Trace:
    """Hashes each step; writes it down when somebody wants to read it."""

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        self.steps = 0
        self._write = write
        self._hash = sha256()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def step(self, now_ms: int, machine: Machine, what: str, effects: Sequence[core.Effect], mark: str) -> None:
        """Take one step down."""
        self.steps += 1
        self._hash.update(f"{now_ms} {machine.index}.{machine.lives} {what} {len(effects)}\n".encode())
        if self._write is not None and machine.core is not None:
            node = machine.core
            view = f"v{node.view}{'?' if node.pbft.in_view_change else ''}"
            height = f"{node.height}/{node.certified_height}"
            who = f"{machine.index}.{machine.lives}{mark}"
            self._write(f"{now_ms:>7} {who:<5} {view:<5} {height:<7} {what:<34} => {_summary(effects)}".rstrip())

    def note(self, now_ms: int, what: str) -> None:
        """Take down what the simulator did."""
        self._hash.update(f"{now_ms} -- {what}\n".encode())
        if self._write is not None:
            self._write(f"{now_ms:>7} -- {what}")


def _summary(effects: Sequence[core.Effect]) -> str:
    parts: list[str] = []
    for effect in effects:
        match effect:
            case core.Persist(puts, deletes):
                parts.append(f"P{len(puts)}" + (f"-{len(deletes)}" if deletes else ""))
            case core.Send(to, message):
                parts.append(f"[{describe(message)}]->{to}")
            case core.Broadcast(message):
                parts.append(f"[{describe(message)}]->*")
            case core.CommitBlock(commit):
                parts.append(f"X{commit.block.header.height}x{len(commit.block.outcomes)}")
            case core.SaveCertificate(certificate):
                parts.append(f"C{certificate.height}")
            case core.TicketReady(ticket):
                parts.append(f"answer#{ticket}")
            case core.Observe(observation):
                parts += _observation(observation)
            case _:
                pass
    return " ".join(parts)


def _observation(observation: events.Observation) -> list[str]:
    match observation:
        case events.Refused():
            return [f"!{observation.reason.value}"]
        case events.ViewChangeStarted():
            return [f"leave->v{observation.view} ({observation.cause})"]
        case events.ViewEntered():
            return [f"enter v{observation.view} primary {observation.primary}"]
        case events.PrimarySuspected():
            return [f"suspect r{observation.primary} ({observation.wait_ms} > {observation.demand_ms} ms)"]
        case events.EquivocationSeen():
            return [f"EVIDENCE r{observation.replica} {observation.what}"]
        case events.Halted():
            return [f"HALT {observation.reason}"]
        case _:
            return []
