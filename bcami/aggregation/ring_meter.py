"""A meter in ring mode, and the local concentrator that any meter may have to be: a step machine.

The protocol is the paper's; docs/deviations.md lists what had to be filled in, and what it does not protect.
Effects come back in order: messages to send, and timers to set. A timer that is set again starts anew.

    SM: licence ─▶ broadcast to the LC ─▶ token ─▶ k_i1 ─▶ successor ─▶ δ in, ciphertext to ES and δ out, each period
    LC: tokens ─▶ keys for a while ─▶ ring, K ─▶ on request δ out, δ back, own ciphertext last; no δ back: start again
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from bcami.aggregation.dice import Dice
from bcami.aggregation.ring_records import (
    SUPPLIER,
    Ciphertext,
    ConcentratorIs,
    ConcentratorLost,
    Delta,
    EnablingRequest,
    FirstKey,
    Handover,
    KeySum,
    Licence,
    ReadingRequest,
    RingMessage,
    Successor,
    TokenGrant,
    TokenNotice,
    WhoIsConcentrator,
    modulus,
    ring_number,
    ring_value,
)
from bcami.crypto.signatures import Signer
from bcami.model.reasons import Reason
from bcami.model.signing import digest, u64

ATTEMPTS: Final = 3
"""Broadcasts without an answer before a meter takes the LC's role."""
ROTATE_AFTER_MAX: Final = 8
"""The LC hands over after 1 to 8 completed rings, at random."""

CONNECT: Final = "connect"
SEARCH: Final = "search"
COLLECT: Final = "collect"
RING_BACK: Final = "ring_back"


@dataclass(frozen=True, slots=True)
class RingSend:
    """Send a message through the secure channel."""

    to: bytes
    message: RingMessage


@dataclass(frozen=True, slots=True)
class RingTimer:
    """Call `timed_out` with this name after its time."""

    name: str


@dataclass(frozen=True, slots=True)
class RingRefusal:
    """Something that came in was turned down, or the round ended so."""

    reason: Reason


RingEffect = RingSend | RingTimer | RingRefusal


@dataclass(slots=True)
class _Concentrator:
    """What the LC holds: every k_i1, which is why it can read everything with the ES (docs/deviations.md)."""

    generation: int
    tokens: dict[bytes, bytes] = field(default_factory=dict)
    """Address → T_i."""
    keys: dict[bytes, int] = field(default_factory=dict)
    """Address → k_i1."""
    is_collecting: bool = True
    rotate_in: int = 1
    waiting_for: int | None = None
    """Period whose δ has not come back."""


def enabling_digest(chain: bytes, epoch: int, hid: bytes, session: int) -> bytes:
    """Return what a meter signs to be licensed."""
    return digest(b"bcami/aggregation/ring/1", chain, epoch, hid, u64(session))


