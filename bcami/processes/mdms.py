"""Composition root of the MDMS: `python -m bcami.processes.mdms --home HOME`.

Opens the store, opens a period if one is needed, follows the chain, acknowledges, and serves, until it is told to stop.
Exit codes as everywhere: 2 invalid input, 4 the environment, 70 a bug.
"""

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import uvicorn

from bcami.client.courier import Courier, CourierLimits
from bcami.client.issuance import Party
from bcami.client.nodes import NodeClient
from bcami.client.receipts import ReceiptVerifier
from bcami.crypto.roster import Roster
from bcami.errors import BcamiError, EnvironmentFault
from bcami.mdms.acknowledger import Acknowledger
from bcami.mdms.backup import PERIODS_NAME, STORE_NAME
from bcami.mdms.duckdb_queries import DuckDbQueries
from bcami.mdms.duckdb_store import DuckDbStore
from bcami.mdms.follower import Follower
from bcami.mdms.keyring import PeriodKeyring
from bcami.mdms.kms_service import KmsService
from bcami.mdms.kms_store import KmsStore
from bcami.mdms.metrics import MdmsMetrics
from bcami.mdms.opening import ReportOpener
from bcami.mdms.periods import (
    PERIOD_SECONDS_DEFAULT,
    PeriodRegistrar,
    Surroundings,
    erase_old_periods,
    keep_current,
)
from bcami.mdms.puller import HttpSource, Puller
from bcami.mdms.server import create_app
from bcami.mdms.service import MdmsService
from bcami.paths import HomePaths
from bcami.processes.home import load_mdms_secrets, load_operator_token, open_home
from bcami.processes.logs import start_logging
from bcami.processes.mdms_kms import make_service, open_store

SHUTDOWN_S: Final = 2
_NAME: Final = "mdms"


