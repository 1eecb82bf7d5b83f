"""What keys take up [KMS Tables 6 to 8], counted on the real objects, byte by byte."""

from typing import Final, NamedTuple

from bcami.kms.messages import KEY_BYTES
from bcami.kms.records import METER_KEYS, Channel, HardenedChannel, MeterKeysRecord, PaperChannel
from bcami.kms.server import KeyServer

NUMBER_BYTES: Final = 8


class Storage(NamedTuple):
    """Values of one end, and their bytes."""

    keys: int
    counters: int
    additional: int
    """C_i, C_0, GC_j."""
    key_bytes: int
    """Of all these values."""
    record_bytes: int
    """Of the whole durable record, with names, identities and what is on its way."""


def meter_storage(record: MeterKeysRecord) -> Storage:
    """Return what a meter holds."""
    channels = [held.channel for held in record.memberships]
    if record.unicast is not None:
        channels.append(record.unicast)
    inner = sum(len(held.path) for held in record.memberships)
    return _storage(channels, inner, len(METER_KEYS.encode(record)))


def server_storage(server: KeyServer) -> Storage:
    """Return what the MDMS holds for its meters and groups."""
    channels = [record.channel for record in server.roll if record.channel is not None]
    channels += [group.channel for group in server.groups if group.channel is not None]
    inner = sum(sum(1 for _ in group.keying.nodes()) - 1 for group in server.groups)
    return _storage(channels, inner, 0)


def _storage(channels: list[Channel], inner: int, record_bytes: int) -> Storage:
    keys = counters = additional = size = 0
    for channel in channels:
        match channel:
            case PaperChannel():
                keys += 2
                counters += 1
                additional += 1
                values = (channel.key, channel.session_key, channel.count, channel.additional)
                size += sum(map(len, values))
            case HardenedChannel():
                keys += 1
                counters += 2
                additional += 1
                size += len(channel.key) + 5 * NUMBER_BYTES
    return Storage(keys + inner, counters, additional, size + inner * KEY_BYTES, record_bytes)


def paper_meter_bytes(projects: int) -> int:
    """Return the upper bound of Tables 7 and 8: four values each for k_i, k_0 and every gk_j."""
    return (8 + 4 * projects) * KEY_BYTES


def paper_server_bytes(meters: int, projects: int) -> int:
    """Return Table 7's sum for the MDMS."""
    return 4 * (meters + projects + 1) * KEY_BYTES
