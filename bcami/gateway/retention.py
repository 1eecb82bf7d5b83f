"""Which usage payloads a node may drop: acknowledged by the MDMS under this node's own hash, and old (protocol 7)."""

from dataclasses import dataclass

from bcami.codec import Codec
from bcami.gateway.service import NodeService
from bcami.model.block import header_hash
from bcami.model.reasons import Reason
from bcami.model.registration import Acknowledgement

_CODEC: Codec[Acknowledgement] = Codec(Acknowledgement, 256)


@dataclass(frozen=True, slots=True)
class WrongAcknowledgement:
    """The MDMS acknowledged another block than this node has at that height: an alarm, never a reason to prune."""

    height: int


def prunable_height(service: NodeService, retention_ms: int, now_ms: int) -> int | WrongAcknowledgement:
    """Return the height up to which payloads may go; 0 when none may."""
    answer = service.query("mdms", "acknowledged", b"")
    if isinstance(answer, Reason) or answer.value is None:
        return 0
    acknowledged = _CODEC.decode(answer.value)
    header = service.ledger.header(acknowledged.height) if acknowledged.height else None
    if header is None:
        return 0
    if header_hash(header) != acknowledged.block_hash:
        return WrongAcknowledgement(acknowledged.height)
    low, high = service.ledger.pruned_to, min(acknowledged.height, service.core.certified_height)
    while low < high:  # block times never fall, so the newest old enough is found by halving
        middle = (low + high + 1) // 2
        found = service.ledger.header(middle)
        if found is not None and now_ms - found.time_ms >= retention_ms:
            low = middle
        else:
            high = middle - 1
    return low
