"""Which peer to ask for which blocks. Only the asking is here; blocks are verified and executed by the core.

What a peer claims to have is believed only as far as asking it: one that does not deliver is asked later and later,
so a liar delays catch-up by a bounded time, and never ends it while one honest peer has the blocks.
"""

from dataclasses import dataclass
from typing import Final

from bcami.model.block import BlockCertificate
from bcami.model.wire import Status

ASK_AGAIN_MS: Final = 1_000
"""A request to which nothing came for this long goes to another peer."""
QUIET_MS: Final = 300
"""A request that was answered in part (an answer is limited in bytes) goes on after this long."""
BLOCKS_PER_REQUEST: Final = 32
GAP_AT_ONCE: Final = 4
"""A gap of this many heights is asked for at once; a smaller one only when nothing moved for a while, or when the
newest block came on request as well: then the votes for the next one may have passed while this node was away."""
FAR_BLOCKS: Final = 10_000
"""Behind by more, a node takes a snapshot in place of executing the blocks."""
STUCK_MS: Final = 5_000
"""Where a single peer answers, and has pruned what is needed, it is believed after this long."""
BARRED_MS_MAX: Final = 16_000
"""No peer goes unasked for longer, so one that was only slow or cut off is found again."""


@dataclass(slots=True)
class _Peer:
    certified: int = 0
    """Highest certified height that it is taken to have."""
    claimed: int = 0
    """The same as its last status says."""
    first: int = 1
    last: int = 0
    """Range of the newest request to it."""
    failures: int = 0
    barred_until_ms: int = 0


@dataclass(slots=True)
class _Request:
    peer: int
    last: int
    moved_ms: int
    has_delivered: bool = False


