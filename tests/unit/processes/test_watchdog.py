"""A loop that hangs is noticed and named; one that turns is left alone."""

import asyncio
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from bcami.processes import watchdog as watchdog_module
from bcami.processes.watchdog import Watchdog


def test_a_loop_that_hangs_is_noticed() -> None:
    stuck = threading.Event()

    async def scene() -> None:
        watchdog = Watchdog(lambda silent_s: stuck.set(), stuck_s=0.2)
        watchdog.start(asyncio.get_running_loop())
        assert stuck.wait(60)  # blocks the loop: that is the point
        watchdog.stop()

    asyncio.run(scene())


def test_a_loop_that_turns_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_module, "_BEAT_S", 0.001)

    async def scene() -> None:
        watchdog = Watchdog(lambda silent_s: None)
        watchdog.start(asyncio.get_running_loop())
        first = watchdog._beat
        async with asyncio.timeout(60):
            while watchdog._beat == first:  # noqa: ASYNC110 - nobody is told of it
                await asyncio.sleep(0.001)
        watchdog.stop()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        ([(2.0, True)] * 20, []),
        ([(2.0, False), (2.0, False), (2.0, True)] * 20, []),
        ([(2.0, True)] + [(2.0, False)] * 10, [8.0]),
        # Stopped and continued, or a machine that slept: the watching thread stood still as well.
        ([(2.0, True), (10_000.0, False), (2.0, True)] * 20, []),
        ([(2.0, True), (10_000.0, False), (2.0, False), (2.0, False)], [8.0]),
    ],
    ids=["turns", "turns slowly", "hangs", "was stopped", "was stopped, and hangs"],
)
def test_only_time_in_which_the_loop_alone_stood_still_counts(
    looks: list[tuple[float, bool]], told: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look: how long after the last one, and whether the loop turned in between. Eight seconds are a hang."""
    now = [0.0]
    monkeypatch.setattr(watchdog_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    seen: list[float] = []
    watchdog = Watchdog(seen.append, stuck_s=8.0)
    left = list(looks)

    def wait(every_s: float) -> bool:
        assert every_s == 2.0
        if not left:
            return True
        passed, has_turned = left.pop(0)
        now[0] += passed
        if has_turned:
            watchdog._beat = now[0]
        return False

    monkeypatch.setattr(watchdog, "_stop", SimpleNamespace(wait=wait))
    watchdog._watch()
    assert seen == told


def test_the_process_ends_and_says_where_it_stood() -> None:
    program = "from bcami.processes.watchdog import end_process\ndef hung(): end_process(31.0)\nhung()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 70
    assert "has not turned for 31 s" in done.stderr and "in hung" in done.stderr
