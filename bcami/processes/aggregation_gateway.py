"""One process that plays a share of a group's meters: a gateway of its own with the meters behind it.

    python -m bcami.processes.aggregation_gateway

What it is to play comes first on standard input (`Share`), which then stays open: when it ends, so does the process,
however its starter ended. On standard output it tells where it is reached (`Ready`), and at the end what its meters
did (`Totals`). Keys never cross a pipe: they come from the fleet's store, where what meters keep goes too.
"""

import asyncio
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from bcami.aggregation.proofs import GenesisReader
from bcami.ami.aggregation_meters import MeterHost
from bcami.ami.aggregation_metrics import METER, AggregationMetrics
from bcami.ami.meter import Meter
from bcami.ami.outbox import Outbox, Write
from bcami.ami.shelf import MeterShelf
from bcami.ami.transcript import Transcript
from bcami.ami.writer import GroupWriter
from bcami.crypto.roster import Roster
from bcami.model.reasons import Reason
from bcami.paths import HomePaths
from bcami.processes.aggregation_place import served
from bcami.processes.home import load_utility, open_home

LENGTH_BYTES: Final = 4
"""Of the number before each record on a pipe, big-endian."""


class Share(msgspec.Struct, frozen=True, array_like=True):
    """The meters to play."""

    home: str
    meters: dict[bytes, str]
    """By HID."""
    readings: dict[str, dict[int, int]]
    """Start of an interval, Unix seconds → energy units."""
    silent: tuple[bytes, ...]
    """Gone from the start, in a trial of drop-outs."""
    leaving: tuple[bytes, ...]
    """Gone after their contribution."""
    transcript: str
    """File for what these meters see."""


class Ready(msgspec.Struct, frozen=True, array_like=True):
    """The meters are there."""

    url: str


class Totals(msgspec.Struct, frozen=True, array_like=True):
    """What all of these meters did, in all rounds."""

    sent: int
    sent_bytes: int
    received_bytes: int
    meters_cpu_s: float
    """Of the meters' own steps in rounds, without HTTP and store."""
    roster_cpu_s: float
    """Of taking the roster and agreeing on keys."""
    noes: dict[str, int]


class KeptMeters:
    """The meters of a fleet's store: keys are read, and what aggregation keeps is written. Implements MeterStore."""

    def __init__(self, home: HomePaths, roster: Roster) -> None:
        self._outbox = Outbox(home.fleet, roster.chain)
        self._shelf = MeterShelf(self._outbox, roster, load_utility(home).network)
        self._writer = GroupWriter(self._outbox)

    def meter(self, meter_id: str) -> Meter:
        return self._shelf.meter(meter_id)

    def kept(self, table: bytes, prefix: bytes) -> dict[bytes, bytes]:
        return dict(self._outbox.items(table, prefix))

    async def keep(self, writes: Iterable[Write]) -> None:
        await self._writer.write(writes)

    async def close(self) -> None:
        try:
            await self._writer.close()
        finally:
            self._outbox.close()


def put(record: msgspec.Struct) -> bytes:
    """Return a record as it goes over a pipe."""
    data = msgspec.msgpack.encode(record)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


async def play(share: Share, over: asyncio.Event) -> Totals:
    """Play the meters until it is over. Raises InputError and EnvironmentFault as the home and its store do."""
    home = HomePaths(Path(share.home))
    _, genesis = open_home(home)
    roster = Roster.from_genesis(genesis)
    metrics = AggregationMetrics()
    store = KeptMeters(home, roster)
    try:
        host = MeterHost(store, share.meters, share.readings, GenesisReader(roster), metrics)
        silent, leaving = frozenset(share.silent), frozenset(share.leaving)
        host.is_down = lambda hid, is_later: hid in silent or (is_later and hid in leaving)
        with Transcript(Path(share.transcript)) as host.transcript:
            async with served(host.application()) as url:
                _tell(Ready(url))
                await over.wait()
    finally:
        await store.close()
    traffic = host.traffic.values()
    return Totals(
        sum(item.sent for item in traffic),
        sum(item.sent_bytes for item in traffic),
        sum(item.received_bytes for item in traffic),
        host.cpu_s,
        host.roster_cpu_s,
        metrics.noes().get(METER, {}),
    )


def add_noes(metrics: AggregationMetrics, totals: Totals) -> None:
    """Count what the meters of another process turned down."""
    for reason, count in totals.noes.items():
        metrics.no(METER, Reason(reason), count)


def _tell(record: msgspec.Struct) -> None:
    sys.stdout.buffer.write(put(record))
    sys.stdout.buffer.flush()


async def _main() -> None:
    loop = asyncio.get_running_loop()
    lifeline = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lifeline), sys.stdin)
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    try:
        size = int.from_bytes(await lifeline.readexactly(LENGTH_BYTES), "big")
        share = msgspec.msgpack.decode(await lifeline.readexactly(size), type=Share)
    except asyncio.IncompleteReadError:
        return

    async def wait_for_end() -> None:
        await lifeline.read()
        over.set()

    ending = asyncio.create_task(wait_for_end())
    totals = await play(share, over)
    ending.cancel()
    with suppress(BrokenPipeError):  # the starter is gone
        _tell(totals)


if __name__ == "__main__":
    asyncio.run(_main())
