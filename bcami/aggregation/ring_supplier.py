"""The supplier (ES) in ring mode: licences, K and tokens of the ring in use, requests, sums; a step machine."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from bcami.aggregation.ring_meter import RingEffect, RingRefusal, RingSend, RingTimer, enabling_digest
from bcami.aggregation.ring_records import (
    Ciphertext,
    ConcentratorIs,
    ConcentratorLost,
    EnablingRequest,
    KeySum,
    Licence,
    ReadingRequest,
    RingMessage,
    TokenNotice,
    modulus,
    ring_value,
)
from bcami.crypto.signatures import verify
from bcami.model.aggregation import RosterMember
from bcami.model.reasons import Reason

ROUND: Final = "round"
RESTART: Final = "restart"


@dataclass(frozen=True, slots=True)
class RingResult:
    """How a period ended: a sum, or why there is none."""

    reason: Reason
    period: int
    first_s: int
    total: int
    count: int
    tokens_hash: bytes


@dataclass(slots=True)
class _Ring:
    concentrator: bytes
    generation: int
    key_sum: int
    tokens: tuple[bytes, ...]


@dataclass(slots=True)
class _Period:
    number: int
    first_s: int
    received: dict[bytes, int] = field(default_factory=dict)
    """Token → ciphertext."""


class RingSupplier:
    """One group's supplier."""

    def __init__(
        self, members: Mapping[bytes, RosterMember], chain: bytes, epoch: int, reading_max: int, group_min: int
    ) -> None:
        """`members` by address: what the chain says about the group."""
        self._members = members
        self._chain = chain
        self._epoch = epoch
        self._reading_max = reading_max
        self._group_min = group_min
        self._modulus = modulus(len(members), reading_max)
        self._licensed: set[bytes] = set()
        self._announced: set[bytes] = set()
        self._ring: _Ring | None = None
        self._is_replaced = False
        """Another LC has taken over: this ring ends with its period, of which a part has come."""
        self._early: tuple[bytes, KeySum] | None = None
        """A ring, and whose, that has overtaken the notice of one of its tokens."""
        self._period: _Period | None = None
        self._last_period = 0
        self._has_concentrator = False
        self.results: list[RingResult] = []
        self.refused: Counter[Reason] = Counter()

    @property
    def is_ready(self) -> bool:
        """Tell whether a ring stands and no period is under way."""
        return self._ring is not None and self._period is None

    @property
    def has_concentrator(self) -> bool:
        """Tell whether an LC ever said that it is one."""
        return self._has_concentrator

    @property
    def ring_size(self) -> int:
        return 0 if self._ring is None else len(self._ring.tokens)

    def request(self, first_s: int) -> list[RingEffect]:
        """Ask the LC for an interval's readings, or the next one when its ring stands; only between two periods."""
        assert self._period is None
        return self._ask(None if self._ring is None else self._ring.concentrator, first_s)

    def receive(self, sender: bytes, message: RingMessage) -> list[RingEffect]:
        match message:
            case EnablingRequest():
                return self._license(sender, message)
            case TokenNotice() if sender in self._licensed:
                self._announced.add(message.token)
                return self._take_early()
            case ConcentratorIs() if sender in self._licensed:
                return self._await_ring(sender, message.generation)
            case KeySum() if sender in self._licensed:
                return self._take_ring(sender, message)
            case Ciphertext() if sender in self._licensed:
                return self._add(message)
            case _:
                return self._refuse(Reason.NOT_AUTHORIZED)

    def timed_out(self, name: str) -> list[RingEffect]:
        period = self._period
        if name == ROUND and period is not None:
            # Readings are not validated unless all have come; the LC will start again, or has to be replaced.
            self._ring = None
            self._end(period, Reason.RING_BROKEN if period.received else Reason.TIMED_OUT, 0, 0)
            return [RingTimer(RESTART)]
        if name == RESTART and self._ring is None:
            return [
                *(RingSend(member, ConcentratorLost()) for member in sorted(self._licensed)),
                RingTimer(RESTART),
            ]
        return []

    def _license(self, sender: bytes, request: EnablingRequest) -> list[RingEffect]:
        member = self._members.get(sender)
        if member is None or member.session != request.session:
            return self._refuse(Reason.NOT_A_MEMBER)
        statement = enabling_digest(self._chain, self._epoch, sender, request.session)
        if not verify(member.public_key, request.signature, statement):
            return self._refuse(Reason.BAD_SIGNATURE)
        self._licensed.add(sender)
        return [RingSend(sender, Licence(tuple(sorted(self._members)), self._reading_max))]

    def _ask(self, concentrator: bytes | None, first_s: int) -> list[RingEffect]:
        self._last_period += 1
        self._period = _Period(self._last_period, first_s)
        asked = ReadingRequest(self._last_period, first_s)
        return [*([] if concentrator is None else [RingSend(concentrator, asked)]), RingTimer(ROUND)]

    def _await_ring(self, sender: bytes, generation: int) -> list[RingEffect]:
        """A new LC: what the old one said is over.

        A request that has crossed its announcement is not lost: the new LC is asked when its ring stands. One of which
        ciphertexts have come goes on: an LC hands over when δ has come back, so the rest of them is on its way.
        """
        self._has_concentrator = True
        ring = self._ring
        if ring is not None and (generation, sender) == (ring.generation, ring.concentrator):
            return []  # overtaken by its own ring
        if ring is not None and generation < ring.generation:
            return self._refuse(Reason.STALE)
        if ring is not None and sender != ring.concentrator and self._period is not None and self._period.received:
            self._is_replaced = True
            return [RingTimer(RESTART)]
        self._break()
        self._ring = None
        return [RingTimer(RESTART)]

    def _break(self) -> None:
        """End a period of which a part has come: it cannot be completed by another ring."""
        if self._period is not None and self._period.received:
            self._end(self._period, Reason.RING_BROKEN, 0, 0)

    def _take_ring(self, sender: bytes, message: KeySum) -> list[RingEffect]:
        if self._ring is not None and message.generation < self._ring.generation:
            return self._refuse(Reason.STALE)
        if not set(message.tokens) <= self._announced:
            self._early = (sender, message)
            return self._refuse(Reason.WRONG_TOKEN)
        if len(set(message.tokens)) != len(message.tokens) or len(message.tokens) > len(self._members):
            return self._refuse(Reason.MEMBER_TWICE)
        if ring_value(message.key_sum) >= self._modulus:
            return self._refuse(Reason.KEY_SUM_MISMATCH)
        if len(message.tokens) < self._group_min:
            return [*self._refuse(Reason.GROUP_TOO_SMALL), RingTimer(RESTART)]
        self._break()
        self._ring = _Ring(sender, message.generation, ring_value(message.key_sum), message.tokens)
        return [] if self._period is None else self._ask(sender, self._period.first_s)

    def _take_early(self) -> list[RingEffect]:
        if self._early is None or not set(self._early[1].tokens) <= self._announced:
            return []
        (sender, message), self._early = self._early, None
        return self._take_ring(sender, message)

    def _add(self, message: Ciphertext) -> list[RingEffect]:
        period, ring = self._period, self._ring
        if period is None or ring is None or message.period != period.number:
            return self._refuse(Reason.STALE)
        if message.token not in ring.tokens:
            return self._refuse(Reason.WRONG_TOKEN)
        if message.token in period.received:
            return self._refuse(Reason.MEMBER_TWICE)
        if ring_value(message.value) >= self._modulus:
            return self._refuse(Reason.READING_OUT_OF_RANGE)
        period.received[message.token] = ring_value(message.value)
        if len(period.received) < len(ring.tokens):
            return []
        total = (sum(period.received.values()) - ring.key_sum) % self._modulus
        if total > len(ring.tokens) * self._reading_max:
            self._ring = None
            self._end(period, Reason.KEY_SUM_MISMATCH, 0, 0)
            return [RingTimer(RESTART)]
        self._end(period, Reason.VALID, total, len(ring.tokens))
        return []

    def _end(self, period: _Period, reason: Reason, total: int, count: int) -> None:
        tokens = sha256(b"".join(sorted(period.received))).digest()
        self.results.append(RingResult(reason, period.number, period.first_s, total, count, tokens))
        self._period = None
        if self._is_replaced:
            self._ring, self._is_replaced = None, False

    def _refuse(self, reason: Reason) -> list[RingEffect]:
        self.refused[reason] += 1
        return [RingRefusal(reason)]
