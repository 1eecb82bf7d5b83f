"""ByzzFuzz [Winter et al., OOPSLA'23]: small changes to what Byzantine nodes say, and faults by rounds (fault F32).

Random bytes die in a decoder, and random messages in a signature check. What finds bugs is *small scope*: a message
that the node would send, with a view or a height off by one, the digest of an earlier proposal, an old signature. The
node signs what it changed with its own key, except where the old signature is the change.

A seed draws up to f Byzantine nodes and a handful of faults, for one round or for all: a *process fault* changes one
kind of message of one Byzantine node, for all or some of those who hear it; a *network fault* divides the nodes. Honest
nodes oversleep and restart as in the sample of `twins`. In the end everybody hears everybody, and agreement is asked
for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from msgspec.structs import replace

from bcami.crypto.signatures import Signer
from bcami.faults.simulator.agreement import Violation
from bcami.faults.simulator.campaign import Broken, Found
from bcami.faults.simulator.events import stream
from bcami.faults.simulator.rounds import Instance, Rounds
from bcami.faults.simulator.signing import in_force
from bcami.faults.simulator.twins import HEALED_ROUNDS, draw_parts
from bcami.model.block import BlockCertificate, CheckpointVote
from bcami.model.consensus import (
    NULL_PROPOSAL,
    Checkpoint,
    Commit,
    ConsensusMessage,
    NewView,
    Prepare,
    PreparedProof,
    PrePrepare,
    ViewChange,
)
from bcami.pbft.statements import Statements

KINDS: Final = (PrePrepare, Prepare, Commit, Checkpoint, ViewChange, NewView)
CHANGES: Final = ("view", "height", "digest", "signature", "content", "forgery", "nothing")


@dataclass(slots=True)
class ProcessFault:
    """One change to one kind of message of one node, in one round."""

    node: int
    kind: type[ConsensusMessage]
    change: str
    by: int
    """+1 or -1."""
    victims: frozenset[int]


@dataclass(frozen=True, slots=True)
class Voice:
    """What a node signs with."""

    statements: Statements
    signer: Signer

    def sign(self, message: ConsensusMessage) -> ConsensusMessage:
        return replace(message, signature=self.signer.sign(self.statements.digest_of(message)))


@dataclass(slots=True)
class Fuzzer:
    """Changes messages of Byzantine nodes by the faults of the round."""

    voices: dict[int, Voice]
    """Of the Byzantine nodes."""
    faults: list[ProcessFault] = field(default_factory=list)
    said: dict[tuple[int, str], list[ConsensusMessage]] = field(default_factory=dict)
    """What each node said before, unchanged, by kind."""
    changed: int = 0

    def alter(self, sender: Instance, receiver: Instance, message: ConsensusMessage) -> Sequence[ConsensusMessage]:
        """Return what arrives in place of a message."""
        own = self.voices.get(sender.replica)
        if own is None or message.replica != sender.replica:
            return (message,)
        before = self.said.setdefault((sender.replica, type(message).__name__), [])
        arriving = message
        for fault in self.faults:
            if fault.node == sender.replica and fault.kind is type(message) and receiver.replica in fault.victims:
                if fault.change == "nothing":
                    return ()
                arriving = _changed(arriving, fault, before, own)
        if not before or before[-1] is not message:
            before.append(message)
        self.changed += arriving is not message
        return (arriving,)


def _changed(
    message: ConsensusMessage, fault: ProcessFault, before: Sequence[ConsensusMessage], own: Voice
) -> ConsensusMessage:
    earlier = next((item for item in reversed(before) if item.signature != message.signature), None)
    changed: ConsensusMessage
    match fault.change:
        case "signature":
            return message if earlier is None else replace(message, signature=earlier.signature)
        case "view" if not isinstance(message, Checkpoint):
            changed = replace(message, view=max(0, message.view + fault.by))
        case "height" if not isinstance(message, ViewChange | NewView):
            changed = replace(message, height=max(0, message.height + fault.by))
        case "digest":
            changed = _with_earlier_digest(message, earlier)
        case "forgery":
            changed = _forged(message, fault.by, own.statements, own)
        case "content":
            changed = _with_other_content(message, fault.by, own.statements)
        case _:
            return message
    return own.sign(changed)


def _with_earlier_digest(message: ConsensusMessage, earlier: ConsensusMessage | None) -> ConsensusMessage:
    """Return the message with what it says taken from the one before of its kind."""
    match message, earlier:
        case PrePrepare(), PrePrepare():
            return replace(message, digest=earlier.digest, proposal=earlier.proposal)
        case Prepare() | Commit(), Prepare() | Commit():
            return replace(message, digest=earlier.digest)
        case Checkpoint(), Checkpoint():
            return replace(message, header_hash=earlier.header_hash)
        case ViewChange(), ViewChange():
            return replace(message, stable=earlier.stable, prepared=earlier.prepared)
        case NewView(), NewView():
            return replace(message, view_changes=earlier.view_changes, pre_prepares=earlier.pre_prepares)
        case _:
            return message


def _with_other_content(message: ConsensusMessage, by: int, statements: Statements) -> ConsensusMessage:
    """Return the message with a little less in it, or with a time a little off."""
    match message:
        case PrePrepare():
            proposal = replace(message.proposal, time_ms=message.proposal.time_ms + by)
            if by > 0:
                return replace(message, proposal=proposal, digest=statements.digest_of_proposal(proposal))
            return replace(message, proposal=proposal)
        case ViewChange():
            return replace(message, prepared=message.prepared[1:]) if by > 0 else replace(message, stable=None)
        case NewView():
            if by > 0:
                return replace(message, pre_prepares=message.pre_prepares[:-1])
            return replace(message, view_changes=message.view_changes[1:])
        case _:
            return message


def _forged(message: ConsensusMessage, by: int, statements: Statements, own: Voice) -> ConsensusMessage:
    """Return the message with proofs of what never was: a view change that prepared, a new view that carried."""
    match message:
        case ViewChange() if by > 0:
            return replace(message, prepared=tuple(_forged_proof(item, message.view, own) for item in message.prepared))
        case ViewChange():
            height = 1 if message.stable is None else message.stable.height + 1
            votes = tuple(CheckpointVote(node, bytes(64)) for node in range(statements.quorum.strong))
            return replace(message, stable=BlockCertificate(message.epoch, height, bytes(32), votes), prepared=())
        case NewView():
            orders = [statements.pre_prepare(message.view, item.height, NULL_PROPOSAL) for item in message.pre_prepares]
            return replace(message, pre_prepares=tuple(orders))
        case _:
            return message


def _forged_proof(proof: PreparedProof, view: int, own: Voice) -> PreparedProof:
    """Return a proof that something else was prepared at this height in the view just before."""
    first = proof.pre_prepare
    proposal = replace(first.proposal, time_ms=first.proposal.time_ms + 1)
    digest, primary = own.statements.digest_of_proposal(proposal), own.statements.primary(view - 1)
    return PreparedProof(
        replace(first, view=view - 1, digest=digest, replica=primary, proposal=proposal),
        tuple(item for item in proof.prepares if item.replica != primary),
    )


# Seeds.


def play_seed(seed: int) -> Found:
    """Play what a seed draws, then let everybody hear everybody."""
    draw = stream(seed, "byzzfuzz")
    nodes = draw.choices((4, 7), (85, 15))[0]
    views = draw.randint(4, 8)
    found = Found(schedules=1, played=views)
    with in_force(real=False):
        group = Rounds(nodes, draw.choice((2, 4)))
        group.excused |= set(draw.sample(range(nodes), draw.randint(1, (nodes - 1) // 3)))
        try:
            _play_drawn(group, draw, views)
            group.choose = None
            group.heal(HEALED_ROUNDS)
        except Violation as violation:
            found.broken.append(Broken(violation.invariant, violation.what, str(seed)))
    found.steps = group.steps
    found.views = max(item.pbft.view for item in group.instances)
    found.convicted = int(bool(group.convicted))
    return found


def _play_drawn(group: Rounds, draw: Random, views: int) -> None:
    faulty = sorted(group.excused)
    fuzzer = Fuzzer(
        {
            node: Voice(
                Statements(group.instances[node].roster, node, group.instances[node].signer),
                group.instances[node].signer,
            )
            for node in faulty
        }
    )
    group.alter = fuzzer.alter
    cut, oversleep = draw.choice((0.2, 0.6)), draw.choice((0.0, 0.2))
    restart, faults_max = draw.choice((0.0, 0.2)), draw.choice((1, 3, 6))
    if draw.random() < 0.5:
        group.choose = draw.randrange
    lasts = draw.random() < 0.4
    for _ in range(views):
        if not (lasts and fuzzer.faults):
            fuzzer.faults = [_draw_fault(draw, faulty, group.nodes) for _ in range(draw.randint(0, faults_max))]
        leader = draw.choice(faulty) if draw.random() < 0.4 else draw.randrange(group.nodes)
        everybody = (frozenset(range(group.nodes)),)
        parts = draw_parts(draw, group.nodes) if draw.random() < cut else everybody
        asleep = [node for node in range(group.nodes) if draw.random() < oversleep]
        group.play(leader, parts, asking=draw.random() < 0.6, asleep=asleep)
        if draw.random() < restart:
            group.restart(draw.randrange(group.nodes))
    fuzzer.faults = []


def _draw_fault(draw: Random, faulty: Sequence[int], nodes: int) -> ProcessFault:
    victims = range(nodes) if draw.random() < 0.4 else draw.sample(range(nodes), draw.randint(1, nodes - 1))
    kind, change = draw.choice(KINDS), draw.choice(CHANGES)
    if kind in (ViewChange, NewView) and draw.random() < 0.5:
        change = "forgery"  # what proofs are for; the other changes break them in passing
    return ProcessFault(draw.choice(faulty), kind, change, draw.choice((1, -1)), frozenset(victims))
