"""Which peer to ask for which blocks. Only the asking is here; blocks are verified and executed by the core."""

from typing import Final

from bcami.model.wire import Status

ASK_AGAIN_MS: Final = 1_000
BLOCKS_PER_REQUEST: Final = 32
GAP_AT_ONCE: Final = 4
"""A gap of this many heights is asked for at once; a smaller one only when nothing moved for a while."""


class CatchUp:
    """The gap between what is executed here and what peers have certified."""

    def __init__(self, replica: int) -> None:
        self._replica = replica
        self._peers: dict[int, Status] = {}
        self._target = 0
        self._asked_ms = -ASK_AGAIN_MS
        self._turn = 0
        self._seen_height = -1
        self._seen_ms = 0

    def heard(self, status: Status) -> None:
        self._peers[status.replica] = status

    def gone(self, peer: int) -> None:
        self._peers.pop(peer, None)

    def want(self, height: int) -> None:
        """A certificate for this height exists."""
        self._target = max(self._target, height)

    @property
    def target(self) -> int:
        return self._target

    @property
    def best_certified(self) -> int:
        """Highest certified height that a connected peer claims."""
        return max((status.certified for status in self._peers.values()), default=0)

    def claimed_by(self, peers: int) -> int:
        """Return the highest certified height that so many peers claim: with f+1 of them it is no liar's word."""
        claims = sorted((status.certified for status in self._peers.values()), reverse=True)
        return claims[peers - 1] if len(claims) >= peers else 0

    def ask(self, executed: int, now_ms: int) -> tuple[int, int, int] | None:
        """Return (peer, first, last) of a request that is due, else None; peers take turns, a liar costs one."""
        certified = self.best_certified
        if executed != self._seen_height:
            self._seen_height, self._seen_ms = executed, now_ms
        claimed = max(self._target, certified)
        if claimed <= executed or now_ms - self._asked_ms < ASK_AGAIN_MS:
            return None
        if claimed - executed < GAP_AT_ONCE and now_ms - self._seen_ms < ASK_AGAIN_MS // 2:
            return None
        able = sorted(peer for peer, status in self._peers.items() if status.certified > executed)
        if not able:
            return None
        self._turn += 1
        self._asked_ms = now_ms
        return able[self._turn % len(able)], executed + 1, executed + BLOCKS_PER_REQUEST

    def answered(self) -> None:
        """The last block of a request arrived: ask for more at once."""
        self._asked_ms = -ASK_AGAIN_MS
        self._seen_ms = -ASK_AGAIN_MS
