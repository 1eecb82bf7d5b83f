"""Masked rounds on a live network: meters in processes of their own, a head-end, the record on the chain."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from time import process_time

from bcami.aggregation.bounds import DEFAULT_POLICY, plan_for
from bcami.aggregation.head_end import Ended, Group, MaskedRound, Past, group_of
from bcami.aggregation.proofs import GenesisReader
from bcami.aggregation.records import TO_METER_CODEC, RosterNotice, RoundVoid
from bcami.aggregation.rules import are_near
from bcami.ami.aggregation_head_end import HeadEnd
from bcami.ami.aggregation_metrics import HEAD_END, METER
from bcami.errors import ExpectationError
from bcami.model.aggregation import MASKED, RosterMember, StartArgument
from bcami.model.api import TransactionProof
from bcami.model.reasons import Reason
from bcami.processes.aggregation_gateway import Totals, add_noes
from bcami.processes.aggregation_gateways import Gateways, gateways
from bcami.processes.aggregation_place import READING_MAX, Ahead, Place, digest_of, look_back
from bcami.processes.aggregation_report import AggregateReport, LeftOut, RoundReport, Setup, explain_void


async def run_masked(place: Place) -> AggregateReport:
    """Sum the intervals. Raises InputError when all were summed before."""
    chain, options = place.chain, place.options
    plan = plan_for(len(place.meter_ids))
    ahead = await look_back(place, plan.members - plan.contributors_min)
    place.show("fixing the roster on the chain")
    heads = await chain.heads()
    members = await chain.members(list(place.meter_ids))
    fixed = await chain.fix_roster(heads.roster + 1, options.group, members)
    async with gateways(place) as processes:
        starts = [
            StartArgument(number, heads.roster + 1, digest_of(fixed), MASKED, first_s, 1, READING_MAX, options.noise)
            for number, first_s in enumerate(ahead.intervals, heads.round + 1)
        ]
        # The first round is opened before the roster goes out: the graph is drawn from the block after the roster's.
        opened = await _open(place, starts[0])
        place.show("telling the members, who agree on keys with their neighbours")
        began, cpu_began = time.perf_counter(), process_time() + processes.cpu_s()
        notice, group = await _notice(place, members, fixed)
        head_end = HeadEnd(processes.ways, members, chain, place.transcript)
        informed = await head_end.tell(notice)
        seconds, cpu_s = time.perf_counter() - began, process_time() + processes.cpu_s() - cpu_began
        rounds = _Rounds(place, processes, head_end, group, notice, informed, _past_of(members, ahead))
        for proof in ahead.voids:
            await head_end.tell(RoundVoid(proof))
        for start in starts:
            place.show(f"round {start.round}, {len(rounds.reports)} of {len(starts)} done")
            await rounds.run(start, opened if start is starts[0] else await _open(place, start))
    place.metrics.no(HEAD_END, Reason.MALFORMED, head_end.malformed)
    for item in processes.totals:
        add_noes(place.metrics, item)
    return AggregateReport(
        len(members),
        group.plan,
        tuple(rounds.reports),
        sum(map(len, place.dropping())),
        *_means(processes.totals, len(members) * len(rounds.reports)),
        round(head_end.cpu_s * 1000 / len(rounds.reports), 3),
        chain.transactions,
        chain.transaction_bytes,
        place.metrics.noes(),
        tuple(rounds.left_out),
        ahead.summed_before,
        processes=len(processes.ways),
        lost=processes.losses,
        setup=Setup(
            round(seconds, 3),
            round(cpu_s, 3),
            len(TO_METER_CODEC.encode(notice)),
            sum(map(len, group.graph)) // len(members),
            round(sum(item.roster_cpu_s for item in processes.totals) * 1000 / len(members), 3),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Opened:
    """A round's start on the chain, and what that took."""

    proof: TransactionProof
    seconds: float
    cpu_s: float


async def _open(place: Place, start: StartArgument) -> _Opened:
    began, cpu_began = time.perf_counter(), process_time()
    proof = await place.chain.submit("start", start)
    if isinstance(proof, Reason):
        raise ExpectationError(f"round {start.round} was not opened: {proof}")
    return _Opened(proof, time.perf_counter() - began, process_time() - cpu_began)


async def _notice(
    place: Place, members: tuple[RosterMember, ...], fixed: TransactionProof
) -> tuple[RosterNotice, Group]:
    """Return the roster as it goes to the members, and the group that it makes."""
    beacon = await place.chain.header(fixed.receipt.header.height + 1)
    block = GenesisReader(place.roster).block_hash(beacon)
    if isinstance(block, Reason):
        raise ExpectationError(f"a node gave a header that does not hold: {block}")
    return RosterNotice(fixed, beacon, members), group_of(digest_of(fixed), members, block[1], DEFAULT_POLICY)


def _means(totals: Sequence[Totals], shares: int) -> tuple[float, float, float, float]:
    """Return messages, bytes sent, bytes received and CPU ms of a meter in a round; a process that died has no say."""
    return (
        round(sum(item.sent for item in totals) / shares, 3),
        round(sum(item.sent_bytes for item in totals) / shares, 1),
        round(sum(item.received_bytes for item in totals) / shares, 1),
        round(sum(item.meters_cpu_s for item in totals) * 1000 / shares, 3),
    )


class _Rounds:
    """The rounds of one run, one after another."""

    def __init__(
        self,
        place: Place,
        processes: Gateways,
        head_end: HeadEnd,
        group: Group,
        notice: RosterNotice,
        informed: frozenset[int],
        past: list[tuple[StartArgument, Past]],
    ) -> None:
        self._place = place
        self._processes = processes
        self._head_end = head_end
        self._group = group
        self._members = group.members
        self._notice = notice
        self._informed = informed
        """Members that know the roster; the others get it again with each round: they were away."""
        self._past = past
        self._trial = frozenset().union(*place.dropping())
        self.reports: list[RoundReport] = []
        self.left_out: list[LeftOut] = []

    async def run(self, start: StartArgument, opened: _Opened) -> None:
        """Run one round to its end, and note what became of it."""
        place = self._place
        began, cpu_began = time.perf_counter() - opened.seconds, self._cpu_s() - opened.cpu_s
        near = [past for former, past in self._past if are_near(former, start)]
        masked = MaskedRound(self._group, start, GenesisReader(place.roster), self._notice, near, self._informed)
        ended = await self._head_end.run(masked, opened.proof)
        self._informed = masked.informed()
        seconds, cpu_s = time.perf_counter() - began, self._cpu_s() - cpu_began
        if masked.final_contributors is not None:
            self._past.append((start, Past(start.round, masked.final_contributors)))
        for party, counted in ((METER, masked.declined), (HEAD_END, masked.refused)):
            for reason, count in counted.items():
                place.metrics.no(party, reason, count)
        place.metrics.ended(MASKED, ended.reason, seconds)
        await self._report(start, masked, ended, seconds, cpu_s)

    def _cpu_s(self) -> float:
        """Return the CPU time so far of head-end and meters."""
        return process_time() + self._processes.cpu_s()

    async def _report(
        self, start: StartArgument, masked: MaskedRound, ended: Ended, seconds: float, cpu_s: float
    ) -> None:
        place, plan = self._place, self._group.plan
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
                cpu_s=round(cpu_s, 3),
                explanation=explain_void(masked, ended.reason, len(self._members), plan.contributors_min),
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