class _Server(uvicorn.Server):
    """uvicorn inside our loop, which leaves signals to us: its own handling ends the process before we have closed."""

    def __init__(self, config: uvicorn.Config, end_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_streams = end_streams

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        yield

    def stop(self) -> None:
        """Stop serving; the second time without waiting for open connections."""
        self._end_streams()
        self.force_exit = self.should_exit
        self.should_exit = True


class MdmsProcess:
    """The MDMS with everything around it."""

    def __init__(self, home: HomePaths, *, period_seconds: int, erase_after_backup: bool) -> None:
        self._home = home
        self._network, genesis = open_home(home)
        self._roster = Roster.from_genesis(genesis)
        self._period_seconds = period_seconds
        self._erase_after_backup = erase_after_backup
        self._log = start_logging(_NAME, home.mdms_log)
        self._metrics = MdmsMetrics()
        self._server: _Server | None = None
        self._failure: BaseException | None = None

    async def run(self) -> int:
        """Serve until told to stop; returns the exit code, raises what ended it."""
        self._home.mdms.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = DuckDbStore(self._home.mdms / STORE_NAME, self._roster.chain, self._roster.genesis.created_ms)
        try:
            with open_store(self._home, self._network, self._roster) as kms_store:
                await self._run(store, PeriodKeyring(self._home.mdms / PERIODS_NAME), kms_store)
        finally:
            store.close()
            gc.unfreeze()  # what is frozen at exit is reported as leaked by the database's bindings
            self._log.info("stopped", height=store.cursor.height)
        if self._failure is not None:  # reported already where it happened
            raise self._failure
        return 0

    async def _run(self, store: DuckDbStore, keyring: PeriodKeyring, kms_store: KmsStore) -> None:
        genesis = self._roster.genesis
        opener = ReportOpener(self._roster.chain, keyring.kem)
        grace_ms = genesis.parameters.period_grace_ms

        def erase() -> None:
            for number in erase_old_periods(store, keyring, opener, grace_ms, after_backup=self._erase_after_backup):
                self._log.info("period erased", period=number)

        erase()
        puller = Puller(
            [HttpSource(node.name, node.url) for node in self._network.nodes],
            Follower(self._roster, store, opener),
            store,
            self._metrics,
            self._log,
            strong=self._roster.quorum.strong,
            after_stored=erase,
        )
        nodes = [NodeClient(node.url, chain=self._roster.chain) for node in self._network.nodes]
        courier = Courier(
            nodes,
            ReceiptVerifier(self._roster),
            weak=self._roster.quorum.weak,
            seed=os.urandom(16),
            limits=CourierLimits(requests_max=1),
        )
        kms = make_service(
            kms_store,
            store,
            nodes,
            courier.settle,
            self._roster,
            load_mdms_secrets(self._home).enrolment,
            self._network.kms,
            _now_ms,
            self._metrics,
            self._log,
        )
        stop = asyncio.Event()
        tasks = self._start(store, keyring, puller, nodes, courier, kms, stop)
        try:
            await self._serve(store, keyring, puller, kms, tasks)
        finally:
            stop.set()
            pulling, *others = tasks
            for task in others:
                task.cancel()
            await asyncio.gather(pulling, *others, return_exceptions=True)
            await courier.close()
            await puller.close()
            await asyncio.gather(*(node.close() for node in nodes))

    def _start(
        self,
        store: DuckDbStore,
        keyring: PeriodKeyring,
        puller: Puller,
        nodes: list[NodeClient],
        courier: Courier,
        kms: KmsService,
        stop: asyncio.Event,
    ) -> list[asyncio.Task[None]]:
        """Start what runs beside the server: pulling first."""
        secrets = load_mdms_secrets(self._home)
        party = Party(self._roster.genesis.mdms_hid, secrets.enrolment, secrets.enrolment_kem, self._roster)
        registrar = PeriodRegistrar(
            party,
            keyring,
            store,
            nodes,
            courier.settle,
            Surroundings(_now_ms, lambda: os.urandom(32)),
            self._log,
            period_seconds=self._period_seconds,
        )
        acknowledger = Acknowledger(self._roster, keyring, store, courier.settle, self._metrics, self._log)
        return [
            self._watched(puller.run(stop)),
            self._watched(keep_current(registrar, stop, self._log)),
            self._watched(acknowledger.run(stop)),
            self._watched(kms.run(stop)),
        ]

    def _watched(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task; when it fails, the process ends with its error."""
        task = asyncio.get_running_loop().create_task(work)

        def ended(done: asyncio.Task[None]) -> None:
            error = None if done.cancelled() else done.exception()
            if error is not None:
                self._failure = self._failure or error
                self._log.error("fatal", what=f"{type(error).__name__}: {error}")
                if self._server is not None:
                    self._server.stop()

        task.add_done_callback(ended)
        return task

    async def _serve(
        self,
        store: DuckDbStore,
        keyring: PeriodKeyring,
        puller: Puller,
        kms: KmsService,
        tasks: list[asyncio.Task[None]],
    ) -> None:
        address = self._network.mdms
        service = MdmsService(
            pid=os.getpid(),
            url=address.url,
            folder=self._home.mdms.absolute(),
            store=store,
            queries=DuckDbQueries(store),
            keyring=keyring,
            metrics=self._metrics,
            network_key=load_mdms_secrets(self._home).network,
            operator_token=load_operator_token(self._home),
            now_ms=_now_ms,
            released_height=lambda: puller.released_height,
            following=lambda: not tasks[0].done(),
            kms=kms,
        )
        config = uvicorn.Config(
            create_app(service),
            host=address.host,
            port=address.http_port,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        self._server = _Server(config, kms.head_end.stop)
        gc.collect()
        gc.freeze()
        with _listen(address.host, address.http_port) as listening:
            self._log.info("started", height=store.cursor.height, readings=store.counts.readings)
            await self._server.serve([listening])


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises EnvironmentFault naming the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise EnvironmentFault(
            f"port {port} on {host} cannot be used: {error.strerror}",
            likely="another process listens there",
            do="bcami doctor, or choose another --base-port at init",
        ) from None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def run(arguments: list[str]) -> int:
    """Parse arguments, run the MDMS, return the exit code."""
    parser = argparse.ArgumentParser(prog="bcami.processes.mdms", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--period-seconds", type=int, default=PERIOD_SECONDS_DEFAULT)
    parser.add_argument(
        "--erase-after-backup", action="store_true", help="keep old period keys until a backup covers their reports"
    )
    options = parser.parse_args(arguments)
    os.umask(0o077)  # what is stored is personal data
    try:
        process = MdmsProcess(
            HomePaths(options.home),
            period_seconds=options.period_seconds,
            erase_after_backup=options.erase_after_backup,
        )
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(process.run())
    except BcamiError as error:
        start_logging(_NAME).error("refused to start", error=str(error), exit_code=error.exit_code)
        sys.stderr.write(f"error: {error}\n")  # the supervisor shows it to the user
        return error.exit_code
    except OSError as error:
        start_logging(_NAME).error("refused to start", error=str(error), exit_code=4)
        return 4
    except Exception:
        start_logging(_NAME).exception("a bug in bcami", exit_code=BcamiError.exit_code)
        return BcamiError.exit_code


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
