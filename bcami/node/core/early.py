"""Blocks that were asked for and came before the one that is next: networks reorder, and a request covers many."""

from bcami.codec import encode
from bcami.model.chain import BlockBundle
from bcami.node.core.catchup import BLOCKS_PER_REQUEST
from bcami.node.core.serving import BUNDLES_BYTES_MAX


class EarlyBlocks:
    """Unverified blocks, not more than one request brings, each with the peer that sent it."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[int, BlockBundle, int]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def keep(self, peer: int, bundle: BlockBundle, following: int) -> None:
        """Keep a block above `following`, the height that is next; forget it when there are too many bytes."""
        for height in [height for height in self._held if height < following]:
            self.take(height)
        height = bundle.block.header.height
        self.take(height)
        if not following < height < following + BLOCKS_PER_REQUEST:
            return
        size_bytes = len(encode(bundle))  # of the whole record: a liar may put its bytes anywhere
        if self._bytes + size_bytes <= BUNDLES_BYTES_MAX:
            self._held[height] = (peer, bundle, size_bytes)
            self._bytes += size_bytes

    def take(self, height: int) -> tuple[int, BlockBundle] | None:
        """Return the block of this height, once."""
        item = self._held.pop(height, None)
        if item is None:
            return None
        self._bytes -= item[2]
        return item[:2]
