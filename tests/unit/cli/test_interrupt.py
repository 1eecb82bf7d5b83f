"""The first signal ends a command with its clean-up, whatever its tasks do with exceptions; the second ends that too."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from types import FrameType

import pytest

import bcami.cli
from bcami.cli.interrupt import run_command
from bcami.faults.simulator.campaign import worker_pool

SIGNALS = [signal.SIGINT, signal.SIGTERM]
ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


def terminated(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """As the program has them."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminated)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def assert_restored() -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is terminated


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_inside_a_task_that_swallows_everything_ends_the_command(number: signal.Signals) -> None:
    closed: list[str] = []

    async def careless(wanted: asyncio.Event) -> None:
        try:
            os.kill(os.getpid(), number)
        except BaseException:  # what a careless task, or a callback of a C library, does
            closed.append("swallowed")
        await wanted.wait()
        closed.append("careless")

    async def work() -> None:
        wanted = asyncio.Event()
        task = asyncio.create_task(careless(wanted))
        try:
            await asyncio.Event().wait()
        finally:
            wanted.set()
            await task  # a clean-up needs its tasks
            closed.append("work")

    with pytest.raises(ENDS[number]) as ended:
        run_command(work())
    assert closed == ["careless", "work"]
    if isinstance(ended.value, SystemExit):
        assert ended.value.code == 143
    assert_restored()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_does_not_wait_for_the_clean_up(number: signal.Signals) -> None:
    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()

    with pytest.raises(ENDS[number]):
        run_command(work())
    assert_restored()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_that_ends_as_it_is_told_to_is_ended_all_the_same(number: signal.Signals) -> None:
    async def work() -> str:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done"
        return ""

    with pytest.raises(ENDS[number]):
        run_command(work())


def test_without_a_signal_the_result_comes_back() -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    assert run_command(work()) == "done"
    assert_restored()


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def work() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0)
        return "done"

    assert run_command(work()) == "done"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_every_command_runs_its_coroutine_so() -> None:
    folder = Path(bcami.cli.__path__[0])
    runs = [path.name for path in folder.glob("*.py") if "asyncio.run(" in path.read_text(encoding="utf-8")]
    assert runs == ["interrupt.py"]


def test_an_interrupt_ends_the_processes_of_a_pool_at_once() -> None:
    before = set(active_children())
    with pytest.raises(KeyboardInterrupt), worker_pool(1) as pool:
        for _ in range(8):
            pool.submit(time.sleep, 3600.0)
        children = set(active_children()) - before
        assert len(children) == 1
        raise KeyboardInterrupt
    for child in children:
        child.join(120)
        assert child.exitcode == -signal.SIGTERM
