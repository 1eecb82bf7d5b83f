"""Rounds of private aggregation as a script of transactions: what tests of the contract and of its parity run."""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import msgspec

from bcami.crypto.commitments import commit
from bcami.model.aggregation import (
    MASKED,
    NO_NOISE,
    RING,
    ClaimArgument,
    EnlistArgument,
    FinishArgument,
    FixRosterArgument,
    MemberName,
    RosterMember,
    SettleArgument,
    StartArgument,
    TallyArgument,
    TallyEntry,
    VoidArgument,
    bitmap,
    contribution_digest,
    whole_roster_digest,
)
from bcami.model.reasons import Reason
from bcami.model.registration import MeterState
from bcami.model.transaction import Transaction
from tests.unit.contract.world import Party, World, reporting_meter


class Street:
    """Registered meters, in the order of their HIDs, and the transactions about them."""

    def __init__(self, world: World, members: int = 9) -> None:
        self.world = world
        self.parties: list[Party] = sorted(
            (reporting_meter(world, f"house {number}") for number in range(members)), key=lambda party: party.hid
        )
        self.roster = 1

    def tx(self, function: str, argument: Any) -> Transaction:
        return self.world.utility(function, argument, "aggregation")

    @property
    def members(self) -> tuple[RosterMember, ...]:
        found = []
        for party in self.parties:
            number = max(party.keys)
            session_key = party.keys[number].public_key
            found.append(RosterMember(party.hid, number, session_key, self._kem_key(party)))
        return tuple(found)

    def _kem_key(self, party: Party) -> bytes:
        answer = self.world.query("registration", "meter", party.hid)
        return msgspec.msgpack.decode(answer, type=MeterState).session.kem_key

    @property
    def digest(self) -> bytes:
        return whole_roster_digest(self.world.roster.chain, self.roster, self.members)

    def enlist(self, part: int = 0, names: tuple[MemberName, ...] | None = None) -> Transaction:
        names = names or tuple(MemberName(member.hid, member.session) for member in self.members)
        return self.tx("enlist", EnlistArgument(self.roster, part, names))

    def fix(self, **changes: Any) -> Transaction:
        fields = {"roster": self.roster, "group": "street", "count": len(self.parties), "digest": self.digest}
        return self.tx("fix_roster", FixRosterArgument(**fields | changes))

    def start(self, number: int, mode: str = MASKED, **changes: Any) -> Transaction:
        fields = {
            "round": number,
            "roster": self.roster,
            "roster_digest": self.digest,
            "mode": mode,
            "first_s": 1800 * 1000,
            "slots": 2,
            "reading_max": 10**9,
            "noise": NO_NOISE,
        }
        return self.tx("start", StartArgument(**fields | changes))

    def settle(self, number: int, wave: int, members: set[int], is_final: bool) -> Transaction:
        return self.tx("settle", SettleArgument(number, wave, bitmap(members, len(self.parties)), is_final))

    def values(self, member: int) -> tuple[list[int], int]:
        """A member's readings of both intervals, and its blinding."""
        return [100 + member, 7 * member], 10**20 + member

    def entry(self, number: int, member: int) -> TallyEntry:
        party = self.parties[member]
        body = sha256(b"body").digest()
        commitment = commit(*self.values(member))
        roster = self.world.roster
        statement = contribution_digest(roster.chain, roster.epoch, number, self.digest, party.hid, body, commitment)
        return TallyEntry(body, commitment, party.keys[max(party.keys)].sign(statement))

    def tally(self, number: int, members: set[int], part: int = 0) -> Transaction:
        entries = tuple(self.entry(number, member) for member in sorted(members))
        return self.tx("tally", TallyArgument(number, part, entries))

    def finish(self, number: int, members: set[int], error: int = 0) -> Transaction:
        values = [self.values(member) for member in members]
        sums = tuple(sum(readings[slot] for readings, _ in values) for slot in range(2))
        blinding = sum(blinding for _, blinding in values)
        return self.tx("finish", FinishArgument(number, (sums[0] + error, sums[1]), blinding.to_bytes(32, "big")))

    def claim(self, number: int, count: int) -> Transaction:
        return self.tx("claim", ClaimArgument(number, (5, 6), count, bytes(32)))

    def void(self, number: int, reason: Reason = Reason.TIMED_OUT) -> Transaction:
        return self.tx("void", VoidArgument(number, reason))


def whole_round(world: World) -> Iterator[tuple[Transaction, Reason]]:
    """Yield transactions of two masked rounds and a ring round, each with what has to come of it."""
    street = Street(world)
    everybody, most = set(range(9)), set(range(8))
    script: list[tuple[Any, Reason]] = [
        (lambda: street.fix(), Reason.UNKNOWN_ROSTER),
        (lambda: street.enlist(), Reason.VALID),
        (lambda: street.start(1), Reason.UNKNOWN_ROSTER),
        (lambda: street.fix(digest=bytes(32)), Reason.ROSTER_MISMATCH),
        (lambda: street.fix(), Reason.VALID),
        (lambda: street.enlist(1), Reason.ROSTER_FIXED),
        (lambda: street.start(1), Reason.VALID),
        (lambda: street.settle(1, 0, most, is_final=False), Reason.VALID),
        (lambda: street.settle(1, 1, everybody, is_final=True), Reason.CONTRIBUTORS_GREW),
        (lambda: street.tally(1, most), Reason.NOT_SETTLED),
        (lambda: street.settle(1, 1, most, is_final=True), Reason.VALID),
        (lambda: street.settle(1, 2, most, is_final=True), Reason.ALREADY_REVEALED),
        (lambda: street.finish(1, most), Reason.NOT_SETTLED),
        (lambda: street.tally(1, everybody), Reason.NOT_A_MEMBER),
        (lambda: street.tally(1, most), Reason.VALID),
        (lambda: street.finish(1, most, error=1), Reason.SUM_MISMATCH),
        (lambda: street.finish(1, most), Reason.VALID),
        (lambda: street.finish(1, most), Reason.ROUND_ENDED),
        (lambda: street.void(1), Reason.ROUND_ENDED),
        (lambda: street.start(2), Reason.VALID),
        (lambda: street.void(2), Reason.VALID),
        (lambda: street.settle(2, 0, most, is_final=True), Reason.ROUND_ENDED),
        (lambda: street.start(3, RING), Reason.VALID),
        (lambda: street.claim(3, 9), Reason.VALID),
    ]
    for make, expected in script:
        yield make(), expected
