"""The JSON forms of the API, with examples for OpenAPI. Bytes are lower-case hex."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from bcami.model.api import CertifiedHeader, SubmitResult
from bcami.model.block import BlockCertificate, Header
from bcami.model.chain import BlockBundle
from bcami.model.ids import HASH_BYTES, SIGNATURE_BYTES
from bcami.model.transaction import ARGUMENT_BYTES_MAX, Transaction

HEX_HASH = Annotated[str, Field(pattern=f"^[0-9a-f]{{{2 * HASH_BYTES}}}$", examples=["00" * HASH_BYTES])]
HEX_SIGNATURE = Annotated[str, Field(pattern=f"^[0-9a-f]{{{2 * SIGNATURE_BYTES}}}$")]
_NAME = Annotated[str, Field(pattern="^[a-z][a-z0-9_-]{0,31}$")]
_NUMBER = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TransactionForm(Form):
    """A signed transaction (BC-AMI Table 2 with session and sequence)."""

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


class SubmissionForm(Form):
    """Several transactions in one request."""

    transactions: Annotated[list[TransactionForm], Field(min_length=1, max_length=2000)]


class RefusalForm(BaseModel):
    """An error: `reason` is one of the names that metrics and reports use."""

    reason: str = Field(examples=["malformed"])
    detail: str = Field(examples=["not the canonical encoding"])


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


def result_form(result: SubmitResult, blocks: dict[int, CertifiedHeader]) -> dict[str, Any]:
    """Return one result; a committed one has its whole receipt."""
    form: dict[str, Any] = {
        "transaction_id": result.transaction_id.hex(),
        "status": result.status,
        "reason": result.reason,
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


def block_form(
    header: Header, block_hash: bytes, certificate: BlockCertificate | None, bundle: BlockBundle
) -> dict[str, Any]:
    """Return a block for people: header, certificate, outcomes with the transactions' public fields."""
    return {
        "height": header.height,
        "hash": block_hash.hex(),
        "header": hexed(header),
        "certificate": hexed(certificate),
        "batches": [
            {
                "collector": stored.batch.collector,
                "number": stored.batch.number,
                "transactions": len(stored.batch.transactions),
                "pruned": bool(stored.leaves),
            }
            for stored in bundle.batches
        ],
        "outcomes": hexed(bundle.block.outcomes),
    }
