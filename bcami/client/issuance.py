"""Gets a session key without a dealer (design D7, protocol 2): for meters and the MDMS alike.

    draw ─▶ Draft ──persist──▶ ask f+1 nodes, check each share ─▶ Prepared ──persist──▶ submit ─▶ receipt

A `Draft` holds the holder's own share x_0 and the request, a `Prepared` the whole key Pr and the signed transaction.
Either is durable before what rests on it leaves, so that a crash at any point resumes with the same bytes: the same
request (nodes answer it with the same shares), or the same transaction. Nothing of a Prepared is ever made anew.

What is claimed (protocol 2.4): the key is unknown to all others while the enrolment key is not stolen and one
contributor is honest, even if the generator at hand is poor. Therefore the drawn secrets are hedged: they come from the
given randomness *and* a deterministic signature of the enrolment key that nobody else can compute, and the HPKE
ephemeral also from the opened shares.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

from bcami.client.courier import Settlement
from bcami.client.nodes import NodeClient, NodeUnavailable
from bcami.client.periods import MdmsPeriod
from bcami.client.retry import Backoff, common_reason
from bcami.codec import Codec, encode
from bcami.crypto.hpke import KemSecretKey, OpenError, open_from, setup_sender
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.crypto.points import point_sum
from bcami.crypto.roster import Roster
from bcami.crypto.secret_record import SecretRecord
from bcami.model.ids import U63, Hash
from bcami.model.reasons import Reason
from bcami.model.registration import (
    Contribution,
    ContributionAnswer,
    ContributionRequest,
    MdmsRegisterArgument,
    RegisterArgument,
    contribution_digest,
    contribution_request_digest,
    request_hash,
    share_info,
    usage_info,
)
from bcami.model.signing import digest, prefixed, u64
from bcami.model.transaction import Transaction, argument_digest, transaction_id
from bcami.units import KIB


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Party:
    """Who wants a key: a meter, or the MDMS."""

    hid: bytes
    signing: SecretKey
    """Enrolment signing key."""
    kem: KemSecretKey
    """Enrolment KEM key: shares are sealed to it."""
    roster: Roster

    def __repr__(self) -> str:
        return f"Party({self.hid.hex()[:16]}…)"


class Draft(SecretRecord, frozen=True, array_like=True, tag="draft"):
    """The holder's own part of a key that is being issued."""

    session: U63
    nonce: Hash
    own_share: Hash
    """x_0."""
    kem_secret: Hash
    """Private part of the session's own KEM key."""


class Prepared(SecretRecord, frozen=True, array_like=True, tag="prepared"):
    """A whole key and the transaction that registers it; submitted byte by byte as it is here."""

    session: U63
    key: Hash
    """Pr."""
    kem_secret: Hash
    context: bytes
    """Sealing context to the MDMS; empty for the MDMS itself."""
    period: U63
    period_key_id: Hash
    transaction: bytes
    transaction_id: Hash


IssuanceRecord = Draft | Prepared
ISSUANCE_CODEC: Final[Codec[IssuanceRecord]] = Codec(IssuanceRecord, 32 * KIB)


class Share(NamedTuple):
    """A node's contribution that was opened and checked."""

    contribution: Contribution
    key: SecretKey


def draw(party: Party, session: int, randomness: bytes) -> Draft:
    """Return a new draft for a session number that was never used before. `randomness` is 32 fresh bytes."""
    return Draft(
        session=session,
        nonce=sha256(b"bcami/nonce/1" + _hedged(party, session, b"nonce", randomness)).digest(),
        own_share=_scalar(SecretKey.generate(_hedged(party, session, b"share", randomness))),
        kem_secret=_scalar(KemSecretKey.generate(_hedged(party, session, b"kem", randomness))),
    )


def contribution_request(party: Party, draft: Draft) -> ContributionRequest:
    """Return the request for shares: the same for the same draft, byte by byte."""
    roster = party.roster
    statement = contribution_request_digest(roster.chain, roster.epoch, party.hid, draft.session, draft.nonce)
    return ContributionRequest(party.hid, draft.session, draft.nonce, party.signing.sign(statement))


def open_share(party: Party, request: ContributionRequest, answer: ContributionAnswer) -> Share | Reason:
    """Open and check one answer: its node's signature, and that the share is the one behind its point."""
    contribution, asked, roster = answer.contribution, request_hash(request), party.roster
    replica = contribution.replica
    statement = contribution_digest(
        roster.chain, roster.epoch, party.hid, request.session, asked, replica, contribution.point
    )
    if not roster.verify_by(replica, contribution.signature, statement):
        return Reason.BAD_SIGNATURE
    info = share_info(roster.chain, party.hid, request.session, asked, replica)
    try:
        opened = open_from(answer.encapsulation, party.kem, info, b"", answer.sealed_share)
        key = SecretKey.from_scalar_bytes(opened)
    except (OpenError, ValueError):
        return Reason.BAD_CONTRIBUTION
    if key.public_key != contribution.point:
        return Reason.KEY_MISMATCH
    return Share(contribution, key)


