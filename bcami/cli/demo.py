"""demo: the whole way of a reading once, on this machine, in less than a minute."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    from bcami.cli.own_network import RunNetwork
    from bcami.processes.downstream import TourReport
    from bcami.processes.supervisor import Readiness


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(demo)


def demo(
    nodes: Annotated[int, typer.Option(min=1, max=64, help="How many nodes.")] = 4,
    base_port: Annotated[int | None, typer.Option(metavar="N", help="First of the ports; free ones otherwise.")] = None,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Make a network, replay the bundled sample through it, reconcile, audit all ledgers, and take it down.

    Uses the network in --home when it is up. Example: bcami demo
    """
    import json as json_format

    from bcami.cli.own_network import network_for_run

    began = time.monotonic()
    SCREEN.note(f"[1/7] a network of {nodes} nodes and an MDMS, each a process of its own")
    with network_for_run(home_paths(home), "demo", _report, nodes=nodes, base_port=base_port) as place:
        if not place.is_own:
            SCREEN.note("  the network in the home is up and is used")
        summary = _run(place, began)
        if place.is_own:
            SCREEN.note("[7/7] taking the network down")
    (place.run / "summary.json").write_text(json_format.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _show(summary, time.monotonic() - began)
    SCREEN.line(f"logs and summary: {place.run}")
    SCREEN.line("next: bcami init, bcami up --detach, then bcami replay FOLDER with real data (README.md)")
    SCREEN.result("bcami/demo/1", summary)


def _run(place: "RunNetwork", began: float) -> dict[str, Any]:
    import msgspec

    from bcami.cli.data import check_replay, data_path, run_reconcile_of, run_replay_of, wait_for_mdms
    from bcami.cli.verify import check_audit, run_audit
    from bcami.errors import ExpectationError
    from bcami.replay.options import Filters, ReplayOptions

    sample = data_path("sample")
    SCREEN.note("[2/7] meters get keys nobody else knows, then send signed and encrypted readings")
    replayed = run_replay_of(place.home, place.network, ReplayOptions(sample), place.run)
    check_replay(replayed)
    SCREEN.note("[3/7] released blocks go to the MDMS, which verifies, decrypts and stores them")
    height = wait_for_mdms(place.home, place.network)
    SCREEN.note("[4/7] the data set against what the MDMS holds")
    filters = Filters() if place.is_own else Filters(meters=replayed.meters)
    compared = run_reconcile_of(place.home, place.network, sample, filters)
    if not compared.agrees:
        raise ExpectationError(
            f"missing {compared.missing}, extra {compared.extra}, different {compared.different}",
            where=str(place.run),
            do="bcami reconcile sample",
        )
    SCREEN.note("[5/7] every ledger from genesis: hashes, certificates, roots, signatures, state")
    names = [node.name for node in place.network.nodes]
    audited = run_audit(place.home, place.genesis, names)
    check_audit(audited)
    SCREEN.note("[6/7] symmetric keys for the meters; a price for all, demand response for some, a command for one")
    tour = _tour(place)
    return {
        "nodes": len(names),
        "height": height,
        "replay": msgspec.to_builtins(replayed),
        "reconcile": msgspec.to_builtins(compared),
        "downstream": msgspec.to_builtins(tour),
        "verify": {"ok": True, "nodes": [msgspec.to_builtins(report) for report in audited]},
        "seconds": round(time.monotonic() - began, 1),
    }


def _tour(place: "RunNetwork") -> "TourReport":
    from bcami.cli.interrupt import run_command
    from bcami.cli.meters import open_fleet
    from bcami.processes.downstream import Tour

    async def run() -> "TourReport":
        async with open_fleet(place.home) as opened:
            fleet = opened.fleet
            return await Tour(place.home, place.network, place.genesis, fleet, fleet.in_session()).run()

    return run_command(run())


def _report(item: "Readiness") -> None:
    SCREEN.note(f"  {item.name:8} ready after {item.seconds:.1f} s  {item.url}")


def _show(summary: dict[str, Any], seconds: float) -> None:
    replayed, compared = summary["replay"], summary["reconcile"]
    audited = summary["verify"]["nodes"]
    skipped = ", ".join(f"{count} {reason}" for reason, count in replayed["readings_skipped"].items()) or "none"
    latency = replayed["latency_ms"]
    SCREEN.line()
    SCREEN.table(
        ("", "what", "result"),
        [
            ("✓", "readings read, skipped", f"{replayed['readings_read']:,}, {skipped}"),
            ("✓", "transactions committed", f"{replayed['transactions_committed']:,} in {summary['height']} blocks"),
            ("✓", "throughput", f"{replayed['transactions_per_second']:,.0f} transactions/s"),
            ("✓", "latency", f"p50 {latency['p50']} ms, p99 {latency['p99']} ms, to the receipt"),
            ("✓", "stored by the MDMS", f"{compared['readings_stored']:,} of {compared['readings_expected']:,}"),
            ("✓", "energy", f"{compared['kwh_stored']} of {compared['kwh_expected']} kWh"),
            ("✓", "missing, extra, different", f"{compared['missing']}, {compared['extra']}, {compared['different']}"),
            ("✓", "ledgers that verify and agree", f"{len(audited)} of {summary['nodes']}"),
            *(
                (
                    "✓",
                    f"{item['what']} ({item['mode']})",
                    f"{item['meters']} meters, at most {item['latency_ms_max']} of {item['deadline_ms']:,} ms",
                )
                for item in summary["downstream"]["deliveries"]
            ),
            ("✓", "time", f"{seconds:.1f} s"),
        ],
    )
    SCREEN.line()
