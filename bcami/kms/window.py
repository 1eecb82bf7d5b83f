"""The replay window of one receiver: each counter is accepted once, and none that is too old to tell."""

from bcami.kms.records import WINDOW
from bcami.model.reasons import Reason

_MASK = (1 << WINDOW) - 1
ALL_SEEN = _MASK


def admit(high: int, seen: int, counter: int) -> tuple[int, int] | Reason:
    """Return the window after this counter, or why it is refused.

    Bit i of `seen` stands for counter high - 1 - i. Only to be stored once the message proved authentic.
    """
    if counter > high:
        shifted = (seen << 1 | 1) << (counter - high - 1) if counter - high <= WINDOW else 0
        return counter, shifted & _MASK
    if counter == high:
        return Reason.REPLAY
    if high - counter > WINDOW:
        return Reason.SEQUENCE_TOO_OLD
    bit = 1 << (high - 1 - counter)
    return Reason.REPLAY if seen & bit else (high, seen | bit)
