"""Starts and ends the processes that play a group's meters, and watches them: one that dies takes its meters along."""

import asyncio
import fcntl
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from bcami.ami.aggregation_head_end import Way
from bcami.errors import EnvironmentFault
from bcami.paths import HomePaths
from bcami.processes.aggregation_gateway import LENGTH_BYTES, Ready, Share, Totals, put
from bcami.processes.aggregation_place import Place, client
from bcami.processes.attached import STOP_S
from bcami.processes.cpu import cpu_seconds
from bcami.processes.supervisor import READY_S, how_it_ended, last_log_lines

METERS_MIN: Final = 50
"""Fewer than this do not get a process of their own beside others."""
_LOG_LINES: Final = 8
_LOCK_S: Final = 5.0
_PAUSE_S: Final = 0.05

R = TypeVar("R", bound=msgspec.Struct)


@asynccontextmanager
async def meters_in_use(home: HomePaths) -> AsyncIterator[int]:
    """Keep a second run from playing the same meters; yields a file to be held by every process that plays some.

    Two processes that play one meter would not know what the other keeps. The lock lives as long as any of them holds
    the file. Raises EnvironmentFault when others play these meters and do not end.
    """
    home.fleet.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home.fleet / "aggregation.lock").open("w", encoding="ascii") as stream:
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EnvironmentFault(
                        "another run of aggregate uses these meters",
                        where=str(home.folder),
                        do="wait until it is done",
                    ) from None
            await asyncio.sleep(_PAUSE_S)
        yield stream.fileno()


class Gateway:
    """A process and the meters that it plays."""

    def __init__(self, name: str, share: Share, log: Path, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._share = share
        self._log = log
        self._process = process
        self._is_ending = False
        self._cpu_s = 0.0
        self.way: Way
        """Set by `ready`."""
        self.loss = ""
        """How it ended too early, if it did."""

    @classmethod
    async def start(cls, name: str, share: Share, log: Path, lock: int) -> "Gateway":
        with log.open("wb") as stream:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "bcami.processes.aggregation_gateway"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stream,
                start_new_session=True,
                pass_fds=(lock,),
            )
        assert process.stdin is not None
        process.stdin.write(put(share))
        return cls(name, share, log, process)

    async def ready(self) -> None:
        """Return when its meters are reached. Raises EnvironmentFault with its last words when that does not come."""
        try:
            async with asyncio.timeout(READY_S):
                ready = await self._read(Ready)
        except TimeoutError:
            ready = None
        if ready is None:
            lines = "".join(f"\n    {line}" for line in last_log_lines(self._log, _LOG_LINES))
            raise EnvironmentFault(f"{self.name} did not become ready; its last lines:{lines}", where=str(self._log))
        self.way = Way(client(ready.url), self._share.meters)

    async def watch(self, show: Callable[[str], None]) -> None:
        """Wait for its end; one that comes before `end` is told, and nothing is asked of its meters any more."""
        status = await self._process.wait()
        if not self._is_ending:
            count = len(self._share.meters)
            self.loss = f"{self.name} with {count} meters {how_it_ended(status)}; they count as gone"
            self.way.is_gone = True
            show(self.loss)

    def cpu_s(self) -> float:
        """Return the CPU time that it took so far; of one that is gone, when it was last asked for."""
        with suppress(OSError):
            self._cpu_s = max(self._cpu_s, cpu_seconds(self._process.pid))
        return self._cpu_s

    async def end(self) -> Totals | None:
        """End the process; return what its meters did, None when it cannot tell."""
        self._is_ending = True
        if hasattr(self, "way"):
            await self.way.http.aclose()
        assert self._process.stdin is not None
        self._process.stdin.close()
        totals = None
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    totals = await self._read(Totals)
                    await self._process.wait()
        finally:
            if self._process.returncode is None:
                self._process.kill()
        await self._process.wait()
        return totals

    async def _read(self, kind: type[R]) -> R | None:
        assert self._process.stdout is not None
        try:
            size = int.from_bytes(await self._process.stdout.readexactly(LENGTH_BYTES), "big")
            return msgspec.msgpack.decode(await self._process.stdout.readexactly(size), type=kind)
        except (asyncio.IncompleteReadError, msgspec.MsgspecError):
            return None


class Gateways:
    """All of a run. `totals` and `losses` are complete when the run is over."""

    def __init__(self, gateways: Sequence[Gateway]) -> None:
        self._gateways = gateways
        self.totals: list[Totals] = []

    @property
    def ways(self) -> list[Way]:
        return [gateway.way for gateway in self._gateways]

    @property
    def losses(self) -> tuple[str, ...]:
        return tuple(gateway.loss for gateway in self._gateways if gateway.loss)

    def cpu_s(self) -> float:
        """Return the CPU time of all processes so far."""
        return sum(gateway.cpu_s() for gateway in self._gateways)


@asynccontextmanager
async def gateways(place: Place) -> AsyncIterator[Gateways]:
    """Play the group's meters in processes of their own while the block runs; each gets about as many."""
    count = max(1, min(place.options.processes, len(place.meter_ids) // METERS_MIN))
    hids = sorted(place.meter_ids)
    silent, leaving = place.dropping()
    started: list[Gateway] = []
    result = Gateways(started)
    watching: list[asyncio.Task[None]] = []
    try:
        for number in range(count):
            mine = {hid: place.meter_ids[hid] for hid in hids[number::count]}
            wanted = {meter_id: _wanted(place, meter_id) for meter_id in mine.values()}
            share = Share(
                str(place.home.folder.absolute()),
                mine,
                wanted,
                tuple(hid for hid in mine if hid in silent),
                tuple(hid for hid in mine if hid in leaving),
                str(place.run / f"transcript-{number + 1}.jsonl"),
            )
            log = place.run / f"meters-{number + 1}.log"
            started.append(await Gateway.start(f"meter process {number + 1}", share, log, place.lock))
        await asyncio.gather(*(gateway.ready() for gateway in started))
        watching += [asyncio.create_task(gateway.watch(place.show)) for gateway in started]
        yield result
    finally:
        result.totals += [item for item in await asyncio.gather(*(gateway.end() for gateway in started)) if item]
        for task in watching:
            await task


def _wanted(place: Place, meter_id: str) -> dict[int, int]:
    held = place.readings[meter_id]
    return {first_s: held[first_s] for first_s in place.options.intervals if first_s in held}
