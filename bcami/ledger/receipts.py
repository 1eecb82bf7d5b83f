"""Receipts from blocks, with the result trees of the newest blocks kept: many clients ask about the same block."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from bcami.crypto import merkle
from bcami.model.block import BlockCertificate, Receipt, result_leaf
from bcami.model.chain import ChainBlock, TransactionPlace

TREES_MAX: Final = 16


class ReceiptMaker:
    """Makes receipts of one ledger."""

    def __init__(
        self, block: Callable[[int], ChainBlock | None], certificate: Callable[[int], BlockCertificate | None]
    ) -> None:
        self._block = block
        self._certificate = certificate
        self._trees: OrderedDict[int, tuple[ChainBlock, BlockCertificate, merkle.Tree]] = OrderedDict()

    def receipt(self, transaction_id: bytes, place: TransactionPlace) -> Receipt | None:
        """Return the receipt of the outcome at a place; None without a certificate or when the id is another."""
        entry = self._trees.get(place.height) or self._load(place.height)
        if entry is None:
            return None
        block, certificate, tree = entry
        outcome = block.outcomes[place.index]
        if outcome.transaction_id != transaction_id:
            return None
        return Receipt(outcome, place.index, tuple(tree.path(place.index)), block.header, certificate)

    def _load(self, height: int) -> tuple[ChainBlock, BlockCertificate, merkle.Tree] | None:
        block, certificate = self._block(height), self._certificate(height)
        if block is None or certificate is None:
            return None
        leaves = [result_leaf(outcome, index) for index, outcome in enumerate(block.outcomes)]
        entry = (block, certificate, merkle.tree(leaves))
        self._trees[height] = entry
        while len(self._trees) > TREES_MAX:
            self._trees.popitem(last=False)
        return entry
