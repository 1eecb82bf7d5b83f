"""A masked round in memory under a seed: real keys, real messages, byte for byte, and no network, chain or clock.

For costs and for simulation. A receipt is replaced by the word of `Rehearsal.reader`, which reads what was recorded
here and nothing else; whatever a contract would refuse is checked where the contract is tested. The same seed and
faults give the same run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any, Final

from bcami.aggregation.bounds import DEFAULT_POLICY, Policy
from bcami.aggregation.dice import Dice
from bcami.aggregation.head_end import Call, Effect, Ended, MaskedRound, Past, Submit, Wait, group_of
from bcami.aggregation.meter import MEMORY, Answer, MaskedMeter, MeterKeys
from bcami.aggregation.proofs import CODECS
from bcami.aggregation.records import (
    MEMORY_CODEC,
    SET_CODEC,
    TO_HEAD_END_CODEC,
    TO_METER_CODEC,
    Proven,
    RosterNotice,
    ToHeadEnd,
    ToMeter,
)
from bcami.aggregation.rules import are_near
from bcami.codec import encode
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.model.aggregation import (
    MASKED,
    NO_NOISE,
    FixRosterArgument,
    Noise,
    RosterMember,
    StartArgument,
    whole_roster_digest,
)
from bcami.model.api import CertifiedHeader, TransactionProof
from bcami.model.block import BlockCertificate, CheckpointVote, Header, Outcome, Receipt, header_hash
from bcami.model.ids import NO_HASH
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction, argument_digest

READING_MAX: Final = 10**9
"""100 kWh in half an hour."""
_ATTEMPTS: Final = 3
"""How often a driver sends a message before the phase times out."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, drawn from the seed."""

    silent: frozenset[int] = frozenset()
    """Members that are gone from the start."""
    gone_at: Mapping[int, int] = field(default_factory=dict)
    """Member → how many messages it answers before it is gone."""
    loss_percent: int = 0
    """Of messages, either way; each is sent up to three times."""
    crash_percent: int = 0
    """Of messages that a meter takes: it stops after its writes, before it sends, and starts again from its store."""
    is_reordered: bool = False


@dataclass(slots=True)
class Traffic:
    """What one member sent and received, repeats not counted."""

    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0


@dataclass(slots=True)
class RoundOutcome:
    """What became of a round."""

    reason: Reason
    sums: tuple[int, ...]
    contributors: frozenset[int]
    traffic: list[Traffic]
    recorded_bytes: int
    """Arguments of the transactions that the round puts on the chain."""
    transactions: int
    seen: list[tuple[int, bytes]]
    """All that the head-end saw: (member, encoded message)."""


class RehearsalReader:
    """Believes what was recorded here."""

    def __init__(self, chain: bytes) -> None:
        self._chain = chain
        self.recorded: dict[bytes, Proven] = {}

    @property
    def chain(self) -> bytes:
        return self._chain

    @property
    def epoch(self) -> int:
        return 1

    def read(self, proof: TransactionProof) -> Proven | Reason:
        return self.recorded.get(proof.receipt.outcome.transaction_id, Reason.BAD_PROOF)

    def block_hash(self, block: CertifiedHeader) -> tuple[int, bytes] | Reason:
        return block.header.height, header_hash(block.header)

    def record(self, function: str, argument: Any) -> TransactionProof:
        """Return a proof of the size of a real one, for a cluster of four."""
        height = len(self.recorded) + 1
        data = CODECS[function].encode(argument) if function in CODECS else encode(argument)
        tx_id = sha256(self._chain + height.to_bytes(8, "big") + data).digest()
        tx = Transaction("aggregation", function, NO_HASH, 0, height, 0, argument_digest(data), data, (bytes(64),))
        header = self.header(height)
        receipt = Receipt(Outcome(tx_id, Reason.VALID), 0, (), header.header, header.certificate)
        self.recorded[tx_id] = Proven(argument, height)
        return TransactionProof(tx, receipt)

    def header(self, height: int) -> CertifiedHeader:
        empty = Header(self._chain, 1, height, NO_HASH, NO_HASH, 1, NO_HASH, NO_HASH, NO_HASH, 0, 0, NO_HASH)
        votes = tuple(CheckpointVote(replica, bytes(64)) for replica in range(3))
        return CertifiedHeader(empty, BlockCertificate(1, height, header_hash(empty), votes))


