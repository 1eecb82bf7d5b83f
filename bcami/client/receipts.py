"""Checks receipts with nothing but genesis (protocol 5.3), many of one block at little cost.

A block certificate is checked once and its header remembered. So are the inner hashes of the results tree that a
proven path went through: the next receipt of the same block climbs only as far as a hash that is proven already, which
is one or two hashes when most of a block's results are asked for, in place of a whole path.

Two certified headers of one height prove that more than f nodes lie; the second is refused as `equivocation` and
both are kept in `conflict`, for an alarm.
"""

from collections import OrderedDict
from hashlib import sha256
from typing import Final

from bcami.crypto.roster import Roster
from bcami.crypto.verification import verify_block_certificate
from bcami.model.api import CertifiedHeader, SubmitResult
from bcami.model.block import Header, Outcome, Receipt, header_hash, result_leaf
from bcami.model.reasons import Reason

HEADERS_MAX: Final = 256
"""Blocks whose headers are remembered; older ones are checked again when they come again."""
TREES_MAX: Final = 32
"""Blocks whose proven inner hashes are remembered: at most about half a megabyte each."""


class ReceiptVerifier:
    """Turns results that nodes claim into outcomes that are proven."""

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self._blocks: OrderedDict[int, _Block] = OrderedDict()
        self.conflict: tuple[CertifiedHeader, CertifiedHeader] | None = None

    def learn(self, block: CertifiedHeader) -> Reason | None:
        """Remember a header whose certificate holds; return why it does not otherwise."""
        known = self._blocks.get(block.header.height)
        if known is not None and known.certified == block:
            return None
        reason = verify_certified_header(block, self.roster)
        if reason is not None:
            return reason
        if known is not None:
            if known.certified.header != block.header:
                self.conflict = (known.certified, block)
                return Reason.EQUIVOCATION
            return None
        self._blocks[block.header.height] = _Block(block)
        if len(self._blocks) > HEADERS_MAX:
            self._blocks.popitem(last=False)
        for old in list(self._blocks)[:-TREES_MAX]:
            self._blocks[old].forget()
        return None

    def outcome(self, result: SubmitResult, transaction_id: bytes) -> Reason | None:
        """Return the proven outcome of `transaction_id`: `valid`, or why it was rejected; None when not proven.

        The header must have been learned before.
        """
        block = self._blocks.get(result.height)
        if block is None or result.reason is None or result.transaction_id != transaction_id:
            return None
        leaf = result_leaf(Outcome(transaction_id, result.reason), result.index)
        return result.reason if block.proves(leaf, result.index, result.path) else None

    def receipt(self, result: SubmitResult, transaction_id: bytes) -> Receipt | None:
        """Return the receipt as a record that proves itself to others; None when the result is not proven."""
        if self.outcome(result, transaction_id) is None or result.reason is None:
            return None
        certified = self._blocks[result.height].certified
        outcome = Outcome(transaction_id, result.reason)
        return Receipt(outcome, result.index, result.path, certified.header, certified.certificate)


def verify_certified_header(block: CertifiedHeader, roster: Roster) -> Reason | None:
    """Return None when a strong quorum of the members certifies exactly this header of this chain."""
    header, certificate = block.header, block.certificate
    if header.chain != roster.chain:
        return Reason.WRONG_CHAIN
    if header.epoch != roster.epoch:
        return Reason.WRONG_EPOCH
    if certificate.height != header.height or certificate.header_hash != header_hash(header):
        return Reason.BAD_CERTIFICATE
    return verify_block_certificate(certificate, roster)


class _Block:
    """A certified header and the hashes proven to lie under its results root.

    A hash is filed under (level << 32 | place): it covers the leaves [place << level, (place + 1) << level).
    """

    __slots__ = ("_proven", "certified")

    def __init__(self, certified: CertifiedHeader) -> None:
        self.certified = certified
        self._proven: dict[int, bytes] = {}

    def forget(self) -> None:
        if self._proven:
            self._proven = {}

    def proves(self, leaf: bytes, index: int, path: tuple[bytes, ...]) -> bool:
        """Check an RFC 9162 2.1.3.2 inclusion proof, up to the root or the first hash that is proven already."""
        header: Header = self.certified.header
        place, last, level = index, header.transaction_count - 1, 0
        if not 0 <= index <= last:
            return False
        proven = self._proven
        climbed: list[tuple[int, bytes]] = []
        node = sha256(b"\x00" + leaf).digest()
        steps = iter(path)
        while True:
            while place == last and place and not place & 1:
                place, last, level = place >> 1, last >> 1, level + 1
            spot = level << 32 | place
            known = header.results_root if last == 0 else proven.get(spot)
            if known is not None:
                if node != known:
                    return False
                proven.update(climbed)
                return True
            sibling = next(steps, None)
            if sibling is None:
                return False
            climbed += ((spot, node), (spot ^ 1, sibling))
            node = sha256(b"\x01" + (sibling + node if place & 1 else node + sibling)).digest()
            place, last, level = place >> 1, last >> 1, level + 1
