"""Gives streams to meters that prove themselves (bcami.kms.subscription), each challenge for one subscription.

    challenge (32 bytes) = nonce (8) || when it was given (8, ms) || HMAC(key of this run, the rest), first 16 bytes

Nothing is kept of a challenge that was given, so a stranger who asks for very many costs an HMAC each and pushes out
nobody's. That it was given, and when, is read from it; that it was used is remembered, once a meter proved itself with
it and until it is too old, so only who has a meter's key can fill that memory: it holds what can be proved in a minute.
Who asks is not part of it: the meter's signature binds the challenge to its HID, and one serves a fleet of meters.
"""

import asyncio
import hmac
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from bcami.kms import KeyServer, Scope
from bcami.kms.subscription import CHALLENGE_BYTES, Subscription, check_subscriber
from bcami.mdms.head_end import HeadEnd, Listener
from bcami.mdms.kms_metrics import KmsMetrics
from bcami.model.reasons import Reason
from bcami.model.signing import u64

CHALLENGE_S: Final = 60.0
USED_MAX: Final = 100_000
"""Challenges that were used in the last `CHALLENGE_S`: with so many, nobody is admitted until some are too old."""
_GIVEN_BYTES: Final = 16


class Admitted(NamedTuple):
    listener: Listener
    left_out: tuple[tuple[bytes, Reason], ...]
    """Meters that get nothing on this stream, and why."""


class Admission:
    """See the module. Used within one event loop."""

    def __init__(
        self, scope: Scope, server: KeyServer, head_end: HeadEnd, metrics: KmsMetrics, entropy: Callable[[], bytes]
    ) -> None:
        self._scope = scope
        self._server = server
        self._head_end = head_end
        self._metrics = metrics
        self._entropy = entropy
        self._key = entropy()
        self._used: dict[bytes, int] = {}
        """When each challenge of a subscription that was proved is forgotten, soonest first (ms of the loop)."""

    def challenge(self) -> bytes:
        """Return 32 bytes to be signed within `CHALLENGE_S`."""
        given = self._entropy()[:8] + u64(_loop_ms())
        return given + self._seal(given)

    def _seal(self, given: bytes) -> bytes:
        return hmac.digest(self._key, b"bcami/kms_challenge/1" + given, "sha256")[: CHALLENGE_BYTES - _GIVEN_BYTES]

    def _is_fresh(self, challenge: bytes) -> bool:
        """Tell whether a challenge was given by this run, not too long ago, and never used."""
        given, seal = challenge[:_GIVEN_BYTES], challenge[_GIVEN_BYTES:]
        if not hmac.compare_digest(seal, self._seal(given)) or challenge in self._used:
            return False
        return _loop_ms() - int.from_bytes(given[8:], "big") <= CHALLENGE_S * 1000

    def _use(self, challenge: bytes) -> bool:
        """Note that a challenge was used; False when it was before, or when too many are noted."""
        now_ms = _loop_ms()
        while self._used and next(iter(self._used.values())) < now_ms:
            del self._used[next(iter(self._used))]
        if challenge in self._used or len(self._used) >= USED_MAX:
            return False
        self._used[challenge] = now_ms + int(CHALLENGE_S * 1000)
        return True

    async def admit(self, wanted: Subscription) -> Admitted | Reason:
        """Return a place on the stream, or why there is none. One false signature refuses the whole subscription."""
        if not self._is_fresh(wanted.challenge):
            return self._refused(Reason.STALE_CHALLENGE)
        known = [self._server.roll.get(meter.hid) for meter in wanted.meters]
        left_out: list[tuple[bytes, Reason]] = []

        def check() -> bool:
            for meter, record in zip(wanted.meters, known, strict=True):
                refused = check_subscriber(self._scope, wanted.challenge, meter, record)
                if refused is not None:
                    left_out.append((meter.hid, refused))
                if refused is Reason.BAD_SIGNATURE:
                    return False
            return True

        if not await asyncio.to_thread(check):
            return self._refused(Reason.BAD_SIGNATURE)
        for reason, count in Counter(reason for _, reason in left_out).items():
            self._metrics.refused(reason, count)
        admitted = {meter.hid for meter in wanted.meters}.difference(hid for hid, _ in left_out)
        if not admitted:
            return left_out[0][1]
        if not self._use(wanted.challenge):
            return self._refused(Reason.STALE_CHALLENGE)
        listener = self._head_end.admit(admitted)
        return self._refused(Reason.QUEUE_FULL) if listener is None else Admitted(listener, tuple(left_out))

    def _refused(self, reason: Reason) -> Reason:
        self._metrics.refused(reason)
        return reason


def _loop_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)
