"""The context: everything that a contract sees of the world, and the count of its steps (design D6).

A step is one context call or one item that a scan yields. A read sees committed state, never this transaction's own
writes; writes are buffered until the contract returns and are dropped when it rejects. There is no clock, no
randomness and no I/O: time is the block's.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from hashlib import sha256
from typing import Protocol, TypeVar

from bcami.contract.network import Network
from bcami.crypto.commitments import ORDER, opens
from bcami.crypto.evidence import check_evidence
from bcami.crypto.hpke import is_valid_kem_key
from bcami.crypto.points import point_sum
from bcami.crypto.signatures import is_valid_public_key, verify
from bcami.model.aggregation import (
    RosterMember,
    TallyEntry,
    empty_roster_digest,
    roster_digest,
)
from bcami.model.aggregation import (
    contribution_digest as aggregation_digest,
)
from bcami.model.chain import STATE_KEY_BYTES_MAX, STATE_VALUE_BYTES_MAX, StateEntry
from bcami.model.evidence import Evidence, Place, evidence_id, place_id
from bcami.model.reasons import Reason
from bcami.model.registration import (
    Contribution,
    ContributionAnswer,
    ContributionRequest,
    contribution_digest,
    contribution_request_digest,
    period_key_id,
)
from bcami.model.transaction import Transaction

T = TypeVar("T")

Read = Callable[[bytes], StateEntry | None]
Scan = Callable[[bytes, int], Iterable[tuple[bytes, StateEntry]]]


class Rejected(Exception):
    """Ends a contract function with a reason; its writes are dropped."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class StepsExceeded(Exception):
    """A contract function made more steps than the network allows."""


class ReadFault(BaseException):
    """The node could not read its state: its own fault, never an outcome."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def require(condition: object, reason: Reason) -> None:
    """End the contract function with `reason` unless the condition holds."""
    if not condition:
        raise Rejected(reason)


def found(value: T | None, reason: Reason) -> T:
    """Return the value, or end the contract function with `reason` when there is none."""
    if value is None:
        raise Rejected(reason)
    return value


class Services(Protocol):
    """What a node offers to queries only: the one place where a contract reaches the node's randomness (D7)."""

    def contribute(self, request: ContributionRequest, kem_key: bytes) -> ContributionAnswer:
        """Return this node's share for an accepted request, sealed to `kem_key`; the same request, the same answer."""


