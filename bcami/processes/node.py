"""Composition root of a node: `python -m bcami.processes.node --home HOME --name node1`.

Opens keys, promises and ledger, checks the ledger in a child process, composes core, driver, transport and gateway,
and runs until it is told to stop. Exit codes as everywhere: 2 invalid input, 4 the environment, 70 a bug.
"""

import argparse
import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
from fastapi import FastAPI

from bcami.contract.package import load_package
from bcami.contract.runtime import Runtime
from bcami.crypto.roster import Roster
from bcami.crypto.tls import client_context, server_context
from bcami.errors import BcamiError, EnvironmentFault, InputError
from bcami.gateway.app import create_app
from bcami.gateway.metrics import NodeMetrics
from bcami.gateway.release import ReleasePolicy
from bcami.gateway.retention import WrongAcknowledgement, prunable_height
from bcami.gateway.service import NodeService
from bcami.ledger.audit import audit_ledger, check_promises
from bcami.ledger.environment import DATA_FILE
from bcami.ledger.lmdb_ledger import LmdbLedger
from bcami.ledger.lmdb_promises import LmdbPromises
from bcami.model import events
from bcami.model.reasons import Reason
from bcami.node.core.core import NodeCore
from bcami.node.driver import Driver, now_ms
from bcami.node.transport import PeerAddress, Transport
from bcami.paths import HomePaths, NodePaths
from bcami.processes.amnesia import RETURNS, AmnesiaMark, settle_amnesia
from bcami.processes.evidence import OUTCOME_S, EvidenceFolder, EvidenceReporter
from bcami.processes.home import load_node_secrets, load_operator_token, open_home
from bcami.processes.logs import Repetition, start_logging
from bcami.processes.memory import TRIM_S, Trimmer
from bcami.processes.newest import check_newest
from bcami.processes.watchdog import Watchdog, end_process

SHUTDOWN_S: Final = 2
UPKEEP_S: Final = 10.0
_QUIET: Final = (events.BatchCertified, events.BlockCertified)
_ROUTINE: Final = (Reason.STALE, Reason.DUPLICATE)
"""Every vote beyond a quorum is refused under these: counted as a metric, not logged."""


class _Server(uvicorn.Server):
    """uvicorn inside our loop, which leaves signals to us: its own handling ends the process before we have closed."""

    def __init__(self, config: uvicorn.Config, service: NodeService) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        yield

    def stop(self) -> None:
        """End the event streams and stop serving; the second time without waiting for open connections."""
        self._service.begin_stop()
        self.force_exit = self.should_exit
        self.should_exit = True


