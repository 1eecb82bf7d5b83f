"""simulate --twins, --byzzfuzz: very many schedules of ordering alone."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    from bcami.faults.simulator.campaign import Found

SHOWN_MAX = 20


def simulate_rounds(
    *, twins: bool, views: int | None, schedule: str, seeds: str, jobs: int, append: Path | None
) -> None:
    """Run what the options of `simulate` ask for; raises ExpectationError when an invariant broke."""
    from bcami.cli.simulate import append_record, parse_seeds
    from bcami.errors import ExpectationError
    from bcami.faults.simulator import byzzfuzz
    from bcami.faults.simulator import twins as twin_mode

    if twins and schedule:
        _play_one(schedule)
        return
    play: Callable[[Any], Found]
    items: Sequence[Any]
    if twins and views is not None:
        play, items = twin_mode.Everything(views), twin_mode.beginnings(views)
        name, nodes = f"twins, all of {views} views", "4"
    elif twins:
        play, items, name, nodes = twin_mode.play_seed, parse_seeds(seeds), f"twins {seeds}", "4, 7"
    else:
        play, items, name, nodes = byzzfuzz.play_seed, parse_seeds(seeds), f"byzzfuzz {seeds}", "4, 7"
    began, cpu_began = time.monotonic(), _cpu_s()
    total = _run(name, play, items, jobs)
    seconds = time.monotonic() - began
    cpu_s = _cpu_s() - cpu_began
    _show(total, seconds, cpu_s)
    if append is not None:
        failed = ", ".join(f"{item.schedule} ({item.invariant})" for item in total.broken[:SHOWN_MAX])
        what = f"{name}: {total.schedules:,} schedules" if views is not None else name
        append_record(append, nodes, what, total.steps, seconds, failed)
    SCREEN.result(
        "bcami/simulate/1",
        {
            "seeds": total.schedules,
            "steps": total.steps,
            "failures": [{"seed": item.schedule, "invariant": item.invariant} for item in total.broken],
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu_s, 3),
            "convicted": total.convicted,
        },
    )
    if total.broken:
        raise ExpectationError(
            f"{len(total.broken)} of {total.schedules} schedules failed", do=_replay(total.broken[0].schedule, twins)
        )


def _replay(schedule: str, twins: bool) -> str:
    mode = "--twins" if twins else "--byzzfuzz"
    if not schedule.isdecimal():
        return f"bcami simulate {mode} --schedule '{schedule}'"
    return f"bcami simulate {mode} --seeds {schedule}:{int(schedule) + 1}"


def _cpu_s() -> float:
    """Return the CPU time of this process and of those that it has waited for."""
    times = os.times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _run(name: str, play: "Callable[[Any], Found]", items: Sequence[Any], jobs: int) -> "Found":
    from bcami.faults.simulator.campaign import Found, run_campaign

    total, done = Found(), 0
    with SCREEN.progress(name) as progress:
        for found in run_campaign(play, items, jobs):
            for item in found.broken[: max(0, SHOWN_MAX - len(total.broken))]:
                SCREEN.note(f"{item.schedule}: {item.invariant}: {item.what}")
            total.add(found)
            done += 1
            progress(f"{total.schedules:,} schedules  {len(total.broken)} failed  {total.steps:,} steps")
    return total


def _show(total: "Found", seconds: float, cpu_s: float) -> None:
    pace = total.schedules / max(seconds, 0.001)
    SCREEN.line(
        f"{total.schedules:,} schedules, {total.played:,} rounds, {total.steps:,} steps in {seconds:.1f} s, "
        f"{cpu_s:.1f} s of CPU ({pace:,.0f} schedules/s, {total.schedules / max(cpu_s, 0.001):,.0f} per CPU second); "
        f"evidence in {total.convicted:,}: "
        + ("every invariant held" if not total.broken else f"{len(total.broken)} failed"),
        "red" if total.broken else "",
    )


def _play_one(text: str) -> None:
    from bcami.errors import ExpectationError, InputError
    from bcami.faults.simulator.agreement import Violation
    from bcami.faults.simulator.twins import parse, play

    try:
        schedule = parse(text)
    except ValueError as error:
        raise InputError(f"--schedule: {error}", do="--schedule '0:01234;1:012|34' has two views") from None
    try:
        SCREEN.line(play(schedule).describe())
    except Violation as violation:
        raise ExpectationError(str(violation), do="the schedule is shown above") from None
