"""Runs rounds of private aggregation on a live network: meters and head-end over HTTP, the record on the chain."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Final

import httpx
import msgspec
import uvicorn
from starlette.applications import Starlette

from bcami.aggregation.bounds import DEFAULT_POLICY, Plan, plan_for
from bcami.aggregation.head_end import MaskedRound, group_of
from bcami.aggregation.proofs import GenesisReader
from bcami.aggregation.records import RosterNotice
from bcami.aggregation.rehearsal import Traffic
from bcami.aggregation.ring_meter import RingMeter
from bcami.aggregation.ring_records import SUPPLIER
from bcami.aggregation.ring_supplier import RingSupplier
from bcami.aggregation.rules import are_near
from bcami.ami.aggregation_chain import AggregationChain
from bcami.ami.aggregation_head_end import HeadEnd
from bcami.ami.aggregation_meters import MeterHost, Readings
from bcami.ami.fleet import Fleet
from bcami.ami.ring_parties import RingParties, Secrets
from bcami.ami.transcript import Transcript
from bcami.client.courier import Courier
from bcami.client.nodes import NodeClient
from bcami.client.receipts import ReceiptVerifier
from bcami.client.utility import Utility
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.crypto.roster import Roster
from bcami.errors import ExpectationError, InputError
from bcami.model.aggregation import (
    MASKED,
    RING,
    ClaimArgument,
    Mode,
    Noise,
    RosterMember,
    StartArgument,
    VoidArgument,
)
from bcami.model.genesis import Genesis
from bcami.model.reasons import Reason
from bcami.paths import HomePaths

READING_MAX: Final = 10**9
"""100 kWh in half an hour, energy units."""
RING_MEMBERS_MAX: Final = 200
"""In ring mode every newcomer's broadcast reaches everybody: n² posts to form a group."""
_RING_S: Final = 120.0
_JOIN_S: Final = 0.05


class AggregateOptions(msgspec.Struct, frozen=True):
    """What is asked for."""

    group: str
    mode: Mode
    intervals: tuple[int, ...]
    """Starts of the half-hours to sum, Unix seconds."""
    dropouts: float
    """Share of the members that are gone: half of them from the start, half after their first message."""
    noise: Noise
    seed: int = 0
    """Draws who drops out."""


class RoundReport(msgspec.Struct, frozen=True):
    """One interval."""

    round: int
    first_s: int
    reason: Reason
    """`valid`, or why the round is void."""
    energy: int | None
    true_energy: int | None
    """Of the same members, from the data set."""
    contributors: int
    is_proven: bool
    """The contract checked every signature and the sum."""
    seconds: float


class AggregateReport(msgspec.Struct, frozen=True):
    """What came of it."""

    members: int
    plan: Plan | None
    """Neighbours, threshold and collusion bound; None in ring mode."""
    rounds: tuple[RoundReport, ...]
    dropped: int
    messages_per_meter: float
    """Sent by a meter in a round, on average; without the setup of a ring."""
    bytes_sent_per_meter: float
    bytes_received_per_meter: float
    """Of all messages of the run, by number of rounds."""
    cpu_ms_per_meter: float
    """Of one round, without HTTP."""
    head_end_cpu_ms: float
    """Of one round, without HTTP."""
    transactions: int
    transaction_bytes: int
    refused: Mapping[str, int]
    declined: Mapping[str, int]

    @property
    def is_exact(self) -> bool:
        """Every round has a sum, and the right one."""
        return all(item.reason is Reason.VALID and item.energy == item.true_energy for item in self.rounds)


