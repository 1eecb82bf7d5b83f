"""Collectors and endorsers that lie about transactions, keep batches back, or leave somebody out."""

from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from bcami.faults.behaviour import Behaviour, Options, ToPeers, flipped
from bcami.model.batch import Batch, BatchCertificate, Endorsement, Refusal
from bcami.model.ids import HASH_BYTES, SIGNATURE_BYTES
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction, argument_digest
from bcami.model.wire import FetchBatch, PeerMessage
from bcami.node.core.effects import Effect

if TYPE_CHECKING:
    from bcami.faults.node import FaultyNode

TEMPLATES_MAX: Final = 128
FORGED_MAX: Final = 4_096
_HOUR_MS: Final = 3_600_000


class CensorSignerOptions(Options, frozen=True, kw_only=True):
    signer: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    """HID in hex; in scenarios `meter`, a meter id, says the same."""


class CensorSigner(Behaviour[CensorSignerOptions]):
    """Refuses every transaction of one meter, as a gateway and as an endorser, with a pretext."""

    name = "censor_signer"
    family = "censor"
    claim = "at most f refusals leave nobody out: the meter's transactions execute"
    options_type = CensorSignerOptions

    def verdict(self, node: "FaultyNode", tx: Transaction, honest: Reason | None) -> Reason | None:
        return Reason.BAD_SIGNATURE if tx.signer.hex() == self.options.signer else honest


class CensorCollectorOptions(Options, frozen=True, kw_only=True):
    collector: Annotated[int, msgspec.Meta(ge=0, le=63)]
    """The node that is left out."""


class CensorCollector(Behaviour[CensorCollectorOptions]):
    """Ignores one collector: does not endorse its batches and, as primary, does not order them."""

    name = "censor_collector"
    family = "censor"
    claim = "the fairness timer replaces a primary that leaves a collector waiting"
    options_type = CensorCollectorOptions

    def incoming(self, node: "FaultyNode", peer: int, message: PeerMessage, now_ms: int) -> bool:
        return not (isinstance(message, Batch | BatchCertificate) and message.collector == self.options.collector)


class InvalidBatchOptions(Options, frozen=True, kw_only=True):
    transactions: Annotated[int, msgspec.Meta(ge=1, le=200)] = 5
    """Forged ones in each tenth of a second."""


class InvalidBatch(Behaviour[InvalidBatchOptions]):
    """Collects transactions that are no good, among good ones: signatures, times, arguments, signers, repeats."""

    name = "invalid_batch"
    family = "batches"
    claim = "forged transactions get no outcome, and those in the same batch get theirs"
    options_type = InvalidBatchOptions

    def __init__(self, options: InvalidBatchOptions, randomness: Random) -> None:
        super().__init__(options, randomness)
        self._templates: deque[Transaction] = deque(maxlen=TEMPLATES_MAX)
        self._forged: deque[Transaction] = deque(maxlen=FORGED_MAX)
        self._known: set[Transaction] = set()

    def incoming(self, node: "FaultyNode", peer: int, message: PeerMessage, now_ms: int) -> bool:
        if isinstance(message, Batch):
            self._templates.extend(message.transactions[:8])
        return True

    def verdict(self, node: "FaultyNode", tx: Transaction, honest: Reason | None) -> Reason | None:
        return None if tx in self._known else honest

    def tick(self, node: "FaultyNode", now_ms: int) -> list[Effect]:
        if not self._templates:
            return []
        forged = [
            forged_transaction(self.random.choice(self._templates), self.random)
            for _ in range(self.options.transactions)
        ]
        for tx in forged:
            if len(self._forged) == FORGED_MAX:
                self._known.discard(self._forged[0])
            self._forged.append(tx)
            self._known.add(tx)
        self.acted += len(forged)
        return node.take_in(forged)


