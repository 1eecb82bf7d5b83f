"""What stands: projects, and the newest prices of each group, which who comes late or was away must learn too.

A meter tells apart only the newest `RECENT_MAX` deliveries that it took. What passes, a command or a call for data, is
over by the time that so many newer ones came; what stands is not. So beside its window a meter remembers, for each
topic, the newest standing message that it took, and takes an older one than its window holds as long as it is the
newest of its topic. Ids only rise, so each one is taken once, however old it is and whatever is repeated or restored;
the MDMS needs no new id for it, and one that it did not know to be taken does no harm.
"""

from typing import Final

from msgspec.structs import replace

from bcami.kms.messages import Delivery, DeliveryId, DownPayload, Pricing, PublishProject
from bcami.kms.records import RECENT_MAX, STANDING_MAX, MeterKeysRecord
from bcami.model.reasons import Reason

_NOTHING: Final = DeliveryId(0, 0)


def topic_of(payload: DownPayload, group: int | None) -> int | None:
    """Return what a message to a group says the newest of, None when it passes: projects are odd, prices even."""
    match payload:
        case PublishProject(project):
            return 2 * project + 1
        case Pricing() if group is not None:
            return 2 * group
        case _:
            return None


def take(record: MeterKeysRecord, delivery: Delivery, now_ms: int) -> MeterKeysRecord | Reason:
    """Return a meter's record once it took a delivery, or why it does not: DUPLICATE, SEQUENCE_TOO_OLD or EXPIRED."""
    topic = topic_of(delivery.payload, delivery.group)
    newest = _NOTHING if topic is None else dict(record.standing).get(topic, _NOTHING)
    if delivery.id in record.taken or delivery.id == newest:
        return Reason.DUPLICATE
    is_newest = topic is not None and delivery.id > max(newest, record.standing_floor)
    if delivery.id <= record.taken_floor and not is_newest:
        return Reason.SEQUENCE_TOO_OLD
    if now_ms > delivery.until_ms:
        return Reason.EXPIRED
    taken = tuple(sorted((*record.taken, delivery.id)))
    floor = max((record.taken_floor, *taken[:-RECENT_MAX]))
    after = replace(record, taken=taken[-RECENT_MAX:], taken_floor=floor)
    return after if topic is None or delivery.id < newest else _standing(after, topic, delivery.id)


def _standing(record: MeterKeysRecord, topic: int, identity: DeliveryId) -> MeterKeysRecord:
    """Remember the newest of a topic. With too many, the topic that said nothing for longest is forgotten."""
    others = [item for item in record.standing if item[0] != topic]
    items = sorted((*others, (topic, identity)), key=lambda item: item[1])
    floor = max((record.standing_floor, *(forgotten for _, forgotten in items[:-STANDING_MAX])))
    return replace(record, standing=tuple(items[-STANDING_MAX:]), standing_floor=floor)
