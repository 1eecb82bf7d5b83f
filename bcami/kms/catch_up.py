"""What a meter lacks, in as few unicasts as hold it: one, unless it was away for very long."""

from collections.abc import Iterable, Iterator

from bcami.codec import encode
from bcami.kms.messages import CATCH_UP_BYTES_MAX, IDS_MAX, CatchUp, Delivery, Dismissed, GroupKeys

Lacked = GroupKeys | Dismissed | Delivery


def catch_ups(lacked: Iterable[Lacked]) -> Iterator[CatchUp]:
    """Yield at least one catch-up, with everything in order, each below `CATCH_UP_BYTES_MAX` and `IDS_MAX`."""
    held: list[Lacked] = []
    size = 0
    for item in lacked:
        length = len(encode(item))
        if held and (size + length > CATCH_UP_BYTES_MAX or len(held) == IDS_MAX):
            yield _made(held)
            held, size = [], 0
        held.append(item)
        size += length
    yield _made(held)


def _made(held: list[Lacked]) -> CatchUp:
    return CatchUp(
        tuple(item for item in held if isinstance(item, GroupKeys)),
        tuple(item for item in held if isinstance(item, Dismissed)),
        tuple(item for item in held if isinstance(item, Delivery)),
    )
