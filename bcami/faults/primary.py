"""Primaries that lie, dawdle or choose. As a backup such a node does nothing unusual, until its view comes."""

from collections import OrderedDict
from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from bcami.faults.behaviour import Behaviour, Options, flipped
from bcami.model.batch import BatchCertificate
from bcami.model.consensus import Commit, PrePrepare, Proposal
from bcami.model.wire import PeerMessage

if TYPE_CHECKING:
    from bcami.faults.node import FaultyNode

REMEMBERED_MAX: Final = 256
"""Places (view, height) of which a behaviour remembers what it told whom."""


def other_proposal(proposal: Proposal) -> Proposal:
    """Return a proposal as valid as the given one, and different: a millisecond later."""
    return msgspec.structs.replace(proposal, time_ms=proposal.time_ms + 1)


class EquivocatingPrimary(Behaviour[Options]):
    """Proposes one thing to some backups and another to the rest, and commits to both."""

    name = "equivocating_primary"
    family = "primary"
    claim = "at most one of them is decided; whoever sees both keeps them as evidence; service goes on"

    def __init__(self, options: Options, randomness: Random) -> None:
        super().__init__(options, randomness)
        self._told: OrderedDict[tuple[int, int], tuple[frozenset[int], PrePrepare]] = OrderedDict()

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if isinstance(message, PrePrepare) and message.replica == node.replica:
            deceived, other = self._other(node, message)
            return (other if to in deceived else message,)
        if isinstance(message, Commit) and message.replica == node.replica:
            told = self._told.get((message.view, message.height))
            if told is not None and to in told[0]:
                return (node.sign(msgspec.structs.replace(message, digest=told[1].digest)),)
        return (message,)

    def _other(self, node: "FaultyNode", first: PrePrepare) -> tuple[frozenset[int], PrePrepare]:
        key = (first.view, first.height)
        if key not in self._told:
            half = self.random.sample(node.others, max(1, len(node.others) // 2))
            other = node.statements.pre_prepare(first.view, first.height, other_proposal(first.proposal))
            self._told[key] = (frozenset(half), other)
            if len(self._told) > REMEMBERED_MAX:
                self._told.popitem(last=False)
        return self._told[key]


class SwappedProposal(Behaviour[Options]):
    """Sends some backups another proposal under the digest and signature of the first."""

    name = "swapped_proposal"
    family = "primary"
    claim = "a digest is computed from what was received, so the swapped proposal is refused"

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, PrePrepare) or self.random.random() < 0.5:
            return (message,)
        return (msgspec.structs.replace(message, proposal=other_proposal(message.proposal)),)


class SlowOptions(Options, frozen=True, kw_only=True):
    share: Annotated[float, msgspec.Meta(gt=0, le=2)] = 0.9
    """Of the view timer, by which every proposal is late."""


class SlowPrimary(Behaviour[SlowOptions]):
    """Holds every proposal back until just before the view timer would run out."""

    name = "slow_primary"
    family = "primary"
    claim = "it is replaced, or costs no more than the bound on its throttling"
    options_type = SlowOptions

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, PrePrepare) or message.replica != node.replica:
            return (message,)
        late_ms = round(self.options.share * node.roster.genesis.parameters.view_timer_ms)
        return () if node.hold_back(to, message, now_ms + late_ms) else (message,)


class ThrottleOptions(Options, frozen=True, kw_only=True):
    every_ms: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 300
    """Shortest time between two proposals that leave."""


class ThrottlingPrimary(Behaviour[ThrottleOptions]):
    """Lets out a proposal only every so often, however much waits; the view timer sees progress all the time."""

    name = "throttling_primary"
    family = "primary"
    claim = "it is replaced, or every lane moves on within what the monitor allows"
    options_type = ThrottleOptions

    def __init__(self, options: ThrottleOptions, randomness: Random) -> None:
        super().__init__(options, randomness)
        self._place: tuple[int, int] | None = None
        self._free_ms = 0
        """When the newest proposal leaves."""

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, PrePrepare) or message.replica != node.replica:
            return (message,)
        if self._place != (message.view, message.height):
            self._place = (message.view, message.height)
            self._free_ms = max(now_ms, self._free_ms + self.options.every_ms)
        if self._free_ms <= now_ms:
            return (message,)
        return () if node.hold_back(to, message, self._free_ms) else (message,)


