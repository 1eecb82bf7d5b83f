"""The JSON forms of the API, with examples for OpenAPI. Bytes are lower-case hex."""

from typing import Annotated, Any, Final

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from bcami.gateway.openapi import Schema, optional, schema_of, structure
from bcami.model.api import (
    COMMITTED,
    REFUSED,
    SUBMIT_TRANSACTIONS_MAX,
    UNKNOWN,
    CertifiedHeader,
    RefusalSignature,
    SubmitResult,
)
from bcami.model.block import BlockCertificate, Header, Outcome, header_hash
from bcami.model.chain import BlockBundle
from bcami.model.ids import HASH_BYTES, SIGNATURE_BYTES, U32, U63, Hash
from bcami.model.reasons import Reason, explain
from bcami.model.transaction import ARGUMENT_BYTES_MAX, Transaction

HEX_HASH = Annotated[str, Field(pattern=f"^[0-9a-f]{{{2 * HASH_BYTES}}}$", examples=["00" * HASH_BYTES])]
HEX_SIGNATURE = Annotated[str, Field(pattern=f"^[0-9a-f]{{{2 * SIGNATURE_BYTES}}}$")]
_NAME = Annotated[str, Field(pattern="^[a-z][a-z0-9_-]{0,31}$")]
_NUMBER = Annotated[int, Field(ge=0, le=2**63 - 1)]
_CHAIN = Annotated[HEX_HASH | None, Field(description="Chain id of the network that is meant")]

TRANSACTION_EXAMPLE: Final[dict[str, Any]] = {
    "contract": "usage",
    "function": "report",
    "signer": "4f" * HASH_BYTES,
    "session": 1,
    "sequence": 17,
    "timestamp_ms": 1_700_000_000_000,
    "argument_hash": "9a" * HASH_BYTES,
    "argument": "00ff" * 18,
    "signatures": ["5c" * SIGNATURE_BYTES],
}


class Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TransactionForm(Form):
    """A signed transaction (BC-AMI Table 2 with session and sequence)."""

    model_config = ConfigDict(json_schema_extra={"examples": [TRANSACTION_EXAMPLE]})

    contract: Annotated[_NAME, Field(examples=["usage"])]
    function: Annotated[_NAME, Field(examples=["report"])]
    signer: HEX_HASH
    session: Annotated[_NUMBER, Field(examples=[1])]
    sequence: Annotated[_NUMBER, Field(examples=[1])]
    timestamp_ms: Annotated[_NUMBER, Field(examples=[1_700_000_000_000])]
    argument_hash: HEX_HASH
    argument: Annotated[str, Field(pattern="^([0-9a-f]{2})*$", max_length=2 * ARGUMENT_BYTES_MAX, examples=["00ff"])]
    signatures: Annotated[list[HEX_SIGNATURE], Field(max_length=2, examples=[["00" * SIGNATURE_BYTES]])]

    def record(self) -> Transaction:
        return Transaction(
            self.contract,
            self.function,
            bytes.fromhex(self.signer),
            self.session,
            self.sequence,
            self.timestamp_ms,
            bytes.fromhex(self.argument_hash),
            bytes.fromhex(self.argument),
            tuple(bytes.fromhex(item) for item in self.signatures),
        )


class OneForm(TransactionForm):
    """One transaction in one request."""

    chain: _CHAIN = None


class SubmissionForm(Form):
    """Several transactions in one request."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"transactions": [TRANSACTION_EXAMPLE]}]})

    chain: _CHAIN = None
    transactions: Annotated[list[TransactionForm], Field(min_length=1, max_length=SUBMIT_TRANSACTIONS_MAX)]


def hexed(value: Any) -> Any:
    """Return a JSON form of a record: bytes as hex, structs as objects."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [hexed(item) for item in value]
    fields = getattr(type(value), "__struct_fields__", None)
    if fields is not None:
        return {name: hexed(getattr(value, name)) for name in fields}
    return value


_HASH: Final = schema_of(Hash)
_PATH: Final = schema_of(tuple[Hash, ...])

RESULT_SCHEMA: Final[Schema] = {
    "type": "object",
    "properties": {
        "transaction_id": _HASH,
        "status": {"type": "string", "enum": [COMMITTED, REFUSED, UNKNOWN]},
        "reason": {"anyOf": [schema_of(Reason), {"type": "null"}]},
        "detail": {"type": "string"},
        "retry_after_ms": schema_of(U63),
        "receipt": structure(
            height=schema_of(U63),
            index=schema_of(U32),
            path=_PATH,
            header=schema_of(Header),
            certificate=schema_of(BlockCertificate),
        ),
    },
    "required": ["transaction_id", "status", "reason", "detail"],
    "additionalProperties": False,
}
RESULT_EXAMPLE: Final = {
    "transaction_id": "7d" * HASH_BYTES,
    "status": REFUSED,
    "reason": Reason.BAD_SIGNATURE.value,
    "detail": explain(Reason.BAD_SIGNATURE),
}
REFUSALS_SCHEMA: Final = optional(schema_of(RefusalSignature))
"""Who signed what is refused for good; null when nothing is."""
REFUSALS_EXAMPLE: Final = {"replica": 2, "signature": "5a" * SIGNATURE_BYTES}
_NOT_KNOWN: Final = "taken, no receipt within the time asked for: ask again with the same bytes"


def result_form(result: SubmitResult, blocks: dict[int, CertifiedHeader]) -> dict[str, Any]:
    """Return one result; a committed one has its whole receipt."""
    form: dict[str, Any] = {
        "transaction_id": result.transaction_id.hex(),
        "status": result.status,
        "reason": result.reason,
        "detail": _NOT_KNOWN if result.reason is None else explain(result.reason),
    }
    if result.retry_after_ms:
        form["retry_after_ms"] = result.retry_after_ms
    block = blocks.get(result.height)
    if block is not None:
        form["receipt"] = {
            "height": result.height,
            "index": result.index,
            "path": hexed(result.path),
            "header": hexed(block.header),
            "certificate": hexed(block.certificate),
        }
    return form


class BatchSummary(msgspec.Struct, frozen=True):
    """An executed batch, for people."""

    collector: int
    number: int
    transactions: int
    pruned: bool


BLOCK_SCHEMA: Final = structure(
    height=schema_of(U63),
    hash=_HASH,
    header=schema_of(Header),
    certificate=schema_of(BlockCertificate),
    headers_above=schema_of(tuple[Header, ...]),
    batches=schema_of(tuple[BatchSummary, ...]),
    outcomes=schema_of(tuple[Outcome, ...]),
)


def block_form(bundle: BlockBundle) -> dict[str, Any]:
    """Return a block for people: header, certificate, batches, outcomes."""
    header = bundle.block.header
    batches = [
        BatchSummary(item.batch.collector, item.batch.number, len(item.batch.transactions), bool(item.leaves))
        for item in bundle.batches
    ]
    return {
        "height": header.height,
        "hash": header_hash(header).hex(),
        "header": hexed(header),
        "certificate": hexed(bundle.certificate),
        "headers_above": hexed(bundle.headers),
        "batches": hexed(batches),
        "outcomes": hexed(bundle.block.outcomes),
    }
