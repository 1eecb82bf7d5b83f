"""The world state as execution and endorsement see it: durable state below, blocks on their way to disk above."""

from collections.abc import Iterable, Mapping
from typing import Final

from bcami.ledger.store import Ledger
from bcami.model.chain import StateEntry

CACHE_ENTRIES_MAX: Final = 20_000


class WorldState:
    """Reads through executed blocks that are not durable yet, then a bounded cache, then the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pending: dict[bytes, StateEntry | None] = {}
        self._pending_height: dict[bytes, int] = {}
        self._cache: dict[bytes, StateEntry | None] = {}

    def read(self, key: bytes) -> StateEntry | None:
        if key in self._pending:
            return self._pending[key]
        if key in self._cache:
            return self._cache[key]
        entry = self._ledger.state(key)
        if len(self._cache) >= CACHE_ENTRIES_MAX:
            self._cache.clear()
        self._cache[key] = entry
        return entry

    def scan(self, prefix: bytes, limit: int) -> Iterable[tuple[bytes, StateEntry]]:
        """Return the entries below a prefix in key order, of the same blocks as `read`."""
        above = {key: entry for key, entry in self._pending.items() if key.startswith(prefix)}
        if not above:
            return self._ledger.scan(prefix, limit)
        found: dict[bytes, StateEntry | None] = dict(self._ledger.scan(prefix, limit + len(above)))
        merged = sorted((found | above).items())
        return [(key, entry) for key, entry in merged if entry is not None][:limit]

    def layer(self, height: int, entries: Mapping[bytes, StateEntry | None]) -> None:
        """Put an executed block's changes on top."""
        for key, entry in entries.items():
            self._pending[key] = entry
            self._pending_height[key] = height

    def restart(self) -> None:
        """Forget everything: the ledger holds another state now."""
        self._pending.clear()
        self._pending_height.clear()
        self._cache.clear()

    def durable(self, height: int, keys: Iterable[bytes]) -> None:
        """Let go of a block's changes: the ledger has them now."""
        for key in keys:
            if self._pending_height.get(key) == height:
                self._cache[key] = self._pending.pop(key)
                del self._pending_height[key]
            else:
                self._cache.pop(key, None)
