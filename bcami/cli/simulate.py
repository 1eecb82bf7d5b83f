"""simulate: seeds against the whole protocol under virtual time."""

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcami.cli.options import Json
from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    from bcami.faults.simulator.runner import Summary

RECORD_HEADER = """# Seeds that were run

Each long run of `bcami simulate --append docs/seeds.md` adds a line: when, at which commit, which seeds, what came out.

| date | commit | nodes | seeds | steps | steps/s | failures |
|---|---|---|---|---:|---:|---|
"""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(simulate)


def simulate(
    nodes: Annotated[int | None, typer.Option(metavar="N", min=1, max=31, help="Cluster size, else drawn.")] = None,
    seeds: Annotated[str, typer.Option(metavar="A:B", help="Half-open range of seeds.")] = "0:100",
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Processes.")] = 1,
    trace: Annotated[bool, typer.Option("--trace", help="Print every step of every seed.")] = False,
    twins: Annotated[bool, typer.Option("--twins", help="Two instances of a node with one key.")] = False,
    views: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=3, help="With --twins: all schedules of n = 4 and N views.")
    ] = None,
    schedule: Annotated[str, typer.Option(metavar="S", help="With --twins: the one schedule that was printed.")] = "",
    byzzfuzz: Annotated[bool, typer.Option("--byzzfuzz", help="Small changes to messages of f nodes.")] = False,
    costs: Annotated[bool, typer.Option("--costs", help="Messages and bytes against n, without faults.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="With --costs: where CSV and plot go.")] = Path("costs"),
    append: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the result, as docs/seeds.md has it.")
    ] = None,
    json: Json = False,
) -> None:
    """Run seeds of the simulator: real nodes under virtual time, with drawn faults, judged by invariants.

    The same seed gives the same run, always. A seed that fails is shown with the command that replays it.

    Byzantine nodes show up to three behaviours at once, each with drawn
    options; bcami fault list says what they do: mute, partial_silence,
    withhold, equivocating_primary, swapped_proposal, slow_primary,
    throttling_primary, late_collector, sequence_gap, false_time,
    forged_certificate, equivocating_voter, checkpoint_liar, replayed_votes,
    mutate, view_spam, forged_prepared, forged_new_view, forged_stable,
    censor_signer, censor_collector, invalid_batch, withheld_batch,
    equivocating_collector, bogus_endorsements, bad_state_transfer,
    false_status, false_suspicion, lying_shares, flood, cut, loss, delay,
    duplicate, slow_disk.

    --twins and --byzzfuzz drive ordering alone, in rounds: far more schedules in the same time. --costs counts
    messages and bytes of a fault-free run against the number of nodes, as CSV and as a plot.

    Example: bcami simulate --seeds 0:500 --jobs 2
    """
    if costs:
        from bcami.cli.simulate_costs import simulate_costs

        simulate_costs(out)
        return
    if twins or byzzfuzz:
        from bcami.cli.simulate_rounds import simulate_rounds

        simulate_rounds(twins=twins, views=views, schedule=schedule, seeds=seeds, jobs=jobs, append=append)
        return
    from bcami.errors import ExpectationError
    from bcami.faults.simulator.runner import Summary, run_seed, run_seeds

    chosen = parse_seeds(seeds)
    began = time.monotonic()
    summary = Summary()
    if trace:
        for seed in chosen:
            summary.add(run_seed(seed, nodes, SCREEN.note))
    else:
        with SCREEN.progress("simulate") as progress:
            for result in run_seeds(chosen, nodes, jobs):
                summary.add(result)
                if result.failure is not None:
                    SCREEN.note(f"seed {result.seed}: {_first_line(result.failure.invariant, result.failure.what)}")
                progress(
                    f"{summary.seeds:,}/{len(chosen):,} seeds  {len(summary.failures)} failed  {summary.steps:,} steps"
                )
    seconds = time.monotonic() - began
    _show(summary, seconds)
    if append is not None:
        failed = ", ".join(f"{item.seed} ({item.invariant})" for item in summary.failures)
        append_record(append, "drawn" if nodes is None else str(nodes), seeds, summary.steps, seconds, failed)
    SCREEN.result(
        "bcami/simulate/1",
        {
            "seeds": summary.seeds,
            "steps": summary.steps,
            "failures": [{"seed": item.seed, "invariant": item.invariant} for item in summary.failures],
            "seconds": round(seconds, 3),
            "trace_hash": summary.trace_hash,
        },
    )
    if summary.failures:
        size = "" if nodes is None else f" --nodes {nodes}"
        replays = [f"bcami simulate{size} --seeds {item.seed}:{item.seed + 1} --trace" for item in summary.failures]
        raise ExpectationError(f"{len(summary.failures)} of {summary.seeds} seeds failed", do=replays[0])


def parse_seeds(text: str) -> range:
    from bcami.errors import InputError

    first, colon, last = text.partition(":")
    if not colon or not first.isdecimal() or not last.isdecimal() or int(first) >= int(last):
        raise InputError(f"--seeds {text!r} is no range", do="--seeds 0:100 runs the seeds 0 to 99")
    return range(int(first), int(last))


def _first_line(invariant: str, what: str) -> str:
    lines = what.strip().splitlines() or [""]
    return f"{invariant}: {lines[0] if len(lines) == 1 else lines[-1]}"


def _show(summary: "Summary", seconds: float) -> None:
    for item in summary.failures:
        SCREEN.line(f"seed {item.seed} fails {_first_line(item.invariant, item.what)}", "red")
    pace = summary.steps / max(seconds, 0.001)
    SCREEN.line(
        f"{summary.seeds:,} seeds, {summary.steps:,} steps, {summary.blocks:,} blocks, "
        f"{summary.transactions:,} receipts, {summary.virtual_s:,.0f} virtual seconds in {seconds:.1f} s "
        f"({pace:,.0f} steps/s): "
        + ("every invariant held" if not summary.failures else f"{len(summary.failures)} failed")
    )


def append_record(path: Path, nodes: str, what: str, steps: int, seconds: float, failed: str) -> None:
    """Add a line to the record of runs."""
    from datetime import UTC, datetime

    if not path.exists():
        path.write_text(RECORD_HEADER, encoding="utf-8")
    cells = (
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        _commit(),
        nodes,
        what,
        f"{steps:,}",
        f"{steps / max(seconds, 0.001):,.0f}",
        failed or "none",
    )
    with path.open("a", encoding="utf-8") as file:
        file.write("| " + " | ".join(cells) + " |\n")


def _commit() -> str:
    """Name what runs: the commit, and whether the program differs from it; a record that grows does not count."""
    from bcami import __version__

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--", ":(top)bcami", ":(top)chaincode")
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{commit}-dirty" if changed else commit
