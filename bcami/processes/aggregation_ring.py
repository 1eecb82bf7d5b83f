"""The paper's ring on a live network: its parties over HTTP, what the supplier claims on the chain."""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from bcami.aggregation.bounds import DEFAULT_POLICY
from bcami.aggregation.rehearsal import Traffic
from bcami.aggregation.ring_meter import RingMeter
from bcami.aggregation.ring_records import SUPPLIER
from bcami.aggregation.ring_supplier import RingSupplier
from bcami.ami.aggregation_history import half_hour
from bcami.ami.meter import OpenSession
from bcami.ami.ring_memory import RingMemories
from bcami.ami.ring_parties import RingParties, Secrets
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.errors import ExpectationError
from bcami.model.aggregation import (
    NO_NOISE,
    RING,
    ClaimArgument,
    RosterMember,
    StartArgument,
    VoidArgument,
)
from bcami.model.reasons import Reason
from bcami.processes.aggregation_place import READING_MAX, Place, client, digest_of, look_back, served
from bcami.processes.aggregation_report import AggregateReport, LeftOut, RoundReport, means

_RING_S: Final = 120.0
_JOIN_S: Final = 0.05
_WHY: Final = {
    Reason.TIMED_OUT: "a member that does not answer breaks the ring; it forms again without",
    Reason.SESSION_CLOSED: "meters opened new sessions meanwhile; the ring forms again, of these",
}


@dataclass(slots=True)
class _Spent:
    """What all rings of a run have sent and used."""

    traffic: dict[bytes, Traffic]
    """By meter."""
    setup_messages: int = 0
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Ring:
    """A ring that stands, and what it was formed from."""

    roster: int
    digest: bytes
    members: tuple[RosterMember, ...]
    parties: RingParties
    supplier: RingSupplier

    def is_outdated(self, place: Place) -> bool:
        """Tell whether a member has another session than the roster says: its keys of then are destroyed."""
        return self.parties.is_outdated or any(
            _session(place, member.hid).number != member.session for member in self.members
        )


async def run_ring(place: Place) -> AggregateReport:
    """Sum the intervals. Raises InputError when the meters take part in no ring at those times.

    A ring is formed of sessions. When meters open new ones (their MDMS has a new period, say), the round under way is
    void, and a new ring is formed over a new roster, as after every change of its members.
    """
    chain = place.chain
    ahead = await look_back(place, 0)
    heads = await chain.heads()
    memories = RingMemories(place.fleet, place.meter_ids)
    rounds = _Rounds(place, memories)
    spent = _Spent({hid: Traffic() for hid in place.meter_ids})
    left = deque(enumerate(ahead.intervals, heads.round + 1))
    roster = heads.roster
    while left:
        roster += 1
        async with _formed(place, roster, memories, spent) as ring:
            while left and not ring.is_outdated(place):
                number, first_s = left.popleft()
                place.show(f"round {number}, {len(rounds.reports)} of {len(ahead.intervals)} done")
                start = StartArgument(number, roster, ring.digest, RING, first_s, 1, READING_MAX, NO_NOISE)
                await rounds.run(ring, start)
    return AggregateReport(
        len(place.meter_ids),
        None,
        tuple(rounds.reports),
        sum(map(len, place.dropping())),
        *means(list(spent.traffic.values()), len(rounds.reports), spent.setup_messages, (spent.cpu_s, 0.0)),
        chain.transactions,
        chain.transaction_bytes,
        place.metrics.noes(),
        tuple(rounds.left_out),
        ahead.summed_before,
    )


@asynccontextmanager
async def _formed(place: Place, roster: int, memories: RingMemories, spent: _Spent) -> AsyncIterator[_Ring]:
    """Form a ring of all meters, in their present sessions; those that are to be gone go when it stands.

    Raises ExpectationError when none comes about.
    """
    chain = place.chain
    await place.fleet.sessions_settled()
    place.show("fixing the roster on the chain")
    members = await chain.members(list(place.meter_ids))
    fixed = await chain.fix_roster(roster, place.options.group, members)
    by_address = {member.hid: member for member in members}
    chain_id, epoch = place.roster.chain, place.roster.epoch
    supplier = RingSupplier(by_address, chain_id, epoch, READING_MAX, DEFAULT_POLICY.group_min)
    parties = _parties(place, digest_of(fixed), supplier, memories)
    async with served(parties.application()) as url, client(url) as http:
        parties.connect(http)
        try:
            await _form(place, parties, supplier, by_address)
            spent.setup_messages += sum(item.sent for address, item in parties.traffic.items() if address != SUPPLIER)
            parties.down |= frozenset().union(*place.dropping())
            yield _Ring(roster, digest_of(fixed), members, parties, supplier)
        finally:
            await parties.close()
            spent.cpu_s += parties.cpu_s
            for hid, total in spent.traffic.items():
                item = parties.traffic[hid]
                total.sent += item.sent
                total.sent_bytes += item.sent_bytes
                total.received += item.received
                total.received_bytes += item.received_bytes


def _session(place: Place, hid: bytes) -> OpenSession:
    """Return a meter's present session."""
    session = place.fleet.meter(place.meter_ids[hid]).session
    assert session is not None
    return session