class _Place:
    """What both modes work with."""

    def __init__(
        self,
        options: AggregateOptions,
        fleet: Fleet,
        chain: AggregationChain,
        roster: Roster,
        meter_ids: Mapping[bytes, str],
        readings: Mapping[str, Readings],
        transcript: Transcript,
        show: Callable[[str], None],
    ) -> None:
        self.options = options
        self.fleet = fleet
        self.chain = chain
        self.roster = roster
        self.meter_ids = meter_ids
        self.readings = readings
        self.transcript = transcript
        self.show = show

    def true_energy(self, hids: Sequence[bytes], first_s: int) -> int:
        return sum(self.readings[self.meter_ids[hid]].get(first_s, 0) for hid in hids)

    def dropping(self) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """Return who is gone from the start and who goes after the first message."""
        count = round(self.options.dropouts * len(self.meter_ids))
        hids = sorted(self.meter_ids, key=self.meter_ids.__getitem__)
        gone = Random(self.options.seed).sample(hids, count)  # noqa: S311  a trial, not a secret
        return frozenset(gone[: (count + 1) // 2]), frozenset(gone[(count + 1) // 2 :])


async def run_aggregation(
    home: HomePaths,
    genesis: Genesis,
    urls: Sequence[str],
    fleet: Fleet,
    readings: Mapping[str, Readings],
    options: AggregateOptions,
    run: Path,
    show: Callable[[str], None],
) -> AggregateReport:
    """Sum the intervals over the meters of `readings`, which are enrolled and have sessions.

    Leaves `transcript.jsonl` in the run's folder. Raises InputError for a group that cannot be.
    """
    roster = Roster.from_genesis(genesis)
    meter_ids = {fleet.meter(meter_id).party.hid: meter_id for meter_id in readings}
    _check_group(options, len(meter_ids))
    nodes = [NodeClient(url, chain=roster.chain) for url in urls]
    courier = Courier(nodes, ReceiptVerifier(roster), weak=roster.quorum.weak, seed=os.urandom(32))
    utility = Utility.open(home.folder, roster)
    chain = AggregationChain(utility, courier, nodes, roster, lambda: time.time_ns() // 1_000_000)
    try:
        with Transcript(run / "transcript.jsonl") as transcript:
            place = _Place(options, fleet, chain, roster, meter_ids, readings, transcript, show)
            return await (_masked(place) if options.mode == MASKED else _ring(place))
    finally:
        await courier.close()
        for node in nodes:
            await node.close()


def _check_group(options: AggregateOptions, members: int) -> None:
    try:
        plan_for(members)
    except ValueError as error:
        raise InputError(str(error), where="--meters", do="choose more meters: a small group hides nobody") from None
    if options.mode == RING and members > RING_MEMBERS_MAX:
        raise InputError(f"a ring over HTTP has at most {RING_MEMBERS_MAX} members", do="use --mode masked")
    if not options.intervals:
        raise InputError("there is no interval to sum", where="--from, --to", do="choose a time that the data has")


async def _masked(place: _Place) -> AggregateReport:
    options, chain = place.options, place.chain
    heads = await chain.heads()
    place.show("fixing the roster on the chain")
    members = await chain.members(list(place.meter_ids))
    fixed = await chain.fix_roster(heads.roster + 1, options.group, members)
    reader = GenesisReader(place.roster)
    host = MeterHost(place.fleet, place.meter_ids, place.readings, reader, DEFAULT_POLICY, place.transcript)
    silent, leaving = place.dropping()
    host.is_down = lambda hid, answered: hid in silent or (hid in leaving and answered > 0)
    digest = _digest(fixed.transaction.argument)
    past: list[tuple[StartArgument, frozenset[int]]] = []
    reports: list[RoundReport] = []
    refused: dict[str, int] = {}
    declined: dict[str, int] = {}
    notice = None
    async with served(host.application()) as http:
        head_end = HeadEnd(http, members, chain, place.transcript)
        for number, first_s in enumerate(options.intervals, heads.round + 1):
            place.show(f"round {number}, {len(reports)} of {len(options.intervals)} done")
            began = time.perf_counter()
            start = StartArgument(number, heads.roster + 1, digest, MASKED, first_s, 1, READING_MAX, options.noise)
            proof = await chain.submit("start", start)
            if isinstance(proof, Reason):
                raise ExpectationError(f"round {number} was not opened: {proof}")
            first_notice = None
            if notice is None:
                beacon = await chain.header(fixed.receipt.header.height + 1)
                first_notice = notice = RosterNotice(fixed, beacon, members)
                block = reader.block_hash(beacon)
                if isinstance(block, Reason):
                    raise ExpectationError(f"a node gave a header that does not hold: {block}")
                group = group_of(digest, members, block[1])
            host.new_round()
            near = [known for former, known in past if are_near(former, start)]
            masked = MaskedRound(group, start, reader, first_notice, near)
            ended = await head_end.run(masked, proof)
            if masked.final_contributors is not None:
                past.append((start, masked.final_contributors))
            for counted, into in ((masked.refused, refused), (masked.declined, declined)):
                for reason, count in counted.items():
                    into[reason.value] = into.get(reason.value, 0) + count
            seconds = time.perf_counter() - began
            hids = [members[member].hid for member in ended.contributors]
            reports.append(
                RoundReport(
                    round=number,
                    first_s=first_s,
                    reason=ended.reason,
                    energy=ended.sums[0] if ended.sums else None,
                    true_energy=place.true_energy(hids, first_s) if ended.sums else None,
                    contributors=len(hids),
                    is_proven=await _recorded_as(chain, number, ended.sums, len(hids)),
                    seconds=round(seconds, 3),
                )
            )
    return _report(
        place,
        group.plan,
        reports,
        len(silent) + len(leaving),
        list(host.traffic.values()),
        (host.cpu_s, head_end.cpu_s),
        (refused | {reason.value: count for reason, count in host.refused.items()}, declined),
    )


def _digest(argument: bytes) -> bytes:
    from bcami.aggregation.proofs import CODECS

    digest: bytes = CODECS["fix_roster"].decode(argument).digest
    return digest


async def _recorded_as(chain: AggregationChain, number: int, sums: tuple[int, ...], count: int) -> bool:
    """Tell whether the chain has exactly this result, and proven; raises ExpectationError when it has another."""
    view = await chain.round(number)
    result = view.result
    if result is None or result.sums != sums or (sums and result.count != count):
        raise ExpectationError(f"the chain does not hold what round {number} ended with", do="bcami show block")
    return result.is_proven


async def _ring(place: _Place) -> AggregateReport:
    options, chain, fleet = place.options, place.chain, place.fleet
    heads = await chain.heads()
    place.show("fixing the roster on the chain")
    members = await chain.members(list(place.meter_ids))
    fixed = await chain.fix_roster(heads.roster + 1, options.group, members)
    digest = _digest(fixed.transaction.argument)
    by_address = {member.hid: member for member in members}
    supplier = RingSupplier(by_address, place.roster.chain, place.roster.epoch, READING_MAX, DEFAULT_POLICY.group_min)
    meters, secrets = {}, {SUPPLIER: Secrets(SecretKey.generate(os.urandom(32)), KemSecretKey.generate(os.urandom(32)))}
    for hid, meter_id in place.meter_ids.items():
        session = fleet.meter(meter_id).session
        assert session is not None
        meters[hid] = RingMeter(hid, place.readings[meter_id].get, os.urandom(32))
        secrets[hid] = Secrets(session.key, session.kem)
    parties = RingParties(meters, supplier, secrets, place.roster.chain, place.roster.epoch, place.transcript)
    silent, leaving = place.dropping()
    reports: list[RoundReport] = []
    sent_before = 0
    async with served(parties.application()) as http:
        parties.connect(http)
        try:
            await _form_ring(place, parties, supplier, by_address)
            sent_before = sum(item.sent for item in parties.traffic.values())
            parties.down |= silent | leaving
            for number, first_s in enumerate(options.intervals, heads.round + 1):
                place.show(f"round {number}, {len(reports)} of {len(options.intervals)} done")
                reports.append(await _ring_round(place, parties, supplier, (number, first_s, heads.roster + 1, digest)))
        finally:
            await parties.close()
    traffic = [item for address, item in parties.traffic.items() if address != SUPPLIER]
    return _report(
        place,
        None,
        reports,
        len(silent) + len(leaving),
        traffic,
        (parties.cpu_s, 0.0),
        (
            {reason.value: count for reason, count in (parties.refused + supplier.refused).items()},
            {},
        ),
        setup_messages=sent_before,
    )


async def _form_ring(
    place: _Place, parties: RingParties, supplier: RingSupplier, members: Mapping[bytes, RosterMember]
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


async def _ring_round(
    place: _Place, parties: RingParties, supplier: RingSupplier, about: tuple[int, int, int, bytes]
) -> RoundReport:
    number, first_s, roster, digest = about
    began = time.perf_counter()
    start = StartArgument(number, roster, digest, RING, first_s, 1, READING_MAX, Noise(0, 0, 1))
    proof = await place.chain.submit("start", start)
    if isinstance(proof, Reason):
        raise ExpectationError(f"round {number} was not opened: {proof}")
    reason, total, count, tokens = Reason.TIMED_OUT, 0, 0, b""
    if await parties.until(lambda: supplier.is_ready, _RING_S):
        before = len(supplier.results)
        parties.request(first_s)
        if await parties.until(lambda: len(supplier.results) > before, _RING_S):
            result = supplier.results[-1]
            reason, total, count, tokens = result.reason, result.total, result.count, result.tokens_hash
    if reason is Reason.VALID:
        outcome = await place.chain.submit("claim", ClaimArgument(number, (total,), count, tokens))
    else:
        outcome = await place.chain.submit("void", VoidArgument(number, reason))
    if isinstance(outcome, Reason):
        raise ExpectationError(f"the end of round {number} was not recorded: {outcome}")
    is_valid = reason is Reason.VALID
    # The ring does not say who took part; with drop-outs it is those who are there.
    hids = [hid for hid in place.meter_ids if hid not in parties.down]
    is_same = count in (len(hids), len(place.meter_ids))
    if is_same and count == len(place.meter_ids):
        hids = list(place.meter_ids)
    return RoundReport(
        round=number,
        first_s=first_s,
        reason=reason,
        energy=total if is_valid else None,
        true_energy=place.true_energy(hids, first_s) if is_valid and is_same else None,
        contributors=count,
        is_proven=await _recorded_as(place.chain, number, (total,) if is_valid else (), count),
        seconds=round(time.perf_counter() - began, 3),
    )


def _report(
    place: _Place,
    plan: Plan | None,
    rounds: list[RoundReport],
    dropped: int,
    traffic: list[Traffic],
    cpu_s: tuple[float, float],
    noes: tuple[dict[str, int], dict[str, int]],
    *,
    setup_messages: int = 0,
) -> AggregateReport:
    shares = len(traffic) * len(rounds)
    return AggregateReport(
        members=len(traffic),
        plan=plan,
        rounds=tuple(rounds),
        dropped=dropped,
        messages_per_meter=round((sum(item.sent for item in traffic) - setup_messages) / shares, 3),
        bytes_sent_per_meter=round(sum(item.sent_bytes for item in traffic) / shares, 1),
        bytes_received_per_meter=round(sum(item.received_bytes for item in traffic) / shares, 1),
        cpu_ms_per_meter=round(cpu_s[0] * 1000 / shares, 3),
        head_end_cpu_ms=round(cpu_s[1] * 1000 / len(rounds), 3),
        transactions=place.chain.transactions,
        transaction_bytes=place.chain.transaction_bytes,
        refused=noes[0],
        declined=noes[1],
    )


@asynccontextmanager
async def served(application: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an application on a free loopback port while the block runs; yields a client for it."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        host, port = listener.getsockname()[:2]
        config = uvicorn.Config(application, log_config=None, lifespan="off", access_log=False)
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with httpx.AsyncClient(
                base_url=f"http://{host}:{port}",
                trust_env=False,
                limits=httpx.Limits(max_connections=64, max_keepalive_connections=64),
            ) as http:
                yield http
        finally:
            server.should_exit = True
            await serving
