"""The driver's one promise: nothing leaves before what it rests on is on disk; after a failed write nothing leaves."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from bcami.errors import BcamiError, EnvironmentFault
from bcami.model import events
from bcami.model.reasons import Reason
from bcami.node.core import effects as core
from bcami.node.core.admission import Tickets
from bcami.node.driver import Driver


class Disk:
    """A promise store and ledger whose writes wait until they are let through."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.groups: list[list[bytes]] = []
        self.error: Exception | None = None
        self.closed = 0

    def apply(self, puts: list[tuple[bytes, bytes]], deletes: list[bytes]) -> None:
        assert self.gate.wait(60)
        if self.error is not None:
            raise self.error
        self.groups.append([key for key, _ in puts])

    def close(self) -> None:
        self.closed += 1


class Scene:
    """A driver around a core that does as it is told."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.sent: list[Any] = []
        self.fatal: list[BcamiError] = []
        self.seen: list[events.Observation] = []
        self.changed = asyncio.Event()
        tickets = Tickets()
        node = SimpleNamespace(
            start=lambda now_ms: [],
            timer=lambda name, now_ms: self.timer(name),
            tickets=tickets,
            id_of=lambda tx: b"i" * 32,
            submit=lambda transactions, wait: (tickets.open(len(transactions)), [b"i" * 32] * len(transactions), []),
            close_ticket=tickets.close,
        )
        self.timer: Any = lambda name: []
        self.driver = Driver(node, self.disk, self.disk, self._observe, self._on_fatal)
        self.driver.transport = SimpleNamespace(
            send=self._send, broadcast=lambda message: self._send(-1, message), stop=self._end
        )

    def _observe(self, observation: events.Observation) -> None:
        self.seen.append(observation)

    def _on_fatal(self, error: BcamiError) -> None:
        self.fatal.append(error)
        self.changed.set()

    def _send(self, peer: int, message: Any) -> None:
        self.sent.append(message)
        self.changed.set()

    async def _end(self) -> None:
        self.sent.append("stopped")

    def happen(self, *effects: core.Effect) -> None:
        self.timer = lambda name: effects
        self.driver._fire("x")

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def put(key: bytes) -> core.Persist:
    return core.Persist(((key, b""),))


def send(message: Any) -> core.Send:
    return core.Send(1, message)


def test_a_send_waits_for_every_promise_before_it_and_one_without_leaves_at_once() -> None:
    async def run() -> None:
        scene = Scene()
        scene.happen(send("free"), put(b"a"), send("rests on a"))
        assert scene.sent == ["free"]
        scene.happen(send("after a, while it is written"))
        scene.happen(put(b"b"), send("rests on b"), put(b"c"), core.Broadcast("rests on c"))
        scene.happen(send("after c"))
        assert scene.sent == ["free"]
        scene.disk.gate.set()
        await scene.until(lambda: len(scene.sent) == 6)
        assert scene.disk.groups == [[b"a"], [b"b", b"c"]]
        assert scene.sent == [
            "free",
            "rests on a",
            "after a, while it is written",
            "rests on b",
            "rests on c",
            "after c",
        ]
        await scene.driver.stop()
        assert scene.disk.closed == 2

    asyncio.run(run())


def test_after_a_failed_write_nothing_leaves_and_the_node_says_why() -> None:
    async def run() -> None:
        scene = Scene()
        scene.disk.error = OSError(28, "No space left on device")
        scene.happen(put(b"a"), send("rests on a"))
        scene.disk.gate.set()
        await scene.until(lambda: scene.fatal)
        scene.happen(send("later"), put(b"b"))
        assert scene.sent == []
        [error] = scene.fatal
        assert isinstance(error, EnvironmentFault)
        assert (error.exit_code, "promise store" in error.what, "No space left" in error.what) == (4, True, True)
        results, blocks = await scene.driver.submit([SimpleNamespace()], wait=True, timeout_s=1)
        assert [item.reason for item in results] == [Reason.NOT_READY]
        await scene.driver.stop()

    asyncio.run(run())


@pytest.mark.parametrize("error", [AssertionError("lanes are out of order"), EnvironmentFault("the ledger is damaged")])
def test_a_core_that_raises_ends_the_node(error: Exception) -> None:
    async def run() -> None:
        scene = Scene()

        def broken(name: str) -> list[core.Effect]:
            raise error

        scene.timer = broken
        scene.driver._fire("x")
        scene.driver._fire("x")
        assert [item.exit_code for item in scene.fatal] == [4 if isinstance(error, EnvironmentFault) else 70]
        assert str(error) in str(scene.fatal[0])
        await scene.driver.stop()

    asyncio.run(run())


def test_what_is_not_known_in_time_is_unknown_and_its_ticket_is_closed() -> None:
    async def run() -> None:
        scene = Scene()
        results, _ = await scene.driver.submit([SimpleNamespace()], wait=True, timeout_s=0.01)
        assert [(item.status, item.reason) for item in results] == [("unknown", None)]
        assert scene.driver.core.tickets._tickets == {}
        assert scene.driver._tickets == {}
        assert [item.reason for item in scene.seen] == [Reason.NOT_READY]
        await scene.driver.stop()

    asyncio.run(run())


def test_a_snapshot_is_staged_and_installed_in_order_and_the_core_hears_of_it() -> None:
    async def run() -> None:
        scene = Scene()
        done: list[str] = []

        def told(what: str) -> list[core.Effect]:
            done.append(what)
            scene.changed.set()
            return []

        scene.disk.stage = lambda bundles, rows, fresh: done.append(f"stage {len(rows)} {fresh}")
        scene.disk.install = lambda header, certificate, lthash: done.append("install")
        scene.driver.core.snapshot_staged = lambda now_ms: told("staged")
        scene.driver.core.snapshot_installed = lambda now_ms: told("installed")
        scene.happen(core.StageSnapshot((), [(b"k", None)], True), core.InstallSnapshot(None, None, b""))
        await scene.until(lambda: "installed" in done)
        assert [item for item in done if item != "staged"] == ["stage 1 True", "install", "installed"]
        assert done.index("staged") > 0

    asyncio.run(run())


def test_a_snapshot_that_cannot_be_written_ends_the_node() -> None:
    async def run() -> None:
        scene = Scene()

        def refuse(*_: Any, **__: Any) -> None:
            raise EnvironmentFault("no space")

        scene.disk.stage = refuse
        scene.happen(core.StageSnapshot((), [], True))
        await scene.until(lambda: scene.fatal)
        assert "the ledger could not be written" in str(scene.fatal[0])

    asyncio.run(run())
