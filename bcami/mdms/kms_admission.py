"""Gives streams to meters that prove themselves (bcami.kms.subscription), each challenge for one subscription."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from bcami.kms import KeyServer, Scope
from bcami.kms.subscription import Subscription, check_subscriber
from bcami.mdms.head_end import HeadEnd, Listener
from bcami.mdms.kms_metrics import KmsMetrics
from bcami.model.reasons import Reason

CHALLENGE_S: Final = 60.0
CHALLENGES_MAX: Final = 4_096
"""Challenges that are out; the oldest is forgotten for one more."""


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
        self._challenges: dict[bytes, float] = {}
        """When each was given, oldest first."""

    def challenge(self) -> bytes:
        """Return 32 bytes to be signed within `CHALLENGE_S`."""
        made = self._entropy()
        self._challenges[made] = asyncio.get_running_loop().time()
        if len(self._challenges) > CHALLENGES_MAX:
            del self._challenges[next(iter(self._challenges))]
        return made

    async def admit(self, wanted: Subscription) -> Admitted | Reason:
        """Return a place on the stream, or why there is none. One false signature refuses the whole subscription."""
        given_at = self._challenges.pop(wanted.challenge, None)
        if given_at is None or asyncio.get_running_loop().time() - given_at > CHALLENGE_S:
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
        listener = self._head_end.admit(admitted)
        return self._refused(Reason.QUEUE_FULL) if listener is None else Admitted(listener, tuple(left_out))

    def _refused(self, reason: Reason) -> Reason:
        self._metrics.refused(reason)
        return reason
