"""Gets the receipt of a settled transaction, for those who believe only that."""

import asyncio
from collections.abc import Sequence
from typing import Final

from bcami.client.nodes import NodeClient, NodeUnavailable
from bcami.client.receipts import ReceiptVerifier
from bcami.crypto.roster import Roster
from bcami.errors import InconclusiveError
from bcami.model.api import TransactionProof
from bcami.model.transaction import Transaction, transaction_id

REQUESTS_MAX: Final = 40
_PAUSE_S: Final = 0.1


async def prove(tx: Transaction, nodes: Sequence[NodeClient], roster: Roster) -> TransactionProof:
    """Return the transaction with a receipt that verifies. Raises InconclusiveError when no node gives one."""
    tx_id = transaction_id(tx, roster.chain, roster.epoch)
    for attempt in range(REQUESTS_MAX):
        try:
            answer = await nodes[attempt % len(nodes)].transaction(tx_id)
        except NodeUnavailable:
            answer = None
        if answer is not None and answer.results:
            verifier = ReceiptVerifier(roster)
            for block in answer.blocks:
                verifier.learn(block)
            receipt = verifier.receipt(answer.results[0], tx_id)
            if receipt is not None:
                return TransactionProof(tx, receipt)
        await asyncio.sleep(_PAUSE_S)
    raise InconclusiveError("no node gives the receipt of a settled transaction", do="bcami status")