def _parties(place: Place, ring: bytes, supplier: RingSupplier, memories: RingMemories) -> RingParties:
    meters, secrets = {}, {SUPPLIER: Secrets(SecretKey.generate(os.urandom(32)), KemSecretKey.generate(os.urandom(32)))}
    for hid, meter_id in place.meter_ids.items():
        session = _session(place, hid)
        meters[hid] = RingMeter(hid, _giving(hid, place.readings[meter_id], memories), os.urandom(32))
        secrets[hid] = Secrets(session.key, session.kem)
    return RingParties(
        meters, supplier, secrets, place.roster.chain, place.roster.epoch, ring, place.transcript, place.metrics
    )


def _giving(hid: bytes, held: Mapping[int, int], memories: RingMemories) -> Callable[[int], int | Reason | None]:
    """Return a meter's readings, but for those that its memory keeps out of rings, or does not know to be asked for."""

    def give(first_s: int) -> int | Reason | None:
        reason = memories.keeps_back(hid, half_hour(first_s, RING))
        return held.get(first_s) if reason is None else reason

    return give


async def _form(
    place: Place, parties: RingParties, supplier: RingSupplier, members: Mapping[bytes, RosterMember]
) -> None:
    place.show("forming the ring")
    # One meter is there first, finds nobody and becomes the LC; the others come to it, a few at a time.
    for place_of, (address, member) in enumerate(members.items()):
        parties.begin(address, member.session)
        if place_of == 0 and not await parties.until(lambda: supplier.has_concentrator or parties.is_outdated, _RING_S):
            raise ExpectationError("no meter took the concentrator's role")
        await asyncio.sleep(_JOIN_S)
    if not await parties.until(
        lambda: (supplier.is_ready and supplier.ring_size == len(members)) or parties.is_outdated, _RING_S
    ):
        raise ExpectationError("no ring of all members came about", do="try again, or a smaller group")


class _Rounds:
    """The rounds of one run, one after another."""

    def __init__(self, place: Place, memories: RingMemories) -> None:
        self._place = place
        self._memories = memories
        self.reports: list[RoundReport] = []
        self.left_out: list[LeftOut] = []

    async def run(self, ring: _Ring, start: StartArgument) -> None:
        """Run one round to its end, record it, and note what became of it."""
        place, parties, supplier = self._place, ring.parties, ring.supplier
        began, cpu_began = time.perf_counter(), time.process_time()
        proof = await place.chain.submit("start", start)
        if isinstance(proof, Reason):
            raise ExpectationError(f"round {start.round} was not opened: {proof}")
        reason, total, count, tokens = Reason.TIMED_OUT, 0, 0, b""
        if await parties.until(lambda: supplier.is_ready or parties.is_outdated, _RING_S) and not parties.is_outdated:
            before = len(supplier.results)
            await self._memories.remember([hid for hid in place.meter_ids if hid not in parties.down], start)
            parties.request(start.first_s)
            await parties.until(lambda: len(supplier.results) > before or parties.is_outdated, _RING_S)
            if len(supplier.results) > before:
                result = supplier.results[-1]
                reason, total, count, tokens = result.reason, result.total, result.count, result.tokens_hash
        if reason is not Reason.VALID and parties.is_outdated:
            reason = Reason.SESSION_CLOSED
        if reason is Reason.VALID:
            outcome = await place.chain.submit("claim", ClaimArgument(start.round, (total,), count, tokens))
        else:
            outcome = await place.chain.submit("void", VoidArgument(start.round, reason))
        if isinstance(outcome, Reason):
            raise ExpectationError(f"the end of round {start.round} was not recorded: {outcome}")
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        place.metrics.ended(RING, reason, seconds)
        await self._report(start, reason, total, count, (seconds, cpu_s), parties.down)

    async def _report(
        self,
        start: StartArgument,
        reason: Reason,
        total: int,
        count: int,
        took: tuple[float, float],
        down: Collection[bytes],
    ) -> None:
        place = self._place
        is_valid = reason is Reason.VALID
        # The ring does not say who took part; with drop-outs it is those who are there.
        hids = [hid for hid in place.meter_ids if hid not in down]
        is_same = count in (len(hids), len(place.meter_ids))
        if is_same and count == len(place.meter_ids):
            hids = list(place.meter_ids)
        self.reports.append(
            RoundReport(
                round=start.round,
                first_s=start.first_s,
                reason=reason,
                energy=total if is_valid else None,
                true_energy=place.true_energy(hids, start.first_s) if is_valid and is_same else None,
                contributors=count,
                is_proven=await place.recorded_as(start.round, (total,) if is_valid else (), count),
                seconds=round(took[0], 3),
                cpu_s=round(took[1], 3),
                explanation="" if is_valid else _WHY.get(reason, _WHY[Reason.TIMED_OUT]),
            )
        )
        if count < len(place.meter_ids):
            gone = sorted(place.meter_ids[hid] for hid in down)
            self.left_out += [LeftOut(meter, start.first_s, Reason.TIMED_OUT, is_trial=True) for meter in gone]