class LateCollectorOptions(Options, frozen=True, kw_only=True):
    collector: Annotated[int, msgspec.Meta(ge=0, le=63)]
    """The node whose certificates are ordered late."""
    share: Annotated[float, msgspec.Meta(gt=0, le=2)] = 0.8
    """Of the fairness time, for which the primary does as if it had not got them."""


class LateCollector(Behaviour[LateCollectorOptions]):
    """Orders one collector's certificates late, and everybody else's at once."""

    name = "late_collector"
    family = "censor"
    claim = "it is replaced, by the fairness timer of that collector or by the monitor"
    options_type = LateCollectorOptions

    def __init__(self, options: LateCollectorOptions, randomness: Random) -> None:
        super().__init__(options, randomness)
        self._number = 0
        self._first_ms = 0

    def incoming(self, node: "FaultyNode", peer: int, message: PeerMessage, now_ms: int) -> bool:
        if not isinstance(message, BatchCertificate) or message.collector != self.options.collector:
            return True
        if message.number > self._number:
            self._number, self._first_ms = message.number, now_ms
        return now_ms - self._first_ms >= self.options.share * node.roster.genesis.parameters.fairness_ms


class SequenceGap(Behaviour[Options]):
    """Proposes at heights far above the next one, up to and beyond the window, and leaves the gap open."""

    name = "sequence_gap"
    family = "primary"
    claim = "the window bounds what is kept; a view change fills the gap with null proposals"

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, PrePrepare) or message.replica != node.replica:
            return (message,)
        window = node.roster.genesis.parameters.window
        far = self.random.choice((1, window - 1, window, window + 1, 2 * window, 2**40))
        return (node.statements.pre_prepare(message.view, message.height + far, message.proposal),)


class TimeOptions(Options, frozen=True, kw_only=True):
    ahead_ms: Annotated[int, msgspec.Meta(ge=-(10**9), le=10**9)] = 4_500
    """Added to the time of each proposal; negative for the past."""


class FalseTime(Behaviour[TimeOptions]):
    """Proposes with a time that is not its clock's."""

    name = "false_time"
    family = "primary"
    claim = "a time more than the allowed skew ahead is not voted for; block time never falls"
    options_type = TimeOptions

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, PrePrepare) or message.replica != node.replica:
            return (message,)
        time_ms = max(0, message.proposal.time_ms + self.options.ahead_ms)
        false = msgspec.structs.replace(message.proposal, time_ms=time_ms)
        return (node.statements.pre_prepare(message.view, message.height, false),)


class ForgedCertificate(Behaviour[Options]):
    """Proposes and spreads batch certificates that were tampered with: too few votes, doubled votes, wrong ones."""

    name = "forged_certificate"
    family = "primary"
    claim = "a certificate that does not verify is neither kept nor voted for"

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if isinstance(message, BatchCertificate):
            return (self._tampered(message),)
        if isinstance(message, PrePrepare) and message.replica == node.replica and message.proposal.certificates:
            first, *rest = message.proposal.certificates
            false = msgspec.structs.replace(message.proposal, certificates=(self._tampered(first), *rest))
            return (node.statements.pre_prepare(message.view, message.height, false),)
        return (message,)

    def _tampered(self, certificate: BatchCertificate) -> BatchCertificate:
        replace = msgspec.structs.replace
        first, *rest = certificate.votes
        ways = (
            lambda: replace(certificate, votes=certificate.votes[:-1] or certificate.votes),
            lambda: replace(certificate, votes=(first, *certificate.votes)),
            lambda: replace(certificate, votes=(first,) * len(certificate.votes)),
            lambda: replace(
                certificate, votes=(replace(first, signature=flipped(first.signature, self.random)), *rest)
            ),
            lambda: replace(certificate, batch_digest=flipped(certificate.batch_digest, self.random)),
            lambda: replace(certificate, number=certificate.number + 1),
            lambda: replace(certificate, count=certificate.count + 1),
        )
        return self.random.choice(ways)()