def forged_transaction(tx: Transaction, randomness: Random) -> Transaction:
    """Return a transaction that no honest node accepts, made from a good one; or the good one again."""

    def replaced(**fields: object) -> Transaction:
        return msgspec.structs.replace(tx, **fields)

    argument = flipped(tx.argument, randomness)
    ways: tuple[Callable[[], Transaction], ...] = (
        lambda: replaced(signatures=tuple(flipped(item, randomness) for item in tx.signatures)),
        lambda: replaced(signatures=()),
        lambda: replaced(signatures=(randomness.randbytes(SIGNATURE_BYTES),) * len(tx.signatures)),
        lambda: replaced(timestamp_ms=tx.timestamp_ms + _HOUR_MS),
        lambda: replaced(argument=argument),
        lambda: replaced(argument=argument, argument_hash=argument_digest(argument)),
        lambda: replaced(argument=b"", argument_hash=argument_digest(b"")),
        lambda: replaced(signer=randomness.randbytes(HASH_BYTES)),
        lambda: replaced(sequence=tx.sequence + randomness.randint(1, 2**40)),
        lambda: replaced(session=tx.session + 1),
        lambda: replaced(contract="nothing"),
        lambda: replaced(function="nothing"),
        lambda: tx,
    )
    return randomness.choice(ways)()


class WithheldBatch(Behaviour[Options]):
    """Sends its batches to just as many nodes as a certificate needs, and to nobody who asks later."""

    name = "withheld_batch"
    family = "batches"
    claim = "the others fetch the data from endorsers, and execute"

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, Batch) or message.collector != node.replica:
            return (message,)
        count = node.roster.quorum.strong - 1
        start = message.number % len(node.others)
        chosen = (node.others + node.others)[start : start + count]
        return (message,) if to in chosen else ()

    def incoming(self, node: "FaultyNode", peer: int, message: PeerMessage, now_ms: int) -> bool:
        return not isinstance(message, FetchBatch)


class EquivocatingCollector(Behaviour[ToPeers]):
    """Sends some peers another batch under the same number."""

    name = "equivocating_collector"
    family = "batches"
    claim = "one batch of each number is certified at most; a stuck lane hurts only its own collector"
    options_type = ToPeers

    def __init__(self, options: ToPeers, randomness: Random) -> None:
        super().__init__(options, randomness)
        self._peers = frozenset(options.peers)

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not self._peers:
            self._peers = frozenset(self.random.sample(node.others, max(1, node.roster.quorum.f)))
        if not isinstance(message, Batch) or message.collector != node.replica or to not in self._peers:
            return (message,)
        other = tuple(reversed(message.transactions))
        if len(other) == 1:
            other = (*other, *other)
        return (msgspec.structs.replace(message, transactions=other),)


class BogusOptions(Options, frozen=True, kw_only=True):
    refused: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3
    """Share of transactions that are refused, good or bad; the rest is accepted unseen."""
    garbled: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    """Share of endorsements whose fields are nonsense, properly signed."""


class BogusEndorsements(Behaviour[BogusOptions]):
    """Endorses without looking, refuses at random, and signs nonsense."""

    name = "bogus_endorsements"
    family = "batches"
    claim = "one endorser can neither let a bad transaction in, nor keep a good one out, nor spoil a certificate"
    options_type = BogusOptions

    def verdict(self, node: "FaultyNode", tx: Transaction, honest: Reason | None) -> Reason | None:
        return Reason.BAD_SIGNATURE if self.random.random() < self.options.refused else None

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, Endorsement) or message.replica != node.replica:
            return (message,)
        if self.random.random() >= self.options.garbled:
            return (message,)
        far = Refusal(message.count + 1, Reason.BAD_SIGNATURE)
        near = Refusal(0, Reason.BAD_SIGNATURE)
        ways: tuple[dict[str, object], ...] = (
            {"count": message.count + 1},
            {"batch_digest": flipped(message.batch_digest, self.random)},
            {"number": message.number + 1},
            {"refusals": (far,)},
            {"refusals": (near, near)},
            {"epoch": message.epoch + 1},
            {"collector": (message.collector + 1) % node.roster.quorum.n},
        )
        return (node.sign(msgspec.structs.replace(message, **self.random.choice(ways))),)
