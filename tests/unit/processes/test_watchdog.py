"""A loop that hangs is noticed and named; one that turns is left alone."""

import asyncio
import subprocess
import sys
import threading

from bcami.processes.identity import identify
from bcami.processes.pause import end_pause, start_pause
from bcami.processes.watchdog import Watchdog


def test_a_loop_that_hangs_is_noticed() -> None:
    stuck = threading.Event()

    async def scene() -> None:
        watchdog = Watchdog(lambda silent_s: stuck.set(), stuck_s=0.2)
        watchdog.start(asyncio.get_running_loop())
        assert stuck.wait(10)  # blocks the loop: that is the point
        watchdog.stop()

    asyncio.run(scene())


def test_a_loop_that_turns_is_left_alone() -> None:
    stuck = threading.Event()

    async def scene() -> None:
        watchdog = Watchdog(lambda silent_s: stuck.set(), stuck_s=8.0)
        watchdog.start(asyncio.get_running_loop())
        await asyncio.sleep(0.05)
        watchdog.stop()

    asyncio.run(scene())
    assert not stuck.is_set()


def test_a_process_that_was_stopped_and_continued_has_not_hung() -> None:
    program = """if True:
        import asyncio, sys
        from bcami.processes import watchdog
        watchdog._BEAT_S = 0.05
        async def scene():
            loop = asyncio.get_running_loop()
            watchdog.Watchdog(watchdog.end_process, stuck_s=1.0).start(loop)
            print("ready", flush=True)
            await loop.run_in_executor(None, sys.stdin.readline)
        asyncio.run(scene())
    """
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        identity = identify(child.pid)
        assert identity is not None
        pause = start_pause(identity, 2.5)
        assert pause.wait(30) == 0
        end_pause(pause)
        child.communicate("\n", timeout=30)
    assert child.returncode == 0


def test_the_process_ends_and_says_where_it_stood() -> None:
    program = "from bcami.processes.watchdog import end_process\ndef hung(): end_process(31.0)\nhung()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 70
    assert "has not turned for 31 s" in done.stderr and "in hung" in done.stderr