class NodeProcess:
    """One node with everything around it."""

    def __init__(self, home: HomePaths, name: str) -> None:
        self._home = home
        self._network, self._genesis = open_home(home)
        self._name = name
        self._replica = self._network.replica(name)
        self._log = start_logging(name, home.node(name).log)
        self._repetition = Repetition()
        self._server: _Server | None = None
        self._fatal: BcamiError | None = None

    async def run(self) -> int:
        """Serve until told to stop; returns the exit code."""
        paths = self._home.node(self._name)
        roster = Roster.from_genesis(self._genesis)
        runtime = Runtime(load_package(self._home.chaincode, self._genesis.chaincode_package), self._genesis)
        secrets = load_node_secrets(paths)
        if secrets.consensus.public_key != self._genesis.members[self._replica].consensus_key:
            raise InputError(
                "the consensus key is not the one that genesis names",
                where=str(paths.consensus_key),
                likely="files of two homes were mixed",
                do="restore the node's folder from its own home",
            )
        public_key = secrets.consensus.public_key
        amnesia = settle_amnesia(paths, public_key)
        self._check_stores(paths, public_key, amnesia)
        promises = LmdbPromises(paths.promises, public_key) if amnesia is None else None
        ledger = LmdbLedger(paths.ledger, self._genesis)
        self._log.info("newest blocks checked", blocks=check_newest(ledger, roster, self._name))
        core = self._core_type()(
            roster,
            self._replica,
            secrets.consensus,
            runtime,
            ledger,
            None if promises is None else promises.items(),
            secrets.contribution,
        )
        metrics = NodeMetrics()
        release = ReleasePolicy(
            round(self._network.release_seconds * 1000), self._network.release_blocks, ledger.certified_height
        )
        driver = Driver(core, ledger, promises, self._observe, self._on_fatal)
        service = NodeService(
            name=self._name,
            names=tuple(node.name for node in self._network.nodes),
            pid=os.getpid(),
            url=self._network.nodes[self._replica].url,
            driver=driver,
            metrics=metrics,
            release=release,
            operator_token=load_operator_token(self._home),
            on_stop=self._stop,
            others=tuple(f"{node.name} at {node.url}" for node in self._network.nodes if node.name != self._name),
        )
        self._service = service
        self._evidence = EvidenceReporter(
            EvidenceFolder(paths.evidence, roster),
            roster,
            secrets.consensus if amnesia is None else None,
            self._replica,
            core.world.read,
            partial(driver.submit, wait=True, timeout_s=OUTCOME_S),
            now_ms,
            self._log,
        )
        service.held_evidence = lambda: self._evidence.held
        driver.transport = self._transport(roster, driver)
        await self._serve(driver, service)
        return self._fatal.exit_code if self._fatal else 0

    def _check_stores(self, paths: NodePaths, owner: bytes, amnesia: AmnesiaMark | None) -> None:
        """Read every record in a child process first: a damaged page gives an error, not a dead node.

        Raises EnvironmentFault that names table, block and reason, and what to do.
        """
        kept = 0
        if amnesia is None:
            kept = check_promises(paths.promises, owner)
        else:
            self._log.error("the vote log is lost: this key never votes again", why=amnesia.why, do=RETURNS)
        records = 0
        if (paths.ledger / DATA_FILE).is_file():
            report = audit_ledger(paths.ledger, self._genesis, name=self._name, quick=True)
            records = report.records_checked
            if not report.ok:
                fault = report.fault(str(paths.ledger))
                fault.do = f"bcami verify --node {self._name}, then bcami rebuild {self._name}"
                raise fault
        self._log.info("stores checked", promises=kept, ledger_records=records)

    def _core_type(self) -> type[NodeCore]:
        """Return the honest node; one that can be told to misbehave only where genesis allows it (design D14)."""
        if not self._genesis.faults_allowed:
            return NodeCore
        from bcami.faults.node import FaultyNode

        return FaultyNode

    def _application(self, service: NodeService) -> FastAPI:
        app = create_app(service)
        if self._genesis.faults_allowed:
            from bcami.faults.node import FaultyNode
            from bcami.processes.faults import fault_router

            assert isinstance(service.core, FaultyNode)
            app.include_router(fault_router(service.core))
        return app

    def _transport(self, roster: Roster, driver: Driver) -> Transport:
        paths = self._home.node(self._name)
        members = [self._home.certificate(node.name).read_bytes() for node in self._network.nodes]
        own = self._home.certificate(self._name)
        addresses = [
            PeerAddress(replica, node.name, node.host, node.peer_port)
            for replica, node in enumerate(self._network.nodes)
        ]
        return Transport(
            roster,
            self._replica,
            addresses,
            server_context(own, paths.tls_key, members),
            client_context(own, paths.tls_key, members),
            driver,
        )

    async def _serve(self, driver: Driver, service: NodeService) -> None:
        node = self._network.nodes[self._replica]
        config = uvicorn.Config(
            self._application(service),
            host=node.host,
            port=node.http_port,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=SHUTDOWN_S,
            timeout_keep_alive=30,
        )
        self._server = _Server(config, service)
        assert driver.transport is not None
        try:
            await driver.transport.start()
        except OSError as error:
            raise EnvironmentFault(
                f"port {node.peer_port} on {node.host} cannot be used: {error.strerror}",
                likely="another process listens there",
                do="bcami doctor, or choose another --base-port at init",
            ) from None
        driver.start()
        self._log.info("started", replica=self._replica, height=service.ledger.height, view=service.core.view)
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        watchdog = Watchdog(end_process)
        watchdog.start(asyncio.get_running_loop())
        upkeep = asyncio.create_task(self._upkeep(driver, service))
        trimming = asyncio.create_task(_trim_now_and_then())
        reports = asyncio.create_task(self._evidence.run())
        try:
            await self._server.serve()
        finally:
            service.begin_stop()
            upkeep.cancel()
            trimming.cancel()
            reports.cancel()
            watchdog.stop()
            await driver.stop()
            self._log.info("stopped")

    async def _upkeep(self, driver: Driver, service: NodeService) -> None:
        """Prune what the MDMS has stored and the retention lets go, now and then."""
        retention_s = self._network.retention_seconds
        while retention_s is not None:
            height = prunable_height(service, round(retention_s * 1000), now_ms())
            if isinstance(height, WrongAcknowledgement):
                self._log.error("the MDMS acknowledged another block than ours", height=height.height)
            elif height > service.ledger.pruned_to:
                await driver.prune(height)
                self._log.info("pruned", pruned_to=height)
            await asyncio.sleep(UPKEEP_S)

    def _observe(self, observation: events.Observation) -> None:
        self._service.observe(observation)
        if isinstance(observation, _QUIET):
            return
        if isinstance(observation, events.Refused):
            if observation.reason in _ROUTINE:
                return
            kind = (observation.source, observation.reason, observation.peer)
            count = self._repetition.admit(kind, observation.count, time.monotonic())
            if not count:
                return
            observation = msgspec.structs.replace(observation, count=count)
        record = msgspec.to_builtins(observation, builtin_types=(bytes,))
        kind = record.pop("type")
        if isinstance(observation, events.EquivocationSeen):
            self._evidence.observe(observation)
            record = {"replica": observation.replica, "what": observation.what}
        self._log.info(kind, **{key: value for key, value in record.items() if value not in (None, "")})

    def _on_fatal(self, error: BcamiError) -> None:
        self._log.error("fatal", error=str(error), exit_code=error.exit_code)
        self._fatal = error
        self._stop()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.stop()


async def _trim_now_and_then() -> None:
    trimmer = Trimmer()
    while True:
        await asyncio.sleep(TRIM_S)
        trimmer.trim()


def run(arguments: list[str]) -> int:
    """Parse arguments, run the node, return the exit code."""
    parser = argparse.ArgumentParser(prog="bcami.processes.node", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--name", required=True)
    options = parser.parse_args(arguments)
    try:
        process = NodeProcess(HomePaths(options.home), options.name)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(process.run())
    except BcamiError as error:
        start_logging(options.name).error("refused to start", error=str(error), exit_code=error.exit_code)
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except OSError as error:
        start_logging(options.name).error("refused to start", error=str(error), exit_code=4)
        return 4


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
