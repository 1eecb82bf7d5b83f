"""A tour of the way down: keys for a fleet's meters, then one message of each mode, delivered and timed [KMS Table 1].

It stands on both sides: it gives the MDMS an operator's commands, and carries the fleet's meters. A message counts when
every meter that it is for took it once and no other took it, and the MDMS has all their acknowledgements.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import httpx
import msgspec

from bcami.ami.downstream import Downstream
from bcami.ami.fleet import Fleet
from bcami.ami.meter import Meter
from bcami.client.head_end import HeadEndClient
from bcami.config import Network
from bcami.crypto.roster import Roster
from bcami.errors import EnvironmentFault, ExpectationError
from bcami.kms import Accepted
from bcami.kms.messages import JoinProject, LeaveProject
from bcami.model.genesis import Genesis
from bcami.model.reasons import Reason
from bcami.paths import HomePaths
from bcami.processes.home import load_operator_token
from bcami.units import HALF_HOUR_S

KEYS_WAIT_S: Final = 60.0
DELIVERY_WAIT_S: Final = 60.0
_POLL_S: Final = 0.05
_MEMBERS: Final = 3


class Delivered(msgspec.Struct, frozen=True):
    """What became of one message."""

    what: str
    mode: str
    meters: int
    """Whom it was for; each took it once."""
    late: int
    latency_ms_max: int
    """From the MDMS's sending to the last meter's receipt, by the clocks of both."""
    deadline_ms: int
    """[KMS Table 1]."""


class TourReport(msgspec.Struct, frozen=True):
    meters: int
    epoch: int
    keys_ms: int
    """From subscribing until the MDMS had confirmed the keys of every meter."""
    join_ms: int
    """From the first meter's wish to the last one's keys of the project."""
    deliveries: tuple[Delivered, ...]


class Operator:
    """The operator's commands over the MDMS's HTTP."""

    def __init__(self, home: HomePaths, network: Network) -> None:
        self._http = httpx.AsyncClient(
            base_url=network.mdms.url,
            headers={"authorization": f"Bearer {load_operator_token(home)}"},
            trust_env=False,
            timeout=30.0,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer. Raises EnvironmentFault when the command is refused."""
        try:
            answer = await self._http.request(method, f"/v1/kms{path}", json=body)
        except httpx.HTTPError as error:
            raise EnvironmentFault(f"the MDMS gives no answer: {type(error).__name__}", do="bcami status") from None
        if answer.status_code != httpx.codes.OK:
            raise EnvironmentFault(f"HTTP {answer.status_code}: {answer.text[:200]}", where=f"{method} /v1/kms{path}")
        told: dict[str, Any] = answer.json()
        return told