def prepare_meter(
    party: Party, draft: Draft, shares: Sequence[Share], period: MdmsPeriod, randomness: bytes, timestamp_ms: int
) -> Prepared:
    """Combine the key and sign registration.register. Never called twice for one draft whose result was stored."""
    combined = _combine(party, draft, shares)
    opened = b"".join(_scalar(share.key) for share in combined.shares)
    ephemeral = _hedged(party, draft.session, b"ephemeral" + sha256(opened).digest(), randomness)
    info = usage_info(party.roster.chain, party.hid, draft.session, period.key_id)
    encapsulation, context = setup_sender(period.kem_key, info, ephemeral)
    argument = RegisterArgument(
        public_key=combined.key.public_key,
        own_point=combined.own_point,
        request_hash=combined.request,
        contributions=tuple(share.contribution for share in combined.shares),
        kem_key=combined.kem_key,
        encapsulation=encapsulation,
        period=period.number,
        period_key_id=period.key_id,
    )
    stored = context.to_secret_bytes(SECRET_ACCESS)
    return _sign(party, draft, combined.key, "registration", encode(argument), timestamp_ms, stored, period)


def prepare_mdms(party: Party, draft: Draft, shares: Sequence[Share], timestamp_ms: int) -> Prepared:
    """Combine the key and sign mdms.register: opens the period with the draft's number."""
    combined = _combine(party, draft, shares)
    argument = MdmsRegisterArgument(
        public_key=combined.key.public_key,
        own_point=combined.own_point,
        request_hash=combined.request,
        contributions=tuple(share.contribution for share in combined.shares),
        kem_key=combined.kem_key,
    )
    return _sign(party, draft, combined.key, "mdms", encode(argument), timestamp_ms, b"", None)


class _Combined(NamedTuple):
    key: SecretKey
    own_point: bytes
    kem_key: bytes
    request: bytes
    shares: list[Share]


def _combine(party: Party, draft: Draft, shares: Sequence[Share]) -> _Combined:
    weak = party.roster.quorum.weak
    ordered = sorted(shares, key=lambda share: share.contribution.replica)
    if len({share.contribution.replica for share in ordered}) != len(ordered) or len(ordered) < weak:
        raise ValueError(f"a key needs shares of at least {weak} different nodes")
    own = SecretKey.from_scalar_bytes(draft.own_share)
    key = own.plus(*(share.key for share in ordered))
    expected = point_sum([own.public_key, *(share.contribution.point for share in ordered)])
    if key.public_key != expected:
        raise ValueError("the sum of the shares is not behind the sum of their points")
    kem_key = KemSecretKey.from_scalar_bytes(draft.kem_secret).public_key
    return _Combined(key, own.public_key, kem_key, request_hash(contribution_request(party, draft)), ordered)


def _sign(
    party: Party,
    draft: Draft,
    key: SecretKey,
    contract: str,
    argument: bytes,
    timestamp_ms: int,
    context: bytes,
    period: MdmsPeriod | None,
) -> Prepared:
    unsigned = Transaction(
        contract=contract,
        function="register",
        signer=party.hid,
        session=0,
        sequence=draft.session,
        timestamp_ms=timestamp_ms,
        argument_hash=argument_digest(argument),
        argument=argument,
        signatures=(),
    )
    tx_id = transaction_id(unsigned, party.roster.chain, party.roster.epoch)
    signed = msgspec.structs.replace(unsigned, signatures=(party.signing.sign(tx_id), key.sign(tx_id)))
    return Prepared(
        session=draft.session,
        key=_scalar(key),
        kem_secret=draft.kem_secret,
        context=context,
        period=period.number if period else draft.session,
        period_key_id=period.key_id if period else bytes(32),
        transaction=encode(signed),
        transaction_id=tx_id,
    )


def _hedged(party: Party, session: int, label: bytes, randomness: bytes) -> bytes:
    """Return entropy from the generator and from a signature that only the enrolment key can make."""
    if len(randomness) < 32:
        raise ValueError("at least 32 bytes of randomness are needed")
    statement = digest(b"bcami/hedge/1", party.roster.chain, party.roster.epoch, u64(session), prefixed(label))
    return prefixed(randomness) + prefixed(label) + u64(session) + party.signing.sign(statement)