class CatchUp:
    """The gap between what is executed here and what peers have certified."""

    def __init__(self, weak: int) -> None:
        self._weak = weak
        self._peers: dict[int, _Peer] = {}
        self._target = 0
        self.far_blocks = FAR_BLOCKS
        self._pruned: set[int] = set()
        """Peers that have no payloads of the next block any more."""
        self._pruned_ms = 0
        """When the first of them said so."""
        self._request: _Request | None = None
        self._turn = 0
        self._seen_height = -1
        self._seen_ms = 0
        self._delivered = -1
        """The newest height that came on request; a start counts as one."""

    def heard(self, status: Status) -> None:
        """Take a peer's word of where it stands; one that has less than it was asked for need not be waited for."""
        known = self._peers.setdefault(status.replica, _Peer())
        known.certified = known.claimed = status.certified
        request = self._request
        if request is not None and request.peer == status.replica:
            request.last = min(request.last, status.certified)

    def certified(self, certificate: BlockCertificate) -> None:
        """Take note of a verified certificate: who signed it has the block, and most have the certificate by now."""
        self.want(certificate.height)
        for vote in certificate.votes:
            known = self._peers.get(vote.replica)
            if known is not None:
                known.certified = max(known.certified, certificate.height)

    def gone(self, peer: int) -> None:
        known = self._peers.get(peer)
        if known is not None:
            known.certified = known.claimed = 0

    def want(self, height: int) -> None:
        """Say that a verified certificate for this height exists."""
        self._target = max(self._target, height)

    @property
    def target(self) -> int:
        return self._target

    @property
    def best_certified(self) -> int:
        """Highest height that is certified for sure: by a certificate seen here, or as weak connected peers claim."""
        claims = sorted((peer.certified for peer in self._peers.values()), reverse=True)
        claimed = claims[self._weak - 1] if len(claims) >= self._weak else 0
        return max(self._target, claimed)

    def ask(self, executed: int, elapsed_ms: int) -> tuple[int, int, int] | None:
        """Return (peer, first, last) of a request that is due, else None."""
        self._see(executed, elapsed_ms)
        able = [number for number, peer in sorted(self._peers.items()) if peer.certified > executed]
        claimed = max([self._target, *(self._peers[number].certified for number in able)])
        if claimed <= executed or not able or not self._is_due(executed, elapsed_ms):
            return None
        is_soon = claimed - executed >= GAP_AT_ONCE or executed <= self._delivered
        if not is_soon and elapsed_ms - self._seen_ms < ASK_AGAIN_MS // 2:
            return None
        free = [number for number in able if self._peers[number].barred_until_ms <= elapsed_ms]
        if not free:
            return None
        self._turn += 1
        chosen = free[self._turn % len(free)]
        peer = self._peers[chosen]
        peer.first, peer.last = executed + 1, min(executed + BLOCKS_PER_REQUEST, peer.certified)
        self._request = _Request(chosen, peer.last, elapsed_ms)
        return chosen, peer.first, peer.last

    def pruned(self, peer: int, elapsed_ms: int) -> None:
        """Take note that a peer has the next block without its payloads: others may have them."""
        if not self._pruned:
            self._pruned_ms = elapsed_ms
        self._pruned.add(peer)
        self._peers.setdefault(peer, _Peer()).barred_until_ms = elapsed_ms + ASK_AGAIN_MS
        if self._request is not None and self._request.peer == peer:
            self._request = None

    def needs_snapshot(self, executed: int, elapsed_ms: int) -> bool:
        """Tell whether blocks lead no further.

        One correct peer at least has pruned the next one, or the only peer that answers has; or there are too many.
        """
        self._see(executed, elapsed_ms)
        if max((peer.claimed for peer in self._peers.values()), default=0) <= executed:
            return False
        is_stuck = bool(self._pruned) and elapsed_ms - self._pruned_ms >= STUCK_MS
        return is_stuck or len(self._pruned) >= self._weak or self.best_certified - executed > self.far_blocks

    def snapshot_peer(self, executed: int, elapsed_ms: int) -> tuple[int, int] | None:
        """Return (peer, certified height that it claims) of whom to take a snapshot from; None for nobody now.

        Not from one that claims less than weak peers do, of which one is correct.
        """
        claims = sorted((peer.claimed for peer in self._peers.values()), reverse=True)
        least = max(claims[self._weak - 1] if len(claims) >= self._weak else 0, executed + 1)
        free = [
            number
            for number, peer in sorted(self._peers.items())
            if peer.claimed >= least and (peer.barred_until_ms <= elapsed_ms or number in self._pruned)
        ]
        if not free:
            return None
        self._turn += 1
        chosen = free[self._turn % len(free)]
        return chosen, self._peers[chosen].claimed

    def _see(self, executed: int, elapsed_ms: int) -> None:
        """Take note of where this node stands: what was said about an earlier next block counts no more."""
        if executed != self._seen_height:
            self._delivered = executed if self._seen_height < 0 else self._delivered
            self._seen_height, self._seen_ms = executed, elapsed_ms
            self._pruned.clear()

    def _is_due(self, executed: int, elapsed_ms: int) -> bool:
        request = self._request
        if request is None or executed >= request.last:
            return True
        if elapsed_ms - request.moved_ms < (QUIET_MS if request.has_delivered else ASK_AGAIN_MS):
            return False
        if not request.has_delivered:
            self.failed(request.peer, elapsed_ms)
        return True

    def expects(self, peer: int, height: int) -> bool:
        """Tell whether a block of this height answers the newest request to a peer."""
        known = self._peers.get(peer)
        return known is not None and known.first <= height <= known.last

    def delivered(self, peer: int, height: int, elapsed_ms: int) -> None:
        """Take note of a block that was good."""
        self._delivered = max(self._delivered, height)
        known = self._peers.setdefault(peer, _Peer())
        known.failures, known.barred_until_ms = 0, 0
        if self._request is not None and self._request.peer == peer:
            self._request.moved_ms, self._request.has_delivered = elapsed_ms, True

    def refused(self, peer: int, elapsed_ms: int) -> None:
        """Take nothing more for the newest request to this peer: it sent something wrong."""
        known = self._peers.setdefault(peer, _Peer())
        known.first, known.last = 1, 0
        self._pruned.discard(peer)
        self.failed(peer, elapsed_ms)

    def failed(self, peer: int, elapsed_ms: int) -> None:
        """Ask this peer later and others first; what it sends late is still welcome."""
        known = self._peers.setdefault(peer, _Peer())
        known.failures += 1
        known.barred_until_ms = elapsed_ms + min(ASK_AGAIN_MS << min(known.failures, 8), BARRED_MS_MAX)
        if self._request is not None and self._request.peer == peer:
            self._request = None
