"""What both modes of aggregation work with on a live network."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import httpx
import msgspec
import uvicorn
from starlette.applications import Starlette

from bcami.aggregation.proofs import CODECS
from bcami.aggregation.rules import FORGET_S
from bcami.ami.aggregation_chain import AggregationChain
from bcami.ami.aggregation_history import AggregationHistory, EarlierRound
from bcami.ami.aggregation_meters import Readings
from bcami.ami.aggregation_metrics import AggregationMetrics
from bcami.ami.fleet import Fleet
from bcami.ami.transcript import Transcript
from bcami.crypto.roster import Roster
from bcami.errors import ExpectationError, InputError
from bcami.model.aggregation import MASKED, Mode, Noise, VoidArgument
from bcami.model.api import TransactionProof
from bcami.model.reasons import Reason
from bcami.paths import HomePaths
from bcami.processes.aggregation_report import SummedBefore, half_hour_text, name_of
from bcami.units import HALF_HOUR_S

READING_MAX: Final = 10**9
"""100 kWh in half an hour, energy units."""
_DAY_S: Final = 86_400


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
    processes: int = 1
    """That play the meters, in masked mode, at most."""


@dataclass(frozen=True, slots=True)
class Place:
    """A group on a network."""

    options: AggregateOptions
    home: HomePaths
    run: Path
    """Folder of what the run leaves behind."""
    lock: int
    """File that says that these meters are in use, for processes that play them."""
    fleet: Fleet
    chain: AggregationChain
    history: AggregationHistory
    roster: Roster
    meter_ids: Mapping[bytes, str]
    """By HID."""
    readings: Mapping[str, Readings]
    transcript: Transcript
    metrics: AggregationMetrics
    show: Callable[[str], None]

    def true_energy(self, hids: Sequence[bytes], first_s: int) -> int:
        return sum(self.readings[self.meter_ids[hid]].get(first_s, 0) for hid in hids)

    def dropping(self) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """Return who is gone from the start and who goes after the first message."""
        count = round(self.options.dropouts * len(self.meter_ids))
        hids = sorted(self.meter_ids, key=self.meter_ids.__getitem__)
        gone = Random(self.options.seed).sample(hids, count)  # noqa: S311  a trial, not a secret
        return frozenset(gone[: (count + 1) // 2]), frozenset(gone[(count + 1) // 2 :])

    async def recorded_as(self, number: int, sums: tuple[int, ...], count: int) -> bool:
        """Tell whether the chain has exactly this result, and proven; raises ExpectationError when it has another."""
        result = (await self.chain.round(number)).result
        if result is None or result.sums != sums or (sums and result.count != count):
            raise ExpectationError(f"the chain does not hold what round {number} ended with", do="bcami show block")
        return result.is_proven


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is left to be summed, and what was summed before."""

    intervals: tuple[int, ...]
    summed_before: tuple[SummedBefore, ...]
    earlier: tuple[EarlierRound, ...]
    voids: tuple[TransactionProof, ...]
    """Proofs that rounds over these intervals ended without a sum: the readings in them are free again."""


async def look_back(place: Place, missing_max: int) -> Ahead:
    """Find out what the members have summed before, and end rounds that an interrupted run left open.

    A half-hour is left away when more than `missing_max` members do not give their reading of it any more.
    Raises InputError when none is left.
    """
    options, members = place.options, frozenset(place.meter_ids)
    earlier = await place.history.near(options.intervals)
    for item in earlier:
        if item.view.result is None:
            place.show(f"ending round {item.number}, which an interrupted run left open")
            settled = item.view.settlement
            is_final = settled is not None and settled.is_final
            reason = Reason.ALREADY_REVEALED if is_final else Reason.TIMED_OUT
            await place.chain.submit("void", VoidArgument(item.number, reason))
    skipped: dict[int, EarlierRound] = {}
    for first_s in options.intervals:
        against = [
            item for item in earlier if item.hids & members and item.stands_against(first_s, options.mode, members)
        ]
        if len(frozenset().union(*(item.hids for item in against)) & members) > missing_max:
            skipped[first_s] = max(against, key=lambda item: len(item.hids & members))
    left = tuple(first_s for first_s in options.intervals if first_s not in skipped)
    summed = tuple(
        SummedBefore(first_s, item.number, _why(first_s, item, options)) for first_s, item in skipped.items()
    )
    if not left:
        raise InputError(
            f"nothing is left to sum: {summed[0].text}",
            where="--from, --to, --rounds",
            likely="an earlier run on this network",
            do=f"choose other half-hours, such as --from {_free_from(list(skipped.values()), options, members)}",
        )
    voids = []
    for item in earlier:
        is_over = any(item.view.start.first_s <= first_s < _end_s(item) for first_s in left) or item.group != members
        if is_over and not item.is_ring and not item.hids:
            proof = await place.history.ending(item.number)
            if proof is not None:
                voids.append(proof)
    return Ahead(left, summed, tuple(earlier), tuple(voids))


def _end_s(item: EarlierRound) -> int:
    return item.view.start.first_s + item.view.start.slots * HALF_HOUR_S


def _why(first_s: int, item: EarlierRound, options: AggregateOptions) -> str:
    when = half_hour_text(first_s)
    if item.is_much_later(first_s):
        days = FORGET_S // _DAY_S
        return f"{when} is more than {days} days before {name_of(item)}; meters sum nothing that old, as they forget"
    if item.view.start.mode == options.mode:
        if not item.view.start.first_s <= first_s < _end_s(item):
            return f"{when} is within a day of {name_of(item)}; within a day a meter is in sums over one group only"
        return f"{when} is in {name_of(item)}; a meter gives each reading to one sum only"
    kinds = "ring and masked" if options.mode == MASKED else "masked and ring"
    return f"{when} is within a day of {name_of(item)}; within a day a meter does not take part in {kinds} sums both"


def _free_from(found: Sequence[EarlierRound], options: AggregateOptions, members: frozenset[bytes]) -> str:
    """Return a time from which on none of these rounds stands against a sum."""
    apart_s = 0 if all(item.view.start.mode == options.mode and item.group == members for item in found) else _DAY_S
    return half_hour_text(max(map(_end_s, found)) + apart_s).replace(" ", "T")


def digest_of(proof: TransactionProof) -> bytes:
    """Return the digest of the roster that a transaction fixed."""
    digest: bytes = CODECS["fix_roster"].decode(proof.transaction.argument).digest
    return digest


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever runs this: uvicorn's handlers would end the serving, and nothing else."""
        yield


@asynccontextmanager
async def served(application: Starlette) -> AsyncIterator[str]:
    """Serve an application on a free loopback port while the block runs; yields its address."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        host, port = listener.getsockname()[:2]
        config = uvicorn.Config(application, log_config=None, lifespan="off", access_log=False)
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://{host}:{port}"
        finally:
            server.should_exit = True
            await serving


def client(url: str) -> httpx.AsyncClient:
    """Return a client for what is served there."""
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    return httpx.AsyncClient(base_url=url, trust_env=False, limits=limits)