class Rehearsal:
    """A group of meters with keys from a seed."""

    def __init__(self, members: int, seed: bytes, policy: Policy = DEFAULT_POLICY, clock: Clock | None = None) -> None:
        """`clock` is read around every step of a meter and of the head-end: `seconds` has the sums."""
        self._seed = seed
        self._policy = policy
        self._clock = clock or (lambda: 0.0)
        self.seconds = {"meters": 0.0, "head_end": 0.0}
        self.reader = RehearsalReader(sha256(b"rehearsal" + seed).digest())
        keys = [self._keys(number) for number in range(members)]
        keys.sort(key=lambda item: item.hid)
        self.keys = tuple(keys)
        self.members = tuple(RosterMember(k.hid, k.session, k.signer.public_key, k.kem.public_key) for k in keys)
        digest = whole_roster_digest(self.reader.chain, 1, self.members)
        proof = self.reader.record("fix_roster", FixRosterArgument(1, "street", members, digest))
        beacon = self.reader.header(proof.receipt.header.height + 1)
        self.notice = RosterNotice(proof, beacon, self.members)
        self.group = group_of(digest, self.members, header_hash(beacon.header), policy)
        self.meters = [MaskedMeter(key, self.reader, policy) for key in keys]
        self.stores: list[dict[bytes, bytes]] = [{} for _ in keys]
        self.past: list[tuple[StartArgument, frozenset[int]]] = []
        """Final contributors so far, as a head-end remembers them."""
        self.is_known = False
        """True when the meters were told the roster."""
        self._steps = 0

    def _keys(self, number: int) -> MeterKeys:
        root = sha256(self._seed + number.to_bytes(4, "big")).digest()
        return MeterKeys(sha256(b"hid" + root).digest(), 1, SecretKey.generate(root), KemSecretKey.generate(root))

    def start(self, round_number: int, first_s: int, slots: int = 1, noise: Noise = NO_NOISE) -> StartArgument:
        return StartArgument(round_number, 1, self.group.digest, MASKED, first_s, slots, READING_MAX, noise)

    def run(
        self, start: StartArgument, reading: Callable[[int, int], int | None], faults: Faults | None = None
    ) -> RoundOutcome:
        """Run a round; `reading(member, start of the interval)` is what a meter holds."""
        return _Run(self, start, reading, faults or Faults()).run()

    def restart(self, member: int) -> None:
        """Take up a meter from its store, as after a crash; it has to be told the roster again."""
        store = self.stores[member]
        memory = MEMORY_CODEC.decode(store[MEMORY]) if MEMORY in store else None
        sets = {key: SET_CODEC.decode(value).hids for key, value in store.items() if key != MEMORY}
        meter = MaskedMeter(self.keys[member], self.reader, self._policy, memory, sets)
        meter.receive(self.notice, lambda _: None, bytes(32))
        self.meters[member] = meter

    def step(self, member: int, message: ToMeter, reading: Callable[[int], int | None]) -> Answer:
        """Let a meter take a message, and keep what it wants kept."""
        self._steps += 1
        entropy = sha256(self._seed + b"entropy" + self._steps.to_bytes(8, "big")).digest()
        began = self._clock()
        answer = self.meters[member].receive(message, reading, entropy)
        self.seconds["meters"] += self._clock() - began
        for key, value in answer.writes:
            if value is None:
                self.stores[member].pop(key, None)
            else:
                self.stores[member][key] = value
        return answer

    def decide(self, what: Callable[[], list[Effect]]) -> list[Effect]:
        """Let the head-end take a step."""
        began = self._clock()
        effects = what()
        self.seconds["head_end"] += self._clock() - began
        return effects