class RingMeter:
    """One meter."""

    def __init__(self, hid: bytes, readings: Callable[[int], int | Reason | None], entropy: bytes) -> None:
        """`readings` returns the reading of the interval that starts then, None, or why the meter does not give it."""
        self.hid = hid
        self.concentrator: _Concentrator | None = None
        """Set while this meter is the LC."""
        self._readings = readings
        self._dice = Dice(entropy + hid)
        self._request: EnablingRequest | None = None
        self._group: tuple[bytes, ...] = ()
        self._reading_max = 0
        self._modulus = 1
        self._generation = 0
        self._lc: bytes | None = None
        self._token = b""
        self._key = 0
        self._successor: bytes | None = None
        self._period = 0
        self._own_delta = 0
        self._early: Delta | None = None
        """One that has overtaken the word of who comes next."""
        self._attempts = 0

    def connect(self, signer: Signer, session: int, chain: bytes, epoch: int) -> list[RingEffect]:
        """Ask the supplier for a licence."""
        signature = signer.sign(enabling_digest(chain, epoch, self.hid, session))
        self._request = EnablingRequest(session, signature)
        return [RingSend(SUPPLIER, self._request), RingTimer(CONNECT)]

    def receive(self, sender: bytes, message: RingMessage) -> list[RingEffect]:
        """Take a message of an authenticated sender."""
        match message:
            case Licence() if sender == SUPPLIER:
                self._group = tuple(other for other in message.group if other != self.hid)
                self._reading_max = message.reading_max
                self._modulus = modulus(len(message.group), message.reading_max)
                self._attempts = 0
                return self._search()
            case ConcentratorLost() if sender == SUPPLIER:
                if self.concentrator is not None:
                    return []
                self._lc, self._successor, self._attempts = None, None, 0
                return self._search()
            case ReadingRequest() if sender == SUPPLIER:
                return self._begin_ring(message)
            case WhoIsConcentrator() | ConcentratorIs() if not self._group:
                return []  # not licensed yet, so it has nothing to say to a broadcast
            case _:
                return self._from_member(sender, message) if sender in self._group else [_no(Reason.NOT_A_MEMBER)]

    def _from_member(self, sender: bytes, message: RingMessage) -> list[RingEffect]:
        match message:
            case WhoIsConcentrator():
                return [] if self.concentrator is None else self._grant(sender)
            case ConcentratorIs():
                return self._follow(sender, message.generation)
            case TokenGrant():
                return self._register(sender, message)
            case FirstKey():
                return self._collect(sender, message)
            case Successor():
                if sender != self._lc or message.generation != self._generation:
                    return [_no(Reason.STALE)]
                self._successor = message.address
                early, self._early = self._early, None
                return [] if early is None else self._pass_on(early)
            case Delta():
                return self._pass_on(message)
            case Handover():
                return self._become(message.generation)
            case _:
                return [_no(Reason.NOT_AUTHORIZED)]

    def timed_out(self, name: str) -> list[RingEffect]:
        lc = self.concentrator
        if name == CONNECT and not self._group and self._request is not None:
            return [RingSend(SUPPLIER, self._request), RingTimer(CONNECT)]
        if name == SEARCH and self._successor is None and lc is None:
            self._attempts += 1
            return self._search() if self._attempts < ATTEMPTS else self._become(self._generation + 1)
        if name == COLLECT and lc is not None and lc.is_collecting:
            return self._close_ring(lc)
        if name == RING_BACK and lc is not None and lc.waiting_for is not None:
            # A member or a link failed: everybody registers anew, and whoever is silent stays outside.
            return [_no(Reason.RING_BROKEN), *self._become(self._generation + 1)]
        return []

    # Finding the LC, and being found.

    def _search(self) -> list[RingEffect]:
        """Ask the LC, where one is known, else everybody; without an answer, ask again after a while."""
        asked = self._group if self._lc is None else (self._lc,)
        return [*(RingSend(other, WhoIsConcentrator()) for other in asked), RingTimer(SEARCH)]

    def _become(self, generation: int) -> list[RingEffect]:
        self._generation, self._lc, self._successor = generation, self.hid, None
        self._key = self._dice.below(self._modulus)
        self._token = self._dice.bits(128).to_bytes(16, "big")
        self.concentrator = _Concentrator(generation, rotate_in=1 + self._dice.below(ROTATE_AFTER_MAX))
        self.concentrator.tokens[self.hid] = self._token
        self.concentrator.keys[self.hid] = self._key
        announced = (RingSend(other, ConcentratorIs(generation)) for other in (*self._group, SUPPLIER))
        return [*announced, RingSend(SUPPLIER, TokenNotice(self._token)), RingTimer(COLLECT)]

    def _follow(self, sender: bytes, generation: int) -> list[RingEffect]:
        """Go with the newer LC; of two of one generation, with the lower address."""
        if generation < self._generation:
            return [_no(Reason.STALE)]
        if generation == self._generation and self._lc is not None and self._lc < sender:
            return []
        self._generation, self._lc, self._successor = generation, sender, None
        self.concentrator = None
        self._attempts = 0
        return self._search()

    def _grant(self, member: bytes) -> list[RingEffect]:
        lc = self.concentrator
        assert lc is not None
        if not lc.is_collecting:
            if member in lc.keys:
                return [RingSend(member, TokenGrant(lc.generation, lc.tokens[member]))]
            # A change of topology: the process is repeated with the newcomer.
            return self._become(self._generation + 1)
        if member not in lc.tokens:
            lc.tokens[member] = self._dice.bits(128).to_bytes(16, "big")
        token = lc.tokens[member]
        return [RingSend(member, TokenGrant(lc.generation, token)), RingSend(SUPPLIER, TokenNotice(token))]

    def _register(self, sender: bytes, grant: TokenGrant) -> list[RingEffect]:
        if grant.generation < self._generation or self.concentrator is not None:
            return [_no(Reason.STALE)]
        if grant.generation == self._generation and self._lc is not None and self._lc < sender:
            return []  # of an LC that gives way to the one it has a key of
        self._lc = sender
        if (grant.generation, grant.token) != (self._generation, self._token):  # else the same key again
            self._generation, self._token = grant.generation, grant.token
            self._key = self._dice.below(self._modulus)
            self._successor = None
        self._attempts = 0
        key = FirstKey(grant.generation, grant.token, ring_number(self._key))
        return [RingSend(sender, key), *([RingTimer(SEARCH)] if self._successor is None else [])]

    def _collect(self, sender: bytes, message: FirstKey) -> list[RingEffect]:
        lc = self.concentrator
        if lc is None or message.generation != lc.generation:
            return [_no(Reason.STALE)]
        if lc.tokens.get(sender) != message.token:
            return [_no(Reason.WRONG_TOKEN)]
        if not lc.is_collecting:
            return [] if lc.keys.get(sender) == ring_value(message.key) else [_no(Reason.STALE)]
        if sender in lc.keys and lc.keys[sender] != ring_value(message.key):
            return [_no(Reason.MEMBER_TWICE)]
        if ring_value(message.key) >= self._modulus:
            return [_no(Reason.READING_OUT_OF_RANGE)]
        lc.keys[sender] = ring_value(message.key)
        return self._close_ring(lc) if len(lc.keys) == len(self._group) + 1 else []

    def _close_ring(self, lc: _Concentrator) -> list[RingEffect]:
        """Order the members at random, the LC last, tell each its successor, and send K."""
        lc.is_collecting = False
        order = sorted(other for other in lc.keys if other != self.hid)
        for place in range(len(order) - 1, 0, -1):
            other = self._dice.below(place + 1)
            order[place], order[other] = order[other], order[place]
        order.append(self.hid)
        after = dict(zip(order, [*order[1:], order[0]], strict=True))
        self._successor = after.pop(self.hid)
        key_sum = ring_number(sum(lc.keys.values()) % self._modulus)
        tokens = tuple(lc.tokens[member] for member in order)
        sent = (RingSend(member, Successor(lc.generation, address)) for member, address in after.items())
        return [*sent, RingSend(SUPPLIER, KeySum(lc.generation, key_sum, tokens))]

    # A period.

    def _begin_ring(self, request: ReadingRequest) -> list[RingEffect]:
        lc = self.concentrator
        if lc is None or lc.is_collecting or self._successor is None:
            return [_no(Reason.NOT_READY)]
        if request.period <= self._period:
            return [_no(Reason.STALE)]
        self._period = request.period
        lc.waiting_for = request.period
        self._own_delta = self._dice.below(self._modulus)
        if self._successor == self.hid:
            return self._finish_ring(lc, request.period, request.first_s, self._own_delta)
        delta = Delta(lc.generation, request.period, request.first_s, ring_number(self._own_delta))
        return [RingSend(self._successor, delta), RingTimer(RING_BACK)]

    def _pass_on(self, delta: Delta) -> list[RingEffect]:
        lc = self.concentrator
        if delta.generation == self._generation and self._successor is None and lc is None:
            self._early = delta
            return []
        if delta.generation != self._generation or self._successor is None:
            return [_no(Reason.STALE)]
        value = ring_value(delta.value)
        if value >= self._modulus:
            return [_no(Reason.READING_OUT_OF_RANGE)]
        if lc is not None:
            if lc.waiting_for != delta.period:
                return [_no(Reason.STALE)]
            return self._finish_ring(lc, delta.period, delta.first_s, value)
        if delta.period <= self._period:
            return [_no(Reason.STALE)]
        self._period = delta.period
        self._own_delta = self._dice.below(self._modulus)
        sent = self._encrypted(delta.period, delta.first_s, value)
        if isinstance(sent, RingRefusal):
            return [sent]
        passed = Delta(delta.generation, delta.period, delta.first_s, ring_number(self._own_delta))
        return [sent, RingSend(self._successor, passed)]

    def _finish_ring(self, lc: _Concentrator, period: int, first_s: int, value: int) -> list[RingEffect]:
        """The δ came back: report last, and hand the role over when its time has come."""
        lc.waiting_for = None
        effects: list[RingEffect] = [self._encrypted(period, first_s, value)]
        lc.rotate_in -= 1
        others = sorted(other for other in lc.keys if other != self.hid)
        if lc.rotate_in == 0 and others:
            heir = others[self._dice.below(len(others))]
            self.concentrator, self._lc, self._successor = None, None, None
            effects.append(RingSend(heir, Handover(self._generation + 1)))
        return effects

    def _encrypted(self, period: int, first_s: int, delta_in: int) -> RingSend | RingRefusal:
        """Return c = e + k_1 − δ_own + δ_in mod M [paper, equation 3, with the modulus of its Table 1]."""
        reading = self._readings(first_s)
        if reading is None:
            return _no(Reason.NO_READING)
        if isinstance(reading, Reason):
            return _no(reading)
        if not 0 <= reading <= self._reading_max:
            return _no(Reason.READING_OUT_OF_RANGE)
        value = (reading + self._key - self._own_delta + delta_in) % self._modulus
        return RingSend(SUPPLIER, Ciphertext(period, self._token, ring_number(value)))


def _no(reason: Reason) -> RingRefusal:
    return RingRefusal(reason)
