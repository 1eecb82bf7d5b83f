"""The utility, the MDMS and meters: what they sign, without their stores and retries.

Key issuance is the real one (design D7): shares from f + 1 nodes, opened and checked, a session key that nobody else
knows. Only the signatures may be of the fast scheme, and the sealed reports are bytes of the right length: no node can
open them, and the MDMS is no part of a simulation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import shake_128
from typing import Final

from bcami.codec import encode
from bcami.crypto.hpke import KemSecretKey, OpenError, open_from, setup_sender
from bcami.crypto.keys import SecretKey
from bcami.crypto.signatures import Signer
from bcami.faults.simulator.identities import Identities, entropy
from bcami.faults.simulator.signing import signer_of
from bcami.model.registration import (
    Contribution,
    ContributionAnswer,
    ContributionRequest,
    EnrolArgument,
    MdmsRegisterArgument,
    RegisterArgument,
    contribution_request_digest,
    period_key_id,
    request_hash,
    share_info,
    usage_info,
)
from bcami.model.transaction import Transaction, argument_digest, transaction_id

SEALED_BYTES: Final = 4 + 16 + 16
"""A report of one reading, sealed."""

Ask = Callable[[int, ContributionRequest], object]
"""(node, request) -> ContributionAnswer, or anything else for no answer."""


def make_transaction(
    network: Identities,
    keys: Sequence[Signer],
    call: tuple[str, str],
    signer: bytes,
    number: tuple[int, int],
    timestamp_ms: int,
    argument: bytes,
) -> Transaction:
    """Return a signed transaction; `call` is (contract, function), `number` is (session, sequence)."""
    fields = (*call, signer, *number, timestamp_ms, argument_digest(argument), argument)
    tx_id = transaction_id(Transaction(*fields, ()), network.roster.chain, network.roster.epoch)
    return Transaction(*fields, tuple(key.sign(tx_id) for key in keys))


@dataclass(frozen=True)
class Issued:
    """A key that no single party could choose."""

    key: SecretKey
    own_point: bytes
    request_hash: bytes
    contributions: tuple[Contribution, ...]


def issue(
    network: Identities, hid: bytes, session: int, enrolment: Signer, kem: KemSecretKey, nodes: Sequence[int], ask: Ask
) -> Issued | None:
    """Ask nodes until f + 1 shares are good; None when too few are."""
    chain, epoch = network.roster.chain, network.roster.epoch
    nonce = entropy("nonce", hid, session)
    signature = enrolment.sign(contribution_request_digest(chain, epoch, hid, session, nonce))
    request = ContributionRequest(hid, session, nonce, signature)
    hash_of = request_hash(request)
    own = SecretKey.generate(entropy("own", hid, session))
    shares: dict[int, tuple[SecretKey, Contribution]] = {}
    for node in nodes:
        answer = ask(node, request)
        if not isinstance(answer, ContributionAnswer) or len(shares) == network.roster.quorum.weak:
            continue
        info = share_info(chain, hid, session, hash_of, node)
        try:
            opened = open_from(answer.encapsulation, kem, info, b"", answer.sealed_share)
            share = SecretKey.from_scalar_bytes(opened)
        except (OpenError, ValueError):
            continue
        if share.public_key == answer.contribution.point:
            shares[node] = (share, answer.contribution)
    if len(shares) < network.roster.quorum.weak:
        return None
    chosen = [shares[node] for node in sorted(shares)]
    key = own.plus(*(share for share, _ in chosen))
    return Issued(key, own.public_key, hash_of, tuple(contribution for _, contribution in chosen))


class Utility:
    """Enrols meters."""

    def __init__(self, network: Identities) -> None:
        self._network = network
        self.sequence = 0

    def enrol(self, hid: bytes, key: bytes, kem_key: bytes, now_ms: int, sequence: int | None = None) -> Transaction:
        """Return an enrolment under the next number, or under a given one."""
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        network = self._network
        argument = encode(EnrolArgument(hid, key, kem_key))
        return make_transaction(
            network, [network.utility], ("registration", "enrol"), network.utility_id, (0, sequence), now_ms, argument
        )


def open_period(network: Identities, number: int, now_ms: int, ask: Ask) -> tuple[Transaction, KemSecretKey]:
    """Return the registration of an MDMS period, and its key."""
    hid, nodes = network.genesis.mdms_hid, range(network.roster.quorum.n)
    issued = issue(network, hid, number, network.mdms, network.mdms_kem, nodes, ask)
    assert issued is not None
    kem = KemSecretKey.generate(entropy("period", number))
    argument = MdmsRegisterArgument(
        issued.key.public_key, issued.own_point, issued.request_hash, issued.contributions, kem.public_key
    )
    keys = [network.mdms, signer_of(issued.key, real=network.real)]
    tx = make_transaction(network, keys, ("mdms", "register"), hid, (0, number), now_ms, encode(argument))
    return tx, kem


class Meter:
    """One meter, from its enrolment on."""

    def __init__(self, network: Identities, name: str) -> None:
        self._network = network
        self.hid = entropy("hid", name)
        self._secret = SecretKey.generate(entropy("enrolment", name))
        self._enrolment = signer_of(self._secret, real=network.real)
        self.kem = KemSecretKey.generate(entropy("kem", name))
        self.session = 0
        self.sequence = 0

    @property
    def enrolment_key(self) -> bytes:
        return self._secret.public_key

    def register(
        self, period: int, period_key: bytes, now_ms: int, nodes: Sequence[int], ask: Ask
    ) -> Transaction | None:
        """Open the next session; None when too few nodes contribute."""
        network, session = self._network, self.session + 1
        issued = issue(network, self.hid, session, self._enrolment, self.kem, nodes, ask)
        if issued is None:
            return None
        key_id = period_key_id(period_key)
        info = usage_info(network.roster.chain, self.hid, session, key_id)
        enc, _ = setup_sender(period_key, info, entropy("ephemeral", self.hid, session))
        session_kem = KemSecretKey.generate(entropy("session-kem", self.hid, session))
        argument = RegisterArgument(
            issued.key.public_key,
            issued.own_point,
            issued.request_hash,
            issued.contributions,
            session_kem.public_key,
            enc,
            period,
            key_id,
        )
        self._key = signer_of(issued.key, real=network.real)
        self.session, self.sequence = session, 0
        keys = [self._enrolment, self._key]
        number = (0, session)
        return make_transaction(network, keys, ("registration", "register"), self.hid, number, now_ms, encode(argument))

    def report(self, now_ms: int, sequence: int | None = None, sealed_bytes: int = SEALED_BYTES) -> Transaction:
        """Return a report under the next number of the session, or under a given one."""
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        sealed = shake_128(repr((self.hid, self.session, sequence, now_ms)).encode()).digest(sealed_bytes)
        number = (self.session, sequence)
        return make_transaction(self._network, [self._key], ("usage", "report"), self.hid, number, now_ms, sealed)
