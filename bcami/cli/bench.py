"""bench: throughput and latency of the running network, as a ratio to this machine's signature-check limit."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    import threading

    from bcami.config import Network
    from bcami.paths import HomePaths
    from bcami.replay.load import Window

WARM_UP_S: Final = 3.0
MDMS_BEHIND_S_MAX: Final = 5.0
"""A run is void when the MDMS needs longer than this, after the load, for what is certified then."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(bench)


def bench(
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", help="Nodes of the network made for this run.")] = 4,
    seconds: Annotated[float, typer.Option(min=1.0, max=3600.0, help="Length of the saturated stretch.")] = 15.0,
    meters: Annotated[int, typer.Option(min=1, max=100_000, help="Meters that report, registered before.")] = 200,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Measure the running network, or one made for it: one reading in each transaction, everything durable.

    Saturates it, then offers half of what it did at a steady rate. Example: bcami bench --seconds 20
    """
    import json as json_format

    from bcami.cli.own_network import network_for_run
    from bcami.errors import ExpectationError, InconclusiveError

    with network_for_run(home_paths(home), "bench", lambda _: None, nodes=nodes) as place:
        fields = _measure(place.home, place.network, seconds, meters)
    (place.run / "summary.json").write_text(json_format.dumps(fields, indent=2) + "\n", encoding="utf-8")
    _show(fields)
    SCREEN.result("bcami/bench/1", fields)
    if fields["void"]:
        raise InconclusiveError(fields["void"], do="run it on an otherwise idle machine")
    if not fields["transactions"]:
        raise ExpectationError("nothing was committed", do="bcami status; bcami logs node1")


def _measure(home: "HomePaths", network: "Network", seconds: float, meters: int) -> dict[str, Any]:
    import asyncio
    import threading

    from bcami.cli.interrupt import run_command
    from bcami.cli.meters import open_fleet
    from bcami.processes.cpu import cores, primitive_seconds
    from bcami.replay.load import Load

    verify_s, sign_s, seal_s = primitive_seconds()
    limit = cores() / (len(network.nodes) * verify_s + sign_s + seal_s)
    usage = Usage(home, network)
    ids = [f"BENCH{i:06d}" for i in range(meters)]

    async def run(show: Callable[[str], None]) -> "tuple[Window, float, Window]":
        async with open_fleet(home) as fleet:
            show(f"registering {meters} meters")
            await fleet.enrol(ids)
            load = Load(fleet, ids, first_unused_start(home))
            full = await load.saturate(
                WARM_UP_S, seconds, usage.mark, lambda done: show(f"saturated: {done:,} committed")
            )
            given_up = threading.Event()
            try:
                behind_s = await asyncio.to_thread(_mdms_behind, home, network, given_up)
            finally:
                given_up.set()
            await fleet.drain()
            half = await load.steady(
                full.per_second / 2, max(5.0, seconds / 2), lambda done: show(f"half load: {done:,} committed")
            )
            return full, behind_s, half

    with SCREEN.progress("bench") as progress:
        full, behind_s, half = run_command(run(progress))
    void = ""
    if behind_s > MDMS_BEHIND_S_MAX:
        void = f"the MDMS was {behind_s:.1f} s behind at the end, more than {MDMS_BEHIND_S_MAX:.0f} s"
    return {
        "nodes": len(network.nodes),
        "meters": meters,
        "transactions": full.committed,
        "seconds": round(full.seconds, 3),
        "transactions_per_second": round(full.per_second, 1),
        "limit_transactions_per_second": round(limit, 1),
        "ratio": round(full.per_second / limit, 4),
        "latency_ms": full.latencies.summary(),
        "half_load": {
            "transactions_per_second": round(full.per_second / 2, 1),
            "transactions": half.committed,
            "latency_ms": half.latencies.summary(),
        },
        "cpu_us_per_transaction": usage.per_transaction_us(full.committed),
        "rss_bytes_max": usage.rss_bytes,
        "primitive_us": {
            "verify": round(verify_s * 1e6, 2),
            "sign": round(sign_s * 1e6, 2),
            "seal": round(seal_s * 1e6, 2),
        },
        "cores": cores(),
        "mdms_behind_s": round(behind_s, 2),
        "void": void,
    }


class Usage:
    """CPU time of each role between two marks."""

    def __init__(self, home: "HomePaths", network: "Network") -> None:
        from bcami.processes.supervisor import Supervisor

        supervisor = Supervisor(home, network, attached=False)
        self._pids: dict[str, list[int]] = {"nodes": [], "mdms": []}
        for name in (*(node.name for node in network.nodes), "mdms"):
            identity = supervisor.identity(name)
            if identity is not None:
                self._pids["mdms" if name == "mdms" else "nodes"].append(identity.pid)
        self._start: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        self.rss_bytes: dict[str, int] = {}

    def mark(self, begins: bool) -> None:
        if begins:
            self._start = self._now()
            return
        now = self._now()
        self._spent = {role: now[role] - self._start[role] for role in now}
        self.rss_bytes = {role: max((_rss_bytes(pid) for pid in pids), default=0) for role, pids in self._pids.items()}

    def per_transaction_us(self, transactions: int) -> dict[str, float]:
        if not transactions:
            return {}
        return {role: round(spent * 1e6 / transactions, 1) for role, spent in self._spent.items()}

    def _now(self) -> dict[str, float]:
        import time

        from bcami.processes.cpu import cpu_seconds

        spent = {role: sum(cpu_seconds(pid) for pid in pids) for role, pids in self._pids.items()}
        return {**spent, "load": time.process_time()}


def _rss_bytes(pid: int) -> int:
    from pathlib import Path

    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _mdms_behind(home: "HomePaths", network: "Network", given_up: "threading.Event") -> float:
    """Return the seconds until the MDMS has stored what is certified now."""
    import time

    from bcami.cli.data import wait_for_mdms

    start = time.perf_counter()
    wait_for_mdms(home, network, given_up)
    return time.perf_counter() - start


def first_unused_start(home: "HomePaths") -> int:
    """Return a half-hour from which no earlier run on this home has made readings."""
    from bcami.replay.load import FIRST_START_S
    from bcami.units import HALF_HOUR_S

    mark = home.fleet / "bench.start"
    last = int(mark.read_text(encoding="ascii")) if mark.is_file() else FIRST_START_S
    mark.write_text(str(last + 100_000 * HALF_HOUR_S), encoding="ascii")
    return last


def _percentiles(latency_ms: dict[str, int | None]) -> str:
    return "  ".join(f"{name} {value}" for name, value in latency_ms.items())


def _show(fields: dict[str, Any]) -> None:
    latency, half = fields["latency_ms"], fields["half_load"]
    for name, text in (
        ("nodes", f"{fields['nodes']}, {fields['meters']} meters, {fields['cores']} cores"),
        ("saturated", f"{fields['transactions_per_second']:,.1f} transactions/s over {fields['seconds']:.1f} s"),
        ("limit", f"{fields['limit_transactions_per_second']:,.1f} transactions/s (signature checks alone)"),
        ("ratio", f"{fields['ratio']:.3f}"),
        ("latency ms", f"{_percentiles(latency)} (saturated)"),
        (
            "half load",
            f"{half['transactions_per_second']:,.1f} transactions/s, {_percentiles(half['latency_ms'])}",
        ),
        ("cpu us/tx", "  ".join(f"{role} {us}" for role, us in fields["cpu_us_per_transaction"].items())),
        ("memory", "  ".join(f"{role} {size / 2**20:.0f} MB" for role, size in fields["rss_bytes_max"].items())),
        ("mdms", f"{fields['mdms_behind_s']} s behind at the end of the saturated stretch"),
    ):
        SCREEN.line(f"{name:<12}{text}")
