"""Clients: they send transactions to nodes, ask again with the same bytes until there is a receipt, and remember it.

Some of what they send is refused or rejected by right (a bad signature, a number used twice with other content, a time
far ahead); for that they do not wait.
"""

from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from bcami.codec import encode
from bcami.crypto.signatures import Signer
from bcami.faults.simulator.events import Events
from bcami.faults.simulator.identities import Identities, entropy
from bcami.model.api import COMMITTED, SubmitResult
from bcami.model.genesis import operator_id
from bcami.model.registration import EnrolArgument
from bcami.model.transaction import Transaction, argument_digest, transaction_id

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


class Entrance(Protocol):
    """Where clients reach nodes."""

    def reachable(self) -> list[int]:
        """Return the nodes that answer at all."""

    def submit(self, node: int, transactions: list[Transaction]) -> None: ...


@dataclass(slots=True)
class Request:
    """A transaction that somebody wants to see committed."""

    tx: Transaction
    tx_id: bytes
    asked_ms: int
    result: SubmitResult | None = None


def make_transaction(
    network: Identities,
    keys: list[Signer],
    contract: str,
    function: str,
    signer: bytes,
    number: tuple[int, int],
    timestamp_ms: int,
    argument: bytes,
) -> tuple[Transaction, bytes]:
    """Return a signed transaction with its id; `number` is (session, sequence)."""
    session, sequence = number
    fields = (contract, function, signer, session, sequence, timestamp_ms, argument_digest(argument), argument)
    tx_id = transaction_id(Transaction(*fields, ()), network.roster.chain, network.roster.epoch)
    return Transaction(*fields, tuple(key.sign(tx_id) for key in keys)), tx_id


class Clients:
    """Everybody who sends transactions in one run."""

    def __init__(self, network: Identities, plan: LoadPlan, events: Events, entrance: Entrance, draw: Random) -> None:
        self._network = network
        self._plan = plan
        self._events = events
        self._entrance = entrance
        self._draw = draw
        self._sequence = 0
        self.requests: dict[bytes, Request] = {}
        self.signer = operator_id(network.utility.public_key)

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
        """Return the requests without a receipt."""
        return [request for request in self.requests.values() if request.result is None]

    def send_new(self) -> None:
        """Send one more valid transaction."""
        tx, tx_id = self._enrol(self._next_number(), entropy("meter", self._sequence))
        self._want(tx, tx_id)

    def settle(self, result: SubmitResult) -> None:
        """Take an answer of an honest node."""
        request = self.requests.get(result.transaction_id)
        if request is not None and result.status == COMMITTED:
            request.result = result

    def _next_number(self) -> int:
        self._sequence += 1
        return self._sequence

    def _enrol(self, sequence: int, hid: bytes, ahead_ms: int = 0) -> tuple[Transaction, bytes]:
        network = self._network
        argument = EnrolArgument(hid, network.mdms.public_key, network.mdms_kem.public_key)
        time_ms = self._events.wall_ms + ahead_ms
        keys = [network.utility]
        return make_transaction(
            network, keys, "registration", "enrol", self.signer, (0, sequence), time_ms, encode(argument)
        )

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
        draw = self._draw
        match draw.randrange(3 if finished else 2):
            case 0:
                tx, _ = self._enrol(self._sequence + 1, entropy("forged", self._events.now_ms))
                signature = bytes([tx.signatures[0][0] ^ 1]) + tx.signatures[0][1:]
                return Transaction(
                    tx.contract, tx.function, tx.signer, tx.session, tx.sequence, tx.timestamp_ms, tx.argument_hash,
                    tx.argument, (signature,),
                )  # fmt: skip
            case 1:
                return self._enrol(self._next_number(), entropy("early", self._sequence), ahead_ms=3_600_000)[0]
            case _:
                used = draw.choice(finished).tx.sequence
                return self._enrol(used, entropy("second", used, self._events.now_ms))[0]

    def _want(self, tx: Transaction, tx_id: bytes) -> None:
        self.requests[tx_id] = Request(tx, tx_id, self._events.now_ms)
        self._to_some(tx)

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
