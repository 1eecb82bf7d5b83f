"""One real node behind its gateway, in this process: core, driver with threads and clock, LMDB or memory, FastAPI.

    async with Station(folder) as station:            # n = 1: everything commits by itself
        await station.open_period(); meter = await station.meter("a")
        answer = await station.http.post("/v1/transaction", json=form(meter.report()))

`parties` of tests/simulation sign for it: a station offers them what they use of a cluster. With `members=4` no quorum
is ever reached, so nothing commits.
"""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec
import uvicorn

from bcami.bundled import find_bundled
from bcami.client.nodes import NodeClient
from bcami.codec import encode
from bcami.contract.package import Package, load_package
from bcami.contract.runtime import Runtime
from bcami.errors import BcamiError
from bcami.gateway.app import create_app
from bcami.gateway.forms import hexed
from bcami.gateway.metrics import NodeMetrics
from bcami.gateway.release import ReleasePolicy
from bcami.gateway.service import NodeService
from bcami.ledger.lmdb_ledger import LmdbLedger
from bcami.ledger.lmdb_promises import LmdbPromises
from bcami.ledger.memory import MemoryLedger, MemoryPromises
from bcami.model import events
from bcami.model.api import SUBMIT_ANSWER_CODEC, SubmitAnswer
from bcami.model.genesis import Parameters, chain_id
from bcami.model.transaction import Transaction, transaction_id
from bcami.node.core.core import NodeCore
from bcami.node.driver import Driver
from bcami.processes.node import _Server
from bcami.token_buckets import TokenBuckets
from tests.simulation.cluster import entropy, make_identities
from tests.simulation.parties import SimpleMdms, SimpleMeter, Utility

MSGPACK = "application/msgpack"
TOKEN = "operator-token-of-the-tests"


def form(tx: Transaction) -> dict[str, Any]:
    """Return the JSON form of a transaction."""
    return hexed(tx)


def records_of(value: Any, kind: Any) -> Any:
    """Return the record of a JSON form: what `forms.hexed` did, undone."""
    info = kind if isinstance(kind, msgspec.inspect.Type) else msgspec.inspect.type_info(kind)
    match info:
        case msgspec.inspect.BytesType():
            return bytes.fromhex(value)
        case msgspec.inspect.EnumType(cls=cls):
            return cls(value)
        case msgspec.inspect.VarTupleType(item_type=item):
            return tuple(records_of(entry, item) for entry in value)
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            return cls(**{field.name: records_of(value[field.name], field.type) for field in fields})
        case msgspec.inspect.UnionType(types=types):
            return None if value is None else records_of(value, types[0])
        case _:
            return value


@cache
def chaincode(package_id: bytes) -> Package:
    return load_package(Path(find_bundled("chaincode")), package_id)


class Station:
    def __init__(
        self,
        folder: Path | None = None,
        *,
        members: int = 1,
        parameters: Parameters | None = None,
        buckets: TokenBuckets | None = None,
        release_ms: int = 0,
        release_blocks: int = 1_000,
        is_amnesiac: bool = False,
        others: tuple[str, ...] = (),
    ) -> None:
        self.identities = make_identities(members, parameters)
        self.roster = self.identities.roster
        self.chain = chain_id(self.identities.genesis)
        self.now_ms = time.time_ns() // 1_000_000
        """When the parties sign: it stands still, so that one signature has one time."""
        self.observations: list[events.Observation] = []
        self.fatal: list[BcamiError] = []
        self.stops = 0
        self.contribution_secret = entropy("contribution", 0)
        genesis = self.identities.genesis
        if folder is None:
            self.ledger, self.promises = MemoryLedger(genesis), MemoryPromises()
        else:
            owner = genesis.members[0].consensus_key
            LmdbPromises.create(folder / "promises", owner)
            self.ledger, self.promises = (
                LmdbLedger(folder / "ledger", genesis),
                LmdbPromises(folder / "promises", owner),
            )
        core = NodeCore(
            self.roster,
            0,
            self.identities.consensus[0],
            Runtime(chaincode(genesis.chaincode_package), genesis),
            self.ledger,
            None if is_amnesiac else list(self.promises.items()),
            self.contribution_secret,
        )
        self.cores: list[NodeCore | None] = [core]
        self.driver = Driver(
            core, self.ledger, None if is_amnesiac else self.promises, self._observe, self.fatal.append
        )
        self.metrics = NodeMetrics()
        self.service = NodeService(
            name="node1",
            names=tuple(member.name for member in genesis.members),
            pid=os.getpid(),
            url="http://node1.test",
            driver=self.driver,
            metrics=self.metrics,
            release=ReleasePolicy(release_ms, release_blocks, self.ledger.certified_height),
            operator_token=TOKEN,
            on_stop=self._on_stop,
            others=others,
        )
        self.app = create_app(self.service, buckets)
        self.utility = Utility(self)
        self.mdms = SimpleMdms(self)

    @property
    def core(self) -> NodeCore:
        return self.driver.core

    def _observe(self, observation: events.Observation) -> None:
        self.observations.append(observation)
        self.service.observe(observation)

    def _on_stop(self) -> None:
        self.stops += 1

    async def __aenter__(self) -> Self:
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, client=("192.0.2.1", 50_000)), base_url="http://node1.test"
        )
        self.driver.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.aclose()
        await self.driver.stop()
        assert kind is not None or not self.fatal

    def client(self) -> NodeClient:
        return NodeClient("http://node1.test", transport=httpx.ASGITransport(self.app))

    async def submit(self, *transactions: Transaction, **params: Any) -> SubmitAnswer:
        """Submit in msgpack and return the decoded answer."""
        response = await self.http.post(
            "/v1/transactions", content=encode(transactions), headers={"content-type": MSGPACK}, params=params
        )
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == MSGPACK
        answer = SUBMIT_ANSWER_CODEC.decode(response.content)
        await self.until_certified(max(item.height for item in answer.results))
        return answer

    async def until_certified(self, height: int) -> None:
        """Return when the certificate of a height is in the ledger: a receipt may be out a moment earlier."""
        while self.ledger.certified_height < height:
            await self.driver.next_block()

    async def commit(self, *transactions: Transaction) -> None:
        """Submit and expect every outcome to be `valid`."""
        answer = await self.submit(*transactions)
        assert [item.reason for item in answer.results] == ["valid"] * len(transactions)

    def id_of(self, tx: Transaction) -> bytes:
        return transaction_id(tx, self.chain, 0)

    def unregistered(self, name: str) -> SimpleMeter:
        return SimpleMeter(self, name)

    async def open_period(self) -> None:
        await self.commit(self.mdms.register())

    async def meter(self, name: str) -> SimpleMeter:
        """Return a meter that is enrolled and has a session."""
        meter = SimpleMeter(self, name)
        await self.commit(self.utility.enrol(meter))
        await self.commit(meter.register(self.mdms))
        return meter

    def count(self, name: str, **labels: str) -> float:
        """Return a metric's value; 0 when it has never been counted."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


class Server(_Server):
    """The node process's own server, which also tells when it listens. Beside the main thread it leaves signals alone."""

    def __init__(self, config: uvicorn.Config, service: NodeService) -> None:
        super().__init__(config, service)
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is threading.main_thread():
            with super().capture_signals():
                yield
        else:
            yield


@contextlib.asynccontextmanager
async def scene(folder: Path | None = None, meters: int = 1, **options: Any):
    """A station with an open period and meters `meter0`, `meter1`, …"""
    async with Station(folder, **options) as station:
        await station.open_period()
        yield station, [await station.meter(f"meter{i}") for i in range(meters)]
