"""What the MDMS's symmetric keys have on the chain: the open epoch, and where the audit log ended (protocol 8)."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from bcami.client.nodes import NodeClient
from bcami.client.periods import verify_kms_epoch
from bcami.client.proofs import prove
from bcami.client.reads import weak_read
from bcami.codec import encode
from bcami.crypto.keys import SecretKey
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.errors import InconclusiveError
from bcami.mdms.periods import Settle, Surroundings
from bcami.model.api import QueryAnswer
from bcami.model.genesis import operator_id
from bcami.model.reasons import Reason
from bcami.model.registration import AnchorArgument, KmsState, OpenKmsArgument
from bcami.model.transaction import Transaction, argument_digest, transaction_id


class OpenedEpoch(NamedTuple):
    """An epoch that is in a block."""

    signer: SecretKey
    height: int
    proof: bytes
    """The encoded `TransactionProof`, which meters check."""


class KmsChain:
    """Submits and reads for the service."""

    def __init__(
        self, nodes: Sequence[NodeClient], settle: Settle, roster: Roster, enrolment: Signer, surroundings: Surroundings
    ) -> None:
        """`enrolment` is the MDMS's enrolment key."""
        self._nodes = nodes
        self._settle = settle
        self._roster = roster
        self._enrolment = enrolment
        self._surroundings = surroundings

    async def open_epoch(self) -> OpenedEpoch | Reason:
        """Open an epoch with a new key; or return why it is not opened now."""
        signer = SecretKey.generate(self._surroundings.randomness())
        argument = encode(OpenKmsArgument(signer.public_key))
        tx = self._sign("open_kms", 1, argument, signer, (self._enrolment, signer))
        settlement = await self._settle(encode(tx), self._id_of(tx))
        if settlement.reason is not Reason.VALID:
            return settlement.reason
        proof = await prove(tx, self._nodes, self._roster)
        epoch = verify_kms_epoch(proof, self._roster.genesis, self._roster)
        assert not isinstance(epoch, Reason), f"a proof that was checked is refused: {epoch}"
        return OpenedEpoch(signer, epoch.height, encode(proof))

    async def anchor(self, signer: SecretKey, length: int, head: bytes) -> Reason:
        """Record that the audit log had this head at this length; return the outcome."""
        argument = encode(AnchorArgument(length, head))
        tx = self._sign("anchor", 1 + length, argument, signer, (signer,))
        return (await self._settle(encode(tx), self._id_of(tx))).reason

    async def anchored(self, at_least: int = 0) -> KmsState:
        """Return the epoch and the anchor that the chain has, by weak equal answers. Raises InconclusiveError.

        Answers of nodes below the height `at_least` do not count.
        """

        def ask(node: NodeClient) -> "asyncio.Future[QueryAnswer]":
            return asyncio.ensure_future(node.query("mdms", "symmetric_keys", b""))

        agreed = await weak_read(self._nodes, ask, weak=self._roster.quorum.weak, at_least=at_least)
        if agreed.value is None:
            raise InconclusiveError("the chain has no epoch of symmetric keys", do="bcami kms status")
        return msgspec.msgpack.decode(agreed.value, type=KmsState)

    def _sign(
        self, function: str, sequence: int, argument: bytes, signer: Signer, keys: Sequence[Signer]
    ) -> Transaction:
        unsigned = Transaction(
            contract="mdms",
            function=function,
            signer=operator_id(signer.public_key),
            session=0,
            sequence=sequence,
            timestamp_ms=self._surroundings.now_ms(),
            argument_hash=argument_digest(argument),
            argument=argument,
            signatures=(),
        )
        tx_id = self._id_of(unsigned)
        return msgspec.structs.replace(unsigned, signatures=tuple(key.sign(tx_id) for key in keys))

    def _id_of(self, tx: Transaction) -> bytes:
        return transaction_id(tx, self._roster.chain, self._roster.epoch)
