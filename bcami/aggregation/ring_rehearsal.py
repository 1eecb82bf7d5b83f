"""Ring mode in memory under a seed: virtual time, real messages, and no network (see `rehearsal`)."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Final

from bcami.aggregation.dice import Dice
from bcami.aggregation.rehearsal import READING_MAX, Traffic
from bcami.aggregation.ring_meter import (
    COLLECT,
    CONNECT,
    RING_BACK,
    SEARCH,
    RingEffect,
    RingMeter,
    RingRefusal,
    RingSend,
    RingTimer,
)
from bcami.aggregation.ring_records import RING_CODEC, SUPPLIER, ConcentratorIs, RingMessage, WhoIsConcentrator
from bcami.aggregation.ring_supplier import RESTART, ROUND, RingResult, RingSupplier
from bcami.crypto.keys import SecretKey
from bcami.model.aggregation import RosterMember
from bcami.model.reasons import Reason

HOP_MS: Final = 5
TIMERS_MS: Final = {CONNECT: 300, SEARCH: 200, COLLECT: 1_000, RING_BACK: 60_000, ROUND: 70_000, RESTART: 90_000}
"""Longer than the whole ring takes; a driver over a real network has its own."""


@dataclass(frozen=True, slots=True)
class RingFaults:
    loss_percent: int = 0
    jitter_ms: int = 0
    """Messages take up to this much longer, so they overtake each other."""
    crash_per_mille: int = 0
    """Of messages that a meter takes: it forgets everything, says nothing, and asks for a licence again."""


class RingRehearsal:
    """A group with its supplier."""

    def __init__(
        self,
        members: int,
        seed: bytes,
        reading: Callable[[int, int], int | None],
        faults: RingFaults | None = None,
        group_min: int = 8,
        clock: Callable[[], float] = lambda: 0.0,
        is_staggered: bool = False,
    ) -> None:
        """With `is_staggered` one member is there before the others and has become the LC, and a broadcast is one
        message that only the LC takes: so a large group forms as it would on a shared medium.
        """
        self._is_staggered = is_staggered
        self._faults = faults or RingFaults()
        self._dice = Dice(b"ring faults" + seed)
        self._clock = clock
        self.seconds = {"meters": 0.0, "supplier": 0.0}
        self._chain = sha256(b"ring" + seed).digest()
        roots = sorted(sha256(seed + number.to_bytes(4, "big")).digest() for number in range(members))
        self.addresses = tuple(sha256(b"hid" + root).digest() for root in roots)
        keys = [SecretKey.generate(root) for root in roots]
        self._keys = dict(zip(self.addresses, keys, strict=True))
        self._reading = reading
        self.restarts = 0
        roster = {
            address: RosterMember(address, 1, key.public_key, b"\x04" + bytes(64))
            for address, key in zip(self.addresses, keys, strict=True)
        }
        self.supplier = RingSupplier(roster, self._chain, 1, READING_MAX, group_min)
        self.meters = {address: self._fresh(address) for address in self.addresses}
        self.down: set[bytes] = set()
        """Members that hear and say nothing."""
        self.cut: set[frozenset[bytes]] = set()
        """Links that carry nothing, as pairs of addresses."""
        self.refusals: Counter[Reason] = Counter()
        self.traffic = {address: Traffic() for address in (*self.addresses, SUPPLIER)}
        self.seen: list[tuple[bytes, bytes, RingMessage]] = []
        """(receiver, sender, message) of all that arrived."""
        self.now_ms = 0
        self._events: list[tuple[int, int, bytes, bytes, RingMessage | str]] = []
        self._count = 0
        self._armed: dict[tuple[bytes, str], int] = {}
        for address, key in zip(self.addresses, keys, strict=True):
            self._carry_out(address, self.meters[address].connect(key, 1, self._chain, 1))
            if is_staggered and address == self.addresses[0]:
                self.settle(until=lambda: self.meters[self.addresses[0]].concentrator is not None)

    def restart(self, address: bytes, session: int = 1) -> None:
        """Let a meter forget everything, as after a crash, and ask for its licence."""
        self.restarts += 1
        for name in (CONNECT, SEARCH, COLLECT, RING_BACK):
            self._armed.pop((address, name), None)
        self.meters[address] = self._fresh(address)
        self._carry_out(address, self.meters[address].connect(self._keys[address], session, self._chain, 1))

    def _fresh(self, address: bytes) -> RingMeter:
        place = self.addresses.index(address)
        entropy = sha256(b"ring entropy" + self._chain + self.restarts.to_bytes(4, "big") + address).digest()
        return RingMeter(address, partial(self._reading, place), entropy)

    def settle(self, *, until: Callable[[], bool], limit_ms: int = 3_600_000) -> bool:
        """Let things happen until the condition holds; False when it does not within the limit."""
        end_ms = self.now_ms + limit_ms
        while not until():
            if not self._events or self._events[0][0] > end_ms:
                return False
            self._step()
        return True

    def form(self) -> bool:
        """Let the group find its LC and its ring."""
        return self.settle(until=lambda: self.supplier.is_ready)

    def sum(self, first_s: int) -> RingResult:
        """Request an interval and return how the period ended."""
        assert self.form(), "no ring was formed"
        before = len(self.supplier.results)
        self._carry_out(SUPPLIER, self.supplier.request(first_s))
        assert self.settle(until=lambda: len(self.supplier.results) > before)
        return self.supplier.results[-1]

    @property
    def concentrator(self) -> bytes:
        return next(a for a, meter in self.meters.items() if meter.concentrator is not None and a not in self.down)

    def reset_counts(self) -> None:
        """Count messages and time from here on."""
        self.traffic = {address: Traffic() for address in self.traffic}
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self.seen.clear()

    def deliver(self, receiver: bytes, sender: bytes, message: RingMessage) -> None:
        """Hand a message over at once, as an attacker would."""
        self._receive(receiver, sender, message)

    def _step(self) -> None:
        at_ms, number, receiver, sender, what = heapq.heappop(self._events)
        self.now_ms = at_ms
        if receiver in self.down:
            return
        if isinstance(what, str):
            if self._armed.get((receiver, what)) == number:
                party = self.supplier if receiver == SUPPLIER else self.meters[receiver]
                self._carry_out(receiver, party.timed_out(what))
        else:
            self._receive(receiver, sender, what)

    def _receive(self, receiver: bytes, sender: bytes, message: RingMessage) -> None:
        self.seen.append((receiver, sender, message))
        traffic = self.traffic[receiver]
        traffic.received += 1
        traffic.received_bytes += len(RING_CODEC.encode(message))
        began = self._clock()
        party = self.supplier if receiver == SUPPLIER else self.meters[receiver]
        effects = party.receive(sender, message)
        self.seconds["supplier" if receiver == SUPPLIER else "meters"] += self._clock() - began
        is_meter, chance = receiver != SUPPLIER, self._faults.crash_per_mille
        if is_meter and chance and self._dice.chance(chance, 1000):
            self.restart(receiver)
            return
        self._carry_out(receiver, effects)

    def _carry_out(self, party: bytes, effects: Iterable[RingEffect]) -> None:
        for effect in effects:
            match effect:
                case RingSend(to, WhoIsConcentrator() | ConcentratorIs()) if self._is_staggered and (
                    to != SUPPLIER and self.meters[to].concentrator is None
                ):
                    continue
                case RingSend(to, message):
                    traffic = self.traffic[party]
                    traffic.sent += 1
                    traffic.sent_bytes += len(RING_CODEC.encode(message))
                    is_lost = self._dice.chance(self._faults.loss_percent, 100)
                    if not is_lost and frozenset((party, to)) not in self.cut:
                        late_ms = self._dice.below(self._faults.jitter_ms + 1)
                        self._push(self.now_ms + HOP_MS + late_ms, to, party, message)
                case RingTimer(name):
                    self._push(self.now_ms + TIMERS_MS[name], party, party, name)
                    self._armed[party, name] = self._count
                case RingRefusal(reason):
                    self.refusals[reason] += 1

    def _push(self, at_ms: int, to: bytes, sender: bytes, what: RingMessage | str) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_ms, self._count, to, sender, what))
