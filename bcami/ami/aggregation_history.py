"""What was summed before, read from the chain: a head-end that starts again knows what its meters will object to.

A meter keeps its own history (`bcami.aggregation.rules`) and believes no head-end about it. This is for asking only
what can be answered, and for saying why something cannot be.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from bcami.aggregation.rules import FORGET_S, are_near, overlap
from bcami.ami.aggregation_chain import AggregationChain
from bcami.client.nodes import NodeClient, NodeUnavailable
from bcami.client.proofs import prove
from bcami.client.reads import Agreed, weak_read
from bcami.crypto.roster import Roster
from bcami.model.aggregation import (
    MASKED,
    NO_NOISE,
    Mode,
    RosterHead,
    RosterPart,
    RoundView,
    StartArgument,
    VoidArgument,
    members_of,
)
from bcami.model.api import QueryAnswer, TransactionProof
from bcami.model.ids import NO_HASH
from bcami.model.signing import u64

ROUNDS_MAX: Final = 10_000
"""Rounds that are looked at, from the newest back."""
LATER_MAX: Final = 48
"""Sums of much later intervals that are looked at: the latest ones."""
_READS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class EarlierRound:
    """A round whose intervals lie within a day of those that are to be summed, or so late that these are forgotten."""

    view: RoundView
    hids: frozenset[bytes]
    """Members whose readings count as given: the final contributors; all members of a ring, whatever it ended with."""
    group: frozenset[bytes]
    """All members of its roster."""

    @property
    def number(self) -> int:
        return self.view.start.round

    @property
    def is_ring(self) -> bool:
        return self.view.start.mode != MASKED

    def stands_against(self, first_s: int, mode: Mode, group: frozenset[bytes]) -> bool:
        """Tell whether its members do not give their reading of this half-hour to such a sum of the group any more."""
        wanted, start = half_hour(first_s, mode), self.view.start
        if self.is_much_later(first_s):
            return MASKED in (start.mode, mode)
        if start.mode != mode or (mode == MASKED and self.group != group):
            return are_near(start, wanted)
        return mode == MASKED and overlap(start, wanted)

    def is_much_later(self, first_s: int) -> bool:
        """Tell whether its members, if they count, sum nothing of that time any more."""
        return _is_much_later(self.view.start, first_s)


def half_hour(first_s: int, mode: Mode) -> StartArgument:
    """Return a round over one half-hour, for comparison with others."""
    return StartArgument(0, 0, NO_HASH, mode, first_s, 1, 1, NO_NOISE)


def _is_much_later(start: StartArgument, first_s: int) -> bool:
    return first_s < start.first_s - FORGET_S


class AggregationHistory:
    """Reads earlier rounds."""

    def __init__(self, chain: AggregationChain, nodes: Sequence[NodeClient], roster: Roster) -> None:
        self._chain = chain
        self._nodes = nodes
        self._roster = roster
        self._members: dict[int, list[bytes]] = {}

    async def near(self, intervals: Sequence[int]) -> list[EarlierRound]:
        """Return earlier rounds within a day of any of the intervals, newest first, and then much later ones."""
        heads = await self._chain.heads()
        wanted = [half_hour(first_s, MASKED) for first_s in intervals]
        numbers = range(heads.round, max(0, heads.round - ROUNDS_MAX), -1)
        turns = asyncio.Semaphore(_READS_MAX)

        async def look(number: int) -> StartArgument | None:
            async with turns:
                return await self._hint(number)

        starts = dict(zip(numbers, await asyncio.gather(*map(look, numbers)), strict=True))
        found = [n for n, start in starts.items() if start is None or any(are_near(start, item) for item in wanted)]
        oldest_s = min(intervals, default=0)
        later = [start for start in starts.values() if start is not None and _is_much_later(start, oldest_s)]
        later = sorted(later, key=lambda start: start.first_s, reverse=True)[:LATER_MAX]
        found += [start.round for start in later if start.round not in found]
        rounds = [await self._round(number) for number in found]
        return [
            item
            for item in rounds
            if any(are_near(item.view.start, other) or item.is_much_later(other.first_s) for other in wanted)
        ]

    async def ending(self, number: int) -> TransactionProof | None:
        """Return the transaction that ended a round, with its receipt; None when no node has it any more."""
        key = b"aggregation/results/" + u64(number)
        written = (await self._agreed(key)).written
        for node in self._nodes:
            try:
                bundle = await node.block(written)
            except NodeUnavailable:
                continue
            for batch in () if bundle is None else bundle.batches:
                for tx in batch.batch.transactions:
                    if (tx.contract, tx.function) == ("aggregation", "void"):
                        argument = msgspec.msgpack.decode(tx.argument, type=VoidArgument)
                        if argument.round == number:
                            return await prove(tx, self._nodes, self._roster)
        return None

    async def _hint(self, number: int) -> StartArgument | None:
        """Return how a round was started, as one node has it; None when that node cannot say."""
        node = self._nodes[number % len(self._nodes)]
        try:
            answer = await node.query("aggregation", "round", u64(number))
            return None if answer.value is None else msgspec.msgpack.decode(answer.value, type=RoundView).start
        except (NodeUnavailable, msgspec.MsgspecError):
            return None

    async def _round(self, number: int) -> EarlierRound:
        view = await self._chain.round(number)
        named = await self._hids(view.start.roster)
        hids: list[bytes] = []
        settled = view.settlement
        if view.start.mode != MASKED:
            hids = named  # also of a void one: its members do not know what the supplier has heard
        elif settled is not None and settled.is_final:
            hids = [named[place] for place in members_of(settled.contributors)]
        return EarlierRound(view, frozenset(hids), frozenset(named))

    async def _hids(self, roster: int) -> list[bytes]:
        """Return a roster's members, in order."""
        if roster not in self._members:
            head = msgspec.msgpack.decode(
                (await self._agreed(b"aggregation/rosters/" + u64(roster))).value or b"", type=RosterHead
            )
            hids: list[bytes] = []
            for part in range(head.parts):
                value = (await self._agreed(b"aggregation/parts/" + u64(roster) + u64(part))).value
                hids += [member.hid for member in msgspec.msgpack.decode(value or b"", type=RosterPart).members]
            self._members[roster] = hids
        return self._members[roster]

    async def _agreed(self, key: bytes) -> Agreed:
        def ask(node: NodeClient) -> "asyncio.Future[QueryAnswer]":
            return asyncio.ensure_future(node.state(key))

        return await weak_read(self._nodes, ask, weak=self._roster.quorum.weak)
