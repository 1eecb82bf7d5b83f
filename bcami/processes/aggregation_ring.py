"""The paper's ring on a live network: its parties over HTTP, what the supplier claims on the chain."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from typing import Final

from bcami.aggregation.bounds import DEFAULT_POLICY
from bcami.aggregation.ring_meter import RingMeter
from bcami.aggregation.ring_records import SUPPLIER
from bcami.aggregation.ring_supplier import RingSupplier
from bcami.ami.aggregation_history import half_hour
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


async def run_ring(place: Place) -> AggregateReport:
    """Sum the intervals. Raises InputError when the meters take part in no ring at those times."""
    options, chain = place.options, place.chain
    ahead = await look_back(place, 0)
    place.show("fixing the roster on the chain")
    heads = await chain.heads()
    members = await chain.members(list(place.meter_ids))
    fixed = await chain.fix_roster(heads.roster + 1, options.group, members)
    by_address = {member.hid: member for member in members}
    supplier = RingSupplier(by_address, place.roster.chain, place.roster.epoch, READING_MAX, DEFAULT_POLICY.group_min)
    memories = RingMemories(place.fleet, place.meter_ids)
    parties = _parties(place, supplier, memories)
    silent, leaving = place.dropping()
    rounds = _Rounds(place, parties, supplier, memories)
    sent_before = 0
    async with served(parties.application()) as url, client(url) as http:
        parties.connect(http)
        try:
            await _form(place, parties, supplier, by_address)
            sent_before = sum(item.sent for item in parties.traffic.values())
            parties.down |= silent | leaving
            for number, first_s in enumerate(ahead.intervals, heads.round + 1):
                place.show(f"round {number}, {len(rounds.reports)} of {len(ahead.intervals)} done")
                await rounds.run(
                    StartArgument(number, heads.roster + 1, digest_of(fixed), RING, first_s, 1, READING_MAX, NO_NOISE)
                )
        finally:
            await parties.close()
    traffic = [item for address, item in parties.traffic.items() if address != SUPPLIER]
    return AggregateReport(
        len(members),
        None,
        tuple(rounds.reports),
        len(silent) + len(leaving),
        *means(traffic, len(rounds.reports), sent_before, (parties.cpu_s, 0.0)),
        chain.transactions,
        chain.transaction_bytes,
        place.metrics.noes(),
        tuple(rounds.left_out),
        ahead.summed_before,
    )


def _parties(place: Place, supplier: RingSupplier, memories: RingMemories) -> RingParties:
    meters, secrets = {}, {SUPPLIER: Secrets(SecretKey.generate(os.urandom(32)), KemSecretKey.generate(os.urandom(32)))}
    for hid, meter_id in place.meter_ids.items():
        session = place.fleet.meter(meter_id).session
        assert session is not None
        meters[hid] = RingMeter(hid, _giving(hid, place.readings[meter_id], memories), os.urandom(32))
        secrets[hid] = Secrets(session.key, session.kem)
    return RingParties(
        meters, supplier, secrets, place.roster.chain, place.roster.epoch, place.transcript, place.metrics
    )


def _giving(hid: bytes, held: Mapping[int, int], memories: RingMemories) -> Callable[[int], int | Reason | None]:
    """Return a meter's readings, but for those that its memory keeps out of rings."""

    def give(first_s: int) -> int | Reason | None:
        objection = memories.refuse(hid, half_hour(first_s, RING))
        return held.get(first_s) if objection is None else objection.reason

    return give


async def _form(
    place: Place, parties: RingParties, supplier: RingSupplier, members: Mapping[bytes, RosterMember]
) -> None:
    place.show("forming the ring")
    # One meter is there first, finds nobody and becomes the LC; the others come to it, a few at a time.
    for place_of, (address, member) in enumerate(members.items()):
        parties.begin(address, member.session)
        if place_of == 0 and not await parties.until(lambda: supplier.has_concentrator, _RING_S):
            raise ExpectationError("no meter took the concentrator's role")
        await asyncio.sleep(_JOIN_S)
    if not await parties.until(lambda: supplier.is_ready and supplier.ring_size == len(members), _RING_S):
        raise ExpectationError("no ring of all members came about", do="try again, or a smaller group")


class _Rounds:
    """The rounds of one run, one after another."""

    def __init__(self, place: Place, parties: RingParties, supplier: RingSupplier, memories: RingMemories) -> None:
        self._place = place
        self._parties = parties
        self._supplier = supplier
        self._memories = memories
        self.reports: list[RoundReport] = []
        self.left_out: list[LeftOut] = []

    async def run(self, start: StartArgument) -> None:
        """Run one round to its end, record it, and note what became of it."""
        place, parties, supplier = self._place, self._parties, self._supplier
        began, cpu_began = time.perf_counter(), time.process_time()
        proof = await place.chain.submit("start", start)
        if isinstance(proof, Reason):
            raise ExpectationError(f"round {start.round} was not opened: {proof}")
        reason, total, count, tokens = Reason.TIMED_OUT, 0, 0, b""
        if await parties.until(lambda: supplier.is_ready, _RING_S):
            before = len(supplier.results)
            await self._memories.remember([hid for hid in place.meter_ids if hid not in parties.down], start)
            parties.request(start.first_s)
            if await parties.until(lambda: len(supplier.results) > before, _RING_S):
                result = supplier.results[-1]
                reason, total, count, tokens = result.reason, result.total, result.count, result.tokens_hash
        if reason is Reason.VALID:
            outcome = await place.chain.submit("claim", ClaimArgument(start.round, (total,), count, tokens))
        else:
            outcome = await place.chain.submit("void", VoidArgument(start.round, reason))
        if isinstance(outcome, Reason):
            raise ExpectationError(f"the end of round {start.round} was not recorded: {outcome}")
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        place.metrics.ended(RING, reason, seconds)
        await self._report(start, reason, total, count, (seconds, cpu_s))

    async def _report(
        self, start: StartArgument, reason: Reason, total: int, count: int, took: tuple[float, float]
    ) -> None:
        place, down = self._place, self._parties.down
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
                explanation="" if is_valid else "a member that does not answer breaks the ring; it forms again without",
            )
        )
        if count < len(place.meter_ids):
            gone = sorted(place.meter_ids[hid] for hid in down)
            self.left_out += [LeftOut(meter, start.first_s, Reason.TIMED_OUT, is_trial=True) for meter in gone]