class Context:
    """What one call of a contract function sees. Back ends say how `load` and `load_range` reach the world state."""

    __slots__ = (
        "_services",
        "_steps_left",
        "network",
        "sequence",
        "session",
        "signer",
        "time_ms",
        "timestamp_ms",
        "transaction_id",
        "writable",
        "writes",
    )

    def __init__(
        self,
        network: Network,
        transaction: Transaction | None,
        transaction_id: bytes,
        time_ms: int,
        *,
        writable: bool,
        services: Services | None = None,
    ) -> None:
        self.network = network
        self.transaction_id = transaction_id
        self.time_ms = time_ms
        """Block time; 0 where there is none (queries and the signers of a transaction)."""
        if transaction is None:
            self.signer = b""
            self.session = self.sequence = self.timestamp_ms = 0
        else:
            self.signer = transaction.signer
            self.session = transaction.session
            self.sequence = transaction.sequence
            self.timestamp_ms = transaction.timestamp_ms
        self.writable = writable
        self.writes: dict[bytes, bytes | None] = {}
        self._services = services
        self._steps_left = network.parameters.contract_steps_max

    async def load(self, key: bytes) -> bytes | None:
        """Return the committed value of a state key; not counted as a step."""
        raise NotImplementedError

    def load_range(self, prefix: bytes, limit: int) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yield committed keys and values under a prefix, in the order of keys; not counted as steps."""
        raise NotImplementedError

    def step(self) -> None:
        """Count one step. Raises StepsExceeded past the limit."""
        self._steps_left -= 1
        if self._steps_left < 0:
            raise StepsExceeded

    def write(self, key: bytes, value: bytes | None) -> None:
        """Buffer a write; None deletes. One step."""
        self.step()
        if not self.writable:
            raise TypeError("queries and signers functions write no state")
        if len(key) > STATE_KEY_BYTES_MAX or (value is not None and len(value) > STATE_VALUE_BYTES_MAX):
            raise ValueError("a state key or value is larger than the ledger takes")
        self.writes[key] = value

    def sha256(self, data: bytes) -> bytes:
        self.step()
        return sha256(data).digest()

    def verify(self, public_key: bytes, signature: bytes, digest: bytes) -> bool:
        """Tell whether a low-S compact ECDSA signature is the key's."""
        self.step()
        return verify(public_key, signature, digest)

    def point_sum(self, points: tuple[bytes, ...]) -> bytes | None:
        """Return the sum of compressed points, or None when one is invalid or the sum is infinity."""
        self.step()
        return point_sum(points)

    def is_public_key(self, data: bytes) -> bool:
        """Tell whether the bytes are a compressed point of the curve."""
        self.step()
        return is_valid_public_key(data)

    def is_kem_key(self, data: bytes) -> bool:
        """Tell whether the bytes are an uncompressed point of the curve, as HPKE has its keys and encapsulations."""
        self.step()
        return is_valid_kem_key(data)

    def period_key_id(self, kem_key: bytes) -> bytes:
        """Return the id by which sessions name an MDMS period key."""
        self.step()
        return period_key_id(kem_key)

    def is_request_of(self, enrolment_key: bytes, request: ContributionRequest) -> bool:
        """Tell whether the enrolment key signed this request for contributions (protocol 2.1)."""
        self.step()
        digest = contribution_request_digest(
            self.network.chain, self.network.epoch, request.hid, request.session, request.nonce
        )
        return verify(enrolment_key, request.signature, digest)

    def is_contribution_of_member(self, contribution: Contribution, hid: bytes, session: int, request: bytes) -> bool:
        """Tell whether a member's consensus key signed this contribution to this request (protocol 2.1)."""
        self.step()
        network = self.network
        if contribution.replica >= len(network.member_keys):
            return False
        digest = contribution_digest(
            network.chain, network.epoch, hid, session, request, contribution.replica, contribution.point
        )
        return verify(network.member_keys[contribution.replica], contribution.signature, digest)

    def member(self, signer: bytes) -> int | None:
        """Return the replica id of the member whose signer id this is, or None."""
        self.step()
        ids = self.network.member_ids
        return ids.index(signer) if signer in ids else None

    def require_evidence(self, evidence: Evidence) -> None:
        """End the contract function unless the evidence convicts its replica (bcami.crypto.evidence). One step."""
        self.step()
        network = self.network
        reason = check_evidence(evidence, network.chain, network.epoch, network.member_keys)
        if reason is not None:
            raise Rejected(reason)

    def evidence_id(self, evidence: Evidence) -> bytes:
        """Return the id of evidence: the same for the same two statements."""
        self.step()
        return evidence_id(self.network.chain, evidence)

    def place_id(self, place: Place) -> bytes:
        """Return the digest that names the place of a statement."""
        self.step()
        return place_id(self.network.chain, place)

    def empty_roster_digest(self, roster: int) -> bytes:
        """Return the digest of an aggregation roster before its first part."""
        self.step()
        return empty_roster_digest(self.network.chain, roster)

    def roster_digest(self, before: bytes, members: tuple[RosterMember, ...]) -> bytes:
        """Return the digest of an aggregation roster after one more part."""
        self.step()
        return roster_digest(before, members)

    def is_aggregated_by(self, member: RosterMember, round_number: int, roster: bytes, entry: TallyEntry) -> bool:
        """Tell whether the member signed this contribution to the round."""
        self.step()
        network = self.network
        statement = aggregation_digest(
            network.chain, network.epoch, round_number, roster, member.hid, entry.body_hash, entry.commitment
        )
        return verify(member.public_key, entry.signature, statement)

    def opens(self, commitment: bytes, values: tuple[int, ...], blinding: bytes) -> bool:
        """Tell whether values and blinding (32 bytes) open a commitment (bcami.crypto.commitments)."""
        self.step()
        number = int.from_bytes(blinding, "big")
        return number < ORDER and opens(commitment, values, number)

    def contribute(self, request: ContributionRequest, kem_key: bytes) -> ContributionAnswer:
        """Return this node's contribution to a dealerless key; in queries only. One step."""
        self.step()
        if self._services is None:
            raise Rejected(Reason.NOT_READY)
        return self._services.contribute(request, kem_key)


class LocalContext(Context):
    """The context inside our own node: reads go to a function, and never wait."""

    __slots__ = ("_read", "_scan")

    def __init__(
        self,
        network: Network,
        transaction: Transaction | None,
        transaction_id: bytes,
        time_ms: int,
        read: Read,
        *,
        writable: bool,
        scan: Scan | None = None,
        services: Services | None = None,
    ) -> None:
        super().__init__(network, transaction, transaction_id, time_ms, writable=writable, services=services)
        self._read = read
        self._scan = scan

    async def load(self, key: bytes) -> bytes | None:
        try:
            entry = self._read(key)
        except BaseException as error:
            raise ReadFault(error) from error
        return None if entry is None else entry.value

    async def load_range(self, prefix: bytes, limit: int) -> AsyncIterator[tuple[bytes, bytes]]:
        if self._scan is None:
            raise TypeError("only queries scan the world state")
        try:
            found = list(self._scan(prefix, limit))
        except BaseException as error:
            raise ReadFault(error) from error
        for key, entry in found:
            yield key, entry.value
