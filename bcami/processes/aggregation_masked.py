"""Masked rounds on a live network: a fleet's meters and a head-end over HTTP, the record on the chain."""

import time

from bcami.aggregation.bounds import DEFAULT_POLICY, plan_for
from bcami.aggregation.head_end import Ended, Group, MaskedRound, Past, group_of
from bcami.aggregation.proofs import GenesisReader
from bcami.aggregation.records import RosterNotice, RoundVoid
from bcami.aggregation.rules import are_near
from bcami.ami.aggregation_head_end import HeadEnd
from bcami.ami.aggregation_meters import MeterHost
from bcami.ami.aggregation_metrics import HEAD_END, METER
from bcami.errors import ExpectationError
from bcami.model.aggregation import MASKED, RosterMember, StartArgument
from bcami.model.api import TransactionProof
from bcami.model.reasons import Reason
from bcami.processes.aggregation_place import READING_MAX, Ahead, Place, digest_of, look_back, served
from bcami.processes.aggregation_report import AggregateReport, LeftOut, RoundReport, explain_void, means


async def run_masked(place: Place) -> AggregateReport:
    """Sum the intervals. Raises InputError when all were summed before."""
    chain, options = place.chain, place.options
    plan = plan_for(len(place.meter_ids))
    ahead = await look_back(place, plan.members - plan.contributors_min)
    place.show("fixing the roster on the chain")
    heads = await chain.heads()
    members = await chain.members(list(place.meter_ids))
    fixed = await chain.fix_roster(heads.roster + 1, options.group, members)
    host = MeterHost(place.fleet, place.meter_ids, place.readings, GenesisReader(place.roster), place.metrics)
    host.transcript = place.transcript
    silent, leaving = place.dropping()
    host.is_down = lambda hid, answered: hid in silent or (hid in leaving and answered > 0)
    async with served(host.application()) as http:
        head_end = HeadEnd(http, members, chain, place.transcript)
        rounds = _Rounds(place, host, head_end, members, fixed, ahead)
        for proof in ahead.voids:
            await head_end.tell(RoundVoid(proof))
        for number, first_s in enumerate(ahead.intervals, heads.round + 1):
            place.show(f"round {number}, {len(rounds.reports)} of {len(ahead.intervals)} done")
            await rounds.run(
                StartArgument(
                    number, heads.roster + 1, digest_of(fixed), MASKED, first_s, 1, READING_MAX, options.noise
                )
            )
    place.metrics.no(HEAD_END, Reason.MALFORMED, head_end.malformed)
    return AggregateReport(
        len(members),
        rounds.group.plan if rounds.group is not None else None,
        tuple(rounds.reports),
        len(silent) + len(leaving),
        *means(list(host.traffic.values()), len(rounds.reports), 0, (host.cpu_s, head_end.cpu_s)),
        chain.transactions,
        chain.transaction_bytes,
        place.metrics.noes(),
        tuple(rounds.left_out),
        ahead.summed_before,
    )


class _Rounds:
    """The rounds of one run, one after another."""

    def __init__(
        self,
        place: Place,
        host: MeterHost,
        head_end: HeadEnd,
        members: tuple[RosterMember, ...],
        fixed: TransactionProof,
        ahead: Ahead,
    ) -> None:
        self._place = place
        self._host = host
        self._head_end = head_end
        self._members = members
        self._fixed = fixed
        self._trial = frozenset().union(*place.dropping())
        self._past = _past_of(members, ahead)
        self._notice: RosterNotice | None = None
        self._informed: frozenset[int] = frozenset()
        """Members that know the roster; the others get it again with each round: they were away."""
        self.group: Group | None = None
        self.reports: list[RoundReport] = []
        self.left_out: list[LeftOut] = []

    async def run(self, start: StartArgument) -> None:
        """Run one round to its end, and note what became of it."""
        place, began = self._place, time.perf_counter()
        proof = await place.chain.submit("start", start)
        if isinstance(proof, Reason):
            raise ExpectationError(f"round {start.round} was not opened: {proof}")
        if self.group is None:
            self._notice, self.group = await self._first()
        self._host.new_round()
        near = [past for former, past in self._past if are_near(former, start)]
        masked = MaskedRound(self.group, start, GenesisReader(place.roster), self._notice, near, self._informed)
        ended = await self._head_end.run(masked, proof)
        self._informed = masked.informed()
        seconds = time.perf_counter() - began
        if masked.final_contributors is not None:
            self._past.append((start, Past(start.round, masked.final_contributors)))
        for party, counted in ((METER, masked.declined), (HEAD_END, masked.refused)):
            for reason, count in counted.items():
                place.metrics.no(party, reason, count)
        place.metrics.ended(MASKED, ended.reason, seconds)
        await self._report(start, masked, ended, seconds)

    async def _first(self) -> tuple[RosterNotice, Group]:
        """Return the roster as it goes to the members, and the group that it makes."""
        place = self._place
        beacon = await place.chain.header(self._fixed.receipt.header.height + 1)
        block = GenesisReader(place.roster).block_hash(beacon)
        if isinstance(block, Reason):
            raise ExpectationError(f"a node gave a header that does not hold: {block}")
        group = group_of(digest_of(self._fixed), self._members, block[1], DEFAULT_POLICY)
        return RosterNotice(self._fixed, beacon, self._members), group

    async def _report(self, start: StartArgument, masked: MaskedRound, ended: Ended, seconds: float) -> None:
        place, group = self._place, self.group
        assert group is not None
        hids = [self._members[member].hid for member in sorted(ended.contributors)]
        self.reports.append(
            RoundReport(
                round=start.round,
                first_s=start.first_s,
                reason=ended.reason,
                energy=ended.sums[0] if ended.sums else None,
                true_energy=place.true_energy(hids, start.first_s) if ended.sums else None,
                contributors=len(hids),
                is_proven=await place.recorded_as(start.round, ended.sums, len(hids)),
                seconds=round(seconds, 3),
                explanation=explain_void(masked, ended.reason, len(self._members), group.plan.contributors_min),
            )
        )
        for member, no in sorted(masked.left_out().items()):
            hid = self._members[member].hid
            is_trial = no.reason is Reason.TIMED_OUT and hid in self._trial
            self.left_out.append(LeftOut(place.meter_ids[hid], start.first_s, no.reason, no.earlier, is_trial))


def _past_of(members: tuple[RosterMember, ...], ahead: Ahead) -> list[tuple[StartArgument, Past]]:
    """Return earlier sums in the numbers of this roster; who is not in it gets a negative number."""
    numbers = {member.hid: place for place, member in enumerate(members)}
    for item in ahead.earlier:
        for hid in sorted(item.hids):
            numbers.setdefault(hid, len(members) - len(numbers) - 1)
    return [
        (item.view.start, Past(item.number, frozenset(numbers[hid] for hid in item.hids)))
        for item in ahead.earlier
        if item.hids and not item.is_ring
    ]
