"""Clients: they send transactions to nodes, ask again with the same bytes until there is a receipt, and remember it.

Some of what they send is refused or rejected by right (a bad signature, a number used twice with other content, a time
far ahead); for that they do not wait.
"""

from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

import msgspec

from bcami.faults.simulator.events import Events
from bcami.faults.simulator.identities import entropy
from bcami.faults.simulator.parties import Meter, Utility
from bcami.faults.simulator.prelude import PERIOD, Prelude
from bcami.model.api import COMMITTED, SubmitResult
from bcami.model.reasons import Reason
from bcami.model.registration import ContributionRequest
from bcami.model.transaction import Transaction, transaction_id

ASK_AGAIN_MS: Final = 1_500
"""A client without a receipt goes to another node after this long."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What clients send while faults last."""

    transactions: int = 24
    every_ms: tuple[int, int] = (20, 300)
    to_several: float = 0.1
    """Chance that a transaction goes to all nodes at once."""
    repeated: float = 0.1
    """Chance that a transaction with a receipt is sent again."""
    wrong: float = 0.1
    """Chance that what is sent is wrong in some way."""
    enrolments: float = 0.1
    """Share of valid ones that are the utility's."""
    sessions: float = 0.03
    """Share that opens a new session of a meter."""


class Entrance(Protocol):
    """Where clients reach nodes."""

    def reachable(self) -> list[int]:
        """Return the nodes that answer at all."""

    def submit(self, node: int, transactions: list[Transaction]) -> None: ...

    def contribute(self, node: int, request: ContributionRequest) -> object:
        """Ask a node for a key share; anything but a ContributionAnswer is none."""


@dataclass(slots=True)
class Request:
    """A transaction that somebody wants to see committed."""

    tx: Transaction
    tx_id: bytes
    asked_ms: int
    result: SubmitResult | None = None
    last: str = "no answer"
    is_void: bool = False
    """Its session may be over before it is ordered: nobody asks for it again."""


class Clients:
    """Everybody who sends transactions in one run."""

    def __init__(self, start: Prelude, plan: LoadPlan, events: Events, entrance: Entrance, draw: Random) -> None:
        self._network = start.network
        self._period_key = start.period_key
        self._plan = plan
        self._events = events
        self._entrance = entrance
        self._draw = draw
        self._utility = Utility(start.network)
        self._utility.sequence = start.utility_sequence
        self.meters = start.new_meters()
        self._registering: dict[bytes, Request] = {}
        self._without_session: set[bytes] = set()
        """Meters whose last registration was rejected: they take a higher number (protocol 2.3)."""
        self.requests: dict[bytes, Request] = {}

    def begin(self) -> None:
        """Send what the plan says, spread over time, and ask again for ever."""
        at_ms = 0
        for _ in range(self._plan.transactions):
            low, high = self._plan.every_ms
            at_ms += self._draw.randint(low, high)
            self._events.after(at_ms, self._send_planned)
        self._events.after(ASK_AGAIN_MS // 3, self._ask_again)

    @property
    def open(self) -> list[Request]:
        """Return the requests without a receipt, but those that a new session made void."""
        return [item for item in self.requests.values() if item.result is None and not item.is_void]

    def send_new(self) -> None:
        """Send one more valid transaction."""
        meter, kind = self._draw.choice(self.meters), self._draw.random()
        now_ms = self._events.wall_ms
        if kind < self._plan.sessions or meter.hid in self._without_session:
            self._open_session(meter)
        elif kind < self._plan.sessions + self._plan.enrolments:
            self._want(self._enrol(now_ms))
        elif meter.hid not in self._registering:
            self._want(meter.report(now_ms))

    def _enrol(self, now_ms: int, sequence: int | None = None) -> Transaction:
        network, hid = self._network, entropy("customer", self._utility.sequence, self._events.now_ms)
        return self._utility.enrol(hid, network.mdms.public_key, network.mdms_kem.public_key, now_ms, sequence)

    def _open_session(self, meter: Meter) -> None:
        """Let a meter open its next session; until the outcome is known it reports nothing (protocol 2.6)."""
        if meter.hid in self._registering:
            return
        nodes = self._entrance.reachable()
        order = self._draw.sample(nodes, len(nodes))
        tx = meter.register(PERIOD, self._period_key, self._events.wall_ms, order, self._entrance.contribute)
        if tx is not None:
            for request in self.requests.values():
                if request.tx.signer == meter.hid and request.result is None:
                    request.is_void = True
            self._without_session.discard(meter.hid)
            self._registering[meter.hid] = self._want(tx)

    def settle(self, result: SubmitResult) -> None:
        """Take an answer of an honest node."""
        request = self.requests.get(result.transaction_id)
        if request is None:
            return
        request.last = f"{result.status} {result.reason}"
        if result.status != COMMITTED:
            return
        request.result = result
        if self._registering.get(request.tx.signer) is request:
            del self._registering[request.tx.signer]
            if result.reason is not Reason.VALID:
                self._without_session.add(request.tx.signer)

    def _send_planned(self) -> None:
        draw = self._draw
        kind = draw.random()
        finished = [request for request in self.requests.values() if request.result is not None]
        if kind < self._plan.wrong:
            self._to_some(self._wrong(finished))
        elif kind < self._plan.wrong + self._plan.repeated and finished:
            self._to_some(draw.choice(finished).tx)
        else:
            self.send_new()

    def _wrong(self, finished: list[Request]) -> Transaction:
        """Return what no honest node may accept: a bad signature, a time far ahead, a used number with new content."""
        draw, meter = self._draw, self._draw.choice(self.meters)
        now_ms = self._events.wall_ms
        match draw.randrange(3 if finished else 2):
            case 0:
                tx = meter.report(now_ms, meter.sequence + 1)
                forged = bytes([tx.signatures[0][0] ^ 1]) + tx.signatures[0][1:]
                return msgspec.structs.replace(tx, signatures=(forged,))
            case 1:
                return meter.report(now_ms + 3_600_000)
            case _:
                used = draw.choice(finished).tx
                if used.contract == "usage" and used.signer == meter.hid and used.session == meter.session:
                    return meter.report(now_ms + 1, used.sequence)
                return self._enrol(now_ms, used.sequence if used.function == "enrol" else 1)

    def _want(self, tx: Transaction) -> Request:
        tx_id = transaction_id(tx, self._network.roster.chain, self._network.roster.epoch)
        request = self.requests[tx_id] = Request(tx, tx_id, self._events.now_ms)
        self._to_some(tx)
        return request

    def _to_some(self, tx: Transaction) -> None:
        nodes = self._entrance.reachable()
        if not nodes:
            return
        if self._draw.random() >= self._plan.to_several:
            nodes = [self._draw.choice(nodes)]
        for node in nodes:
            self._entrance.submit(node, [tx])

    def _ask_again(self) -> None:
        self._events.after(ASK_AGAIN_MS // 3, self._ask_again)
        nodes = self._entrance.reachable()
        due: dict[int, list[Transaction]] = {}
        for request in self.open:
            if nodes and self._events.now_ms - request.asked_ms >= ASK_AGAIN_MS:
                request.asked_ms = self._events.now_ms
                due.setdefault(self._draw.choice(nodes), []).append(request.tx)
        for node, transactions in due.items():
            self._entrance.submit(node, transactions)
