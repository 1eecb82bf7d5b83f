"""Reads the aggregation contract through receipts, knowing only genesis (protocol 5.3): no gateway's word counts."""

from typing import Any, Final

from bcami.aggregation.records import Proven
from bcami.codec import Codec
from bcami.crypto.roster import Roster
from bcami.crypto.verification import verify_block_certificate, verify_receipt
from bcami.errors import MalformedError
from bcami.model.aggregation import FixRosterArgument, SettleArgument, StartArgument, VoidArgument
from bcami.model.api import CertifiedHeader, TransactionProof
from bcami.model.block import header_hash
from bcami.model.reasons import Reason
from bcami.model.transaction import ARGUMENT_BYTES_MAX, argument_digest, transaction_id

CONTRACT: Final = "aggregation"
CODECS: Final[dict[str, Codec[Any]]] = {
    "fix_roster": Codec(FixRosterArgument, ARGUMENT_BYTES_MAX),
    "start": Codec(StartArgument, ARGUMENT_BYTES_MAX),
    "settle": Codec(SettleArgument, ARGUMENT_BYTES_MAX),
    "void": Codec(VoidArgument, ARGUMENT_BYTES_MAX),
}


class GenesisReader:
    """Implements ChainReader."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._last: tuple[TransactionProof, Proven | Reason] | None = None
        """What was read last: many meters of one process ask for the same."""

    @property
    def chain(self) -> bytes:
        return self._roster.chain

    @property
    def epoch(self) -> int:
        return self._roster.epoch

    def read(self, proof: TransactionProof) -> Proven | Reason:
        """Return what the receipt proves. An accepted transaction was signed by whom the contract asks for."""
        if self._last is None or self._last[0] != proof:
            self._last = (proof, self._read(proof))
        return self._last[1]

    def _read(self, proof: TransactionProof) -> Proven | Reason:
        tx, receipt = proof.transaction, proof.receipt
        codec = CODECS.get(tx.function)
        if tx.contract != CONTRACT or codec is None:
            return Reason.BAD_PROOF
        if argument_digest(tx.argument) != tx.argument_hash:
            return Reason.HASH_MISMATCH
        tx_id = transaction_id(tx, self._roster.chain, self._roster.epoch)
        if receipt.outcome.transaction_id != tx_id or receipt.outcome.reason is not Reason.VALID:
            return Reason.BAD_PROOF
        reason = verify_receipt(receipt, self._roster)
        if reason is not None:
            return reason
        try:
            return Proven(codec.decode(tx.argument), receipt.header.height)
        except MalformedError:
            return Reason.BAD_ARGUMENT

    def block_hash(self, block: CertifiedHeader) -> tuple[int, bytes] | Reason:
        header, certificate = block.header, block.certificate
        if header.chain != self._roster.chain:
            return Reason.WRONG_CHAIN
        value = header_hash(header)
        if certificate.height != header.height or certificate.header_hash != value:
            return Reason.BAD_CERTIFICATE
        return verify_block_certificate(certificate, self._roster) or (header.height, value)
