"""How often this node contributes to a meter's key (protocol 2.1)."""

from typing import Final

MINUTE_MS: Final = 60_000
METERS_MAX: Final = 50_000
"""Meters remembered at once; those that asked longest ago are forgotten first."""


class ContributionRate:
    """Contributions to each HID in the last minute."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._given: dict[bytes, list[int]] = {}

    def allows(self, hid: bytes, elapsed_ms: int) -> bool:
        return len(self._recent(hid, elapsed_ms)) < self._per_minute

    def give(self, hid: bytes, elapsed_ms: int) -> None:
        """Count one contribution."""
        recent = self._recent(hid, elapsed_ms)
        self._given.pop(hid, None)
        self._given[hid] = [*recent, elapsed_ms]
        if len(self._given) > METERS_MAX:
            del self._given[next(iter(self._given))]

    def _recent(self, hid: bytes, elapsed_ms: int) -> list[int]:
        return [at for at in self._given.get(hid, ()) if elapsed_ms - at < MINUTE_MS]
