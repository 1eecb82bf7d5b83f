"""False answers to those who ask: altered blocks, false status, useless shares of keys; and questions as a flood."""

from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from bcami.faults.behaviour import Behaviour, Options, flipped
from bcami.faults.votes import mutated
from bcami.model.chain import BlockBundle, StateEntry
from bcami.model.reasons import Reason
from bcami.model.registration import (
    Contribution,
    ContributionAnswer,
    ContributionRequest,
    contribution_digest,
    request_hash,
)
from bcami.model.wire import FetchBlocks, PeerMessage, SnapshotPart, Status
from bcami.node.core.effects import Effect, Send

if TYPE_CHECKING:
    from bcami.faults.node import FaultyNode

AHEAD_BLOCKS: Final = 10_000
"""How far ahead of everybody a liar claims to be, so that others come and ask."""


class BadStateTransfer(Behaviour[Options]):
    """Claims to be ahead, and answers with altered blocks and snapshots: a wrong part, an old one, one without end."""

    name = "bad_state_transfer"
    family = "answers"
    claim = "a node that catches up believes certificates only, and finds an honest peer"

    def __init__(self, options: Options, randomness: Random) -> None:
        super().__init__(options, randomness)
        self._last: BlockBundle | None = None
        self._first_part: SnapshotPart | None = None
        self._ahead = randomness.choice((0, AHEAD_BLOCKS))
        """One that claims no more than it has is asked for snapshots as well."""

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if isinstance(message, Status):
            executed, certified = message.executed + self._ahead, message.certified + self._ahead
            return (msgspec.structs.replace(message, executed=executed, certified=certified),)
        if isinstance(message, SnapshotPart):
            return self._altered_part(message)
        if not isinstance(message, BlockBundle):
            return (message,)
        earlier, self._last = self._last, message
        return (self._altered(message, earlier),)

    def _altered_part(self, part: SnapshotPart) -> tuple[SnapshotPart, ...]:
        """Return what goes in place of a part: a wrong one, an older snapshot, one that never ends, a lower height."""
        replace = msgspec.structs.replace
        old = self._first_part
        if old is None:
            self._first_part = old = part
        draw = self.random.randrange(7)
        if draw == 0:
            return ()
        if draw == 1 and part.rows:
            (key, entry), *rest = part.rows
            return (replace(part, rows=((key, replace(entry, value=flipped(entry.value, self.random))), *rest)),)
        if draw == 2:
            return (replace(part, rows=part.rows[1:]),)
        if draw == 3:
            last = part.rows[-1][0] if part.rows else part.after
            more = tuple((last + bytes([number]), StateEntry(bytes(64), 1)) for number in range(64))
            return (replace(part, rows=(*part.rows, *more), is_last=False),)
        if draw == 4:
            return (old,)
        if draw == 5:
            return (replace(part, header=replace(part.header, height=max(1, part.header.height - 1))),)
        return (mutated(part, self.random),)

    def _altered(self, bundle: BlockBundle, earlier: BlockBundle | None) -> BlockBundle:
        replace = msgspec.structs.replace
        block, header = bundle.block, bundle.block.header
        draw = self.random.randrange(6)
        if draw == 0 and bundle.batches:
            return replace(bundle, batches=bundle.batches[:-1])
        if draw == 1 and block.outcomes:
            first, *rest = block.outcomes
            reason = Reason.REPLAY if first.reason is Reason.VALID else Reason.VALID
            return replace(bundle, block=replace(block, outcomes=(replace(first, reason=reason), *rest)))
        if draw == 2:
            false = replace(header, state_root=flipped(header.state_root, self.random))
            return replace(bundle, block=replace(block, header=false))
        if draw == 3 and earlier is not None:
            return replace(bundle, certificate=earlier.certificate)
        if draw == 4:
            return replace(bundle, batches=mutated(bundle.batches, self.random) if bundle.batches else ())
        changed: BlockBundle = mutated(bundle, self.random)
        return changed


class FalseStatus(Behaviour[Options]):
    """Tells others that it stands where it does not: far ahead, at the beginning, in another view."""

    name = "false_status"
    family = "answers"
    claim = "one node's claim moves nobody, makes nobody unready, and costs a bounded amount of answers"

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, Status):
            return (message,)
        heights = (0, message.certified + 1, message.certified + AHEAD_BLOCKS, 2**62)
        height = self.random.choice(heights)
        return (
            msgspec.structs.replace(
                message,
                view=self.random.choice((0, message.view, message.view + 1, 2**62)),
                in_view_change=self.random.random() < 0.5,
                suspects=self.random.random() < 0.5,
                executed=height,
                certified=height,
                lanes=tuple(self.random.choice((0, item, 2**62)) for item in message.lanes),
            ),
        )


class FalseSuspicion(Behaviour[Options]):
    """Tells everybody all the time that the primary is too slow, whoever it is."""

    name = "false_suspicion"
    family = "answers"
    claim = "a primary is left only by nodes that find it slow themselves, so a correct one stays"

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, Status) or message.suspects:
            return (message,)
        return (msgspec.structs.replace(message, in_view_change=False, suspects=True),)


class SharesOptions(Options, frozen=True, kw_only=True):
    way: Literal["share", "sealing", "signature", "refusal", "any"] = "any"
    """What is wrong: the share is not that of the point, it cannot be opened, the signature is bad, there is none."""


class LyingShares(Behaviour[SharesOptions]):
    """Answers meters that ask for a key share with one that is no good."""

    name = "lying_shares"
    family = "answers"
    claim = "the meter finds out, and takes its share from another node"
    options_type = SharesOptions

    def answer(
        self, node: "FaultyNode", request: ContributionRequest, answer: ContributionAnswer
    ) -> ContributionAnswer | Reason:
        replace = msgspec.structs.replace
        way = self.options.way
        if way == "any":
            way = self.random.choice(("share", "sealing", "signature", "refusal"))
        if way == "refusal":
            return Reason.RATE_LIMITED
        if way == "sealing":
            return replace(answer, sealed_share=flipped(answer.sealed_share, self.random))
        given = answer.contribution
        if way == "signature":
            return replace(answer, contribution=replace(given, signature=flipped(given.signature, self.random)))
        return replace(answer, contribution=self._other_point(node, request))

    def _other_point(self, node: "FaultyNode", request: ContributionRequest) -> Contribution:
        """Return a contribution, signed as it should be, of a point whose secret is not what was sealed."""
        roster, point = node.roster, node.roster.keys[node.replica]
        digest = contribution_digest(
            roster.chain, roster.epoch, request.hid, request.session, request_hash(request), node.replica, point
        )
        return Contribution(node.replica, point, node.sign_digest(digest))


class FloodOptions(Options, frozen=True, kw_only=True):
    messages: Annotated[int, msgspec.Meta(ge=1, le=500)] = 50
    """Requests in each tenth of a second, to each peer."""


class Flood(Behaviour[FloodOptions]):
    """Asks every peer for many blocks, without end."""

    name = "flood"
    family = "answers"
    claim = "what one peer gets is limited; the others are served as before"
    options_type = FloodOptions

    def tick(self, node: "FaultyNode", now_ms: int) -> list[Effect]:
        last = max(1, node.ledger.certified_height)
        effects: list[Effect] = []
        for to in node.others:
            for _ in range(self.options.messages):
                first = self.random.randint(1, last)
                effects.append(Send(to, FetchBlocks(first, first + 64)))
        return effects
