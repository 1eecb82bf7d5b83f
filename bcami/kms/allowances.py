"""How often one meter may have the MDMS do what costs more than the asking.

A meter has good keys whatever it wants, so no signature and no counter bounds it. Each has a token bucket for each of
these, and what is above is refused and counted. Only messages that proved to be of the meter take from its buckets.
They are not kept over a restart of the MDMS.
"""

from typing import Final

from bcami.token_buckets import TokenBuckets

CONFIRMATIONS_BURST: Final = 4
CONFIRMATION_EVERY_S: Final = 5.0
"""Each is answered with all that the meter lacks; one without an answer is repeated after 2, 4, 8 and 16 s."""
CATCH_UPS_MAX: Final = 16
"""Unicasts of one such answer, at most 12 KiB each; what is left is repeated one by one."""
BOOTSTRAPS_BURST: Final = 8
BOOTSTRAP_EVERY_S: Final = 10.0
"""New keys: each costs a key agreement and a signature."""
REQUESTS_BURST: Final = 64
REQUEST_EVERY_S: Final = 1.0
"""Messages of Table 1, repeated ones too; a meter has at most `OUTBOX_MAX` without an answer."""
CHANGES_BURST: Final = 64
CHANGE_EVERY_S: Final = 900.0
"""Joins and leaves, each of which adds an entry to the audit log for ever: all 32 projects in and out at once, then
96 a day."""


class Allowances:
    """The buckets of all meters, by HID."""

    def __init__(self) -> None:
        self._confirmations = TokenBuckets(1 / CONFIRMATION_EVERY_S, CONFIRMATIONS_BURST)
        self._bootstraps = TokenBuckets(1 / BOOTSTRAP_EVERY_S, BOOTSTRAPS_BURST)
        self._requests = TokenBuckets(1 / REQUEST_EVERY_S, REQUESTS_BURST)
        self._changes = TokenBuckets(1 / CHANGE_EVERY_S, CHANGES_BURST)

    def confirms(self, hid: bytes, now_ms: int) -> bool:
        """Tell whether one more confirmation is answered; each of these takes what it asks for."""
        return not self._confirmations.take(hid, now_ms / 1000)

    def bootstraps(self, hid: bytes, now_ms: int) -> bool:
        """Tell whether new keys are drawn once more."""
        return not self._bootstraps.take(hid, now_ms / 1000)

    def requests(self, hid: bytes, now_ms: int) -> bool:
        """Tell whether one more message of Table 1 is taken."""
        return not self._requests.take(hid, now_ms / 1000)

    def changes(self, hid: bytes, now_ms: int) -> bool:
        """Tell whether the meter may join or leave once more."""
        return not self._changes.take(hid, now_ms / 1000)
