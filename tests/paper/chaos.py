"""One seed: a cluster under faults that all end, then the question whether everything sent is executed everywhere.

Phase one checks safety only (the driver checks it after every step); phase two heals the network, starts what is down
and wants liveness within a stated time (I11). In phase three the primary dies for good, after it has shown a last
certificate to just enough others.
"""

import random
from collections.abc import Callable, Sequence

import msgspec

from bcami.model.consensus import Commit, ConsensusMessage, Prepare, PrePrepare, Proposal, ViewChange
from bcami.pbft.statements import Statements
from tests.paper.driver import Cluster
from tests.paper.keys import ToySigner, batch, statements_of

Behaviour = Callable[[random.Random, Statements, int, ConsensusMessage], Sequence[ConsensusMessage]]


def silent(chance: random.Random, own: Statements, receiver: int, message: ConsensusMessage) -> list[ConsensusMessage]:
    """F20: nothing to some."""
    return [] if receiver % 2 else [message]


def equivocating(
    chance: random.Random, own: Statements, receiver: int, message: ConsensusMessage
) -> list[ConsensusMessage]:
    """F19, F26: other proposals and other votes to half of the replicas."""
    if receiver % 2 == 0 or message.replica != own.replica:
        return [message]
    match message:
        case PrePrepare():
            other = Proposal(message.proposal.certificates, message.proposal.time_ms + 1)
            return [own.pre_prepare(message.view, message.height, other)]
        case Prepare() | Commit():
            make = own.prepare if isinstance(message, Prepare) else own.commit
            return [make(message.view, message.height, bytes(32)), message]
        case _:
            return [message]


def mutating(
    chance: random.Random, own: Statements, receiver: int, message: ConsensusMessage
) -> list[ConsensusMessage]:
    """F30, F32: small changes of fields, signed again or not, and old messages replayed."""
    draw = chance.random()
    if draw < 0.5 or message.replica != own.replica:
        return [message]
    if isinstance(message, ViewChange):
        changed: ConsensusMessage = msgspec.structs.replace(message, prepared=message.prepared[:-1])
        if draw > 0.75:
            changed = own.view_change(message.view + chance.randint(0, 3), message.stable, message.prepared[1:])
        return [changed, message] if draw > 0.9 else [changed]
    field = chance.choice([name for name in ("view", "height") if hasattr(message, name)])
    moved = msgspec.structs.replace(message, **{field: max(0, getattr(message, field) + chance.choice((-1, 1, 40)))})
    if draw > 0.7:
        moved = msgspec.structs.replace(moved, signature=ToySigner(own.replica).sign(own.digest_of(moved)))
    return [moved, message]


def spamming(
    chance: random.Random, own: Statements, receiver: int, message: ConsensusMessage
) -> list[ConsensusMessage]:
    """F27: view-changes for huge and alternating views beside every message."""
    view = chance.choice((1, 2, 3, 7, 10_000, 2**62))
    return [message, own.view_change(view, None, ())]


BEHAVIOURS: dict[str, Behaviour] = {
    "silent": silent,
    "equivocating": equivocating,
    "mutating": mutating,
    "spamming": spamming,
}


class Chaos:
    """Draws faults from the seed and applies them while batches keep coming."""

    def __init__(self, seed: int, n: int | None = None) -> None:
        self.random = random.Random(seed)
        draw = self.random
        self.n = n or draw.choice((4, 4, 4, 7))
        window = draw.choice((1, 2, 4, 16))
        self.cluster = Cluster(
            self.n,
            seed,
            execution_ms=draw.choice((0, 5, 60)),
            window=window,
            view_timer_ms=draw.choice((30, 80, 400)),  # the shortest leave views with proposals half prepared
            view_timer_cap_ms=2000,
        )
        self.cluster.network.delay_ms = draw.choice(((1, 5), (1, 40), (5, 120)))
        self.cluster.network.loss = draw.choice((0.0, 0.0, 0.05, 0.25))
        self.cluster.network.duplication = draw.choice((0.0, 0.1))
        self.cluster.crash_rate = draw.choice((0.0, 0.0, 0.002, 0.02))
        self.faulty = (self.n - 1) // 3
        if draw.random() < 0.5:
            self._turn(draw.sample(range(self.n), draw.randint(1, self.faulty)))
        self.numbers = [0] * self.n

    def _turn(self, replicas: list[int]) -> None:
        cluster = self.cluster
        cluster.byzantine = set(replicas)
        chosen = {index: self.random.choice(sorted(BEHAVIOURS)) for index in replicas}
        own = {index: statements_of(cluster.roster, index) for index in replicas}

        def tamper(sender: int, receiver: int, message: ConsensusMessage) -> Sequence[ConsensusMessage]:
            return BEHAVIOURS[chosen[sender]](self.random, own[sender], receiver, message)

        cluster.tamper = tamper

    def run(self) -> None:
        cluster, draw = self.cluster, self.random
        cluster.start()
        for _ in range(draw.randint(8, 16)):
            for _ in range(draw.randint(0, 3)):
                collector = draw.randrange(self.n)
                self.numbers[collector] += 1
                cluster.gossip(batch(collector, self.numbers[collector]))
            self._disturb()
            cluster.run(draw.choice((20, 200, 700)))
        self.heal()
        cluster.run_until(cluster.all_executed, 40_000)
        if self._bereave():
            cluster.run_until(cluster.all_executed, 40_000)
        assert not [node.halted for node in cluster.nodes if node.halted], cluster.describe()

    def _bereave(self) -> bool:
        """Let the primary die while it spreads a certificate: weak correct others have it, and the rest have nothing.

        So the rest have no reason of their own to leave the view: nothing waits for them, and no timer of theirs runs.
        False when one more than f would be faulty.
        """
        cluster = self.cluster
        newest = max((node.replica for node in cluster.live() if node.replica is not None), key=lambda item: item.view)
        primary = newest.primary
        if len(cluster.byzantine | {primary}) > self.faulty:
            return False
        holders = [node.index for node in cluster.live() if node.index != primary][: self.faulty + 1]
        self.numbers[primary] += 1
        cluster.gossip(batch(primary, self.numbers[primary]), to=holders)
        cluster.crash(primary)
        return True

    def _disturb(self) -> None:
        cluster, draw = self.cluster, self.random
        match draw.randrange(8):
            case 0:
                cluster.network.isolate(draw.randrange(self.n), self.n)
            case 1:
                order = draw.sample(range(self.n), self.n)
                cut = draw.randint(1, self.n - 1)
                cluster.network.split(order[:cut], order[cut:])
            case 2:
                cluster.network.blocked.add((draw.randrange(self.n), draw.randrange(self.n)))
            case 3 | 4:
                cluster.network.blocked.clear()
            case 5:
                cluster.crash(draw.randrange(self.n))
            case 6:
                for node in cluster.nodes:
                    if draw.random() < 0.3:
                        cluster.crash(node.index)
        for node in cluster.nodes:
            if node.replica is None and draw.random() < 0.4:
                cluster.restart(node.index)

    def heal(self) -> None:
        cluster = self.cluster
        cluster.network.heal()
        cluster.network.delay_ms = (1, 20)
        cluster.crash_rate = 0.0
        for node in cluster.nodes:
            if node.replica is None:
                cluster.restart(node.index)
        for certificate in cluster.certificates:  # the collectors' own resend
            for node in cluster.nodes:
                if node.replica is not None:
                    from bcami.pbft import CertificateReady

                    cluster.step(node.index, CertificateReady(certificate))