class Tour:
    """See the module."""

    def __init__(
        self, home: HomePaths, network: Network, genesis: Genesis, fleet: Fleet, meters: Sequence[Meter]
    ) -> None:
        self._operator = Operator(home, network)
        self._meters = list(meters)
        self._taken: list[Accepted] = []
        self._downstream = Downstream(
            fleet,
            Roster.from_genesis(genesis),
            self._meters,
            HeadEndClient(network.mdms.url),
            take=self._note,
            now_ms=_now_ms,
            profile=network.kms.profile,
        )

    async def run(self) -> TourReport:
        """Return what was delivered. Raises ExpectationError when something was not, or more often than once."""
        began = time.monotonic()
        try:
            async with self._downstream as downstream:
                await _within(
                    KEYS_WAIT_S,
                    downstream.until(lambda: downstream.confirmed == len(self._meters)),
                    lambda: f"{downstream.confirmed} of {len(self._meters)} meters got keys",
                )
                keys_ms = _ms_since(began)
                return await self._messages(keys_ms)
        finally:
            await self._operator.close()

    async def _messages(self, keys_ms: int) -> TourReport:
        now_s = _now_ms() // 1000
        ends = {"starts_s": now_s, "ends_s": now_s + HALF_HOUR_S}
        price = {"kind": "price", "starts_s": now_s, "prices": [2_500_000] * 48}
        everybody, members = self._meters, self._meters[:_MEMBERS]
        deliveries = [await self._deliver("price of the next day", "broadcast", everybody, {"group": 0}, price)]
        project = await self._new_project()
        began = time.monotonic()
        await self._ask_of(members, JoinProject(project))
        limit = {"kind": "control", "action": "limit", "limit_w": 2_000, **ends}
        await _within(
            DELIVERY_WAIT_S,
            self._downstream.until(lambda: all(project in self._groups(meter) for meter in members)),
            lambda: "members got no keys of their project",
        )
        join_ms = _ms_since(began)
        deliveries.append(await self._deliver("demand response, 2 kW", "multicast", members, {"group": project}, limit))
        one = everybody[-1]
        connect = {"kind": "control", "action": "connect", **ends}
        target = {"meter": one.party.hid.hex()}
        deliveries.append(await self._deliver("remote control", "unicast", [one], target, connect))
        await self._ask_of(members, LeaveProject(project))
        status = await self._operator.ask("GET", "/status")
        return TourReport(len(everybody), status["epoch"], keys_ms, join_ms, tuple(deliveries))

    async def _new_project(self) -> int:
        """Publish a project under a number that is free; return it."""
        listed = await self._operator.ask("GET", "/projects")
        number = 1 + max((item["project"] for item in listed["projects"]), default=0)
        await self._operator.ask("POST", "/projects", {"project": number, "name": f"evening peak {number}"})
        return number

    async def _ask_of(self, meters: Sequence[Meter], payload: JoinProject | LeaveProject) -> None:
        """Have meters ask the MDMS, and wait for its yes to each."""
        for meter in meters:
            asked = await self._downstream.request(meter, payload)
            if isinstance(asked, Reason):
                raise ExpectationError(f"a meter's request is not taken: {asked}")
            identity = asked
            await _within(
                DELIVERY_WAIT_S,
                self._downstream.until(lambda: self._downstream.answer(meter, identity) is not None),  # noqa: B023
                lambda: "the MDMS does not answer a request",
            )
            answer = self._downstream.answer(meter, identity)
            if answer is not Reason.VALID:
                raise ExpectationError(f"the MDMS refuses a request: {answer}")

    async def _deliver(
        self, what: str, mode: str, meters: Sequence[Meter], target: dict[str, Any], message: dict[str, Any]
    ) -> Delivered:
        before = len(self._taken)
        wanted = {meter.party.hid for meter in meters}
        sent = await self._operator.ask("POST", "/send", {**target, "message": message})
        await _within(
            DELIVERY_WAIT_S,
            self._downstream.until(lambda: wanted <= self._takers(before, message["kind"]).keys()),
            lambda: f"{what}: {len(self._takers(before, message['kind']))} of {len(wanted)} meters took it",
        )
        path = f"/deliveries/{sent['epoch']}/{sent['number']}"
        async with asyncio.timeout(DELIVERY_WAIT_S):
            told = await self._operator.ask("GET", path)
            while told["delivered"] + told["late"] < len(wanted):
                await asyncio.sleep(_POLL_S)
                told = await self._operator.ask("GET", path)
        takers = self._takers(before, message["kind"])
        if takers != Counter(wanted):
            raise ExpectationError(f"{what}: meters took it {takers.total()} times, {len(wanted)} were to take it once")
        return Delivered(what, mode, len(wanted), told["late"], told["latency_ms_max"], told["deadline_ms"])

    def _takers(self, before: int, kind: str) -> Counter[bytes]:
        """Return who took a message of this kind since then, and how often."""
        tags = {"price": "pricing", "control": "remote_control"}
        newer = self._taken[before:]
        return Counter(item.hid for item in newer if item.payload.__struct_config__.tag == tags[kind])

    def _note(self, item: Accepted) -> tuple[()]:
        self._taken.append(item)
        return ()

    def _groups(self, meter: Meter) -> dict[int, int]:
        return self._downstream.groups(meter.party.hid)


async def _within(seconds: float, work: Any, what: Any) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        raise ExpectationError(f"{what()} within {seconds:.0f} s", do="bcami kms status; bcami logs mdms") from None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _ms_since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
