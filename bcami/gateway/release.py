"""Which certified blocks the MDMS may pull (design D11): a rule that each node applies by itself, never a message."""

from collections import deque


class ReleasePolicy:
    """A block is released when its certificate is `release_ms` old or `release_blocks` newer ones exist."""

    def __init__(self, release_ms: int, release_blocks: int, certified_height: int) -> None:
        """Everything that was certified before this process began is released."""
        self._release_ms = release_ms
        self._release_blocks = release_blocks
        self._released = certified_height
        self._certified = certified_height
        self._waiting: deque[tuple[int, int]] = deque()

    def certified(self, height: int, now_ms: int) -> None:
        """A certificate of this height (and so of all below) is durable here."""
        if height > self._certified:
            self._certified = height
            self._waiting.append((height, now_ms))

    def released_height(self, now_ms: int) -> int:
        """Return the highest released height."""
        while self._waiting and now_ms - self._waiting[0][1] >= self._release_ms:
            self._released = max(self._released, self._waiting.popleft()[0])
        self._released = max(self._released, self._certified - self._release_blocks)
        return self._released
