"""I12: who is told two contradicting statements keeps evidence, and evidence convicts nobody who is honest.

What ordering promises (`bcami.model.evidence`, `bcami.pbft`): a replica keeps what others sign for each place that is
*open* to it, and a second statement for the same place that contradicts the first becomes evidence, whoever passes it
on. So two honest nodes that hear different things, and talk about the place while it is open, leave evidence. Open are

    pre_prepare, prepare, commit     the view that the replica is active in, a height within its watermarks
    checkpoint                       a height within its watermarks
    view_change                      a view above the active one, the highest that the sender has left for
    new_view                         the active view

Here that is watched from outside: from what arrives at each honest node, what it refuses, and where it says that it
stands. At the end of a phase each contradiction that a node was told has its evidence, of that node, which
convicts whom it names before anybody who knows genesis. Not asked for: places that are closed to the node
or not open yet (what is kept for later is bounded, so that a statement may have made room for others), statements told
to different lives of a node, endorsements (a collector looks only at those of its own batch), and more than
`EVIDENCE_PER_REPLICA_MAX` against one replica.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from bcami.crypto.evidence import verify_evidence
from bcami.crypto.roster import Roster
from bcami.faults.simulator.agreement import Violation
from bcami.model.consensus import Checkpoint, Commit, ConsensusMessage, NewView, Prepare, PrePrepare, ViewChange
from bcami.model.events import EquivocationSeen, Observation, Refused
from bcami.model.evidence import Place, signed_digest, statement_of
from bcami.model.reasons import Reason
from bcami.pbft.effects import EVIDENCE_PER_REPLICA_MAX
from bcami.pbft.replica import Replica

Spot = tuple[type, int, int, int]
"""Kind, signer, view and height of a statement: its place, without the cost of one."""


@dataclass(frozen=True, slots=True)
class Told:
    """A statement that a node has been given and may keep."""

    node: int
    spot: Spot
    content: bytes


@dataclass(slots=True)
class _Memory:
    """What one life of a node was told by nodes that may lie."""

    kept: dict[Spot, bytes] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    """By replica, the highest view of a VIEW-CHANGE that was kept."""
    shown: Counter[int] = field(default_factory=Counter)
    """Evidence by whom it is against."""


class Contradictions:
    """Watches what Byzantine nodes say to honest ones."""

    def __init__(self, roster: Roster, excused: set[int]) -> None:
        """`excused` are the nodes that may lie; the set may grow."""
        self._roster = roster
        self._excused = excused
        self.convicted: set[int] = set()
        """Replicas against which an honest node has evidence."""
        self.demanded = 0
        """Contradictions that a node was told, as far as they were checked."""
        self._memories: dict[int, _Memory] = {}
        self._owed: dict[tuple[int, Place], None] = {}
        self._proved: set[tuple[int, Place]] = set()
        self._judged: dict[tuple[bytes, bytes], Place] = {}

    def begins(self, node: int) -> None:
        """A node begins a life: what it was told in the one before is not held against it."""
        self._memories[node] = _Memory()

    def arrives(self, node: int, replica: Replica, message: ConsensusMessage) -> Told | None:
        """Look at a message before the node does; what is returned goes to `taken` when the node has looked at it."""
        signer = message.replica
        if signer not in self._excused or node in self._excused or node == signer:
            return None
        if message.epoch != self._roster.epoch:
            return None
        told = Told(node, _spot(message), self._content(message))
        memory = self._memories[node]
        known = memory.kept.get(told.spot)
        if known is None:
            return told
        if known != told.content and self._is_open(replica, message, memory):
            place, said = statement_of(message, self._roster.chain)
            is_full = memory.shown[signer] >= EVIDENCE_PER_REPLICA_MAX
            if not is_full and self._roster.verify_by(
                signer, said.signature, signed_digest(self._roster.chain, place, said)
            ):
                self._owed[node, place] = None
        return None

    def taken(self, told: Told, replica: Replica, observations: Iterable[Observation]) -> None:
        """Take note of what the node made of it."""
        kind, signer, view, height = told.spot
        if any(isinstance(item, Refused) and item.peer == signer for item in observations):
            return
        memory = self._memories[told.node]
        if kind is ViewChange:
            memory.left[signer] = max(view, memory.left.get(signer, 0))
        elif kind is not NewView:
            is_active = kind is Checkpoint or _is_active(replica, view)
            if not is_active or not self._is_within(replica, height):
                return  # kept for later, perhaps
        memory.kept[told.spot] = told.content

    def observed(self, node: int, seen: EquivocationSeen) -> None:
        """Check that the evidence of an honest node holds, and that it is not against another one. Raises Violation."""
        if seen.replica not in self._excused:
            raise Violation("I12", f"node {node} convicts the honest node {seen.replica}")
        place = self._judge(node, seen)
        self.convicted.add(seen.replica)
        self._memories[node].shown[seen.replica] += 1
        self._proved.add((node, place))

    def _judge(self, node: int, seen: EquivocationSeen) -> Place:
        pair = (seen.first, seen.second)
        place = self._judged.get(pair)
        if place is None:
            found = verify_evidence(seen.first, seen.second, self._roster)
            if isinstance(found, Reason):
                raise Violation("I12", f"what node {node} keeps as evidence proves nothing: {found.value}")
            place = self._judged[pair] = found.place
        if place.replica != seen.replica:
            raise Violation("I12", f"node {node} names {seen.replica} where its evidence is against {place.replica}")
        return place

    def check(self) -> None:
        """Check that each contradiction which a node was told has its evidence. Raises Violation."""
        for node, place in self._owed:
            if (node, place) not in self._proved:
                where = f"{place.kind.value} at view {place.view}, height {place.height}"
                raise Violation(
                    "I12", f"node {node} was told two contradicting {where} of {place.replica}: no evidence"
                )
        self.demanded += len(self._owed)
        self._owed.clear()

    def _is_open(self, replica: Replica, message: ConsensusMessage, memory: _Memory) -> bool:
        """Tell whether the node keeps statements of this place, and has kept them since it was told the first."""
        match message:
            case PrePrepare() | Prepare() | Commit():
                return _is_active(replica, message.view) and self._is_within(replica, message.height)
            case Checkpoint():
                return self._is_within(replica, message.height)
            case ViewChange():
                is_above = message.view >= replica.view + (not replica.in_view_change)
                return is_above and message.view == memory.left.get(message.replica)
            case NewView():
                return _is_active(replica, message.view)
            case _:
                assert_never(message)

    def _is_within(self, replica: Replica, height: int) -> bool:
        low = replica.low_watermark
        return low < height <= low + self._roster.genesis.parameters.window

    def _content(self, message: ConsensusMessage) -> bytes:
        match message:
            case PrePrepare() | Prepare() | Commit():
                return message.digest
            case Checkpoint():
                return message.header_hash
            case _:
                return statement_of(message, self._roster.chain)[1].content


def _spot(message: ConsensusMessage) -> Spot:
    match message:
        case PrePrepare() | Prepare() | Commit():
            return type(message), message.replica, message.view, message.height
        case Checkpoint():
            return Checkpoint, message.replica, 0, message.height
        case _:
            return type(message), message.replica, message.view, 0


def _is_active(replica: Replica, view: int) -> bool:
    return view == replica.view and not replica.in_view_change
