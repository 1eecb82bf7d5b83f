"""The head-end's way to the chain: the utility's transactions of the aggregation contract, and their proofs."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from bcami.client.courier import Courier
from bcami.client.nodes import NodeClient, NodeUnavailable
from bcami.client.proofs import prove
from bcami.client.reads import weak_read
from bcami.client.utility import Utility
from bcami.codec import encode
from bcami.crypto.roster import Roster
from bcami.errors import InconclusiveError, InputError
from bcami.model.aggregation import (
    MEMBERS_PER_PART,
    AggregationHeads,
    EnlistArgument,
    FixRosterArgument,
    MemberName,
    RosterMember,
    RoundView,
    whole_roster_digest,
)
from bcami.model.api import CertifiedHeader, QueryAnswer, TransactionProof
from bcami.model.reasons import Reason
from bcami.model.registration import MeterState
from bcami.model.signing import u64
from bcami.model.transaction import Transaction

_READS_MAX: Final = 16
_ROUNDS_OF_NODES: Final = 50


class AggregationChain:
    """Submits, proves, reads."""

    def __init__(
        self,
        utility: Utility,
        courier: Courier,
        nodes: Sequence[NodeClient],
        roster: Roster,
        clock_ms: Callable[[], int],
    ) -> None:
        self._utility = utility
        self._courier = courier
        self._nodes = nodes
        self._roster = roster
        self._clock_ms = clock_ms
        self.transactions = 0
        self.transaction_bytes = 0

    async def submit(self, function: str, argument: Any) -> TransactionProof | Reason:
        """Return the proof of an accepted transaction, or why it was rejected or refused."""
        tx, reason = await self._submit(function, argument)
        return reason if reason is not Reason.VALID else await prove(tx, self._nodes, self._roster)

    async def record(self, function: str, argument: Any) -> Reason:
        """Return VALID for an accepted transaction, whose receipt was checked, or why it was rejected or refused."""
        return (await self._submit(function, argument))[1]

    async def _submit(self, function: str, argument: Any) -> tuple[Transaction, Reason]:
        tx, settlement = await self._utility.submit(
            "aggregation", function, encode(argument), self._courier, self._clock_ms()
        )
        self.transactions += 1
        self.transaction_bytes += len(encode(tx))
        return tx, settlement.reason

    async def header(self, height: int) -> CertifiedHeader:
        """Return a certified header; whoever uses it checks it."""
        for attempt in range(_ROUNDS_OF_NODES):
            try:
                found = await self._nodes[attempt % len(self._nodes)].header(height)
            except NodeUnavailable:
                found = None
            if found is not None:
                return found
            await asyncio.sleep(0.1)
        raise InconclusiveError(f"no node has the header of height {height}", do="bcami status")

    async def heads(self) -> AggregationHeads:
        """Return the highest roster and round numbers, by weak equal answers."""
        return msgspec.msgpack.decode(await self._agreed("head", b""), type=AggregationHeads)

    async def round(self, number: int) -> RoundView:
        """Return what the chain says about a round, by weak equal answers."""
        return msgspec.msgpack.decode(await self._agreed("round", u64(number)), type=RoundView)

    async def _agreed(self, function: str, argument: bytes) -> bytes:
        def ask(node: NodeClient) -> "asyncio.Future[QueryAnswer]":
            return asyncio.ensure_future(node.query("aggregation", function, argument))

        agreed = await weak_read(self._nodes, ask, weak=self._roster.quorum.weak)
        return agreed.value or b""

    async def members(self, hids: Sequence[bytes]) -> tuple[RosterMember, ...]:
        """Return the members as one node shows them, by HID. The contract compares the digest, so no lie gets through.

        Raises InputError for a HID without a session.
        """
        turns = asyncio.Semaphore(_READS_MAX)

        async def member(place: int, hid: bytes) -> RosterMember:
            async with turns:
                answer = await self._nodes[place % len(self._nodes)].query("registration", "meter", hid)
            state = None if answer.value is None else msgspec.msgpack.decode(answer.value, type=MeterState)
            if state is None or state.session is None:
                raise InputError(f"the meter with HID {hid.hex()} has no session", do="open one first: `bcami replay`")
            session = state.session
            return RosterMember(hid, session.number, session.public_key, session.kem_key)

        return tuple(await asyncio.gather(*(member(place, hid) for place, hid in enumerate(sorted(hids)))))

    async def fix_roster(self, number: int, group: str, members: tuple[RosterMember, ...]) -> TransactionProof:
        """Enlist the members and fix the roster. Raises InputError with the contract's reason."""
        for part, first in enumerate(range(0, len(members), MEMBERS_PER_PART)):
            names = tuple(MemberName(item.hid, item.session) for item in members[first : first + MEMBERS_PER_PART])
            outcome = await self.submit("enlist", EnlistArgument(number, part, names))
            if isinstance(outcome, Reason):
                raise _not_fixed(group, outcome)
        digest = whole_roster_digest(self._roster.chain, number, members)
        outcome = await self.submit("fix_roster", FixRosterArgument(number, group, len(members), digest))
        if isinstance(outcome, Reason):
            raise _not_fixed(group, outcome)
        return outcome


def _not_fixed(group: str, reason: Reason) -> InputError:
    return InputError(f"the roster of {group} was not accepted: {reason}", where="--group, --meters")