class _Run:
    """One round's events, in an order that the seed decides. Waits end when nothing else is on its way."""

    def __init__(
        self,
        rehearsal: Rehearsal,
        start: StartArgument,
        reading: Callable[[int, int], int | None],
        faults: Faults,
    ) -> None:
        self._rehearsal = rehearsal
        self._reading = reading
        self._faults = faults
        self._start = start
        notice, rehearsal.is_known = (None if rehearsal.is_known else rehearsal.notice), True
        past = [Past(former.round, members) for former, members in rehearsal.past if are_near(former, start)]
        self._round = MaskedRound(rehearsal.group, start, rehearsal.reader, notice, past)
        self._dice = Dice(sha256(b"faults" + rehearsal.group.digest + start.round.to_bytes(8, "big")).digest())
        self._calls: list[tuple[int, ToMeter]] = []
        self._answers: list[tuple[int, ToHeadEnd]] = []
        self._answered = [0] * len(rehearsal.members)
        self._wait: str | None = None
        self._ended: Ended | None = None
        self._recorded_bytes = self._transactions = 0
        self._traffic = [Traffic() for _ in rehearsal.members]
        self._seen: list[tuple[int, bytes]] = []

    def run(self) -> RoundOutcome:
        proof = self._record("start", self._start)
        self._carry_out(self._rehearsal.decide(partial(self._round.begin, proof)))
        while self._ended is None:
            if self._calls:
                self._deliver_call()
            elif self._answers:
                self._deliver_answer()
            else:
                assert self._wait is not None
                phase, self._wait = self._wait, None
                self._carry_out(self._rehearsal.decide(partial(self._round.timed_out, phase)))
        while self._calls:  # the notice of a void round goes out behind its end
            self._deliver_call()
        ended = self._ended
        if self._round.final_contributors is not None:
            self._rehearsal.past.append((self._start, self._round.final_contributors))
        return RoundOutcome(
            ended.reason,
            ended.sums,
            ended.contributors,
            self._traffic,
            self._recorded_bytes,
            self._transactions,
            self._seen,
        )

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Call(member, message):
                    self._calls.append((member, message))
                case Wait(phase):
                    self._wait = phase
                case Submit(function, argument):
                    proof = self._record(function, argument)
                    self._carry_out(self._rehearsal.decide(partial(self._round.recorded, function, proof)))
                case Ended():
                    self._ended = effect

    def _record(self, function: str, argument: Any) -> TransactionProof:
        proof = self._rehearsal.reader.record(function, argument)
        self._recorded_bytes += len(proof.transaction.argument)
        self._transactions += 1
        return proof

    def _is_lost(self) -> bool:
        percent = self._faults.loss_percent
        return percent > 0 and all(self._dice.chance(percent, 100) for _ in range(_ATTEMPTS))

    def _take(self, queue: list[Any]) -> Any:
        if isinstance(queue[0][1], RosterNotice):
            return queue.pop(0)  # a driver waits until the roster is taken before it asks for more
        return queue.pop(self._dice.below(len(queue)) if self._faults.is_reordered else 0)

    def _deliver_call(self) -> None:
        member, message = self._take(self._calls)
        is_notice = isinstance(message, RosterNotice)
        if member in self._faults.silent or self._answered[member] >= self._faults.gone_at.get(member, 1 << 30):
            return
        if not is_notice and self._is_lost():
            return
        traffic = self._traffic[member]
        if not is_notice:
            traffic.received += 1
            traffic.received_bytes += len(TO_METER_CODEC.encode(message))
        answer = self._rehearsal.step(member, message, lambda first_s: self._reading(member, first_s))
        if self._faults.crash_percent and self._dice.chance(self._faults.crash_percent, 100):
            self._rehearsal.restart(member)
            # The driver asks again; the answer is the stored one, or a new one when nothing had left.
            answer = self._rehearsal.step(member, message, lambda first_s: self._reading(member, first_s))
        if answer.message is None:
            return
        self._answered[member] += 1
        traffic.sent += 1
        traffic.sent_bytes += len(TO_HEAD_END_CODEC.encode(answer.message))
        if not self._is_lost():
            self._answers.append((member, answer.message))

    def _deliver_answer(self) -> None:
        member, message = self._take(self._answers)
        self._seen.append((member, TO_HEAD_END_CODEC.encode(message)))
        self._carry_out(self._rehearsal.decide(partial(self._round.receive, member, message)))