def _scalar(key: SecretKey | KemSecretKey) -> bytes:
    return export_secret(key, SECRET_ACCESS)


class ContributionRound:
    """Which nodes to ask so that weak (f+1) different ones contribute: those that fail are replaced. Pure."""

    def __init__(self, nodes: int, weak: int, first: int) -> None:
        self._order = [(first + step) % nodes for step in range(nodes)]
        self._weak = weak
        self._asked: set[int] = set()
        self.shares: dict[int, Share] = {}
        """By replica: two addresses of one node are one contributor."""
        self.reasons: list[Reason] = []

    @property
    def is_complete(self) -> bool:
        return len(self.shares) >= self._weak

    def to_ask(self) -> list[int]:
        """Return the nodes to ask now, each once: as many as are missing while the asked ones may still answer."""
        missing = self._weak - len(self.shares) - len(self._asked)
        chosen = self._order[: max(0, missing)]
        del self._order[: len(chosen)]
        self._asked.update(chosen)
        return chosen

    def answered(self, node: int, answer: Share | Reason | None) -> None:
        """Take a checked share, a reason why there is none, or None for a node that did not answer."""
        self._asked.discard(node)
        if isinstance(answer, Share):
            self.shares.setdefault(answer.contribution.replica, answer)
        elif answer is not None:
            self.reasons.append(answer)


class IssuanceRefused(Exception):
    """Too few nodes contribute; `reason` is what most of them say, None when they only did not answer."""

    def __init__(self, reason: Reason | None, weak: int) -> None:
        super().__init__(f"fewer than {weak} nodes contribute: {reason or 'no answer'}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ContributionPolicy:
    """How long contributors are waited for."""

    answer_s: float = 5.0
    """A node that is silent for so long is replaced."""
    rounds: int = 6
    """How often all nodes are gone through."""
    backoff: Backoff = field(default_factory=lambda: Backoff(first_ms=100, cap_ms=2_000))


async def collect_shares(
    party: Party, draft: Draft, nodes: Sequence[NodeClient], *, first: int, policy: ContributionPolicy | None = None
) -> list[Share]:
    """Return checked shares of weak different nodes, asking from the `first` one on. Raises IssuanceRefused."""
    policy = policy or ContributionPolicy()
    request = contribution_request(party, draft)
    weak = party.roster.quorum.weak
    reasons: list[Reason] = []
    for attempt in range(1, policy.rounds + 1):
        contributions = ContributionRound(len(nodes), weak, first)
        while chosen := contributions.to_ask():
            answers = [_ask(party, request, nodes[node], policy.answer_s) for node in chosen]
            for node, answer in zip(chosen, await asyncio.gather(*answers), strict=True):
                contributions.answered(node, answer)
        if contributions.is_complete:
            return list(contributions.shares.values())
        reasons = contributions.reasons
        if attempt < policy.rounds:
            await asyncio.sleep(policy.backoff.delay_ms(attempt, draft.nonce) / 1000)
    raise IssuanceRefused(common_reason(reasons) if reasons else None, weak)


async def _ask(party: Party, request: ContributionRequest, node: NodeClient, answer_s: float) -> Share | Reason | None:
    try:
        async with asyncio.timeout(answer_s):
            answer = await node.contribute(request)
    except (NodeUnavailable, TimeoutError):
        return None
    return answer if isinstance(answer, Reason) else open_share(party, request, answer)


Save = Callable[[IssuanceRecord], Awaitable[None]]
"""Returns when the record is durable."""
Prepare = Callable[[Draft, Sequence[Share]], Awaitable[Prepared]]
Settle = Callable[[bytes, bytes], Awaitable[Settlement]]
"""Carries (encoded transaction, id) to nodes until there is a receipt, or weak nodes refuse."""


async def issue(
    party: Party,
    record: IssuanceRecord,
    *,
    nodes: Sequence[NodeClient],
    first: int,
    save: Save,
    prepare: Prepare,
    settle: Settle,
    policy: ContributionPolicy | None = None,
) -> tuple[Prepared, Settlement]:
    """Bring an issuance from any stored record to its outcome; `record` itself is durable already.

    Raises IssuanceRefused. When the outcome is `valid`, the caller makes the session durable and forgets the record and
    the old key in one unit of work; else it takes a number above every one that it used (protocol 2.3).
    """
    if isinstance(record, Draft):
        shares = await collect_shares(party, record, nodes, first=first, policy=policy)
        record = await prepare(record, shares)
        await save(record)
    return record, await settle(record.transaction, record.transaction_id)
