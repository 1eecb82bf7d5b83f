"""Giving snapshots: the certified world state of one moment for each peer that asks, in parts of bounded size.

A peer's snapshot stays as it is while blocks are committed. What is not asked for is let go soon, because the store
keeps everything that was replaced since.
"""

from dataclasses import dataclass
from typing import Final

from bcami.ledger.store import Ledger, SnapshotSource
from bcami.model.wire import SNAPSHOT_PART_BYTES, FetchSnapshot, SnapshotPart

IDLE_MS: Final = 10_000
OFFERED_MS_MAX: Final = 600_000
"""However steadily a peer asks, it gets a newer one after this long."""


@dataclass(slots=True)
class _Offer:
    source: SnapshotSource
    since_ms: int
    used_ms: int


class Offers:
    """The snapshots that peers are taking from this node, at most one for each."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._open: dict[int, _Offer] = {}

    def part(self, peer: int, request: FetchSnapshot, elapsed_ms: int) -> SnapshotPart | None:
        """Return the part that was asked for, or the first one of a newer snapshot; None while nothing is certified."""
        offer, after = self._open.get(peer), request.after
        if offer is None or offer.source.height != request.height:
            offer, after = self._renew(peer, elapsed_ms), b""
        if offer is None:
            return None
        offer.used_ms = elapsed_ms
        height = offer.source.height
        header, certificate = self._ledger.header(height), self._ledger.certificate(height)
        assert header is not None
        assert certificate is not None
        rows, is_last = offer.source.part(after, SNAPSHOT_PART_BYTES)
        return SnapshotPart(header, certificate, after, tuple(rows), is_last)

    def let_go(self, elapsed_ms: int) -> None:
        """Close what nobody asks for any more; called now and then."""
        for peer, offer in list(self._open.items()):
            if elapsed_ms - offer.used_ms >= IDLE_MS or elapsed_ms - offer.since_ms >= OFFERED_MS_MAX:
                self._close(peer)

    def _renew(self, peer: int, elapsed_ms: int) -> _Offer | None:
        self._close(peer)
        source = self._ledger.open_snapshot()
        if source is None:
            return None
        offer = self._open[peer] = _Offer(source, elapsed_ms, elapsed_ms)
        return offer

    def _close(self, peer: int) -> None:
        offer = self._open.pop(peer, None)
        if offer is not None:
            offer.source.close()
