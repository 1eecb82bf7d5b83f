"""aggregate: the sum of a group's readings, half-hour by half-hour, without anybody learning a single one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from bcami.cli.data import DataPath, From, Meters, To, data_path
from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN
from bcami.model.aggregation import GROUP_MIN, MEMBERS_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcami.ami.aggregation_costs import GroupCost
    from bcami.cli.own_network import RunNetwork
    from bcami.paths import HomePaths
    from bcami.processes.aggregation_place import AggregateOptions
    from bcami.processes.aggregation_report import AggregateReport
    from bcami.replay.options import Filters
    from bcami.replay.rejects import RejectLog

STEP: Final = 1_000_000
"""Noise comes in steps of 0.1 kWh."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(aggregate)


def aggregate(
    path: DataPath = "sample",
    group: Annotated[str, typer.Option(metavar="NAME", help="What the group is called on the chain.")] = "street",
    mode: Annotated[str, typer.Option(metavar="MODE", help="masked, or ring: the paper's protocol.")] = "masked",
    dropouts: Annotated[float, typer.Option(min=0, max=0.5, metavar="P", help="Share of members that are gone.")] = 0.0,
    rounds: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Half-hours to sum, from --from on.")] = 4,
    meters: Meters = None,
    from_: From = None,
    to: To = None,
    epsilon: Annotated[
        float, typer.Option(min=0, max=100, help="Adds discrete Laplace noise for this ε to each sum; 0 is none.")
    ] = 0.0,
    sensitivity: Annotated[
        float, typer.Option(min=0.1, max=100, metavar="KWH", help="With noise, readings are cut to this.")
    ] = 5.0,
    costs: Annotated[
        str,
        typer.Option("--costs", metavar="N,N,…", help="Only measure what rounds of these sizes cost."),
    ] = "",
    seed: Annotated[int, typer.Option(help="Draws who drops out.")] = 0,
    processes: Annotated[
        int,
        typer.Option(min=0, max=64, metavar="N", help="Play the meters in so many processes; 0: one for each CPU."),
    ] = 0,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Sum a group's readings privately, over HTTP, and record each sum with its proof on the chain.

    Meters are those of the data set, all of them or the first N. Leaves what each party saw in the run's folder.
    Example: bcami aggregate sample --group street --mode masked --dropouts 0.05
    """
    import json as json_format

    import msgspec

    from bcami.cli.own_network import network_for_run
    from bcami.errors import InputError
    from bcami.model.aggregation import MASKED, NO_NOISE, RING, Mode, Noise
    from bcami.replay.rejects import RejectLog
    from bcami.units import ENERGY_UNITS_PER_KWH

    if costs:
        _costs(costs, home_paths(home))
        return
    if mode not in (MASKED, RING):
        raise InputError(f"there is no mode {mode!r}", where="--mode", do="use masked or ring")
    if mode == RING and epsilon:
        raise InputError("a ring adds no noise", where="--epsilon", do="use --mode masked")
    noise = NO_NOISE
    if epsilon:
        noise = Noise(max(1, round(epsilon * 1e6)), round(sensitivity * ENERGY_UNITS_PER_KWH), STEP)
    rejects = RejectLog()
    filters = _filters(meters, from_, to)
    readings, intervals, absent = _readings(data_path(path), filters, rounds, mode == RING, rejects)
    from bcami.cli.aggregate_screen import show_report
    from bcami.processes.aggregation import check_group
    from bcami.processes.aggregation_place import AggregateOptions
    from bcami.processes.cpu import cores

    kind: Mode = "masked" if mode == MASKED else "ring"
    options = AggregateOptions(group, kind, intervals, dropouts, noise, seed, processes or cores())
    check_group(options, len(readings))
    with network_for_run(home_paths(home), "aggregate", lambda _: None) as place:
        report = _run(place, options, readings)
        fields = {"mode": mode, "group": group, "noise": bool(epsilon), **msgspec.to_builtins(report)}
        fields["absent"] = absent
        fields["readings_skipped"] = skipped = {reason.value: count for reason, count in rejects.counts.items()}
        (place.run / "summary.json").write_text(json_format.dumps(fields, indent=2) + "\n", encoding="utf-8")
        show_report(report, absent, skipped, place.run)
    SCREEN.result("bcami/aggregate/1", fields)
    _check(report, options)


def _costs(sizes: str, home: "HomePaths") -> None:
    """Measure in memory, no network needed; leaves table and plot in a run's folder."""
    import json as json_format

    import msgspec

    from bcami.ami.aggregation_costs import group_costs
    from bcami.cli.aggregate_plot import plot_costs
    from bcami.cli.runs import new_run
    from bcami.errors import InputError

    try:
        wanted = sorted({int(size) for size in sizes.split(",")})
    except ValueError:
        raise InputError(f"no list of group sizes: {sizes!r}", where="--costs", do="write 10,100,1000") from None
    if not GROUP_MIN <= wanted[0] <= wanted[-1] <= MEMBERS_MAX:
        raise InputError(f"a group has {GROUP_MIN} to {MEMBERS_MAX} members", where="--costs")
    with SCREEN.progress("aggregate") as progress:
        measured = group_costs(wanted, lambda members: progress(f"a group of {members:,}"))
    run = new_run(home, "aggregate-costs")
    plot_costs(run / "costs.png", measured)
    fields = {"groups": msgspec.to_builtins(measured)}
    (run / "summary.json").write_text(json_format.dumps(fields, indent=2) + "\n", encoding="utf-8")
    _show_costs(measured)
    SCREEN.line(f"plot and figures: {run}")
    SCREEN.result("bcami/aggregate-costs/1", fields)


def _show_costs(measured: "Sequence[GroupCost]") -> None:
    SCREEN.table(
        (
            "members",
            "neighbours",
            "threshold",
            "may collude",
            "mode",
            "messages",
            "B sent",
            "ms/meter",
            "head-end ms",
            "s",
        ),
        [
            (
                item.members if place == 0 else "",
                item.degree if place == 0 else "",
                item.threshold if place == 0 else "",
                item.colluding_max if place == 0 else "",
                mode,
                f"{cost.messages_sent:.2f}",
                f"{cost.bytes_sent:,.0f}",
                f"{cost.meter_ms:.3f}",
                f"{cost.head_end_ms:,.1f}",
                f"{cost.on_cores_s(2):.2f}",
            )
            for item in measured
            for place, (mode, cost) in enumerate(item.modes())
        ],
    )
    SCREEN.line()
    SCREEN.line(
        "messages, B sent, ms/meter: of one meter, mean of all; s: CPU time of the head-end, then all meters on 2 cores"
    )


def _filters(meters: int | None, from_: str | None, to: str | None) -> "Filters":
    from bcami.replay.options import Filters, parse_moment

    return Filters(
        meters,
        None if from_ is None else parse_moment(from_, "--from"),
        None if to is None else parse_moment(to, "--to"),
    )


def _readings(
    path: Path, filters: "Filters", rounds: int, is_ring: bool, rejects: "RejectLog"
) -> tuple[dict[str, dict[int, int]], tuple[int, ...], list[str]]:
    """Return each meter's readings, the first half-hours of which most meters have one, and the meters left out.

    Left out are those without any reading of the time asked for; of a ring, those that lack one of these half-hours.
    `rejects` counts the rows of that time that are no readings.
    """
    from collections import Counter

    from bcami.replay.readings import ReadingStream
    from bcami.replay.sources import discover
    from bcami.replay.survey import survey

    source = discover(path)
    surveyed = survey(source)
    chosen = surveyed.first(filters.meters)
    stream = ReadingStream(source, filters, rejects, chosen)
    found: dict[str, dict[int, int]] = {}
    held: Counter[int] = Counter()
    for chunk in stream:
        for meter, start_s, energy in zip(
            chunk.meter.tolist(), chunk.start_s.tolist(), chunk.energy.tolist(), strict=True
        ):
            found.setdefault(stream.meters.ids[meter], {})[start_s] = energy
            held[start_s] += 1
    most = max(held.values(), default=0)
    intervals = tuple(sorted(start_s for start_s, count in held.items() if count >= 0.95 * most)[:rounds])
    kept = found
    if is_ring:
        kept = {meter: values for meter, values in found.items() if all(start_s in values for start_s in intervals)}
    return kept, intervals, sorted((chosen or frozenset(surveyed.meters)) - kept.keys())


def _run(place: "RunNetwork", options: "AggregateOptions", readings: dict[str, dict[int, int]]) -> "AggregateReport":
    from bcami.cli.interrupt import run_command
    from bcami.cli.meters import open_fleet
    from bcami.processes.aggregation import run_aggregation

    async def run(show: Any) -> "AggregateReport":
        async with open_fleet(place.home) as fleet:
            show(f"registering {len(readings)} meters")
            await fleet.enrol(readings)
            urls = [node.url for node in place.network.nodes]
            return await run_aggregation(
                place.home, place.genesis, urls, fleet.fleet, readings, options, place.run, show
            )

    with SCREEN.progress("aggregate") as progress:
        return run_command(run(progress))


def _check(report: "AggregateReport", options: "AggregateOptions") -> None:
    from bcami.errors import ExpectationError, InconclusiveError
    from bcami.model.reasons import Reason

    wrong = [
        item
        for item in report.rounds
        if item.reason is Reason.VALID and item.true_energy is not None and item.energy != item.true_energy
    ]
    if wrong and not options.noise.epsilon_millionths:
        raise ExpectationError(f"{len(wrong)} sums are wrong", do="see the lines above")
    if all(item.reason is not Reason.VALID for item in report.rounds):
        raise InconclusiveError("no round came to a sum", do="fewer drop-outs, or a larger group")
