"""The transaction: a signed request by a meter, the MDMS or the utility (BC-AMI Table 2, design D9)."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Final

import msgspec

from bcami.model.ids import U63, Hash, Name, Signature
from bcami.model.signing import digest, prefixed, u64
from bcami.units import KIB

ARGUMENT_BYTES_MAX: Final = 16 * KIB
TRANSACTION_BYTES_MAX: Final = ARGUMENT_BYTES_MAX + KIB


class Transaction(msgspec.Struct, frozen=True, array_like=True):
    """One request. A usage transaction is contract "usage", function "report"."""

    contract: Name
    function: Name
    signer: Hash
    """HID of a meter or of the MDMS, or the operator id of the utility."""
    session: U63
    """The signer's session; 0 for what is signed by an enrolment key or by the utility."""
    sequence: U63
    """Number within (signer, session); `register` carries the number of the session it opens (protocol 2.2)."""
    timestamp_ms: U63
    """When the signer made it, Unix milliseconds."""
    argument_hash: Hash
    """SHA-256 of the argument: stays when the argument is pruned (protocol 7.2)."""
    argument: Annotated[bytes, msgspec.Meta(max_length=ARGUMENT_BYTES_MAX)]
    """The contract's argument; for usage the encrypted report."""
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(max_length=2)]
    """ECDSA over the transaction id, one for each key that the contract's `signers` names, in that order."""


def transaction_id(tx: Transaction, chain: bytes, epoch: int) -> bytes:
    """Return the id: the digest that is signed. It does not cover the signatures, so they cannot split it."""
    return digest(
        b"bcami/transaction/1",
        chain,
        epoch,
        prefixed(tx.contract.encode()),
        prefixed(tx.function.encode()),
        tx.signer,
        u64(tx.session),
        u64(tx.sequence),
        u64(tx.timestamp_ms),
        tx.argument_hash,
    )


def transaction_leaf(tx_id: bytes, signatures: Sequence[bytes]) -> bytes:
    """Return the Merkle leaf of an executed transaction: needs no payload, so it survives pruning."""
    return tx_id + b"".join(signatures)


def argument_digest(argument: bytes) -> bytes:
    return sha256(argument).digest()
