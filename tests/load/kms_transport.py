"""The way down for many meters: a real MDMS service with its store behind HTTP, real event streams, real meters' keys.

    python -m tests.load.kms_transport --meters 10000 --streams 1000

Two processes on this machine: the MDMS's end (service, LMDB, HTTP; the chain is in memory), and everybody else's (all
meters without a store, their streams). Times are from the outside, by one clock. "server CPU" is the thread time of the
steps that worked something out, the fsync left out. Prints one line for each phase.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import resource
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import httpx
import structlog
import uvicorn

from bcami.client.courier import Courier
from bcami.client.head_end import HeadEndClient, HeadEndUnavailable
from bcami.client.periods import verify_kms_epoch
from bcami.client.receipts import ReceiptVerifier
from bcami.codec import encode
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.kms import Accepted, HardenedProfile, Identity, KeyServer, MeterKeys, Scope, Step, ToMdms
from bcami.kms.messages import JoinProject, Pricing
from bcami.kms.subscription import Subscription, subscriber
from bcami.kms.wire import UP_MESSAGES_MAX
from bcami.mdms.head_end import HeadEnd
from bcami.mdms.kms_anchors import AnchorPace
from bcami.mdms.kms_chain import KmsChain
from bcami.mdms.kms_metrics import KmsMetrics
from bcami.mdms.kms_service import KmsPace, KmsService
from bcami.mdms.kms_store import KmsStore
from bcami.mdms.metrics import MdmsMetrics
from bcami.mdms.periods import Surroundings
from bcami.mdms.server import create_app
from bcami.model.reasons import Reason
from tests.unit.client.cluster import Cluster
from tests.unit.kms.network import Entropy

TOKEN: Final = {"authorization": "Bearer load"}
WAIT_S: Final = 900.0


def secret(kind: str, number: int) -> bytes:
    return sha256(f"{kind} {number}".encode()).digest()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# The MDMS's end.


def serve(meters: int, port: int, told: Connection) -> None:
    asyncio.run(_serve(meters, port, told))


async def _serve(meters: int, port: int, told: Connection) -> None:
    cluster = Cluster()
    scope = Scope(cluster.roster.chain, 0, cluster.genesis.mdms_hid)
    nodes = cluster.clients()
    courier = Courier(nodes, ReceiptVerifier(cluster.roster), weak=2, seed=bytes(16))
    identities = [
        Identity(
            secret("hid", number),
            1,
            SecretKey.generate(secret("key", number)).public_key,
            KemSecretKey.generate(secret("kem", number)).public_key,
        )
        for number in range(meters)
    ]
    roll = SimpleNamespace(
        cursor=SimpleNamespace(height=1), identities_above=lambda _: identities, revoked_above=lambda _: []
    )
    entropy = Entropy("load")
    surroundings = Surroundings(now_ms, entropy)
    server = KeyServer(scope, HardenedProfile(scope), changes_wait=True)
    with tempfile.TemporaryDirectory() as folder, KmsStore(Path(folder), bytes(32), cluster.roster.chain) as store:
        service = KmsService(
            server,
            store,
            roll,  # type: ignore[arg-type]
            HeadEnd("load"),
            KmsChain(nodes, courier.settle, cluster.roster, cluster.mdms_enrolment, surroundings),
            scope,
            surroundings,
            KmsMetrics(MdmsMetrics().registry),
            structlog.get_logger(),
            pace=KmsPace(anchor=AnchorPace(first_s=3600.0)),
        )
        steps: list[tuple[float, int]] = []
        work = service._work

        def timed(inputs: Any) -> list[Step]:
            began = time.thread_time()
            done = [make() for make in inputs]
            took = time.thread_time() - began
            found = work([lambda step=step: step for step in done])  # type: ignore[misc]
            steps.append((took, sum(len(step.sends) for step in found)))
            return found

        service._work = timed  # type: ignore[method-assign]
        app = create_app(
            SimpleNamespace(  # type: ignore[arg-type]
                kms=service, is_operator=lambda shown: shown == TOKEN["authorization"], hid_of=bytes.fromhex
            )
        )
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, access_log=False, lifespan="off")
        http = uvicorn.Server(config)
        stop = asyncio.Event()
        tasks = [asyncio.create_task(service.run(stop)), asyncio.create_task(http.serve())]
        told.send((cluster.genesis, cluster.roster))
        while (asked := await asyncio.to_thread(told.recv)) != "stop":
            del asked
            told.send((steps[:], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, time.process_time()))
            steps.clear()
        service.head_end.stop()
        stop.set()
        http.should_exit = True
        await asyncio.gather(*tasks, return_exceptions=True)
        await courier.close()


# Everybody else's.


class Street:
    """All meters, a few behind each stream."""

    def __init__(self, meters: int, streams: int, url: str, genesis: Any, roster: Any) -> None:
        scope = Scope(roster.chain, 0, genesis.mdms_hid)
        self.scope, self.genesis, self.roster = scope, genesis, roster
        self.signing = [SecretKey.generate(secret("key", number)) for number in range(meters)]
        self.keys = [
            MeterKeys(
                scope,
                HardenedProfile(scope),
                secret("hid", number),
                1,
                self.signing[number],
                KemSecretKey.generate(secret("kem", number)),
            )
            for number in range(meters)
        ]
        self.shares = [range(meters)[place::streams] for place in range(streams)]
        self.places = [""] * streams
        limits = httpx.Limits(max_connections=streams + 16)
        self.client = HeadEndClient(url, transport=httpx.AsyncHTTPTransport(limits=limits))
        self.entropy = Entropy("street")
        self.up: list[bytes] = []
        self.changed = asyncio.Event()
        self.taken: list[Accepted] = []
        self.refused: dict[Reason, int] = {}
        self.streams = 0
        self.opening = asyncio.Semaphore(16)
        self._epochs: dict[bytes, Any] = {}

    def carry(self, step: Step) -> None:
        for event in step.events:
            if isinstance(event, Accepted):
                self.taken.append(event)
        for reason in step.refusals:
            self.refused[reason] = self.refused.get(reason, 0) + 1
        self.up += [encode(send.message) for send in step.sends if isinstance(send, ToMdms)]
        self.changed.set()

    async def listen(self, place: int) -> None:
        own = {secret("hid", number): self.keys[number] for number in self.shares[place]}

        def subscribe(challenge: bytes) -> Subscription:
            return Subscription(
                challenge,
                tuple(
                    subscriber(self.scope, secret("hid", number), 1, challenge, self.signing[number])
                    for number in self.shares[place]
                ),
            )

        while True:
            await self.opening.acquire()  # as many at a time as the MDMS takes
            is_opening = True
            with contextlib.suppress(HeadEndUnavailable):
                async for event in self.client.listen(subscribe, self.places[place]):
                    if is_opening:
                        is_opening = False
                        self.opening.release()
                    self.places[place] = event.place or self.places[place]
                    if event.proof is not None:
                        self.streams += 1
                        epoch = self._epoch(event.proof)
                        for keys in own.values():
                            self.carry(keys.epoch_opened(epoch.height, epoch.kms_key, now_ms(), self.entropy()))
                    elif event.item is not None:
                        hearers = [own[event.item.hid]] if event.item.hid in own else list(own.values())
                        for keys in hearers:
                            if event.item.hid or event.item.group in keys.groups:
                                self.carry(keys.receive(event.item.message, now_ms()))
                    else:
                        for keys in own.values():
                            self.carry(keys.check_in(now_ms()))
            if is_opening:
                self.opening.release()
            await asyncio.sleep(0.2)

    def _epoch(self, proof: Any) -> Any:
        key = encode(proof)
        if key not in self._epochs:
            self._epochs[key] = verify_kms_epoch(proof, self.genesis, self.roster)
        return self._epochs[key]

    async def send_up(self) -> None:
        while True:
            await self.changed.wait()
            self.changed.clear()
            while self.up:
                batch, self.up = self.up[:UP_MESSAGES_MAX], self.up[UP_MESSAGES_MAX:]
                with contextlib.suppress(HeadEndUnavailable):
                    for reason, count in (await self.client.send(batch)).items():
                        self.refused[reason] = self.refused.get(reason, 0) + count

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for keys in self.keys:
                self.carry(keys.tick(now_ms(), self.entropy()))


@contextlib.asynccontextmanager
async def streams_open(street: Street) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(street.listen(place)) for place in range(len(street.shares))]
    tasks += [asyncio.create_task(street.send_up()), asyncio.create_task(street.tick())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  measured from the outside
            await asyncio.sleep(0.005)


class Report:
    """Times one phase after another."""

    def __init__(self, told: Connection) -> None:
        self._told = told

    def phase(self, what: str, began: float, detail: str = "") -> None:
        self._told.send("steps")
        steps, mib, cpu_s = self._told.recv()
        busy, sends = max(steps, default=(0.0, 0))
        print(
            f"{what:<52}{(time.monotonic() - began) * 1000:>9,.0f} ms   server CPU {sum(s for s, _ in steps) * 1000:>9,.1f} ms"
            f" in steps, the longest {busy * 1000:.2f} ms ({sends} sends); {mib} MiB, {cpu_s:.1f} s CPU in all  {detail}",
            flush=True,
        )


async def drive(meters: int, streams: int, url: str, told: Connection) -> None:
    genesis, roster = told.recv()
    street, report = Street(meters, streams, url, genesis, roster), Report(told)
    operator = httpx.AsyncClient(base_url=f"{url}/v1/kms", headers=TOKEN, trust_env=False, timeout=60.0)
    price = {"kind": "price", "starts_s": now_ms() // 1000, "prices": [2_500_000] * 48}

    async def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await operator.post(path, json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def delivered(sent: dict[str, Any]) -> dict[str, Any]:
        while True:
            found: dict[str, Any] = (await operator.get(f"/deliveries/{sent['epoch']}/{sent['number']}")).json()
            if not found["waiting"]:
                return found
            await asyncio.sleep(0.05)

    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await operator.get("/keys")).json()["epoch"]:
                    break
            await asyncio.sleep(0.1)
    async with streams_open(street):
        began = time.monotonic()
        await until(lambda: street.streams >= streams)
        report.phase(f"{streams:,} streams for {meters:,} meters", began)
        await until(lambda: all(keys.is_confirmed for keys in street.keys))
        report.phase(f"keys for {meters:,} meters, from the first stream on", began)
        began = time.monotonic()
        sent = await ask("/send", {"group": 0, "message": price})
        await until(lambda: len(street.taken) == meters)
        report.phase(f"broadcast taken by {meters:,} meters", began)
        found = await delivered(sent)
        report.phase("  and acknowledged", began, f"late {found['late']}, at most {found['latency_ms_max']} ms")
        await ask("/projects", {"project": 1, "name": "load"})
        await until(lambda: len(street.taken) == 2 * meters)
        began = time.monotonic()
        for keys in street.keys:
            street.carry(keys.request(JoinProject(1), now_ms(), street.entropy())[1])
        await until(lambda: all(1 in keys.groups for keys in street.keys))
        report.phase(f"{meters:,} meters ask to join a project and have its keys", began)
        await asyncio.sleep(3.0)
        report.phase("  (what was repeated since)", began)
        leaver, *others = street.keys
        before = max(keys.groups[1] for keys in others)
        began = time.monotonic()
        await ask("/projects/1/leave", {"meter": secret("hid", 0).hex()})
        await until(lambda: all(keys.groups.get(1, 0) > before for keys in others) and 1 not in leaver.groups)
        report.phase(f"one of {meters:,} leaves; the others have new keys", began, "waits up to 1 s for its period")
        began, have = time.monotonic(), len(street.taken)
        await ask("/send", {"group": 1, "message": price})
        await until(lambda: len(street.taken) == have + meters - 1)
        report.phase(f"multicast taken by {meters - 1:,} members", began)
    have, began = len(street.taken), time.monotonic()
    sent = await ask("/send", {"group": 0, "message": price})
    await asyncio.sleep(15.0)  # nobody is there: it waits for each meter, and is repeated into the ring
    report.phase(f"a broadcast waits for {meters:,} meters that are away", began)
    async with streams_open(street):
        began = time.monotonic()
        await until(lambda: len(street.taken) == have + meters)
        found = await delivered(sent)
        report.phase("  and they come back: taken and acknowledged", began)
        await asyncio.sleep(2.0)
    counts = {item.hid: 0 for item in street.taken}
    for item in street.taken:
        counts[item.hid] += isinstance(item.payload, Pricing)
    print(f"prices taken by a meter: {sorted(set(counts.values()))}; refused: {street.refused}")
    await operator.aclose()
    await street.client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--meters", type=int, default=10_000)
    parser.add_argument("--streams", type=int, default=1_000)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    near, far = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=serve, args=(options.meters, port, far), daemon=True)
    child.start()
    try:
        asyncio.run(drive(options.meters, options.streams, f"http://127.0.0.1:{port}", near))
    finally:
        near.send("stop")
        child.join(30)


if __name__ == "__main__":
    main()
