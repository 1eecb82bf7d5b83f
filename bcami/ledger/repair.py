"""Finds what a damaged record was, to name the block it belongs to. It is never written back."""

from typing import Final

from bcami.ledger.records import CHECKSUM_BYTES, Table

SEARCH_BYTES_MAX: Final = 1024
"""Records up to here are searched whole, with at most a quarter of a million checksums; of longer ones only the key."""


def find_original(table: Table, key: bytes, stored: bytes) -> tuple[bytes, bytes] | None:
    """Return key and value of the record that differs from this one in one byte and has a right checksum."""
    if len(stored) < CHECKSUM_BYTES:
        return None
    value, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
    computed = table.checksum(key, value)
    if sum(left != right for left, right in zip(computed, checksum, strict=True)) <= 1:
        return key, value
    record, size = bytearray(key + value), len(key)
    for place in range(len(record) if len(record) <= SEARCH_BYTES_MAX else size):
        found = record[place]
        for byte in range(256):
            record[place] = byte
            if table.checksum(bytes(record[:size]), bytes(record[size:])) == checksum:
                return bytes(record[:size]), bytes(record[size:])
        record[place] = found
    return None
