"""replay and reconcile: a data set goes through the network, and is compared with what the MDMS holds."""

import datetime as dt
import io
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    import pyarrow as pa

    from bcami.config import Network
    from bcami.paths import HomePaths
    from bcami.replay.options import Filters, ReplayOptions
    from bcami.replay.reconcile import Reconciliation
    from bcami.replay.runner import ReplayProgress, ReplayResult

STALLED_S: Final = 60.0
"""Longest time without a new height at the MDMS before waiting for it is given up."""
READINGS_PER_REPORT_AT_MAX: Final = 48
"""A year of half-hours at full speed is sent as daily reports; one reading a report takes 48 times the transactions."""
_POLL_S: Final = 0.25
_STATE_EVERY_S: Final = 1.0
_ASKED_METERS_MAX: Final = 50
"""Up to so many meters are named in the request for readings; otherwise all are asked for."""

DataPath = Annotated[
    str, typer.Argument(metavar="PATH", help="A folder or file of readings; `sample` is the one that comes along.")
]
Meters = Annotated[int | None, typer.Option("--meters", metavar="N", help="Only the first N meter ids, sorted.")]
From = Annotated[str | None, typer.Option("--from", metavar="ISO", help="Only readings from this time on, UTC.")]
To = Annotated[str | None, typer.Option("--to", metavar="ISO", help="Only readings before this time, UTC.")]
LayoutName = Annotated[
    str | None, typer.Option("--layout", metavar="NAME", help="Layout of the files; found out when left out.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(replay)
    app.command()(reconcile)


def replay(
    path: DataPath,
    meters: Meters = None,
    from_: From = None,
    to: To = None,
    speed: Annotated[str, typer.Option(metavar="S", help="max, realtime, or a factor such as 60.")] = "max",
    readings_per_report: Annotated[
        int | None, typer.Option(metavar="K", help="Readings in one report: 48 (a day) at --speed max, otherwise 1.")
    ] = None,
    layout: LayoutName = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a former replay of this data stopped.")] = False,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Send a data set's readings through the running network, each signed and encrypted by its meter.

    Example: bcami replay data/halfhourly_dataset --meters 50 --from 2013-01-01 --to 2013-02-01
    """
    import msgspec

    from bcami.cli.ask import running_nodes
    from bcami.processes.home import open_home
    from bcami.replay.layouts import parse_layout
    from bcami.replay.options import ReplayOptions, parse_speed

    pace = parse_speed(speed)
    if readings_per_report is None:
        readings_per_report = READINGS_PER_REPORT_AT_MAX if pace is None else 1
    options = ReplayOptions(
        path=data_path(path),
        filters=_filters(meters, from_, to),
        layout=None if layout is None else parse_layout(layout),
        speed=pace,
        readings_per_report=readings_per_report,
        resume=resume,
    )
    paths = home_paths(home)
    network, _ = open_home(paths)
    running_nodes(paths, network)
    result = run_replay_of(paths, network, options)
    show_replay(result)
    SCREEN.result("bcami/replay/1", msgspec.to_builtins(result))
    check_replay(result)


def reconcile(
    path: DataPath,
    meters: Meters = None,
    from_: From = None,
    to: To = None,
    layout: LayoutName = None,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Compare a data set with what the MDMS holds, to the last digit. Waits until the MDMS has all that is committed.

    Example: bcami reconcile data/halfhourly_dataset --meters 50
    """
    import msgspec

    from bcami.errors import ExpectationError
    from bcami.processes.home import open_home
    from bcami.replay.layouts import parse_layout

    paths = home_paths(home)
    network, _ = open_home(paths)
    parsed = None if layout is None else parse_layout(layout)
    wait_for_mdms(paths, network)
    result = run_reconcile_of(paths, network, data_path(path), _filters(meters, from_, to), parsed)
    show_reconciliation(result)
    SCREEN.result("bcami/reconcile/1", msgspec.to_builtins(result))
    if not result.agrees:
        raise ExpectationError("the MDMS does not hold what the data set says", do="see the lines above")


def data_path(given: str) -> Path:
    """Return the path of a data set; `sample` is the bundled one unless something of that name is there."""
    from bcami.bundled import find_bundled

    path = Path(given)
    return find_bundled("datasets/sample") if given == "sample" and not path.exists() else path


def run_replay_of(
    home: "HomePaths", network: "Network", options: "ReplayOptions", folder: Path | None = None
) -> "ReplayResult":
    """Replay with progress. The rejects file goes into `folder`, by default where the fleet is."""
    from bcami.cli.interrupt import run_command
    from bcami.cli.meters import open_fleet
    from bcami.replay.runner import run_replay

    async def run(show: "Callable[[ReplayProgress], None]") -> "ReplayResult":
        async with open_fleet(home) as fleet:
            return await run_replay(options, fleet, show, folder=folder or home.fleet)

    with SCREEN.progress("replay") as progress, _NetworkState(home, network) as state:
        return run_command(run(lambda now: progress(_replay_line(now, state))))


def wait_for_mdms(home: "HomePaths", network: "Network", given_up: threading.Event | None = None) -> int:
    """Return the height when the MDMS has stored every block that is certified now, or when `given_up` is set.

    Raises EnvironmentFault when it is not running, or makes no progress for STALLED_S.
    """
    import time

    from bcami.cli.ask import get_json, http_client, running_mdms, running_nodes
    from bcami.errors import EnvironmentFault

    given_up = given_up or threading.Event()
    url = running_mdms(home, network)
    with http_client() as client, SCREEN.progress("waiting for the MDMS") as progress:
        told = [get_json(client, node.url, "/v1/status") for node in running_nodes(home, network)]
        target = max(int(node["certified_height"]) for node in told)
        height, moved = -1, time.monotonic()
        while True:
            now = int(get_json(client, url, "/v1/status")["height"])
            if now >= target or given_up.is_set():
                return now
            if now > height:
                height, moved = now, time.monotonic()
            elif time.monotonic() - moved > STALLED_S:
                raise EnvironmentFault(
                    f"the MDMS stands at height {now} of {target} for {STALLED_S:.0f} s", do="bcami logs mdms"
                )
            progress(f"height {now} of {target}")
            given_up.wait(_POLL_S)


def run_reconcile_of(
    home: "HomePaths", network: "Network", path: Path, filters: "Filters", layout: Any = None
) -> "Reconciliation":
    """Compare with progress."""
    from bcami.cli.ask import running_mdms
    from bcami.replay.reconcile import Reconciler

    url = running_mdms(home, network)
    with SCREEN.progress("reconcile") as progress, Reconciler(path, filters, layout) as work:
        work.expect(lambda fraction, count: progress(f"read {count:,} readings ({fraction:.0%})"))
        work.store(_stored_readings(url, work.chosen, progress))
        progress("comparing")
        return work.compare()


def show_replay(result: "ReplayResult") -> None:
    """Print what a replay did."""
    skipped, rejected = _counted(result.readings_skipped), _counted(result.transactions_rejected)
    for name, text in (
        (
            "layout",
            f"{result.layout}, {result.files} files" + (f", {len(result.ignored)} ignored" if result.ignored else ""),
        ),
        ("meters", f"{result.meters:,}"),
        ("readings", f"{result.readings_read:,} read, {result.readings_sent:,} sent"),
        ("skipped", f"{skipped}" + (f" (see {result.rejects_file})" if result.readings_skipped else "")),
        ("transactions", f"{result.transactions_committed:,} committed, rejected: {rejected}"),
        ("speed", f"{result.transactions_per_second:,.1f} transactions/s in {result.seconds:.1f} s"),
        ("latency ms", _latency(result.latency_ms)),
    ):
        SCREEN.line(f"{name:<14}{text}")
    for name, why in result.ignored.items():
        SCREEN.line(f"  ignored {name}: {why}")


def check_replay(result: "ReplayResult") -> None:
    """Raise ExpectationError when readings were accepted from the data set and not committed."""
    from bcami.errors import ExpectationError

    if not result.is_complete:
        raise ExpectationError(
            f"reports were given up for now and stay in the fleet's store: {_counted(result.transactions_stopped)}",
            do="remove the cause and run the replay again with --resume",
        )


def show_reconciliation(result: "Reconciliation") -> None:
    """Print both sides and where they differ."""
    SCREEN.table(
        ("", "data set", "MDMS"),
        [
            ("readings", f"{result.readings_expected:,}", f"{result.readings_stored:,}"),
            ("meters", f"{result.meters_expected:,}", f"{result.meters_stored:,}"),
            ("kWh", result.kwh_expected, result.kwh_stored),
        ],
    )
    SCREEN.line(f"missing {result.missing}   extra {result.extra}   different {result.different}")
    if result.outside:
        SCREEN.line(f"{result.outside:,} more readings in the MDMS are of other meters or times than this data set's")
    for item in result.examples:
        sides = f"data set {item.expected or '-'}, MDMS {item.stored or '-'}"
        SCREEN.line(f"  {item.kind:<10}{item.meter} at {_moment(item.start_s)}: {sides}")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "none"


def _latency(latency_ms: Mapping[str, int | None]) -> str:
    return "  ".join(f"{name} {'-' if value is None else value}" for name, value in latency_ms.items())


def _moment(start_s: int) -> str:
    return dt.datetime.fromtimestamp(start_s, dt.UTC).strftime("%Y-%m-%d %H:%M")


def _filters(meters: int | None, from_: str | None, to: str | None) -> "Filters":
    from bcami.replay.options import Filters, parse_moment

    return Filters(
        meters=meters,
        from_s=None if from_ is None else parse_moment(from_, "--from"),
        to_s=None if to is None else parse_moment(to, "--to"),
    )


class _NetworkState:
    """Height and view for the progress line, asked once a second in a thread of its own, of whichever node answers."""

    def __init__(self, home: "HomePaths", network: "Network") -> None:
        from bcami.processes.amnesia import lost_votes

        lost = lost_votes(home, network)
        self.text = ""
        self._warning = f"  no votes of {', '.join(lost)}" if lost else ""
        self._urls = [node.url for node in network.nodes]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True, name="network state")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def _ask(self) -> None:
        import httpx

        with httpx.Client(timeout=1.0, trust_env=False) as client:
            while not self._stop.wait(_STATE_EVERY_S):
                for url in self._urls:
                    try:
                        told = client.get(f"{url}/v1/status").json()
                        self.text = f"height {told['height']} view {told['view']}{self._warning}"
                    except (httpx.HTTPError, ValueError, KeyError):
                        continue
                    break


def _replay_line(now: "ReplayProgress", state: _NetworkState) -> str:
    if now.phase in {"survey", "enrol"}:
        return f"{now.phase}  {now.meters:,} meters" if now.meters else now.phase
    return (
        f"{now.fraction:4.0%}  {now.readings_per_second:,.0f} readings/s  committed {now.transactions_committed:,}  "
        f"rejected {now.transactions_rejected:,}  {state.text}  "
        f"latency ms {_latency(now.latency_ms)}"
    )


def _stored_readings(
    url: str, chosen: frozenset[str] | None, progress: Callable[[str], None]
) -> "Iterator[pa.RecordBatch]":
    """Yield the MDMS's readings, streamed, of the chosen meters or of all."""
    import httpx
    import pyarrow as pa

    from bcami.errors import EnvironmentFault

    if chosen is not None and not chosen:
        return
    asked = {"meters": ",".join(sorted(chosen))} if chosen and len(chosen) <= _ASKED_METERS_MAX else {}
    seen = 0
    try:
        with (
            httpx.Client(timeout=60.0, trust_env=False) as client,
            client.stream("GET", f"{url}/v1/readings.arrow", params=asked) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                raise EnvironmentFault(
                    f"HTTP {answer.status_code}", where=f"{url}/v1/readings.arrow", do="bcami logs mdms"
                )
            with pa.ipc.open_stream(_ByteReader(answer.iter_raw())) as reader:
                for batch in reader:
                    seen += batch.num_rows
                    progress(f"fetched {seen:,} readings of the MDMS")
                    yield batch
    except (httpx.HTTPError, OSError, pa.ArrowInvalid) as error:
        raise EnvironmentFault(f"the MDMS's readings broke off: {error}", where=url, do="bcami logs mdms") from None


class _ByteReader(io.RawIOBase):
    """A file over chunks of bytes; a read is short only at the end, as Arrow expects it."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = bytearray()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest += chunk
        taken = bytes(self._rest if size < 0 else self._rest[:size])
        del self._rest[: len(taken)]
        return taken
